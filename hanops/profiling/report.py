"""The figures of a profile, as a table and as what JSON can hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

import hanops
from hanops.definition.reference import arithmetic_dtype
from hanops.profiling.case import ProfileCase
from hanops.profiling.residence import Residence


@dataclass(frozen=True)
class KernelFigures:
    """Figures of one kernel.

    seconds, seconds_fastest, seconds_quartiles: the median of the samples, the least, and their middle half.
    bytes_moved: forward x and y, with bits the signs too, backward y, dy, dx and the signs; parameters do not count.
    bytes_per_s, element_layers_per_s: by the median time.
    share_of_copy, share_of_instructions: of the two ceilings, 1 being all of it; medians of each round's share.
    binds: 'copy' or 'instructions', the larger share of the two.
    residence: None on the CPU, and where it is not known.
    """

    kernel: str
    seconds: float
    seconds_fastest: float
    seconds_quartiles: tuple[float, float]
    bytes_moved: int
    bytes_per_s: float
    element_layers_per_s: float
    share_of_copy: float
    share_of_instructions: float | None
    binds: str | None
    residence: Residence | None = None


@dataclass(frozen=True)
class Profile:
    """A case, the backend that ran it, the two ceilings (medians, per second) and a row for each kernel.

    where: the GPU's name, or the CPU's instruction set, threads and load average.
    multiply_adds_per_s: of elements, in the type of the arithmetic; None where nothing can measure it.
    """

    case: ProfileCase
    backend: str
    where: str
    copy_bytes_per_s: float
    multiply_adds_per_s: float | None
    rows: tuple[KernelFigures, ...]

    @property
    def simulator(self) -> str | None:
        """What ran a GPU's kernels on the CPU, or None."""
        on_cpu = {"triton": "Triton's interpreter", "cuda": "the CUDA emulator"}
        return on_cpu.get(self.backend) if self.case.device.type == "cpu" else None

    def figures(self) -> dict[str, Any]:
        """Returns everything as what JSON can hold; the units are in the names, and SI."""
        sizes = asdict(self.case)
        named = {"depth": sizes.pop("layers"), "batch": sizes.pop("rows")}  # as the options are
        case = {**sizes, **named, "dtype": self.case.storage, "device": str(self.case.device)}
        versions = {"hanops": hanops.__version__, "torch": torch.__version__}
        return {**versions, **asdict(self), "case": case, "simulator": self.simulator}

    def __str__(self) -> str:
        case = self.case
        rate = self.multiply_adds_per_s
        arithmetic = str(arithmetic_dtype(case.dtype)).removeprefix("torch.")
        instructions = "unknown" if rate is None else f"{rate * 1e-9:.1f} G {arithmetic} multiply-adds/s"
        lines = [
            f"hanops {hanops.__version__}, torch {torch.__version__}, backend {self.backend}, {self.where}",
            f"x {list(case.shape)} of {case.storage}, {case.layers} layers",
        ]
        if self.simulator is not None:
            return "\n".join([*lines, f"{self.simulator} ran: its times say nothing of a GPU, and are not shown"])
        lines += [
            f"ceilings, measured in the same turns: copy {self.copy_bytes_per_s * 1e-9:.1f} GB/s, "
            f"instructions {instructions}",
            "",
            *_aligned(self._columns()),
        ]
        if max(row.share_of_copy for row in self.rows) > 1:
            lines += ["", "A share of the copy above 100 %: the tensors stay in a cache, which the copy leaves."]
        if tiles := [f"{row.kernel}: {row.residence.tile}" for row in self.rows if row.residence]:
            lines += ["", *tiles]
        return "\n".join(lines)

    def _columns(self) -> list[list[str]]:
        """The table: each column has two lines of head and a cell for each row."""
        scale, unit = (1e6, "us") if min(row.seconds for row in self.rows) < 1e-3 else (1e3, "ms")

        def column(name: str, unit: str, cell: Callable[[KernelFigures], str]) -> list[str]:
            return [name, unit, *map(cell, self.rows)]

        def percent(share: float | None) -> str:
            return "-" if share is None else f"{100 * share:.1f}"

        columns = [
            column("", "kernel", lambda row: row.kernel),
            column("median,", unit, lambda row: f"{row.seconds * scale:.2f}"),
            column("fastest,", unit, lambda row: f"{row.seconds_fastest * scale:.2f}"),
            column("middle half,", unit, lambda row: " - ".join(f"{q * scale:.2f}" for q in row.seconds_quartiles)),
            column("moved,", "MB", lambda row: f"{row.bytes_moved * 1e-6:.3f}"),
            column("rate,", "GB/s", lambda row: f"{row.bytes_per_s * 1e-9:.2f}"),
            column("G element-", "layers/s", lambda row: f"{row.element_layers_per_s * 1e-9:.2f}"),
            column("share of", "copy, %", lambda row: percent(row.share_of_copy)),
            column("share of", "instructions, %", lambda row: percent(row.share_of_instructions)),
            column("", "binds", lambda row: row.binds or "-"),
        ]
        if all(row.residence for row in self.rows):
            taken = {row.kernel: row.residence for row in self.rows if row.residence}
            columns += [
                column("registers", "of a thread", lambda row: str(taken[row.kernel].registers)),
                column(
                    "resident warps",
                    "of an SM",
                    lambda row: f"{taken[row.kernel].warps} of {taken[row.kernel].most_warps}",
                ),
            ]
        return columns


def _aligned(columns: list[list[str]]) -> list[str]:
    """Returns the lines of a table, the cells of each column padded to one width: words to the left."""
    padded = []
    for column in columns:
        width = max(map(len, column))
        pad = str.ljust if column[1] in ("kernel", "binds") else str.rjust
        padded.append([pad(cell, width) for cell in column])
    return ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
