"""Timing for comparisons: rivals run in turns in one process, and pytest-benchmark is handed the recorded times."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Samples = dict[str, list[float]]


def seconds_of(call: Callable[[], object], times: int) -> float:
    """Returns a call's mean time on the CPU's clock."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def seconds_on_device(call: Callable[[], object], times: int) -> float:
    """Returns a call's time between two events of the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3 / times


def interleave(
    rivals: Mapping[str, Callable[[], object]],
    seconds: float,
    warmup: int = 3,
    least: int = 7,
    turn: float = 2e-3,
    measure: Callable[[Callable[[], object], int], float] = seconds_of,
) -> Samples:
    """Runs all rivals in turns for about `seconds`, at least `least` rounds; returns each one's times in seconds.

    The machine's speed drifts; a ratio of rivals that took turns does not drift with it. A turn is at least `turn`
    seconds of calls, and its sample their mean: a short call is not measured on the caches that a long rival left.
    """
    times = {}
    for name, rival in rivals.items():
        first = min(measure(rival, 1) for _ in range(warmup))
        times[name] = max(1, round(turn / first))
    samples: Samples = {name: [] for name in rivals}
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        rounds = 0
        while rounds < least or time.perf_counter() < end:
            for name, rival in rivals.items():
                samples[name].append(measure(rival, times[name]))
            rounds += 1
    finally:
        gc.enable()
    return samples


def median_ratio(a: list[float], b: list[float]) -> float:
    """Returns the median over rounds of a / b."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def half_interval(values: Sequence[float]) -> float:
    """Returns half of the 95 % interval of the median, from the values' order: no distribution is assumed."""
    ordered = sorted(values)
    outside = max(0, math.floor(len(ordered) / 2 - 1.96 / 2 * math.sqrt(len(ordered))))
    middle = statistics.median(ordered)
    return max(middle - ordered[outside], ordered[-1 - outside] - middle)


def ratio_interval(a: list[float], b: list[float]) -> tuple[float, float]:
    """Returns the median over rounds of a / b, and half of its 95 % interval."""
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    return statistics.median(ratios), half_interval(ratios)


class Replay:
    """A clock that only moves when a recorded sample is played: how recorded times reach pytest-benchmark."""

    now = 0.0

    @classmethod
    def clock(cls) -> float:
        return cls.now

    @classmethod
    def player(cls, samples: list[float]) -> Callable[[], None]:
        remaining = iter(samples)

        def play() -> None:
            cls.now += next(remaining)

        return play
