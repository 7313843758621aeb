"""Rivals run in turns in one process, and pytest-benchmark is handed the recorded times."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hanops.profiling.timing import Measure, in_turns, seconds_of, timer

from .ratios import Samples


def interleave(
    rivals: Mapping[str, Callable[[], object]],
    seconds: float,
    warmup: int = 3,
    least: int = 7,
    turn: float = 2e-3,
    measure: Measure = seconds_of,
) -> Samples:
    """Runs all rivals in turns for about `seconds`, at least `least` rounds; returns each one's times in seconds."""
    timers = {name: timer(rival, measure, turn=turn, calls=warmup) for name, rival in rivals.items()}
    return in_turns(timers, seconds, least)


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
