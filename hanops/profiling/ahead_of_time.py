"""Compiles every kernel of the tile table ahead of time, with no GPU, and reads the registers and spills it takes."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hanops.backends.triton import han_stack_kernels, streaming_kernels
from hanops.backends.triton.tiles import (
    FUSED_LIMIT,
    Tile,
    backward_tile,
    forward_tile,
    parameter_tile,
    streaming_tile,
)
from hanops.definition.signs import DROPPED, sign_bytes

WIDTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536)  # the widest of each tile
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_STORAGE = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}


@dataclass(frozen=True)
class Kernel:
    """One kernel of the table, with everything that is fixed when it is compiled."""

    name: str  # of the function, in streaming_kernels where it ends so, else in han_stack_kernels
    features: int
    storage: str
    tile: Tile
    constants: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name}, {self.features}, {self.storage}"


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes of an SM. spills: bytes of local memory for each thread."""

    registers: int
    spills: int


def _tile_constants(tile: Tile) -> dict[str, int]:
    return {"R": tile.R, "Q": tile.Q, "C": tile.C, "K": tile.K}


def table(storages: tuple[str, ...] = tuple(_STORAGE), widths: tuple[int, ...] = WIDTHS) -> Iterator[Kernel]:
    """Yields the kernels that stacks of these widths run, with all gradients wanted, in order of width."""
    for storage in storages:
        wide = storage == "float64"
        same: dict[str, Any] = {"A": tl.float64 if wide else tl.float32, "FOURS": True}
        same["REST"] = DROPPED.get(getattr(torch, storage), 0)
        gradients = {"DU": True, "DB": True}
        for features in widths:
            size = sign_bytes(features, chunked=True)
            forward, backward, parameters = (
                forward_tile(features, wide),
                backward_tile(features, wide),
                parameter_tile(wide),
            )
            stack = {**same, "BYTES": size}
            stream = streaming_tile()
            streaming = {**stack, "C": stream.C}
            if forward is None:
                yield Kernel("forward_streaming", features, storage, stream, {**streaming, "SAVE": True})
            else:
                constants = {**stack, **_tile_constants(forward), "SAVE": True}
                yield Kernel("forward", features, storage, forward, constants)
            if backward is None:
                constants = {**streaming, **gradients, "DX": True}
                yield Kernel("backward_streaming", features, storage, stream, constants)
            else:
                fused = features <= FUSED_LIMIT
                constants = {**stack, **_tile_constants(backward), **gradients, "DX": True, "FUSED": fused}
                yield Kernel("backward", features, storage, backward, constants)
            if features > FUSED_LIMIT:
                columns = 8 * size if backward is None else backward.columns
                constants = {**stack, **_tile_constants(parameters), **gradients, "D": columns}
                yield Kernel("parameter_gradients", features, storage, parameters, constants)


def main_kernels(storage: str, features: int) -> dict[str, Kernel]:
    """Returns the kernels in which a stack of this width spends its time, as 'forward' (no sign bits) and so on.

    Args:
        storage: dtype of x, by its name in torch.
        features: columns of a row.
    """
    found = {kernel.name.removesuffix("_streaming"): kernel for kernel in table((storage,), (features,))}

    def with_constants(kernel: Kernel, **constants: bool) -> Kernel:
        return replace(kernel, constants={**kernel.constants, "FOURS": features % 4 == 0, **constants})

    return {
        "forward": with_constants(found["forward"], SAVE=False),
        "forward with bits": with_constants(found["forward"]),
        "backward": with_constants(found["backward"]),
    }


def _source(kernel: Kernel) -> ASTSource:
    module = streaming_kernels if kernel.name.endswith("_streaming") else han_stack_kernels
    function = getattr(module, kernel.name)
    storage, arithmetic = _STORAGE[kernel.storage], "fp64" if kernel.storage == "float64" else "fp32"
    own = ("p_packed", "p_scratch", "p_partials", "p_coefficients")
    pointers = {"p_signs": "u8", "p_live": "u8", **dict.fromkeys(own, arithmetic)}

    def type_of(name: str) -> str:
        if name in kernel.constants:
            return "constexpr"
        if name.startswith("p_"):
            return "*" + pointers.get(name, storage)
        return "i64" if name.endswith(("_group", "_row")) else "i32"

    names = function.arg_names
    return ASTSource(
        fn=function,
        signature={name: type_of(name) for name in names},
        constexprs={(names.index(name),): value for name, value in kernel.constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name.startswith("p_")},
    )


def _cuobjdump() -> Path:
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def resources(kernel: Kernel, target: str | GPUTarget) -> Resources:
    """Compiles a kernel for a target and reads what it takes from the machine code.

    Args:
        kernel: one of `table()`.
        target: the name of one of TARGETS, or any other one as Triton has it.

    Raises:
        RuntimeError: in Triton's interpreter, where nothing is compiled.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError(
            "hanops.profiling.ahead_of_time: nothing is compiled with TRITON_INTERPRET=1 in the environment"
        )
    if isinstance(target, str):
        target = TARGETS[target]
    compiled = triton.compile(_source(kernel), target=target, options=kernel.tile.options(target.backend))
    if target.backend == "hip":
        text = compiled.asm["amdgcn"]
        found = [re.search(rf"\.{name}:\s+(\d+)", text) for name in ("vgpr_count", "private_segment_fixed_size")]
    else:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            text = subprocess.run(
                [_cuobjdump(), "-res-usage", file.name], capture_output=True, check=True
            ).stdout.decode()
        found = [re.search(rf"{name}:(\d+)", text) for name in ("REG", "STACK")]
    registers, spills = (int(match.group(1)) if match else -1 for match in found)
    return Resources(registers, spills)
