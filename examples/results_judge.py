"""The rows of the first table of docs/results.md: how a paper's figure is judged by ours."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .experiment import mean_and_spread, spread
from .paper_table import EXPERIMENTS
from .results_tables import Results, averaged, middle, numbers, one_setting, setting

INSIDE = ("within 2 s.e.", "within the spread")
AGAIN = " (repeat)"
TOO_SHORT = "too short"
NO_DATA = "not run: data are not included"
FAR = 5  # deviations of the other seeds from their mean, from which on a seed is named
ENOUGH = 8  # seeds, for one of them to be named


@dataclass(frozen=True)
class Row:
    """A figure of a paper and ours. `where` is its table or plot, `what` the figure in it."""

    where: str
    what: str
    paper: str
    ours: str = ""
    n: str = ""
    median: str = ""
    single: str = ""  # ours at the one rate that is best for all seeds together
    verdict: str = NO_DATA
    run: str = ""  # full, or in what it is short
    note: str = ""  # said below the table
    figures: int = 1  # of the paper, in this row


def printed(figure: str) -> tuple[float, float, float]:
    """Returns a printed figure such as '85.27 ± 0.35', its deviation (else 0), and half a unit of its last digit."""
    value, _, deviation = figure.removeprefix("about ").replace(",", "").partition(" ± ")
    return float(value), float(deviation or 0), 0.5 * 10.0 ** -len(value.partition(".")[2])


def missing(where: str, what: str, figure: str, stem: str) -> Row:
    """Returns the row of an experiment without a result: why there is none."""
    (experiment,) = (e for e in EXPERIMENTS if e.stem == stem)
    if experiment.part is None:
        why = "data are not included" if experiment.needed else f"left to `{experiment.left_to}`"
    else:
        why = f"part {experiment.part}"
    return Row(where, what, figure, verdict=f"not run: {why}")


def judged(figure: str, values: Sequence[float], lower: bool) -> str:
    """Returns where a paper's figure lies from the mean of ours; half a unit of its last digit is its rounding.

    Args:
        figure: as the paper prints it.
        values: ours, of each seed, all finite.
        lower: whether a lower one is better.
    """
    theirs, own, rounding = printed(figure)
    mean, deviation = mean_and_spread(values)
    off = max(0.0, abs(mean - theirs) - rounding * (1 + 1e-9))
    if off <= 2 * deviation / math.sqrt(len(values)):
        return INSIDE[0]
    if off <= 2 * max(deviation, own):
        return INSIDE[1]
    return f"outside, {'better' if (mean < theirs) == lower else 'worse'}"


def measured(
    where: str,
    what: str,
    figure: str,
    values: Sequence[float | None],
    run: str,
    style: str = ".2f",
    lower: bool = False,
    note: str = "",
    single: str = "",
) -> Row:
    """Returns the row of a figure that we have too, of the values of our seeds. A seed that diverged is the worst."""
    own = numbers(values, lower)
    if not all(map(math.isfinite, own)):
        verdict = "outside, worse"
    else:
        verdict = judged(figure, own, lower) if len(own) > 1 else "one run"
    ours = averaged(values, style, lower)
    return Row(where, what, figure, ours, str(len(own)), middle(values, style, lower), single, verdict, run, note)


def swept(
    where: str, what: str, figure: str, found: dict[str, Any], key: str, above: float | None = None, name: bool = False
) -> Row:
    """Returns the row of an accuracy on the board, which a sweep of learning rates measured.

    Args:
        where, what, figure: of the row.
        found: the JSON.
        key: of the accuracies in it.
        above: an accuracy; a note says how many seeds are above it.
        name: whether a note names a seed that is far from all others.
    """
    values = found["best setting of each seed"][key]
    notes = [] if above is None else [f"{sum(v > above for v in values)} of {len(values)} seeds above {above:g}"]
    notes += [outlier(figure, values)] if name else []
    note = "; ".join(filter(None, notes))
    return measured(where, what, figure, values, setting(found), note=note, single=one_setting(found, key))


def outlier(figure: str, values: Sequence[float]) -> str:
    """Returns which seed is far below the others, their mean, and the verdict without it; nothing where none is."""
    if len(values) < ENOUGH:
        return ""
    seed = min(range(len(values)), key=values.__getitem__)
    others = [value for index, value in enumerate(values) if index != seed]
    mean, deviation = mean_and_spread(others)
    if mean - values[seed] <= FAR * deviation or statistics.median(values) - values[seed] < 1:
        return ""
    told = f"seed {seed} {values[seed]:.2f}, without it {spread((mean, deviation))}"
    return f"{told}, {judged(figure, others, lower=False)}"


def claim(
    where: str, what: str, said: str, ours: str, agrees: bool | None, run: str, n: str = "", short: bool = False
) -> Row:
    """Returns the row of what a paper says of a plot; where `agrees` is None, `ours` is why our run cannot tell.

    A run that is too short to bear a judgement shows its figure alone.
    """
    if agrees is None:
        return Row(where, what, said, verdict=f"not run: {ours}", run=run, n=n)
    verdict = TOO_SHORT if short else "agrees" if agrees else "disagrees"
    return Row(where, what, said, ours, n, verdict=verdict, run=run)


def pictured(results: Results, where: str, what: str, stem: str, stale: str = "") -> Row:
    """Returns the row of a plot of which the paper says no figure.

    Args:
        results: all of them.
        where, what: of the row.
        stem: of the JSON and the plot.
        stale: the version of hanops whose plots are drawn another way, such as '0.1'.
    """
    found = results.peek(stem)
    if found is None:
        return missing(where, what, "plot only", stem)
    if results.plot(stem) is None:
        return Row(where, what, "plot only", verdict="not run: the plot is missing", run=setting(found))
    made_by = found.get("versions", {}).get("hanops", "")
    if stale and made_by.startswith(f"{stale}."):
        return Row(where, what, "plot only", verdict=f"not run: a plot of hanops {made_by}", run=setting(found))
    return Row(where, what, "plot only", "plot below", verdict="shown", run=setting(found))


def counted(where: str, what: str, figure: str, ours: float, why: str = "") -> Row:
    """Returns the row of a figure that is counted, not measured: it is the same, or differs, and perhaps why."""
    theirs, _, half = printed(figure)
    digits = len(figure.partition(".")[2])
    shown = f"{ours:,.{digits}f}"
    off = abs(float(shown.replace(",", "")) - theirs)
    if shown == figure:
        verdict = "equal"
    elif digits and off < 3 * half:
        verdict = "equal but for the last digit"
    else:
        verdict = f"disagrees{f': {why}' if why else ''}"
    return Row(where, what, figure, shown, verdict=verdict)
