"""The first table of docs/results.md: a row for each figure of both papers, ours, and whether they agree."""

from __future__ import annotations

from collections.abc import Callable

from . import paper_figures as paper
from . import results_rows as functions
from . import results_rows_data as data
from .results_judge import AGAIN, ENOUGH, FAR, INSIDE, TOO_SHORT, Row
from .results_rows import FOUND, HIGH, NEAR_0
from .results_tables import Results, table

COLUMNS = {  # of the summary: the verdicts that each counts
    "2 s.e.": (INSIDE[0],),
    "spread": (INSIDE[1],),
    "better": ("outside, better",),
    "worse": ("outside, worse",),
    "agrees": ("agrees", "equal", "equal but for the last digit"),
    "disagrees": ("disagrees",),
    "too short": (TOO_SHORT,),
    "shown": ("shown",),
    "repeat": (AGAIN,),
    "one run": ("one run",),
    "not run": ("not run",),
}
SECTIONS: tuple[Callable[[Results], list[Row]], ...] = (
    functions.checkerboard,
    functions.noise,
    functions.ablation,
    functions.maps,
    functions.depth,
    functions.sines,
    functions.approximation,
    data.regression,
    data.digits,
    data.robustness,
    data.images,
    data.head,
    data.parameters,
)


def all_rows(results: Results) -> list[Row]:
    """Returns the rows of both papers."""
    return [row for section in SECTIONS for row in section(results)]


def kind(row: Row) -> str:
    """Returns the verdict of a row as the summary counts it, without its reason."""
    return AGAIN if row.verdict.endswith(AGAIN) else row.verdict.partition(":")[0]


def counts(rows: list[Row]) -> list[int]:
    """Returns how many figures rows have: in all, and in each column of the summary."""
    each = [sum(row.figures for row in rows if kind(row) in kinds) for kinds in COLUMNS.values()]
    return [sum(row.figures for row in rows), *each]


def filled(columns: dict[str, list[str]]) -> str:
    """Returns a table of columns, without those that have no cell filled."""
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    return table(list(shown), zip(*shown.values(), strict=True))


def detail(rows: list[Row]) -> str:
    """Returns the rows of a table or plot, and their notes below."""
    columns = {
        "figure": [row.what for row in rows],
        "paper": [row.paper for row in rows],
        "ours": [row.ours for row in rows],
        "verdict": [row.verdict for row in rows],
        "n": [row.n for row in rows],
        "median": [row.median for row in rows],
        "at one rate": [row.single for row in rows],
        "run": [row.run for row in rows],
    }
    notes = [f"- {row.what}: {row.note}\n" for row in rows if row.note]
    return "".join([filled(columns), *(["\n", *notes] if notes else [])])


def verdicts(results: Results) -> str:
    """A row for each table and plot, with the count of each verdict, and a row for each figure in them."""
    rows = all_rows(results)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.where, []).append(row)
    groups_and_all = {**groups, "all": rows}
    figures = zip(*(counts(own) for own in groups_and_all.values()), strict=True)
    cells = [[str(count or "") for count in column] for column in figures]
    summary = {"table or plot": list(groups_and_all), **dict(zip(["figures", *COLUMNS], cells, strict=True))}
    tables = [f"**{where[0].upper()}{where[1:]}**\n\n{detail(own)}" for where, own in groups.items()]
    return f"""## Every figure of both papers

Version 1 has the pictures: [arXiv 2106.04088v1]({paper.V1}).

{filled(summary)}
How a figure is judged. It may be off by half a unit of its last printed digit.

- 'Within 2 s.e.': no farther from our mean than two standard errors, twice our deviation over the root of n.
- 'Within the spread': no farther than twice the larger of both deviations. 'Outside': ours is better or worse.
- Where a seed diverged ours counts as worse.
- A figure that is counted, such as parameters, agrees where it is the same in all digits or in all but the last.
- What is said of a plot agrees or disagrees, by rules of ours:
    - 'Above 99 over a wide range': half of the shapes. 'About 85': a median within 2 of it.
    - '400 parameters can be enough': at the best shape half of the seeds come to {FOUND} %.
    - Over depth: a variability is 0 below a thousandth of the largest, and high above a tenth of it. A loss is near 0
      where the best seed is below {NEAR_0}. Where our depths end before the paper's it is not judged.
    - 'HanNet clearly better': each of its seeds is better than all of FCNet's, with the same settings.
    - 'Han-3 students much as FC-1's': at most twice their error.
    - '20 layers reach the dense network's': no farther below it than twice the larger deviation.
    - 'Too short' to tell: a run of fewer steps than the paper's, of a narrower network, or of less than a fifth of a
      map's shapes.
- 'Shown': a plot without a figure. We show ours; nobody has compared the two.
- 'Repeat': the ablation's HanNet is the network of the checkerboard. Its figures are read from the same JSON, and the
  run is counted there alone.
- The papers take the best learning rate. In 'ours' each seed has the rate that is best for it; 'at one rate' has the
  rate with the best mean of all seeds. Both choices look at the test points.
- HanNet on the board: of {ENOUGH} seeds or more, one that is below the others' mean by more than {FAR} of their
  deviations, and below the median by 1 or more, is named below the table, with the verdict without it.
- With flipped labels the paper's figures are those of one pictured run. {HIGH} %, above which we count seeds, is ours.

{chr(10).join(tables)}"""
