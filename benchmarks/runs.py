"""A results file as the report reads it: its rows as a frame, and in words where and with what it was measured."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from .results_file import PART
from .results_file import read as read_results

Result = dict[str, Any]


def read(file: Path) -> tuple[Result, pd.DataFrame]:
    """Returns a results file and its rows of groups as a frame: extra_info, and times in seconds."""
    result = read_results(file)
    rows = []
    for b in result["benchmarks"]:
        stats = b["stats"]
        if b["extra_info"].get("kind") == "group":
            quartiles = {name: stats.get(name, stats["median"]) for name in ("q1", "q3")}
            rows.append(b["extra_info"] | {"median": stats["median"], "iqr": stats["iqr"]} | quartiles)
    frame = pd.DataFrame(rows)
    if not frame.empty:
        for column in ("peak_bytes", "saved_bytes", "share_of_copy", "share_of_instructions"):
            if column not in frame:
                frame[column] = float("nan")
        frame["element_layers"] = frame["rows"] * frame["features"] * frame["layers"]
    return result, frame


def gpu(machine: dict[str, Any]) -> str:
    """Returns a GPU's clocks while it was measured, its limits and what drives it, as far as they are known."""
    measured = {**machine, **machine.get("clocks", {})}
    clock = {name: f"{measured[name]:.0f}" for name in ("sm_mhz", "most_sm_mhz", "memory_mhz") if name in measured}
    parts = [
        f"{' of at most '.join(v for k, v in clock.items() if k != 'memory_mhz')} MHz" if "sm_mhz" in clock else "",
        f"memory {clock['memory_mhz']} MHz" if "memory_mhz" in clock else "",
        f"{measured['power_w']:.0f} W" if "power_w" in measured else "",
        f"cap {machine['power_cap_w']:.0f} W" if "power_cap_w" in machine else "",
        *(f"{name} {machine[key]}" for key, name in (("driver", "driver"), ("cuda", "CUDA")) if machine.get(key)),
    ]
    return ", ".join(part for part in parts if part)


def machine(result: Result) -> str:
    """Returns what was measured: a GPU by its name, a processor with the threads that were used."""
    found = result["machine_info"]
    if found.get("gpu"):
        return str(found["gpu"])
    return f"{found['cpu']['brand_raw']}, {found['threads']} threads"


def software(result: Result) -> str:
    """Returns the versions and the date of a run."""
    found, commit = result["machine_info"], result["commit_info"]
    version = f"hanops {found['hanops']} at {commit['id'][:9]}{', changed' if commit.get('dirty') else ''}"
    triton = f", Triton {found['triton']}" if found.get("gpu") and found.get("triton") else ""
    return f"{version}; torch {found['torch']}{triton}; {result['datetime'][:10]}"


def is_unfinished(file: Path) -> bool:
    """Tells whether a run was cut short."""
    return file.name.endswith(PART)


def shown_files(files: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Returns the results files of a folder that are shown, and for each other a line that says why it is not.

    `make bench` leaves its last run as latest.json: where another file has the same machine, it is no machine more.
    """
    found: dict[Path, str] = {}
    said = []
    for file in files:
        try:
            found[file] = machine(read_results(file))
        except ValueError as error:  # of another program, say
            said.append(f"left out: {error}")
    for file in [file for file in found if file.stem.startswith("latest")]:
        same = [other.name for other, where in found.items() if where == found[file] and other != file]
        if same:
            said.append(f"left out: {file} is of the machine of {same[0]}")
            del found[file]
    return list(found), said
