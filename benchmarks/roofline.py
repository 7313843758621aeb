"""The report's roofline: what HanStacks reach of the instructions and of the bytes that the machine allows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import look
from .cases import OWN
from .plots import SWEEPS
from .runs import Result
from .table import digits
from .words import way_shown

COLORS = {"depth": ("#0072b2", "o"), "width": ("#d55e00", "s"), "batch": ("#009e73", "^")}
ROOF = "#222222"
ROOFS = {"copy_bytes_per_s": ("memory", "-"), "cache_bytes_per_s": ("cache", "--")}


def points_of(result: Result, frame: pd.DataFrame) -> pd.DataFrame:
    """Returns HanStack's rows with their operations a second and operations for each byte; none without ceilings."""
    limits = result["machine_info"].get("ceilings")
    own = frame[(frame["rival"] == OWN) & frame["share_of_instructions"].notna() & frame["group"].isin(list(COLORS))]
    own = own[own["way"].isin(["forward", "backward", "both"])].copy()
    if not limits or own.empty:
        return own.iloc[:0]
    own["rate"] = own["share_of_instructions"] * limits["operations_per_s"]
    own["intensity"] = own["rate"] * own["median"] / own["bytes_moved"]
    return own


def _roofs(axes: Axes, limits: dict[str, Any], low: float, high: float) -> None:
    """Draws the roofs of instructions and of the bytes that are known, each with its name along it."""
    peak = limits["operations_per_s"]
    axes.plot([low, high], [peak / 1e9] * 2, color=ROOF, linewidth=1.3)
    look.note(axes, f"instructions, {_rate(peak)}op/s", (high, peak / 1e9), (0, 4), ha="right")
    for name, (what, line) in ROOFS.items():
        if not limits.get(name, 0.0) > 0:  # of an older run, or NaN
            continue
        ridge = min(high, peak / limits[name])
        axes.plot(
            [low, ridge], [limits[name] * x / 1e9 for x in (low, ridge)], color=ROOF, linestyle=line, linewidth=1.3
        )
        at = low * 1.25
        text, along = f"{what}, {_rate(limits[name])}B/s", {"rotation": _angle(axes), "rotation_mode": "anchor"}
        look.note(axes, text, (at, limits[name] * at / 1e9), (-4, 3), **along)


def _rate(value: float) -> str:
    """Returns a number with its prefix, in three digits."""
    scale, prefix = (1e12, "T") if value >= 1e12 else (1e9, "G")
    return f"{value / scale:.{digits(value / scale, 1)}f} {prefix}"


def _angle(axes: Axes) -> float:
    """Returns the angle of a line of slope 1, in degrees."""
    (x0, x1), (y0, y1) = (np.log(axes.get_xlim()), np.log(axes.get_ylim()))
    box = axes.get_window_extent()
    return float(np.degrees(np.arctan2(box.height / (y1 - y0), box.width / (x1 - x0))))


def plot_roofline(result: Result, frame: pd.DataFrame) -> Figure | None:
    """Plots operations a second over operations for each byte moved, under the limits of the machine."""
    points, limits = points_of(result, frame), result["machine_info"].get("ceilings")
    ways = [way for way in ("forward", "backward", "both") if (points["way"] == way).any()]
    if not ways:
        return None
    title = "HanStack under the limits of the machine"
    figure, panels = look.figure_of(
        result, title, " and ".join(dict.fromkeys(points["dtype"])), len(ways), 3.3, head=0.9, gap=0.3
    )
    low, high = points["intensity"].min() / 14, points["intensity"].max() * 5
    floor, peak = points["rate"].min() / 4e9, limits["operations_per_s"] / 1e9
    for axes, way in zip(panels, ways, strict=True):
        look.scales(axes, "operations for each byte moved", "operations, Gop/s" if axes is panels[0] else "")
        axes.set_xscale("log")
        look.plain(axes.xaxis)
        axes.set_xlim(low, high)
        axes.set_ylim(floor, peak * 2.5)
        axes.set_title(way_shown(way), fontsize=10.5, loc="left")
        if axes is not panels[0]:
            axes.tick_params(axis="y", labelleft=False)
        _roofs(axes, limits, low, high)
        for group, rows in points[points["way"] == way].groupby("group", sort=False):
            _label(axes, str(group), rows)
    return figure


def _label(axes: Axes, group: str, rows: pd.DataFrame) -> None:
    """Draws a sweep, and names it with its sizes: upright ones at their lowest point, depth at its end."""
    axis, symbol = SWEEPS[group]
    rows = rows.sort_values(axis)
    xs, ys, sizes = rows["intensity"].to_numpy(), rows["rate"].to_numpy() / 1e9, rows[axis].to_numpy()
    color, marker = COLORS[group]
    axes.plot(xs, ys, color=color, marker=marker, markersize=4.5, linewidth=0.8, alpha=0.9)
    lowest = ys.argmin()
    at, by, how = {
        "depth": ((xs[-1], ys[xs > xs[-1] / 2].min()), (0, -8), ("center", "top")),
        "width": ((xs[lowest], ys[lowest]), (3, -6), ("right", "top")),
    }.get(group, ((xs[lowest], ys[lowest]), (7, 0), ("left", "center")))
    text = f"{group}, {symbol} =\n{sizes[0]:,} to {sizes[-1]:,}"
    look.note(axes, text, at, by, color=color, ha=how[0], va=how[1])
