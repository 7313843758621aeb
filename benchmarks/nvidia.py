"""Reads what NVIDIA's tools print: compute-sanitizer's verdict, and Nsight Compute's (ncu) metrics of a kernel."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable

from .parts import Reading

METRICS = {
    "gpu__time_duration.sum": "time_ns",
    "dram__bytes_read.sum": "dram_bytes_read",
    "dram__bytes_write.sum": "dram_bytes_written",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram_percent",
    "l1tex__t_sector_hit_rate.pct": "l1_hit_percent",
    "lts__t_sector_hit_rate.pct": "l2_hit_percent",
    "sm__inst_issued.avg.pct_of_peak_sustained_active": "issue_percent",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy_percent",
    "smsp__inst_executed.sum": "instructions",
    "launch__registers_per_thread": "registers",
}
# Of the warps resident at each issue, how many wait for what; "selected" issues.
STALLS = (
    "barrier", "branch_resolving", "dispatch_stall", "drain", "imc_miss", "lg_throttle", "long_scoreboard",
    "math_pipe_throttle", "membar", "mio_throttle", "no_instruction", "not_selected", "short_scoreboard", "wait",
)  # fmt: skip
STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio")


def metric_names() -> list[str]:
    return [*METRICS, *(f"smsp__average_warps_issue_stalled_{name}_per_issue_active.ratio" for name in STALLS)]


def kernels_of(output: str) -> list[dict[str, float | str | dict[str, float]]]:
    """Returns the kernels of a report that `ncu --csv --print-units base` printed, each with its metrics."""
    lines = output.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    kernels: dict[str, dict[str, float | str | dict[str, float]]] = {}
    for row in csv.DictReader(lines[start:]):
        name, value = row.get("Metric Name"), (row.get("Metric Value") or "").replace(",", "")
        if not name or not re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", value):
            continue  # a line of the program's own, or a metric that this GPU does not have
        kernel = kernels.setdefault(
            row["ID"], {"kernel": row["Kernel Name"].replace("hanops::cuda::", ""), "stalls": {}}
        )
        stall = STALL.fullmatch(name)
        if stall:
            stalls = kernel["stalls"]
            assert isinstance(stalls, dict)
            stalls[stall[1]] = float(value)
        elif name in METRICS:
            kernel[METRICS[name]] = float(value)
    return list(kernels.values())


def of_three(stalls: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in sorted(stalls, key=lambda s: -s[1])[:4])


def read_ncu(output: str) -> Reading:
    kernels = kernels_of(output)
    lines = []
    for kernel in kernels:
        known = {name: value for name, value in kernel.items() if isinstance(value, float)}
        moved = (known.get("dram_bytes_read", 0.0) + known.get("dram_bytes_written", 0.0)) * 1e-6
        shares = [f"{name.removesuffix('_percent')} {known[name]:.1f} %" for name in known if name.endswith("_percent")]
        stalls = kernel["stalls"]
        assert isinstance(stalls, dict)
        name = str(kernel["kernel"]).split("(")[0][:60]
        lines.append(f"{name}: {known.get('time_ns', 0.0) * 1e-3:.1f} us, {moved:.1f} MB of device memory")
        lines.append(
            f"  {', '.join(shares)}, {known.get('registers', 0):.0f} registers; waits: {of_three(stalls.items())}"
        )
    if not kernels:
        complaints = [line for line in output.splitlines() if "==ERROR==" in line or "No kernels" in line]
        return Reading(complaints[:5] or output.strip().splitlines()[-5:], None, "no kernel was measured")
    return Reading(lines, kernels)


def read_sanitizer(output: str) -> Reading:
    """Returns the verdict: the tools write a summary in the end, and a run without one is not clean."""
    launched = len(re.findall(r"^\w+ +launched: ", output, re.MULTILINE))
    summary = re.search(r"(?:ERROR SUMMARY: (\d+) errors?|RACECHECK SUMMARY: (\d+) hazards? displayed.*)", output)
    findings = [line for line in output.splitlines() if re.match(r"========= (?!$|COMPUTE-SANITIZER| {4})", line)]
    lines = [f"{launched} kernels launched; {summary[0] if summary else 'no summary'}", *findings[:8]]
    clean = summary is not None and (summary[1] or summary[2]) == "0"
    complaint = (
        None if clean and launched else "no kernel ran" if clean else "it found something" if summary else "no verdict"
    )
    return Reading(lines, {"launched": launched, "clean": clean, "findings": findings[:50]}, complaint)
