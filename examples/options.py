"""What the examples' options may be: each is refused in one line, before any work."""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch


class RefusedError(ValueError):
    """An option or a file that a program cannot go on with."""


def whole(least: int) -> Callable[[str], int]:
    """Returns the type of options that are whole numbers from `least`."""

    def parsed(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least}, got {text!r}")
        return value

    return parsed


def real(accepts: Callable[[float], bool], wanted: str) -> Callable[[str], float]:
    """Returns the type of options that are numbers, such as `accepts` takes and `wanted` describes."""

    def parsed(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not accepts(value):
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")
        return value

    return parsed


natural = whole(1)
positive = real(lambda value: value > 0, "a number above 0")
amount = real(lambda value: value >= 0, "a number from 0")
fraction = real(lambda value: 0 <= value <= 1, "a part from 0 to 1")


def device(text: str) -> str:
    """Returns the name of a device, 'cpu' or one of the GPUs that torch sees.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    there += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if text not in there:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(there)}, which torch sees here, got {text!r}")
    return text


def run_program(main: Callable[[], None]) -> None:
    """Runs a program. What it refuses, a file that cannot be read or written, Ctrl-C or SIGTERM end it in one line.

    SIGTERM, which `kill` and batch systems send, ends it as Ctrl-C does: with what it has started.
    """
    name = Path(sys.argv[0]).name
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except RefusedError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
