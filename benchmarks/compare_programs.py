"""Times two builds of the profile program against each other: A B A B over the same cases, medians and their ratios."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def samples_of(program: str, cases: list[str], repeats: int) -> dict[str, list[float]]:
    """Returns the seconds of each case and kernel in one run of a program."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "samples.json"
        options = [word for case in cases for word in ("--case", case)]
        command = [program, *options, "--repeats", str(repeats), "--json", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = json.loads(file.read_text())
    return {
        f"d={case['features']} L={case['depth']} {case['dtype']} {kernel['kernel']}": kernel["seconds"]
        for case in found["cases"]
        for kernel in case["kernels"]
    }


def row(name: str, runs: list[list[list[float]]]) -> dict[str, Any]:
    """Compares A's runs with B's: the ratio of each turn's medians, and how far the turns are apart."""
    medians = [[statistics.median(samples) for samples in side] for side in runs]
    turns = [a / b for a, b in zip(*medians, strict=True)]
    return {
        "name": name,
        "a": statistics.median(medians[0]),
        "b": statistics.median(medians[1]),
        "ratio": statistics.median(turns),
        "ratios": turns,
        "samples": runs,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", nargs=2, metavar=("A", "B"))
    parser.add_argument("--case", action="append", required=True, help="D,N,L,T, as the program takes it")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    runs: list[list[dict[str, list[float]]]] = [[], []]
    rows: list[dict[str, Any]] = []
    for _ in range(given.turns):
        for side, program in zip(runs, given.programs, strict=True):
            side.append(samples_of(program, given.case, given.repeats))
        rows = [row(name, [[run[name] for run in side] for side in runs]) for name in runs[0][0]]
        a, b = map(os.path.relpath, given.programs)  # a result names no folder of the machine
        given.json.write_text(json.dumps({"a": a, "b": b, "rows": rows}))
    print(f"A = {given.programs[0]}, B = {given.programs[1]}")
    for r in rows:
        turns = ", ".join(f"{ratio:.3f}" for ratio in r["ratios"])
        print(f"{r['name']}: A {r['a'] * 1e6:.1f} us, B {r['b'] * 1e6:.1f} us, A / B {r['ratio']:.3f} ({turns})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
