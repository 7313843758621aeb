"""Lists what ptxas says that each CUDA kernel takes: `make kernels` has it compile them, and prints this table."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Resources:
    """Registers of a thread, and bytes of its stack frame and of what it spills."""

    kernel: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int


_ENTRY = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


def read_report(file: Path) -> list[Resources]:
    """Returns the kernels of a report that `nvcc -Xptxas -v` wrote."""
    entries = _ENTRY.findall(file.read_text())
    names = subprocess.run(
        ["c++filt"], input="\n".join(entry[0] for entry in entries), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    kernels = []
    for name, (_, stack, stores, loads, registers) in zip(names, entries, strict=True):
        short = re.sub(r"hanops::cuda::|^void |\(Call\)$|\((?:int|bool)\)", "", name.replace("hanops::cuda::", ""))
        kernels.append(Resources(short, int(registers), int(stack), int(stores), int(loads)))
    return sorted(kernels, key=lambda kernel: kernel.kernel)


def main() -> int:
    """Prints a table of each report; fails where a kernel spills."""
    spills = 0
    for file in map(Path, sys.argv[1:]):
        print("Tile<arithmetic, rows, chunks, columns of a chunk, lanes, warps>; see csrc/cuda/tile.cuh\n")
        print(f"| kernel, {file.stem} | registers | stack, bytes | spilled, bytes |\n|---|---|---|---|")
        for k in read_report(file):
            print(f"| {k.kernel} | {k.registers} | {k.stack} | {k.spill_stores + k.spill_loads} |")
            spills += (k.stack or k.spill_stores or k.spill_loads) and 1
        print()
    if spills:
        print(f"{spills} kernels spill", file=sys.stderr)
    return 1 if spills else 0


if __name__ == "__main__":
    sys.exit(main())
