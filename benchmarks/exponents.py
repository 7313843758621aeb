"""How cost grows: the exponents of time over rows, width and depth, and the bytes of memory for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import pandas as pd

from .cases import OWN

BEYOND = 10  # times the shortest call of a sweep: a call of fewer is bound by its launch
AXES = {"batch": "rows", "width": "features", "depth": "layers"}


@dataclass(frozen=True)
class Fit:
    """A power law y = scale * x ** exponent by least squares of the logarithms, and its points."""

    exponent: float
    scale: float
    points: tuple[tuple[float, float], ...]

    def at(self, x: float) -> float:
        """Returns the law's value."""
        return float(self.scale * x**self.exponent)


def fit(points: Sequence[tuple[float, float]]) -> Fit | None:
    """Fits a power law to at least three points (x, y), None for fewer."""
    if len(points) < 3:
        return None
    xs, ys = [log(x) for x, _ in points], [log(y) for _, y in points]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    across = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    exponent = across / sum((x - mean_x) ** 2 for x in xs)
    return Fit(exponent, float(2.718281828459045 ** (mean_y - exponent * mean_x)), tuple(points))


def time_fits(frame: pd.DataFrame, rival: str = OWN) -> pd.DataFrame:
    """Returns the exponent of a rival's time for each sweep and direction, beyond the launch-bound region."""
    rows = []
    for group, axis in AXES.items():
        swept = frame[(frame["group"] == group) & (frame["rival"] == rival)]
        for way, points in swept.groupby("way"):
            beyond = points[points["median"] >= BEYOND * points["median"].min()]
            law = fit(list(zip(beyond[axis], beyond["median"], strict=True)))
            if law:
                values = sorted(beyond[axis])
                row = {"time over": axis, "direction": way, "exponent": law.exponent}
                rows.append(row | {"from": values[0], "to": values[-1], "points": len(values)})
    return pd.DataFrame(rows)


def memory_fits(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the bytes that each more layer keeps, and takes at the peak, by rival: the ends of the depth sweep."""
    rows = []
    swept = frame[(frame["group"] == "depth") & (frame["way"] == "both") & frame["saved_bytes"].notna()]
    for rival, points in swept.groupby("rival", sort=False):
        first, last = points.loc[points["layers"].idxmin()], points.loc[points["layers"].idxmax()]
        layers = last["layers"] - first["layers"]
        if layers <= 0:
            continue
        each = (last["saved_bytes"] - first["saved_bytes"]) / layers
        bit = first["rows"] * first["features"] / 8
        peak = (last["peak_bytes"] - first["peak_bytes"]) / layers
        rows.append(
            {"module": rival, "saved for each layer": each, "of N d / 8": each / bit, "peak for each layer": peak}
        )
    return pd.DataFrame(rows)
