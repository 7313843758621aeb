"""Turns pytest-benchmark's JSON into the table that `make bench` prints and the README shows."""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

from interleave import median_ratio

Benchmark = dict[str, Any]

BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def _data(benchmark: Benchmark) -> list[float]:
    return list(benchmark["stats"]["data"])


def _rows_of_rivals(benchmarks: list[Benchmark]) -> list[str]:
    rows = [
        "| forward + backward | HanStack | Linear + ReLU, one layer | torch.compile of eager Han | eager Han |",
        "|---|---|---|---|---|",
    ]
    groups: dict[str, dict[str, Benchmark]] = {}
    for benchmark in benchmarks:
        if benchmark["extra_info"].get("kind") == "rival":
            groups.setdefault(benchmark["group"], {})[benchmark["extra_info"]["rival"]] = benchmark
    for group, rivals in groups.items():
        own = _data(rivals["HanStack"])
        cells = [f"{_time(statistics.median(own))} (min {_time(min(own))})"]
        for name in ("Linear + ReLU", "compiled eager Han", "eager Han"):
            if name not in rivals:
                cells.append("")
                continue
            other = _data(rivals[name])
            ratio = median_ratio(other, own)
            cells.append(f"{_time(statistics.median(other))}, {ratio:.2f}x (min {min(other) / min(own):.2f}x)")
        rows.append(f"| {group} | " + " | ".join(cells) + " |")
    return rows if groups else []


def _rows_of_shares(benchmarks: list[Benchmark]) -> list[str]:
    shares = [b for b in benchmarks if b["extra_info"].get("kind") == "share"]
    rows = [
        "| kernel, one thread | time | element-layers/s | GB/s | share of the instruction ceiling |",
        "|---|---|---|---|---|",
    ]
    for benchmark in shares:
        info = benchmark["extra_info"]
        rows.append(
            f"| {benchmark['group']}, {info['kernel']} | {_time(benchmark['stats']['median'])} |"
            f" {info['element_layers_per_s'] / 1e9:.1f} G | {info['bytes_per_s'] / 1e9:.1f} |"
            f" {info['share_of_ceiling']:.0%} (best {info['best_share']:.0%}) |"
        )
    return rows if shares else []


def _rows_of_memory(benchmarks: list[Benchmark]) -> list[str]:
    memory = [b["extra_info"] for b in benchmarks if "saved_bytes" in b["extra_info"]]
    rows = [
        "| saved for backward | HanStack | y + 1 bit per element and layer | stack of Linear + ReLU | eager Han |",
        "|---|---|---|---|---|",
    ]
    for info in memory:
        own, least = info["saved_bytes"], info["y_and_bits"]
        others = [info["saved_bytes_linear_stack"], info["saved_bytes_eager"]]
        cells = [f"{own / 1e6:.2f} MB", f"{own / least:.3f}x", *(f"{b / 1e6:.1f} MB, {b / own:.1f}x" for b in others)]
        rows.append(f"| {info['case']} | " + " | ".join(cells) + " |")
    return rows if memory else []


def _rows_of_storage(benchmarks: list[Benchmark]) -> list[str]:
    storage = {b["extra_info"]["storage"]: b for b in benchmarks if b["extra_info"].get("kind") == "storage"}
    if not storage:
        return []
    low, full = _data(storage["bfloat16"]), _data(storage["float32"])
    ratio = median_ratio(low, full)
    case = storage["bfloat16"]["group"].removeprefix("storage at ").removesuffix(", bfloat16")
    return [
        "| forward + backward | bfloat16 | float32 | bfloat16 / float32 |",
        "|---|---|---|---|",
        f"| {case} | {_time(statistics.median(low))} | {_time(statistics.median(full))} | {ratio:.2f}x |",
    ]


def _rows_of_copies(benchmarks: list[Benchmark]) -> list[str]:
    groups: dict[str, dict[str, Benchmark]] = {}
    for b in benchmarks:
        if b["extra_info"].get("kind") == "copy":
            groups.setdefault(b["group"], {})[b["extra_info"]["rival"]] = b
    rows = ["| one layer | copy of x | kernels | time | / copies that cannot be avoided |", "|---|---|---|---|---|"]
    for group, by_name in groups.items():
        copy = by_name.pop("copy", None)
        for name, b in by_name.items():
            if copy is None:
                continue
            copies = b["extra_info"]["copies"]
            ratio = f"{median_ratio(_data(b), _data(copy)) / copies:.2f}x of {copies:g}"
            cells = [
                group.removeprefix("one layer, "),
                _time(copy["stats"]["median"]),
                name,
                _time(b["stats"]["median"]),
            ]
            rows.append(f"| {' | '.join(cells)} | {ratio} |")
    return rows if groups else []


def _rows_of_steps(benchmarks: list[Benchmark]) -> list[str]:
    steps = [b for b in benchmarks if b["extra_info"].get("kind") == "step"]
    own = {b["group"]: _data(b) for b in steps if b["extra_info"]["rival"] == "HanStack"}
    rows = ["| training step | module | time | / HanStack | peak memory |", "|---|---|---|---|---|"]
    for b in steps:
        info, median = b["extra_info"], b["stats"]["median"]
        ratio = f"{median_ratio(_data(b), own[b['group']]):.2f}x" if b["group"] in own else ""
        peak = "" if info["peak_bytes"] is None else f"{info['peak_bytes'] / 1e6:.0f} MB"
        case = b["group"].removeprefix("training step, ")
        rows.append(f"| {case} | {info['rival']} | {_time(median)} | {ratio} | {peak} |")
    return rows if steps else []


def markdown(benchmarks: list[Benchmark]) -> str:
    """Returns the tables: times of rivals, of storage types, share of the ceiling, saved bytes."""
    kinds = (_rows_of_rivals, _rows_of_storage, _rows_of_shares, _rows_of_memory, _rows_of_copies, _rows_of_steps)
    tables = [rows(benchmarks) for rows in kinds]
    return "\n\n".join("\n".join(rows) for rows in tables if rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path, help="what --benchmark-json wrote")
    parser.add_argument("--readme", type=Path, help="write the tables between the markers of this file")
    arguments = parser.parse_args()
    result = json.loads(arguments.json.read_text())
    machine = result["machine_info"]
    text = markdown(result["benchmarks"])
    about = (
        f"{machine['cpu']['brand_raw']}, {machine['threads']} threads, {machine['instruction_set']},"
        f" torch {machine['torch']}, float32 unless said, {result['datetime'][:10]}. Medians of runs in turns in one"
        " process; ratios are medians of each round's ratio, and the ratio of the minima."
    )
    if arguments.readme is None:
        print(text)
        return
    before, after = re.split(f"{BEGIN}.*{END}", arguments.readme.read_text(), flags=re.DOTALL)
    arguments.readme.write_text(f"{before}{BEGIN}\n{about}\n\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
