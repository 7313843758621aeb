"""Ratios of times that were taken in turns, and their noise. Needs no hanops: compare.py runs where there are two."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

Samples = dict[str, list[float]]

NOISY = 0.2  # noise over a ratio, from which tables mark it


def median_ratio(a: list[float], b: list[float]) -> float:
    """Returns the median over rounds of a / b."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def half_interval(values: Sequence[float]) -> float:
    """Returns half of the 95 % interval of the median, from the values' order: no distribution is assumed."""
    ordered = sorted(values)
    outside = max(0, math.floor(len(ordered) / 2 - 1.96 / 2 * math.sqrt(len(ordered))))
    middle = statistics.median(ordered)
    return max(middle - ordered[outside], ordered[-1 - outside] - middle)


def middle_half(values: Sequence[float]) -> float:
    """Returns the distance between the quartiles of at least two values, 0 of fewer."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def ratio_figures(name: str, a: list[float], b: list[float]) -> dict[str, float]:
    """Returns, by `name`, the median over rounds of a / b, half of its 95 % interval, and the rounds' middle half."""
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    interval = {f"{name}_noise": half_interval(ratios), f"{name}_iqr": middle_half(ratios)}
    return {name: statistics.median(ratios), **interval}
