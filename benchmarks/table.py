"""Turns pytest-benchmark's JSON into the tables that end a run, and that the report shows."""

from __future__ import annotations

import math
from typing import Any

from cases import COPY, OWN

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


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Returns a table, its columns padded to one width; an empty string where it has no rows."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    first = "| " + " | ".join(cell.ljust(width) for cell, width in zip(header, widths, strict=True)) + " |"
    return "\n".join([first, "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines])


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
) -> str:
    """Returns a row for each case and direction: HanStack's time, its limits, and each rival's time with the ratio."""
    cases = {
        key: found
        for key, found in _by_case(benchmarks).items()
        if (not groups or key[0] in groups) and (not ways or key[2] in ways) and OWN in found
    }
    names = list(dict.fromkeys(name for found in cases.values() for name in found if name not in (OWN, COPY)))
    rows = []
    for (group, case, way), found in cases.items():
        own = found[OWN]["extra_info"]
        name = "" if group in ("stack", "one layer") else f"{group}: "
        row = {"case": f"{name}{case}", "direction": way}
        row[OWN] = f"{seconds(found[OWN]['stats']['median'])} ({own.get('backend')})"
        row |= limits(own) if with_limits else {}
        rows.append(row | {name: ratio(found[name]) if name in found else "" for name in names})
    header = [column for column in (rows[0] if rows else []) if any(row[column] for row in rows)]
    return markdown(header, [[row[column] for column in header] for row in rows])


def shares(benchmarks: list[Benchmark]) -> str:
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
    header = list(rows[0]) if rows else []
    return markdown(header, [list(row.values()) for row in rows])


def one_thread(benchmarks: list[Benchmark]) -> str:
    """Returns the kernels on one thread against the rate of multiply-adds."""
    rows = []
    for b in benchmarks:
        info = b["extra_info"]
        if info.get("kind") == "share":
            share = f"{info['share_of_ceiling']:.0%} (best {info['best_share']:.0%})"
            rate = f"{info['element_layers_per_s'] / 1e9:.1f} G"
            rows.append([f"{info['case']}, {info['kernel']}", seconds(b["stats"]["median"]), rate, share])
    return markdown(["kernel, one thread", "time", "element-layers/s", "share of the instruction ceiling"], rows)


def memory(benchmarks: list[Benchmark]) -> str:
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
    return markdown(header, rows)


def summary(benchmarks: list[Benchmark]) -> str:
    """Returns all tables of a run."""
    tables = [rivals(benchmarks), shares(benchmarks), one_thread(benchmarks), memory(benchmarks)]
    return "\n\n".join(table for table in tables if table)
