"""How the report's plots look: colours that colour-blind readers tell apart, titles, legends, axes of powers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.patheffects as effects
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .cases import BF16, COMPILED, COPY, DEEP, EAGER, HOUSEHOLDER, LINEAR, OWN, POINTWISE, SLIM, TF32, TRANSPOSED, TUNED
from .runs import Result, machine, software
from .tables import SIZES
from .words import shown

# Okabe and Ito's colours; marker and line tell the same.
STYLE = {
    OWN: ("#0072b2", "o", "-"),
    f"{OWN}, cuda": ("#56b4e9", "P", "--"),
    f"{OWN}, triton": ("#56b4e9", "X", "--"),
    f"{OWN}, torch": ("#56b4e9", "*", ":"),
    TRANSPOSED: ("#56b4e9", "d", "--"),
    LINEAR: ("#d55e00", "s", "-"),
    POINTWISE: ("#a6761d", "H", "-"),
    DEEP: ("#e69f00", "D", "--"),
    SLIM: ("#a6761d", "p", "-"),
    EAGER: ("#cc79a7", "^", "-"),
    COMPILED: ("#009e73", "v", "-"),
    TUNED: ("#00664a", "<", "--"),
    HOUSEHOLDER: ("#7a7a7a", "h", "-."),
    COPY: ("#222222", ".", ":"),
}
OTHER = ("#7a7a7a", "x", ":")
LIGHTER = {TF32: 0.65, BF16: 0.4}  # opacity of a dense layer in a lower precision
QUIET, GRID = "#595959", "#e3e3e3"
WIDTH, DPI = 9.6, 150  # inches, and dots in one: text is as large as a README's where the plot is as wide as that
LEFT, RIGHT, GAP = 0.85, 0.2, 0.8  # inches beside the panels and between them


def style(rival: str) -> dict[str, Any]:
    """Returns the colour, marker and line of a rival, and its opacity."""
    suffix = next((suffix for suffix in LIGHTER if rival.endswith(suffix)), "")
    color, marker, line = STYLE.get(rival.removesuffix(suffix), OTHER)
    return {"color": color, "marker": marker, "linestyle": line, "alpha": LIGHTER.get(suffix, 1.0)}


HALO = [effects.withStroke(linewidth=2.5, foreground="white")]  # of text over lines


def figure_of(
    result: Result,
    title: str,
    below: str,
    panels: int = 1,
    height: float = 3.0,
    head: float = 1.2,
    left: float = LEFT,
    gap: float = GAP,
) -> tuple[Figure, list[Axes]]:
    """Returns a figure with its title, a line below that, where it was measured, and panels side by side.

    height: of the panels. head: above them, with room for a legend. left, gap: beside and between them. All in inches.
    """
    foot = 0.8
    total = head + height + foot
    figure, axes = plt.subplots(1, panels, figsize=(WIDTH, total), squeeze=False)
    wide = (WIDTH - left - RIGHT - (panels - 1) * gap) / panels
    figure.subplots_adjust(
        left=left / WIDTH, right=1 - RIGHT / WIDTH, bottom=foot / total, top=1 - head / total, wspace=gap / wide
    )
    figure.text(0.012, 1 - 0.1 / total, title, fontsize=13, fontweight="bold", va="top")
    figure.text(0.012, 1 - 0.37 / total, below, fontsize=10, color=QUIET, va="top")
    where = "\n".join(textwrap.wrap(f"{machine(result)}; {software(result)}", 140))
    figure.text(0.012, 0.07 / total, where, fontsize=7.5, color=QUIET, va="bottom")
    for one in axes[0]:
        one.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def legend(
    figure: Figure, rivals: Iterable[str], hollow: str = "", more: dict[str, dict[str, Any]] | None = None
) -> None:
    """Draws under the title the rivals' names, more lines with theirs, and what a hollow marker means."""
    handles = [Line2D([], [], label=name, **line) for name, line in (more or {}).items()]
    for rival in rivals:
        look = style(rival)
        handles.append(Line2D([], [], label=shown(rival), markersize=6, **look))
    if hollow:
        look = {"marker": "o", "color": QUIET, "markerfacecolor": "white", "linestyle": ""}
        handles.append(Line2D([], [], label=hollow, **look))
    where = (0.005, 1 - 0.58 / figure.get_size_inches()[1])
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=where, ncols=6, fontsize=9, frameon=False, columnspacing=1.4
    )


def note(axes: Axes, text: str, at: tuple[float, float], by: tuple[float, float], **more: Any) -> None:
    """Writes beside a point, `by` points of print away, readable over lines."""
    axes.annotate(text, at, by, textcoords="offset points", fontsize=8, path_effects=HALO, **more)


def plain(axis: Axis) -> None:
    """Labels an axis of powers with plain numbers."""

    def text(value: float, _: object) -> str:
        return f"{value:,.10g}"

    def between(value: float, _: object) -> str:
        """Names 2 and 5 of a decade, where an axis has no more than two."""
        low, high = axis.get_view_interval()
        return text(value, _) if high < 100 * low and f"{value:e}"[0] in "25" else ""

    axis.set_major_formatter(text)
    axis.set_minor_formatter(between)
    axis.set_tick_params(which="both", labelsize=9)


def scales(axes: Axes, x: str, y: str = "") -> None:
    """Makes logarithmic axes with plain numbers, and names them."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(x, fontsize=10)
    axes.set_ylabel(y, fontsize=10)
    axes.grid(True, which="major", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    plain(axes.xaxis)
    plain(axes.yaxis)


def fixed(points: pd.DataFrame) -> str:
    """Returns the sizes that are the same in all points, and the storage type."""
    one = points.iloc[0]
    texts = [f"{symbol} = {one[name]:,}" for symbol, name in SIZES.items() if points[name].nunique() == 1]
    if points["rows"].nunique() > 1 and points["features"].nunique() > 1:
        texts.insert(0, f"N d = {int((points['rows'] * points['features']).median()):,}")
    return ", ".join([*texts, " and ".join(dict.fromkeys(points["dtype"]))])
