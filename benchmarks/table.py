"""Turns pytest-benchmark's JSON into the tables that end a run, and that the report shows."""

from __future__ import annotations

import html
import math
import re
from dataclasses import dataclass
from typing import Any

from .cases import COPY, OWN

Benchmark = dict[str, Any]


def seconds(value: float) -> str:
    """Returns a time with its unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if value >= scale:
            return f"{value / scale:.2f} {unit}"
    return f"{value * 1e6:.1f} us"


def size(value: float) -> str:
    """Returns bytes with their unit."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if value >= scale:
            return f"{value / scale:.2f} {unit}"
    return f"{value / 1e3:.2f} kB"


@dataclass(frozen=True)
class Table:
    """Cells in columns of one width; false where it has no rows."""

    header: list[str]
    rows: list[list[str]]

    def __bool__(self) -> bool:
        return bool(self.rows)

    def __str__(self) -> str:
        """The table in Markdown's form, its text as it is: for a terminal."""
        widths = [max(len(row[i]) for row in [self.header, *self.rows]) for i in range(len(self.header))]
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
            for row in [self.header, *self.rows]
        ]
        return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])

    def markdown(self) -> str:
        """Returns the table as Markdown that shows its text."""
        return str(Table([escaped(cell) for cell in self.header], [[escaped(cell) for cell in r] for r in self.rows]))

    def html(self) -> str:
        """Returns the table as HTML that shows its text."""

        def cells(row: list[str], tag: str) -> str:
            return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)

        body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in self.rows)
        return f"<div class=wide><table><tr>{cells(self.header, 'th')}</tr>{body}</table></div>"


def filled(rows: list[dict[str, str]]) -> Table:
    """Returns a table of rows by column, without the columns that are empty in all of them."""
    header = [column for column in (rows[0] if rows else []) if any(row[column] for row in rows)]
    return Table(header, [[row[column] for column in header] for row in rows])


def escaped(text: str) -> str:
    """Returns Markdown of one line that shows a text, whatever a results file has in it."""
    return re.sub(r"([\\`*_\[\]<>|&!#~])", r"\\\1", " ".join(text.split()))


def _by_case(benchmarks: list[Benchmark]) -> dict[tuple[str, str, str], dict[str, Benchmark]]:
    found: dict[tuple[str, str, str], dict[str, Benchmark]] = {}
    for b in benchmarks:
        info = b["extra_info"]
        if info.get("kind") == "group":
            found.setdefault((info["group"], info["case"], info["way"]), {})[info["rival"]] = b
    return found


def ratio(b: Benchmark) -> str:
    """Returns a rival's time with its ratio to HanStack's and the noise of that."""
    info = b["extra_info"]
    text = seconds(b["stats"]["median"])
    if "ratio" in info:
        text += f", {info['ratio']:.2f}x ± {info['ratio_noise']:.2f}"
    return text


def percent(share: float | None) -> str:
    """Returns a share, and nothing where it is not known."""
    return "" if share is None or math.isnan(share) else f"{share:.0%}"


def limits(info: dict[str, Any]) -> dict[str, str]:
    """Returns how near a HanStack's row is to the limits of the machine, by column."""
    copies = f"{info['copies']:.2f} ± {info['copies_noise']:.2f}" if "copies" in info else ""
    return {
        "in copies of x": copies,
        "share of copy": percent(info.get("share_of_copy")),
        "share of issue": percent(info.get("share_of_instructions")),
    }


def rivals(
    benchmarks: list[Benchmark],
    groups: tuple[str, ...] = (),
    ways: tuple[str, ...] = (),
    with_limits: bool = True,
) -> Table:
    """Returns a row for each case and direction: HanStack's time, its limits, and each rival's time with the ratio."""
    cases = {
        key: found
        for key, found in _by_case(benchmarks).items()
        if (not groups or key[0] in groups) and (not ways or key[2] in ways) and OWN in found
    }
    # A copy is a column of its own, or where it was not timed with each case, a rival.
    left = (OWN, COPY) if any("copies" in found[OWN]["extra_info"] for found in cases.values()) else (OWN,)
    names = list(dict.fromkeys(name for found in cases.values() for name in found if name not in left))
    rows = []
    for (group, case, way), found in cases.items():
        own = found[OWN]["extra_info"]
        name = "" if group in ("stack", "one layer") else f"{group}: "
        row = {"case": f"{name}{case}", "direction": way}
        row[OWN] = f"{seconds(found[OWN]['stats']['median'])} ({own.get('backend')})"
        row |= limits(own) if with_limits else {}
        rows.append(row | {name: ratio(found[name]) if name in found else "" for name in names})
    return filled(rows)


def shares(benchmarks: list[Benchmark]) -> Table:
    """Returns HanStack's own rows against the two limits of the machine."""
    rows = []
    for b in benchmarks:
        info = b["extra_info"]
        if info.get("kind") != "group" or "share_of_copy" not in info:
            continue
        row = {
            "case": f"{info['group']}: {info['case']}",
            "direction": info["way"] + info["rival"].removeprefix(OWN),
            "time": seconds(b["stats"]["median"]),
            "GB/s": f"{info['bytes_per_s'] / 1e9:.1f}",
            "element-layers/s": f"{info['element_layers_per_s'] / 1e9:.2f} G",
        }
        rows.append(row | limits(info) | {"nearer limit": info.get("bound_by", "")})
    return filled(rows)


def one_thread(benchmarks: list[Benchmark]) -> Table:
    """Returns the kernels on one thread against the rate of multiply-adds."""
    rows = []
    for b in benchmarks:
        info = b["extra_info"]
        if info.get("kind") == "share":
            share = f"{info['share_of_ceiling']:.0%} (best {info['best_share']:.0%})"
            rate = f"{info['element_layers_per_s'] / 1e9:.1f} G"
            rows.append([f"{info['case']}, {info['kernel']}", seconds(b["stats"]["median"]), rate, share])
    return Table(["kernel, one thread", "time", "element-layers/s", "share of the instruction ceiling"], rows)


def memory(benchmarks: list[Benchmark]) -> Table:
    """Returns what autograd keeps, and the peak of memory, by rival."""
    rows = []
    for (group, case, way), found in _by_case(benchmarks).items():
        own = found.get(OWN, {"extra_info": {}})["extra_info"]
        if way != "both" or "saved_bytes" not in own:
            continue
        for name, b in found.items():
            info = b["extra_info"]
            if "saved_bytes" not in info:
                continue
            peak = size(info["peak_bytes"]) if "peak_bytes" in info else ""
            times = f"{info['saved_bytes'] / own['saved_bytes']:.1f}x"
            least = f"{own['saved_bytes'] / own['saved_least']:.3f}x" if name == OWN else ""
            rows.append([f"{group}: {case}", name, size(info["saved_bytes"]), least, times, peak])
    header = ["case", "module", "saved for backward", "of y and 1 bit", "of HanStack's", "peak of a step"]
    return Table(header, rows)


def summary(benchmarks: list[Benchmark]) -> str:
    """Returns all tables of a run."""
    tables = [rivals(benchmarks), shares(benchmarks), one_thread(benchmarks), memory(benchmarks)]
    return "\n\n".join(str(table) for table in tables if table)
