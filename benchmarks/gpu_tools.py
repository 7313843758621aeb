"""Runs the CUDA kernels under NVIDIA's tools where they are installed: compute-sanitizer finds bad accesses and races,
Nsight Compute (ncu) reads what share of the GPU's bandwidth and issue slots the main tiles reach.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

# One for each kind of kernel: loose and tall tiles of one and of several warps, sums of their own, streamed rows.
CHECKED = [(30, 100), (200, 3000), (1000, 300), (1024, 20000), (4096, 2000), (8000, 100), (9000, 10)]
PROFILED = [(256, 131072, "bfloat16"), (1024, 65536, "bfloat16"), (1024, 65536, "float32"), (4096, 8192, "bfloat16")]
METRICS = {
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "device memory, % of peak",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": "L2, % of peak",
    "sm__inst_issued.avg.pct_of_peak_sustained_active": "issue slots, % of peak",
    "gpu__time_duration.sum": "time, us",
}


def sizes(features: int, rows: int, dtype: str, depth: int) -> list[str]:
    """Returns options of han_stack_profile."""
    values = {"features": features, "rows": rows, "depth": depth, "dtype": dtype, "repeats": 1}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def sanitize(program: Path) -> list[str]:
    """Returns the complaints of compute-sanitizer, none where all is well."""
    complaints = []
    for tool in ("memcheck", "racecheck"):
        for features, rows in CHECKED:
            command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", str(program)]
            # A few rows: the tools slow a kernel down a hundred times.
            done = subprocess.run([*command, *sizes(features, rows, "float32", 3)], capture_output=True, text=True)
            print(f"{tool}, d={features}: {'clean' if done.returncode == 0 else 'FAILED'}", flush=True)
            if done.returncode != 0:
                complaints.append(f"{tool}, d={features}, N={rows}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return complaints


def read_csv(output: str) -> list[dict[str, Any]]:
    """Returns the kernels of a report that `ncu --csv` printed, each with its metrics."""
    lines = output.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    kernels: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(lines[start:]):
        kernel = kernels.setdefault(row["ID"], {"kernel": re.sub(r"hanops::cuda::", "", row["Kernel Name"])})
        value = row["Metric Value"].replace(",", "")
        scale = {"ns": 1e-3, "nsecond": 1e-3, "ms": 1e3, "msecond": 1e3}.get(row["Metric Unit"], 1.0)
        kernel[METRICS[row["Metric Name"]]] = float(value) * scale
    return list(kernels.values())


def profile(program: Path) -> list[dict[str, Any]]:
    """Returns what ncu measures of the last launch of each kernel."""
    found: list[dict[str, Any]] = []
    for features, rows, dtype in PROFILED:
        for direction in ("inference", "forward", "backward"):
            options = [*sizes(features, rows, dtype, 16), "--direction", direction]
            command = ["ncu", "--csv", "--clock-control", "none", "--metrics", ",".join(METRICS)]
            names = "regex:^(forward|backward|parameter_gradients)"
            done = subprocess.run(
                [*command, "--kernel-name", names, str(program), *options], capture_output=True, text=True
            )
            kernels = read_csv(done.stdout)
            if not kernels:
                print(f"ncu: nothing measured, status {done.returncode}: {(done.stdout + done.stderr)[-500:]}")
                return found
            last = {kernel["kernel"].split("<")[0]: kernel for kernel in kernels}
            for name, kernel in last.items():
                if name.startswith("forward") and direction == "backward":
                    continue
                found.append({"case": f"N={rows}, d={features}, L=16, {dtype}", "direction": direction, **kernel})
                print(json.dumps(found[-1]), flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", type=Path, help="han_stack_profile")
    parser.add_argument("--results", type=Path, required=True, help="a folder: ncu.json and sanitizer.txt in it")
    parser.add_argument("--rehearse", action="store_true", help="the program is the emulated one: run it once")
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    if given.rehearse:
        return subprocess.run([given.program, *sizes(100, 40, "bfloat16", 2)]).returncode
    complaints = []
    for features, rows, dtype in PROFILED:
        subprocess.run([given.program, *sizes(features, rows, dtype, 16), "--repeats", "20"], check=False)
    if shutil.which("compute-sanitizer"):
        complaints = sanitize(given.program)
        (given.results / "sanitizer.txt").write_text("\n".join(complaints) or "clean\n")
    else:
        print("compute-sanitizer is not installed: nothing checked")
    if shutil.which("ncu"):
        (given.results / "ncu.json").write_text(json.dumps(profile(given.program), indent=1))
    else:
        print("ncu is not installed: nothing profiled")
    print("\n".join(complaints))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
