"""Reads from the machine code of the CUDA kernels how they read and write rows, which ptxas does not report.

Rows come from device memory, 500 cycles and more away: a tile must issue its loads before it waits for the first one.
That is lost where a load shares a branch with the conversion of its value. Rows must also go out in the widest words
that a lane has of them, and registers must not turn into local memory. A compiler decides all three.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

IN_FLIGHT = 16  # row loads of a warp that must be in flight at least, or all that a tile has
LATE = 2  # loads of a width in a kernel that may have fewer beside them
# Accesses to local memory that a kernel may have once a tile, outside of its loop over layers. 512 threads leave 128
# registers to hold 64 elements and what else a tile needs.
ONCE_A_TILE = {"axis_backward<1, true>": 32}

# An instruction, and of its 128 bits the high word, whose bits 46 to 57 are about scoreboards, as on Volta
# (Jia et al. 2018, arXiv:1804.06826): 3 bits for the one that the result sets, 3 that are not used here, and a mask of
# those that the instruction waits for.
_INSTRUCTION = re.compile(
    r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+ +)?([\w.]+)\s*([^;]*);\s+/\* 0x[0-9a-f]{16} \*/\n\s+/\* 0x([0-9a-f]{16}) \*/"
)
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}  # bytes of a lane, of an access; else 4


@dataclass(frozen=True)
class Instruction:
    """What an instruction does to memory and scoreboards; `leaves`: the next one in memory never follows it.

    address and target: of the instruction, and of what it may jump to.
    """

    opcode: str
    sets: int
    waits: int  # bit s: for scoreboard s
    leaves: bool = False
    address: int = field(default=0, compare=False)
    target: int | None = field(default=None, compare=False)

    @property
    def width(self) -> int:
        """Bytes that a lane reads or writes."""
        return next((_WIDTHS[part] for part in self.opcode.split(".") if part in _WIDTHS), 4)


@dataclass(frozen=True)
class Tile:
    """What a lane holds of rows, see tile.cuh, and how often a kernel reads them."""

    rows: int
    chunks: int
    vector: int
    items: tuple[int, ...] = (2, 4)  # bytes of an element, of each type of rows: two types have 2
    tensors: int = 1
    by_elements: bool = True  # also where rows cannot be read in words

    def accesses(self, width: int) -> int:
        """Returns how many loads or stores of that width one read or write of a tile has: of words, and of elements."""
        types = [*self.items, *(item for item in self.items if item == 2)]
        words = sum(self.vector * item == width for item in types)
        elements = sum(item == width for item in types) * self.vector if self.by_elements else 0
        return self.rows * self.chunks * (words + elements)


# Kernels without a tile in their name: see Stream and Slice.
_OTHERS = {"forward_streaming<float": (1, 8, 4), "backward_streaming<float": (1, 8, 4)}
_OTHERS |= {"parameter_gradients<float": (16, 1, 4)}
_AXIS_FEATURES = 32  # of a lane, where they are not the last axis: for each it reads its positions, side by side


def tile_of(kernel: str) -> Tile | None:
    """Returns the tile of a kernel by its name; None for one that holds no rows, or streams those of float64."""
    found = re.search(r"axis_(forward|backward)<(\d+), (true|false)", kernel)
    if found:
        tensors = 2 if found[1] == "backward" and found[3] == "true" else 1
        return Tile(_AXIS_FEATURES, 1, int(found[2]), tensors=tensors, by_elements=False)
    found = re.search(r"Tile<(\w+), (\d+), (\d+), (\d+), \d+, \d+>, (true|false)", kernel)
    if not found:
        return next((Tile(*shape) for name, shape in _OTHERS.items() if kernel.startswith(name)), None)
    items = (4, 8) if found[1] == "double" else (2, 4)
    both = kernel.startswith("backward") and found[5] == "true"  # dy and y, for du
    return Tile(int(found[2]), int(found[3]), int(found[4]), items, 2 if both else 1)


def runs(code: list[Instruction]) -> dict[int, list[int]]:
    """Returns for each width the lengths of its runs of global loads: those before a wait for any load of the run."""
    closed, open_runs = defaultdict[int, list[int]](list), dict[int, tuple[int, int]]()  # width: loads, scoreboards
    for instruction in code:
        for width, (loads, scoreboards) in list(open_runs.items()):
            if instruction.waits & scoreboards or instruction.leaves:
                closed[width].append(loads)
                del open_runs[width]
        if instruction.opcode.startswith("LDG"):
            loads, scoreboards = open_runs.get(instruction.width, (0, 0))
            open_runs[instruction.width] = loads + 1, scoreboards | 1 << instruction.sets
    for width, (loads, _) in open_runs.items():
        closed[width].append(loads)
    return closed


def loop_over_layers(code: list[Instruction]) -> list[Instruction]:
    """Returns the smallest loop with more than half of a kernel's sums over lanes; nothing where none has."""
    sums = [instruction.address for instruction in code if instruction.opcode.startswith("SHFL")]
    jumps = ((i.target, i.address) for i in code if i.target is not None and i.target < i.address)
    loops = [(first, last) for first, last in jumps if 2 * sum(first <= at <= last for at in sums) > len(sums)]
    first, last = min(loops, key=lambda loop: loop[1] - loop[0], default=(0, -1))
    return [instruction for instruction in code if first <= instruction.address <= last]


def local_accesses(code: list[Instruction]) -> int:
    """Returns how many instructions access local memory."""
    return sum(instruction.opcode.startswith(("LDL", "STL")) for instruction in code)


@dataclass(frozen=True)
class MachineCode:
    """What a kernel's machine code does with rows. `in_flight`: row loads, for each size of an element."""

    kernel: str
    local: int  # accesses to local memory
    in_flight: tuple[int, ...]
    faults: tuple[str, ...]


def examine(kernel: str, code: list[Instruction]) -> MachineCode:
    """Says what a kernel does with rows, and what of that is slow."""
    tile, faults = tile_of(kernel), []
    local, of_layers = local_accesses(code), local_accesses(loop_over_layers(code))
    if local > ONCE_A_TILE.get(kernel, 0) or of_layers:
        faults.append(f"{local} accesses to local memory, {of_layers} of them in the loop over layers")
    if tile is None:
        return MachineCode(kernel, local, (), tuple(faults))
    found, in_flight = runs(code), []
    stores = [instruction.width for instruction in code if instruction.opcode.startswith("STG")]
    for item in tile.items:
        width = tile.vector * item
        # Other loads of the width, such as of parameters, are in runs of their own: the longest are the rows'.
        needed = tile.tensors * tile.accesses(width)
        beside = sorted((loads for loads in found[width] for _ in range(loads)), reverse=True)[:needed]
        in_flight.append(beside[-1 - LATE] if len(beside) == needed else 0)
        if in_flight[-1] < min(IN_FLIGHT, tile.rows * tile.chunks):
            faults.append(f"{in_flight[-1]} loads in flight of rows with {item} bytes an element")
        if tile.vector > 1 and not kernel.startswith("parameter_gradients"):
            missing = tile.accesses(width) - stores.count(width)
            if missing > 0:
                faults.append(f"{missing} stores are missing that take {width} bytes of a row at once")
    return MachineCode(kernel, local, tuple(in_flight), tuple(faults))


def parse(listing: str) -> dict[str, list[Instruction]]:
    """Returns the instructions of each function, by its mangled name, in what `cuobjdump -sass` prints."""
    functions: dict[str, list[Instruction]] = {}
    parts = re.split(r"^\s*Function : (\S+)\s*$", listing, flags=re.MULTILINE)
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        code = functions[name] = []
        for address, predicate, opcode, operands, word in _INSTRUCTION.findall(body):
            control = int(word, 16) >> 46
            conditional = predicate or re.match(r"!?U?P\d", operands)
            leaves = not conditional and opcode.split(".")[0] in ("BRA", "EXIT", "RET", "BRX")
            jump = re.search(r"\b0x([0-9a-f]+)$", operands.strip()) if opcode.startswith("BRA") else None
            target = int(jump[1], 16) if jump else None
            code.append(Instruction(opcode, control & 7, control >> 6 & 63, leaves, int(address, 16), target))
    return functions


def cuobjdump() -> str:
    """Returns $CUOBJDUMP, or the program on PATH, beside nvcc, or in Triton's wheel.

    Raises:
        FileNotFoundError: where there is none.
    """
    triton, nvcc = find_spec("triton"), shutil.which("nvcc")
    places = [os.environ.get("CUOBJDUMP"), shutil.which("cuobjdump")]
    places += [str(Path(nvcc).resolve().parent / "cuobjdump")] if nvcc else []
    places += [str(Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump")] if triton and triton.origin else []
    for place in places:
        if place and os.access(place, os.X_OK):
            return place
    raise FileNotFoundError("no cuobjdump in $CUOBJDUMP, on PATH, beside nvcc or in Triton's wheel")


def demangle(names: list[str]) -> list[str]:
    """Returns the kernels' names as the source writes them, without namespace and parameter."""
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    pattern = r"hanops::cuda::|^void |\((?:ForwardCall|BackwardCall|Stack)\)$|\((?:int|bool)\)"
    return [re.sub(pattern, "", line.replace("hanops::cuda::", "")) for line in done.stdout.splitlines()]


def read_object(file: Path) -> list[MachineCode]:
    """Returns what the kernels of an object file or cubin do with rows."""
    done = subprocess.run([cuobjdump(), "-sass", file], capture_output=True, text=True, check=True)
    functions = parse(done.stdout)
    return [examine(name, code) for name, code in zip(demangle(list(functions)), functions.values(), strict=True)]


if __name__ == "__main__":
    try:
        print(cuobjdump())
    except FileNotFoundError as error:
        sys.exit(str(error))
