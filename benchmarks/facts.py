"""Prints what a machine is and has, a fact a line: versions, and the GPU's clocks, power and modes as they stand."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata

PACKAGES = ("torch", "triton", "setuptools", "pybind11", "numpy", "pytest", "pytest-xdist", "pytest-benchmark")
TOOLS = {"nvcc": ("--version",), "ncu": ("--version",), "compute-sanitizer": ("--version",), "cmake": ("--version",)}
QUERY = (
    "name,driver_version,vbios_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,"
    "power.max_limit,power.draw,temperature.gpu,memory.total,ecc.mode.current,mig.mode.current,compute_mode,"
    "persistence_mode"
)


def output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{error}"


def main() -> None:
    print(f"python: {sys.version.split()[0]}, {platform.machine()}, {os.cpu_count()} cores")
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    print(f"packages: {', '.join(versions)}")
    tools = []
    for tool, arguments in TOOLS.items():
        lines = [line for line in output_of(tool, *arguments).splitlines() if "ersion" in line or "elease" in line]
        tools.append(f"{tool} {lines[-1] if lines else 'not there'}".strip())
    print(f"tools: {'; '.join(tools)}")
    rows = output_of("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv").splitlines()
    if len(rows) >= 2:
        names, values = ([cell.strip() for cell in row.split(",")] for row in rows[:2])
        print("gpu: " + ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True)))
        print("\n".join(line for line in output_of("nvidia-smi", "-q", "-d", "CLOCK,POWER,PERFORMANCE").splitlines()))
    else:
        print("gpu: none that nvidia-smi sees")


if __name__ == "__main__":
    main()
