"""Times calls so that they compare: warmed up, in samples that are long enough to read, and in turns."""

from __future__ import annotations

import gc
import time
import timeit
from collections.abc import Callable, Mapping

import torch

Measure = Callable[[Callable[[], object], int], float]


def seconds_of(call: Callable[[], object], times: int) -> float:
    """Returns the mean seconds of a call on the CPU's clock."""
    return timeit.timeit(call, number=times) / times


def seconds_on_gpu(call: Callable[[], object], times: int) -> float:
    """Returns the mean seconds of a call between two events of the current GPU.

    Another call comes before them: while it runs, those that count are launched, and the GPU does not wait for the
    first.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    call()
    start.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3 / times


def timer(
    call: Callable[[], object], measure: Measure = seconds_of, *, turn: float, calls: int = 3, seconds: float = 0.0
) -> Callable[[], float]:
    """Warms a call up and returns what takes a sample of it: the mean seconds of a turn of calls.

    Args:
        call: what is timed.
        measure: `seconds_of` or `seconds_on_gpu`.
        turn: seconds of calls in a sample, at least; one call where that is longer. A short call is then not measured
            on the caches that another one left.
        calls: that warm it up, at least.
        seconds: of calls that warm it up, at least.
    """
    end = time.perf_counter() + seconds
    first = [measure(call, 1) for _ in range(calls)]
    while time.perf_counter() < end:
        first.append(measure(call, 1))
    times = max(1, round(turn / min(first)))
    return lambda: measure(call, times)


def in_turns(samplers: Mapping[str, Callable[[], float]], seconds: float, least: int = 3) -> dict[str, list[float]]:
    """Takes a sample of each in every round: the machine's speed drifts, and a ratio within a round does not.

    Args:
        samplers: what takes a sample, by name.
        seconds: of measuring, about.
        least: rounds, however long they take.
    """
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        rounds = 0
        while rounds < least or time.perf_counter() < end:
            for name, sampler in samplers.items():
                samples[name].append(sampler())
            rounds += 1
    finally:
        gc.enable()
    return samples
