"""Launches the Triton kernels: han_stack_forward and han_stack_backward for arguments that have been checked."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hanops.backends.triton import han_stack_kernels as kernels
from hanops.backends.triton import parameter_kernels, streaming_kernels
from hanops.backends.triton.tiles import (
    FUSED_LIMIT,
    Tile,
    backward_tile,
    forward_tile,
    parameter_tile,
    streaming_tile,
)
from hanops.definition import reference
from hanops.definition.rest import bytes_of, planes
from hanops.definition.signs import DROPPED, REST_PLANES, pack, sign_bytes, unpack

# Bytes of partial sums of du and db, or as many as the sign bits, whichever is more; where they fold, twice as many.
_WORKSPACE = 64 << 20


@dataclass(frozen=True)
class _Rows:
    """A tensor as (groups, rows, features) with contiguous columns: a view where its strides allow, else a copy."""

    data: Tensor

    @classmethod
    def of(cls, t: Tensor, groups: int) -> _Rows:
        rows = t.reshape(groups, -1, t.shape[-1])
        return cls(rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous())

    @property
    def strides(self) -> tuple[int, int]:
        return self.data.stride(0), self.data.stride(1)

    @property
    def in_fours(self) -> bool:
        """Whether four columns can be read at once."""
        steps = (*self.strides, self.data.shape[-1], self.data.data_ptr() // self.data.element_size())
        return all(step % 4 == 0 for step in steps)


@dataclass(frozen=True)
class _Stack:
    """Sizes of a call, and what follows from them."""

    groups: int
    rows: int  # of a group
    features: int
    layers: int
    abs_layers: int
    rest: int  # the kernels' REST
    dtype: torch.dtype  # of the arithmetic
    device: torch.device

    @classmethod
    def of(cls, x: Tensor, u: Tensor, abs_layers: int, rest: bool) -> _Stack:
        groups = u.shape[0] if u.dim() == 3 else 1
        features, layers = u.shape[-1], u.shape[-2]
        rows = x.numel() // (groups * features) if groups else 0
        dtype = reference.arithmetic_dtype(x.dtype)
        return cls(groups, rows, features, layers, abs_layers, DROPPED[x.dtype] if rest else 0, dtype, x.device)

    @property
    def wide(self) -> bool:
        return self.dtype == torch.float64

    @property
    def arithmetic(self) -> tl.dtype:
        return tl.float64 if self.wide else tl.float32

    @property
    def sign_bytes(self) -> int:
        return sign_bytes(self.features, chunked=True)

    @property
    def planes(self) -> int:
        """Planes of `sign_bytes` of a row."""
        return self.abs_layers + (REST_PLANES if self.rest else 0)

    def resident(self, programs_per_sm: int) -> int:
        """Programs that run at once."""
        if self.device.type == "cpu":  # interpreted
            return programs_per_sm
        return programs_per_sm * torch.cuda.get_device_properties(self.device).multi_processor_count

    def parts(self, tiles: int, programs_per_sm: int, slices: int = 1) -> int:
        """Partial sums of du and db for each group."""
        item = 8 if self.wide else 4
        most = max(_WORKSPACE // (2 * item * self.layers * self.features), self.groups * self.rows // 64)
        programs = min(self.resident(programs_per_sm) // slices, most) // self.groups
        return max(1, min(programs, tiles))

    def partials(self, tiles: int, parts: int, columns: int) -> Tensor:
        """Memory for the partial sums of so many tiles: one set of them for each part, or two where they fold."""
        sets = 2 if tiles >= kernels.FOLD.value * parts else 1
        shape = (self.groups, parts, sets, self.layers, 2, columns)
        return torch.empty(shape, dtype=self.dtype, device=self.device)


_INTERPRETER = threading.Lock()
_TRITON_BACKEND = "hip" if torch.version.hip else "cuda"


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """Makes the tensors' GPU current: Triton launches on that one. The interpreter serves one thread at a time."""
    if device.type == "cpu":
        with _INTERPRETER:
            yield
    else:
        with torch.cuda.device(device):
            yield


def _packed(stack: _Stack, u: Tensor, b: Tensor | None, columns: int) -> tuple[Tensor, Tensor]:
    """Returns w and b of every layer, padded to `columns`, and |u| as two factors."""
    if stack.layers * columns >= 2**30:  # offsets within the sums of a group are of 32 bits
        wanted = "less than 2^30 layers x features, these padded"
        raise ValueError(f"han_stack: backend 'triton' takes {wanted}, got {stack.layers} x {columns}")
    layers = stack.groups * stack.layers
    packed = torch.empty(layers, 2, columns, dtype=stack.dtype, device=stack.device)
    norms = torch.empty(layers, 2, dtype=stack.dtype, device=stack.device)
    u = u.contiguous()
    b_rows = u if b is None else b.contiguous()
    parameter_kernels.prepare[(layers,)](
        u, b_rows, packed, norms, stack.features, D=columns, A=stack.arithmetic, HAS_B=b is not None
    )
    return packed, norms


def forward(x: Tensor, u: Tensor, b: Tensor | None, abs_layers: int, save: int) -> tuple[Tensor, Tensor]:
    """Returns y and, where `save`, the packed sign bits, and the rest of y where it is 2 and x is of a half type."""
    stack = _Stack.of(x, u, abs_layers, save == 2 and x.dtype in DROPPED)
    size = stack.sign_bytes
    signs = x.new_empty((*x.shape[:-1], stack.planes, size) if save else (0,), dtype=torch.uint8)
    if stack.layers == 0:
        return x.clone(memory_format=torch.contiguous_format), _to_device_layout(signs.zero_(), stack, save)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if y.numel() == 0:
        return y, _to_device_layout(signs, stack, save)
    rows = _Rows.of(x, stack.groups)
    sizes = (stack.rows, stack.features, stack.layers, stack.abs_layers)
    options = {"A": stack.arithmetic, "BYTES": size, "SAVE": save > 0, "REST": stack.rest, "FOURS": rows.in_fours}
    tile, stream = forward_tile(stack.features, stack.wide), streaming_tile()
    options |= (tile or stream).options(_TRITON_BACKEND)
    with _on(stack.device):
        if tile is not None:
            packed, _ = _packed(stack, u, b, tile.columns)
            tiles = triton.cdiv(stack.rows, tile.rows)
            kernels.forward[(stack.groups * tiles,)](
                rows.data, y, signs, packed, *sizes, tiles, *rows.strides,
                R=tile.R, Q=tile.Q, C=tile.C, K=tile.K, **options,
            )  # fmt: skip
        else:
            packed, _ = _packed(stack, u, b, 8 * size)
            programs, scratch = _scratch(stack, stream, 8 * size)
            streaming_kernels.forward_streaming[(programs,)](
                rows.data, y, signs, packed, scratch, *sizes, stack.groups * stack.rows, programs, *rows.strides,
                C=stream.C, **options,
            )  # fmt: skip
    return y, _to_device_layout(signs, stack, save)


def backward(
    dy: Tensor,
    y: Tensor | None,
    signs: Tensor,
    u: Tensor,
    b: Tensor | None,
    abs_layers: int,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dx, du and db, each of shape (0,) where not needed."""
    stack = _Stack.of(dy, u, abs_layers, signs.shape[-2] != abs_layers)
    needs_dx, needs_du, needs_db = needs

    def new(like: Tensor, needed: bool) -> Tensor:
        return torch.empty_like(like, memory_format=torch.contiguous_format) if needed else like.new_empty(0)

    dx, du, db = new(dy, needs_dx), new(u, needs_du), new(u, needs_db)
    if stack.layers == 0 or dy.numel() == 0:
        return (dx.copy_(dy) if needs_dx else dx), du.zero_(), db.zero_()
    with _on(stack.device):
        call = _Backward(stack, dy, y if needs_du else None, _from_device_layout(signs, stack), u, b, needs)
        partials = call.main(dx)
        if call.sums:
            call.finish(partials if call.fused else call.parameter_gradients(), du, db)
    return dx, du, db


class _Backward:
    """The launches of one backward call. dx is not needed, or `main` writes it; the rest is for du and db."""

    def __init__(
        self, stack: _Stack, dy: Tensor, y: Tensor | None, signs: Tensor, u: Tensor, b: Tensor | None,
        needs: Sequence[bool],
    ) -> None:  # fmt: skip
        self.stack, (self.needs_dx, self.needs_du, self.needs_db) = stack, needs
        self.tile = backward_tile(stack.features, stack.wide)
        self.columns = 8 * stack.sign_bytes if self.tile is None else self.tile.columns
        self.packed, self.norms = _packed(stack, u, b, self.columns)
        self.sums = self.needs_du or self.needs_db
        self.fused = self.sums and stack.features <= FUSED_LIMIT

        # Of each row, for parameter_gradients; where that does not run, any memory stands in their place.
        self.coefficients, live = self.packed, signs
        if self.sums and not self.fused:
            self.coefficients = self.new(stack.groups, stack.rows, stack.layers, 2)
            if self.needs_du:
                live = torch.empty(stack.groups, stack.rows, dtype=torch.uint8, device=stack.device)
        g_rows = _Rows.of(dy, stack.groups)
        y_rows = g_rows if y is None else _Rows.of(y, stack.groups)
        self.strides = (*g_rows.strides, *y_rows.strides)
        self.inputs = (g_rows.data, y_rows.data, signs, self.packed)
        self.kept = (self.coefficients, live)
        self.sizes = (stack.rows, stack.features, stack.layers, stack.abs_layers)
        self.options = {
            "A": stack.arithmetic,
            "BYTES": stack.sign_bytes,
            "DU": self.needs_du,
            "DB": self.needs_db,
            "REST": stack.rest,
            "FOURS": g_rows.in_fours and y_rows.in_fours,
        }

    def new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.stack.dtype, device=self.stack.device)

    def main(self, dx: Tensor) -> Tensor:
        """Takes all rows back through the layers. Returns partial sums of dw and db where these are `fused`."""
        stack, tile, partials = self.stack, self.tile, self.packed
        options = {**self.options, **(tile or streaming_tile()).options(_TRITON_BACKEND), "DX": self.needs_dx}
        if tile is None:
            programs, scratch = _scratch(stack, streaming_tile(), 2 * self.columns)
            streaming_kernels.backward_streaming[(programs,)](
                *self.inputs, dx, scratch, *self.kept, *self.sizes, stack.groups * stack.rows, programs, *self.strides,
                C=streaming_tile().C, **options,
            )  # fmt: skip
            return partials
        tiles = parts = triton.cdiv(stack.rows, tile.rows)
        sets = 1
        if self.fused:
            parts = stack.parts(tiles, tile.programs_per_sm)
            partials = stack.partials(tiles, parts, self.columns)
            sets = partials.shape[2]
        kernels.backward[(stack.groups * parts,)](
            *self.inputs, dx, partials, *self.kept, *self.sizes, tiles, parts, sets, *self.strides,
            R=tile.R, Q=tile.Q, C=tile.C, K=tile.K, FUSED=self.fused, **options,
        )  # fmt: skip
        return partials

    def parameter_gradients(self) -> Tensor:
        """Returns partial sums of dw and db, from what `main` has kept of each row."""
        stack, tile = self.stack, parameter_tile(self.stack.wide)
        tiles, slices = triton.cdiv(stack.rows, tile.rows), triton.cdiv(stack.features, tile.columns)
        parts = stack.parts(tiles, tile.programs_per_sm, slices)
        partials = stack.partials(tiles, parts, self.columns)
        kernels.parameter_gradients[(stack.groups * parts * slices,)](
            *self.inputs, partials, *self.kept, *self.sizes, tiles, parts, partials.shape[2], slices, *self.strides,
            R=tile.R, Q=tile.Q, C=tile.C, K=tile.K, D=self.columns, **self.options, **tile.options(_TRITON_BACKEND),
        )  # fmt: skip
        return partials

    def finish(self, partials: Tensor, du: Tensor, db: Tensor) -> None:
        """Adds up the partial sums, and writes du and db."""
        stack = self.stack
        _, parts, sets, *of_a_set = partials.shape
        if parts * sets > 1:
            length, block = math.prod(of_a_set), 128
            totals = self.new(stack.groups, length)
            parameter_kernels.sum_parts[(stack.groups * triton.cdiv(length, block),)](
                partials, totals, length, parts * sets, PARTS=16, BLOCK=block
            )
            partials = totals
        parameter_kernels.finish[(stack.groups * stack.layers,)](
            partials, self.packed, self.norms, du, db, stack.features,
            D=self.columns, DU=self.needs_du, DB=self.needs_db,
        )  # fmt: skip


def _scratch(stack: _Stack, stream: Tile, columns: int) -> tuple[int, Tensor]:
    """Returns the number of streaming programs, and a scratch row for each."""
    programs = min(stack.groups * stack.rows, stack.resident(stream.programs_per_sm))
    return programs, torch.empty(programs, columns, dtype=stack.dtype, device=stack.device)


# The interpreter's tensors are on the CPU, where sign bits have another layout than the kernels write.


def _to_device_layout(signs: Tensor, stack: _Stack, save: int) -> Tensor:
    return _in_layout(signs, stack, chunked=False) if stack.device.type == "cpu" and save else signs


def _from_device_layout(signs: Tensor, stack: _Stack) -> Tensor:
    return _in_layout(signs, stack, chunked=True) if stack.device.type == "cpu" else signs.contiguous()


def _in_layout(signs: Tensor, stack: _Stack, chunked: bool) -> Tensor:
    """Converts signs to the layout `chunked` from the other one."""
    bits, rest = signs.tensor_split([stack.abs_layers], -2)
    bits = pack(unpack(bits, stack.features, not chunked), chunked)
    return torch.cat([bits, planes(bytes_of(rest, stack.features), chunked)], -2) if stack.rest else bits
