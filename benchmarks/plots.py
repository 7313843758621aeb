"""The report's plots of lines: time over width, depth and batch, memory over depth."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import look
from .cases import COPY, DEEP, LINEAR, OWN
from .line_ends import Sweep
from .ratios import NOISY
from .runs import Result
from .words import in_order, way_shown

SWEEPS = {"width": ("features", "d"), "depth": ("layers", "L"), "batch": ("rows", "N")}
NAMES = {"features": "features d", "layers": "layers L", "rows": "rows N"}
HOLLOW = f"noise over {100 * NOISY:.0f} %"
MEMORY = {"peak_bytes": "peak of a forward + backward", "saved_bytes": "kept for the backward"}


def sweep_of(result: Result, frame: pd.DataFrame, group: str) -> Sweep:
    """Returns the rows of a sweep, those in CUDA graphs aside."""
    rows = frame[(frame["group"] == group) & ~frame["way"].str.contains("graph")]
    return Sweep(result, rows, group, *SWEEPS[group])


def is_noisy(points: pd.DataFrame) -> bool:
    """Tells whether the middle half of any point's times is over NOISY of their median."""
    return bool((points["iqr"] > NOISY * points["median"]).any())


def draw(axes: Axes, sweep: Sweep, points: pd.DataFrame, column: str, scale: float) -> None:
    """Draws a line for each rival, and where one ends before the sweep does, why."""
    for rival in in_order(set(points["rival"])):
        rows = points[points["rival"] == rival].sort_values(sweep.axis)
        xs, ys, style = rows[sweep.axis].to_numpy(), rows[column].to_numpy() * scale, look.style(rival)
        axes.plot(xs, ys, markersize=5.5, linewidth=2.2 if rival == OWN else 1.5, **style)
        if column == "median":
            axes.fill_between(xs, rows["q1"] * scale, rows["q3"] * scale, color=style["color"], alpha=0.15, linewidth=0)
            noisy = (rows["iqr"] > NOISY * rows["median"]).to_numpy()
            hollow = {"linestyle": "", "markerfacecolor": "white", "color": style["color"], "marker": style["marker"]}
            axes.plot(xs[noisy], ys[noisy], markersize=5.5, **hollow)
        if why := sweep.end(rival, [int(x) for x in xs]):
            text = why.replace(" the ", " the\n").replace("suite", "\nsuite") if len(why) > 14 else why
            others = points.loc[(points[sweep.axis] == xs[-1]) & (points[column] * scale > ys[-1]), column]
            by, place = ((0, 7), ("center", "bottom")) if others.empty else ((4, -5), ("left", "top"))
            look.note(axes, text, (xs[-1], ys[-1]), by, color=look.QUIET, ha=place[0], va=place[1])
    if any(sweep.end(rival, list(rows[sweep.axis])) for rival, rows in points.groupby("rival")):
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (2.2 if axes.get_yscale() == "log" else 1.2))


def plot_sweep(result: Result, frame: pd.DataFrame, group: str) -> Figure | None:
    """Plots times over the size that a group sweeps."""
    sweep = sweep_of(result, frame, group)
    ways = [way for way in ("forward", "both") if (sweep.frame["way"] == way).any()]
    if not ways or not sweep.sizes:
        return None
    points = sweep.frame[sweep.frame["way"].isin(ways) & (sweep.frame["rival"] != COPY)]
    title = f"Time against {group}: L Han layers and one Linear + ReLU"
    figure, all_axes = look.figure_of(result, title, look.fixed(points), len(ways))
    for axes, way in zip(all_axes, ways, strict=True):
        look.scales(axes, NAMES[sweep.axis], "time, ms" if axes is all_axes[0] else "")
        axes.set_title({"forward": "forward, no gradients"}.get(way, way_shown(way)), fontsize=10.5, loc="left")
        draw(axes, sweep, sweep.frame[sweep.frame["way"] == way], "median", 1e3)
    look.legend(figure, in_order(set(sweep.frame["rival"])), HOLLOW if is_noisy(points) else "")
    return figure


def memory_sweep(result: Result, frame: pd.DataFrame) -> Sweep:
    """Returns the rows of the sweep over depth that know their memory."""
    sweep = sweep_of(result, frame[frame["way"] == "both"], "depth")
    rows = sweep.frame
    return Sweep(result, rows[rows["saved_bytes"].notna()], sweep.group, sweep.axis, sweep.symbol)


def plot_memory(result: Result, frame: pd.DataFrame) -> Figure | None:
    """Plots the peak of memory of a training step, and what autograd keeps, over depth."""
    sweep = memory_sweep(result, frame)
    if not sweep.sizes:
        return None
    title = "Memory against depth: L Han layers and L × (Linear + ReLU)"
    figure, all_axes = look.figure_of(result, title, look.fixed(sweep.frame), 2)
    for axes, (column, name) in zip(all_axes, MEMORY.items(), strict=True):
        look.scales(axes, NAMES[sweep.axis], "memory, MB" if axes is all_axes[0] else "")
        axes.set_title(name, fontsize=10.5, loc="left")
        draw(axes, sweep, sweep.frame[sweep.frame[column] > 0], column, 1e-6)
    look.legend(figure, in_order(set(sweep.frame["rival"])))
    return figure


def plot_overview(result: Result, frame: pd.DataFrame) -> Figure | None:
    """Plots the two claims side by side: time over width, memory over depth."""
    width, memory = sweep_of(result, frame[frame["way"] == "both"], "width"), memory_sweep(result, frame)
    if not width.sizes or not memory.sizes:
        return None
    title = "L Han layers against one Linear + ReLU, and against L of them"
    figure, (left, right) = look.figure_of(result, title, "forward + backward; medians", 2)
    for axes, sweep, column, scale, name in (
        (left, width, "median", 1e3, "time, ms"),
        (right, memory, "saved_bytes", 1e-6, "kept for the backward, MB"),
    ):
        look.scales(axes, NAMES[sweep.axis], name)
        what = "time" if sweep is width else "memory"
        axes.set_title(f"{what}: {look.fixed(sweep.frame)}", fontsize=10.5, loc="left")
        rows = sweep.frame[sweep.frame["rival"].isin((OWN, LINEAR, DEEP))]
        draw(axes, sweep, rows, column, scale)
    look.legend(figure, (OWN, LINEAR, DEEP), HOLLOW if is_noisy(width.frame) else "")
    return figure


# ---- what the captions say


def faster(sweep: Sweep) -> list[str]:
    """Returns in which directions, and at which sizes, HanStack is faster than one dense layer."""
    said: dict[str, list[str]] = {}
    for way in ("forward", "both"):
        times = sweep.frame[sweep.frame["way"] == way].set_index([sweep.axis, "rival"])["median"]
        sizes = [s for s in sweep.sizes if (s, OWN) in times.index and (s, LINEAR) in times.index]
        slower = [size for size in sizes if times[size, OWN] > times[size, LINEAR]]
        if sizes:
            measured = f"{sweep.symbol} from {sizes[0]:,} to {sizes[-1]:,}"
            but = f" but {_listed(slower)}" if slower else ""
            where = f"at none of {measured}" if len(slower) == len(sizes) else f"at all {measured}{but}"
            said.setdefault(where, []).append(way_shown(way))
    places = "; ".join(f"{', and '.join(ways)}, {where}" for where, ways in said.items())
    return [f"HanStack is faster than one Linear + ReLU: {places}."] if said else []


def _listed(sizes: Sequence[int]) -> str:
    texts = [f"{size:,}" for size in sizes]
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def close(figure: Figure) -> None:
    """Frees a figure."""
    plt.close(figure)
