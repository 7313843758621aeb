"""A results file's section of the report: a part with its plot and tables for each group, for memory and limits."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from . import dots, exponents, look, plots, roofline, tables
from .cases import groups_of
from .line_ends import Sweep
from .page import Part, Plot, Section
from .runs import Result, gpu, is_unfinished, machine, read, software
from .table import Column, Table, size
from .words import GROUPS, layered, way_shown

BAND = f"Medians; the band is the middle half of the calls, and a hollow marker has {plots.HOLLOW}."


def growth_part(frame: pd.DataFrame) -> Part:
    """Returns how cost grows: the exponents of time, and what each more layer keeps."""
    times, memory = exponents.time_fits(frame), exponents.memory_fits(frame)
    dtype = frame.loc[frame["group"].isin(list(exponents.AXES)), "dtype"]
    dtypes = " and ".join(dict.fromkeys(dtype))
    time_rows = [
        [
            r["time over"],
            way_shown(r["direction"]),
            f"{r['exponent']:.2f}",
            f"{r['from']:,}",
            f"{r['to']:,}",
            str(r["points"]),
        ]
        for r in times.to_dict("records")
    ]
    time_columns = [Column("time over", is_text=True), Column("direction", is_text=True)]
    time_columns += [Column(name) for name in ("exponent", "from", "to", "points")]
    memory_rows = [
        [
            layered(r["module"]),
            *("" if pd.isna(r[name]) else size(r[name]) for name in ("saved for each layer", "peak for each layer")),
            f"{r['of N d / 8']:.2f}",
        ]
        for r in memory.to_dict("records")
    ]
    memory_columns = [Column("module", is_text=True), *map(Column, ("kept", "peak", "kept, of one bit an element"))]
    beyond = f"HanStack's time as a power of a size, from {exponents.BEYOND} times the shortest call"
    found = [(beyond, Table(time_columns, time_rows, dtypes))]
    found.append(("Memory of each more layer", Table(memory_columns, memory_rows, dtypes)))
    return Part("Growth", "How time and memory grow. An exponent of 1 is linear.", None, [f for f in found if f[1]])


def sweep_caption(sweep: Sweep) -> str:
    """Returns what is below a plot of times over a size."""
    return " ".join([BAND, *plots.faster(sweep), *sweep.ends(), *sweep.missing(), *sweep.last()])


def limits_caption(result: Result) -> str:
    """Returns what is below the roofline."""
    has_cache = result["machine_info"]["ceilings"].get("cache_bytes_per_s", 0.0) > 0
    cache = "the cache's is the fastest of several small copies" if has_cache else "this run did not measure a cache's"
    return (
        "Each point is a HanStack of a sweep. An operation is the work of one instruction on one element. The roofs "
        f"are measured in the same run: that of memory by a large copy, {cache}, that of instructions by independent "
        "multiply-adds. Points above the roof of memory are tensors that stay in a cache."
    )


def picture(figure: Figure) -> bytes:
    """Returns a figure as PNG with 128 colours: a third of the bytes, with no difference to be seen."""
    drawn, found = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=look.DPI)
    Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(found, "PNG", optimize=True)
    return found.getvalue()


class Drawer:
    """Draws a results file's plots.

    file: the results file, whose name those of the pictures begin with.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.stem = file, file.stem
        self.result, self.frame = read(file)

    @property
    def is_gpu(self) -> bool:
        """Whether a GPU was measured."""
        return "gpu" in self.result["machine_info"]

    def plot(self, name: str, figure: Figure | None, alt: str, caption: str) -> Plot | None:
        """Returns a figure as a picture, None where there is none."""
        if figure is None:
            return None
        image = picture(figure)
        plots.close(figure)
        return Plot(f"{self.stem}-{name}.png", image, f"{alt}, {machine(self.result)}", caption)

    def of_group(self, group: str) -> Plot | None:
        """Returns the plot of a group, None where it has none."""
        result, frame = self.result, self.frame
        if group in plots.SWEEPS:
            sweep = plots.sweep_of(result, frame, group)
            caption = sweep_caption(sweep) if sweep.sizes else ""
            return self.plot(group, plots.plot_sweep(result, frame, group), f"time against {group}", caption)
        if group == "small networks":
            figure = dots.plot_small(result, frame)
            caption = "Medians. The line down a panel is HanStack's best."
            return self.plot("small-networks", figure, "times of small networks", caption)
        if group == "one layer":
            caption = "The black lines are the bytes that no kernel can do without; the grey ones are 95 % intervals."
            return self.plot("copies", dots.plot_copies(result, frame), "one layer against a copy", caption)
        return None

    def parts(self) -> list[Part]:
        """Returns a part for each group that was measured, and those of memory, limits and exponents."""
        benchmarks, found = self.result["benchmarks"], []
        for group in tables.groups_in(benchmarks):
            title, text = GROUPS.get(group, (group, ""))
            rows = self.frame[self.frame["group"] == group]
            if group not in plots.SWEEPS:
                text = " ".join([text, *Sweep(self.result, rows, group, "rows", "N").missing()])
            table = tables.times(tables.lines_of(benchmarks, group))
            found.append(Part(title, text, self.of_group(group), [("", table)]))
        return [
            *found,
            *(part for part in (self.memory(), self.limits(), growth_part(self.frame)) if part.plot or part.tables),
        ]

    def memory(self) -> Part:
        """Returns what autograd keeps, and the peaks."""
        benchmarks, sweep = self.result["benchmarks"], plots.memory_sweep(self.result, self.frame)
        caption = " ".join(["The peak is of a forward and backward beyond what is there before it.", *sweep.ends()])
        plot = self.plot("memory", plots.plot_memory(self.result, self.frame), "memory against depth", caption)
        found = [(tables.heading(group), tables.memory(benchmarks, group)) for group in tables.groups_in(benchmarks)]
        text = "What autograd keeps for the backward, parameters aside. A HanStack keeps its output y and one bit for "
        text += "each element and layer: 'of y and 1 bit' is what it keeps, over that."
        return Part("Memory", text, plot, [(title, table) for title, table in found if table])

    def limits(self) -> Part:
        """Returns the roofline, and the CPU's kernels on one thread."""
        figure = roofline.plot_roofline(self.result, self.frame)
        caption = limits_caption(self.result) if figure else ""
        plot = self.plot("roofline", figure, "roofline", caption)
        table = tables.one_thread(self.result["benchmarks"])
        text = "What HanStacks reach of the bytes and of the instructions that the machine allows."
        return Part("Limits of the machine", text, plot, [("Kernels on one thread", table)] if table else [])

    def section(self) -> Section | None:
        """Returns the file's part of the page, None for a file without groups."""
        if self.frame.empty:
            return None
        facts = gpu(self.result["machine_info"]) if self.is_gpu else ""
        cut = "This run was cut short: what it did not come to is missing." if is_unfinished(self.file) else ""
        title = f"{machine(self.result)}{', unfinished' if cut else ''}"
        plan = groups_of("cuda" if self.is_gpu else "cpu", self.result["machine_info"].get("suite", "quick"), None)
        there = tables.groups_in(self.result["benchmarks"])
        left = [tables.heading(group.name) for group in plan if group.name not in there]
        missing = f"Not in this run: {', '.join(left)}." if left else ""
        return Section(title, list(filter(None, (cut, facts, software(self.result), missing))), self.parts())
