"""What the README and docs/performance.md show of the report: one plot, and a few times of a CPU and of GPUs."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hanops.profiling.files import write_text

from . import plots, tables
from .cases import DEEP, LINEAR, OTHERS
from .page import Plot
from .runs import Result, machine, software
from .sections import Drawer
from .table import Table, escaped

BRIEF_RIVALS = (OTHERS[1], LINEAR, DEEP)  # on a GPU; the page has up to sixteen
ALL = slice(None)
# Of a CPU, and of a GPU: which cases of which group, in which directions.
ON_CPU = {"stack": (ALL, ("both",)), "small networks": (ALL, ("both",))}
ON_GPU = {
    "one layer": (slice(2), ("forward, graph", "both, graph")),
    "kernels": (ALL, ("forward", "backward")),
    "small networks": (ALL, ("both, graph",)),
    "depth": (slice(2, None), ("both",)),
}


def brief_table(result: Result, is_gpu: bool) -> Table:
    """Returns a few rows of a results file."""
    lines = []
    for group, (chosen, ways) in (ON_GPU if is_gpu else ON_CPU).items():
        found = tables.lines_of(result["benchmarks"], group, ways)
        cases = list(dict.fromkeys(line.case for line in found))[chosen]
        lines += [line for case in cases for line in found if line.case == case]
    return tables.times(lines, BRIEF_RIVALS if is_gpu else (), tables.LIMITS[:1], is_brief=True)


def overview_of(cpu: Drawer) -> Plot | None:
    """Returns the plot of both documents."""
    return cpu.plot("overview", plots.plot_overview(cpu.result, cpu.frame), "time and memory", "")


def _image(plot: Plot | None, folder: str) -> str:
    return f"![{escaped(plot.name)}]({folder}/{plot.file})" if plot else ""


def short_part(cpu: Drawer, overview: Plot | None, folder: str) -> str:
    """Returns the README's part: a plot, and where it was measured.

    folder: where the report is, from the document.
    """
    where = escaped(f"{machine(cpu.result)}; {software(cpu.result)}.")
    return "\n\n".join(filter(None, [_image(overview, folder), where]))


def long_part(cpu: Drawer, gpus: Iterable[Drawer], overview: Plot | None, folder: str) -> str:
    """Returns the part of docs/performance.md: the plot, and a few rows of the CPU and of each GPU."""
    shown = [(cpu, False), *((gpu, True) for gpu in gpus)]
    text = (
        "HanStack has a time, each of the others a ratio: its time over HanStack's, ± half of the 95 % interval. "
        "**Above 1, HanStack is faster.**"
    )
    on_gpu = (
        "'Graph' is a CUDA graph, in which no launch is waited for. 'Copies of x' is HanStack's time over that of a "
        "copy of its input. "
    )
    link = f"[All plots and tables]({folder}/README.md), and what their words mean."
    parts = [_image(overview, folder), text]
    for drawer, is_gpu in shown:
        table = brief_table(drawer.result, is_gpu)
        parts.append(escaped(f"{machine(drawer.result)}; {software(drawer.result)}; {table.about}."))
        parts.append(replace(table, about="").markdown())
    parts.append(f"{on_gpu if len(shown) > 1 else ''}{link}")
    return "\n\n".join(part if "|" in part else textwrap.fill(part, 120) for part in parts if part)


def write_part(document: Path, part: str, name: str = "benchmark") -> None:
    """Replaces the part of a document between the markers of a name.

    Raises:
        ValueError: where it has none.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    found = re.split(f"{begin}.*{end}", document.read_text(), flags=re.DOTALL)
    if len(found) != 2:
        raise ValueError(f"{document} must have the lines {begin} and {end} once, got {len(found) - 1} of them")
    write_text(document, f"{found[0]}{begin}\n{part}\n{end}{found[1]}")
