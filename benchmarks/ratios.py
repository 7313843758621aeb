"""Ratios of times that were taken in turns, and their noise. Needs no hanops: compare.py runs where there are two."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

Samples = dict[str, list[float]]


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
