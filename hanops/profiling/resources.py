"""Lists what each CUDA kernel takes and does with rows: `make kernels` compiles them, and prints this table.

By what ptxas reports, and by the machine code: see machine_code.py.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hanops.profiling import machine_code


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
    names = machine_code.demangle([entry[0] for entry in entries])
    kernels = []
    for name, (_, stack, stores, loads, registers) in zip(names, entries, strict=True):
        kernels.append(Resources(name, int(registers), int(stack), int(stores), int(loads)))
    return sorted(kernels, key=lambda kernel: kernel.kernel)


def main(files: Sequence[Path]) -> int:
    """Prints a table of each report and of the object file beside it; fails where a kernel of float32 has a fault.

    Arithmetic in float64 is for tests: its faults are told.
    """
    faults = []
    for file in files:
        print("Tile<arithmetic, rows, chunks, columns of a chunk, lanes, warps>; see csrc/cuda/tile.cuh\n")
        print(f"| kernel, {file.parent.name} | registers | stack, bytes | spilled, bytes | row loads in flight |")
        print("|---|---|---|---|---|")
        codes = {code.kernel: code for code in machine_code.read_object(file.with_suffix(".o"))}
        for k in read_report(file):
            code, spilled = codes[k.kernel], k.spill_stores + k.spill_loads
            in_flight = ", ".join(map(str, code.in_flight))
            print(f"| {k.kernel} | {k.registers} | {k.stack} | {spilled} | {in_flight} |")
            spills = (k.stack or spilled) and k.kernel not in machine_code.ONCE_A_TILE
            found = [*(["spills"] if spills else []), *code.faults]
            faults += [f"{file.parent.name}, {k.kernel}: {fault}" for fault in found]
        print()
    print("\n".join(faults), file=sys.stderr, end="\n" if faults else "")
    return 1 if any("<double" not in fault for fault in faults) else 0
