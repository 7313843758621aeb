"""The report's plots of single cases as dots on lines: small networks, and one layer against a copy."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import look
from .cases import COPY, DTYPES, GRAPH, OWN, Case
from .runs import Result
from .words import in_order, shown, way_shown

LINE = 0.25  # inches of a line
HOLLOW = "a call as it is; filled: in a CUDA graph"


def _dot(axes: Axes, x: float, y: float, rival: str, is_hollow: bool) -> None:
    style = look.style(rival) | {"linestyle": ""} | ({"markerfacecolor": "white"} if is_hollow else {})
    axes.plot([x], [y], markersize=6.5, zorder=3, **style)


def _lines(axes: Axes, names: Sequence[str], is_first: bool) -> None:
    axes.set_yticks(range(len(names)), names if is_first else [""] * len(names), fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, color=look.GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def _of_two_lines(case: str, dtype: str) -> str:
    """Returns a case's sizes, and its storage type below them where it names one."""
    return case.replace("=", " = ").replace(f", {dtype}", f"\n{dtype}")


def plot_small(result: Result, frame: pd.DataFrame) -> Figure | None:
    """Plots forward + backward of the paper's small networks: a line for each rival, a panel for each case."""
    rows = frame[(frame["group"] == "small networks") & frame["way"].str.startswith("both") & (frame["rival"] != COPY)]
    if rows.empty:
        return None
    cases, names = list(dict.fromkeys(rows["case"])), in_order(set(rows["rival"]))
    has_graphs = bool(rows["way"].str.endswith(GRAPH).any())
    below = f"forward + backward; {' and '.join(dict.fromkeys(rows['dtype']))}"
    title = "Small networks: L Han layers against one Linear + ReLU and others"
    head, left, gap = 1.35 if has_graphs else 1.0, 2.15, 0.25
    figure, panels = look.figure_of(result, title, below, len(cases), 0.3 + LINE * len(names), head, left, gap)
    limits = rows["median"].min() * 1e3 / 1.6, rows["median"].max() * 1e3 * 1.6
    for axes, case in zip(panels, cases, strict=True):
        own = rows[rows["case"] == case]
        for _, row in own.iterrows():
            is_hollow = has_graphs and not row["way"].endswith(GRAPH)
            _dot(axes, row["median"] * 1e3, names.index(row["rival"]), row["rival"], is_hollow)
        best = own[(own["rival"] == OWN)]["median"].min() * 1e3
        axes.axvline(best, color=look.style(OWN)["color"], linewidth=0.8, alpha=0.6)
        look.scales(axes, "time, ms")
        axes.set_yscale("linear")
        axes.set_xscale("log")
        look.plain(axes.xaxis)
        _lines(axes, [shown(name) for name in names], axes is panels[0])
        axes.set_xlim(*limits)
        axes.set_title(_of_two_lines(case, own["dtype"].iloc[0]), fontsize=9.5, loc="left")
    look.legend(figure, [], HOLLOW if has_graphs else "")
    return figure


def plot_copies(result: Result, frame: pd.DataFrame) -> Figure | None:
    """Plots the time of one layer in copies of its input, and what its bytes alone would take."""
    if "copies" not in frame:
        return None
    rows = frame[(frame["group"] == "one layer") & frame["copies"].notna()]
    ways = [way for way in ("forward", "both") if rows["way"].str.startswith(way).any()]
    if not ways:
        return None
    places = sorted(
        set(zip(rows["dtype"], rows["features"], rows["rows"], strict=True)), key=lambda p: (p[0][0] == "b", p)
    )
    has_graphs = bool(rows["way"].str.endswith(GRAPH).any())
    title = "One Han layer against a copy of its input"
    sizes = f"L = 1, N d = {int((rows['rows'] * rows['features']).median()):,}, dtype at the lines"
    figure, panels = look.figure_of(result, title, sizes, len(ways), 0.3 + 1.3 * LINE * len(places), left=1.6, gap=0.3)
    names = in_order(set(rows["rival"]))
    apart = {name: 0.36 * ((i + 0.5) / len(names) - 0.5) for i, name in enumerate(names)}
    for axes, way in zip(panels, ways, strict=True):
        for _, row in rows[rows["way"].str.startswith(way)].iterrows():
            place = places.index((row["dtype"], row["features"], row["rows"])) + apart[row["rival"]]
            _dot(axes, row["copies"], place, row["rival"], has_graphs and not row["way"].endswith(GRAPH))
            interval = [max(0.0, row["copies"] - row["copies_noise"]), row["copies"] + row["copies_noise"]]
            axes.plot(interval, [place, place], color=look.QUIET, linewidth=1)
        for place, (dtype, features, count) in enumerate(places):
            own = rows["dtype"].eq(dtype) & rows["features"].eq(features) & rows["way"].str.startswith(way)
            copy = Case(int(count), int(features), 1, DTYPES[dtype]).bytes_moved("forward")
            least = rows[own]["bytes_moved"].iloc[0] / copy
            axes.plot([least, least], [place - 0.4, place + 0.4], color="#222222", linewidth=2)
        axes.set_xlim(0, 1.02 * axes.get_xlim()[1])
        axes.set_xlabel("time over that of a copy of x", fontsize=10)
        axes.tick_params(labelsize=9)
        _lines(axes, [f"d = {features:,}, {dtype}" for dtype, features, _ in places], axes is panels[0])
        axes.set_title(way_shown(way), fontsize=10.5, loc="left")
    bytes_line = {"color": "#222222", "linewidth": 2}
    look.legend(figure, names, HOLLOW if has_graphs else "", {"bytes alone": bytes_line})
    return figure
