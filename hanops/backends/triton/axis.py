"""Launches the Triton kernels of stacks along another axis than the last, for arguments that have been checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
import triton
from torch import Tensor

from hanops.backends.triton import axis_kernels as kernels
from hanops.backends.triton.han_stack import _TRITON_BACKEND, _finish, _on, _packed, _Stack
from hanops.backends.triton.tiles import Tile, axis_backward_tile, axis_forward_tile
from hanops.definition.signs import DROPPED, signs_shape


@dataclass(frozen=True)
class _Positions:
    """A tensor as (groups, outer, features, inner) with contiguous inner: a view where strides allow, else a copy."""

    data: Tensor

    @classmethod
    def of(cls, t: Tensor, groups: int, dim: int) -> _Positions:
        inner = prod(t.shape[dim + 1 :])
        t = t.reshape(groups, -1, t.shape[dim], inner)
        return cls(t if t.stride(-1) == 1 or inner == 1 else t.contiguous())

    @property
    def inner(self) -> int:
        return self.data.shape[-1]

    @property
    def strides(self) -> tuple[int, ...]:
        return self.data.stride()[:3]

    @property
    def in_fours(self) -> bool:
        """Whether four positions can be read at once."""
        steps = (*self.strides, self.inner, self.data.data_ptr() // self.data.element_size())
        return all(step % 4 == 0 for step in steps)


def _words(signs: Tensor) -> Tensor:
    """Returns signs (..., 4 bytes) as words."""
    signs = signs.contiguous()
    return (signs if signs.storage_offset() % 4 == 0 else signs.clone()).view(torch.int32)


def _order(tile: Tile) -> dict[str, int]:
    return {"C": tile.C, "K": tile.K}


def forward(x: Tensor, u: Tensor, b: Tensor | None, abs_layers: int, save: int, dim: int) -> tuple[Tensor, Tensor]:
    """Is that of han_stack along axis `dim`, which is not the last one and not negative."""
    stack = _Stack.of(x, u, abs_layers, save == 2 and x.dtype in DROPPED)
    signs = x.new_empty(signs_shape(x, abs_layers, save, dim) if save else (0,), dtype=torch.uint8)
    if stack.layers == 0:
        return x.clone(memory_format=torch.contiguous_format), signs.zero_()
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if y.numel() == 0:
        return y, signs
    given, tile = _Positions.of(x, stack.groups, dim), axis_forward_tile(stack.features)
    tiles = triton.cdiv(stack.rows, tile.rows)
    with _on(stack.device):
        packed, _ = _packed(stack, u, b, tile.columns, _order(tile))
        kernels.forward_axis[(stack.groups * tiles,)](
            given.data, y, signs.view(torch.int32) if save else signs, packed,
            stack.rows, given.inner, stack.features, stack.layers, stack.abs_layers, tiles, 1, *given.strides,
            A=stack.arithmetic, SAVE=save > 0, REST=stack.rest, FOURS=given.in_fours,
            WHOLE=stack.features == tile.columns,
            Q=tile.Q, **_order(tile), **tile.options(_TRITON_BACKEND),
        )  # fmt: skip
    return y, signs


def backward(
    dy: Tensor,
    y: Tensor | None,
    signs: Tensor,
    u: Tensor,
    b: Tensor | None,
    abs_layers: int,
    needs: Sequence[bool],
    dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Is that of han_stack along axis `dim`, which is not the last one and not negative."""
    stack = _Stack.of(dy, u, abs_layers, signs.shape[dim] != abs_layers)
    needs_dx, needs_du, needs_db = needs

    def new(like: Tensor, needed: bool) -> Tensor:
        return torch.empty_like(like, memory_format=torch.contiguous_format) if needed else like.new_empty(0)

    dx, du, db = new(dy, needs_dx), new(u, needs_du), new(u, needs_db)
    if stack.layers == 0 or dy.numel() == 0:
        return (dx.copy_(dy) if needs_dx else dx), du.zero_(), db.zero_()
    g = _Positions.of(dy, stack.groups, dim)
    given = g if y is None or not needs_du else _Positions.of(y, stack.groups, dim)
    tile = axis_backward_tile(stack.features)
    tiles = triton.cdiv(stack.rows, tile.rows)
    with _on(stack.device):
        packed, norms = _packed(stack, u, b, tile.columns, _order(tile))
        partials, parts, sets = packed, tiles, 1
        if needs_du or needs_db:
            parts = stack.parts(tiles, tile.programs_per_sm)
            partials = stack.partials(tiles, parts, tile.columns)
            sets = partials.shape[2]
        kernels.backward_axis[(stack.groups * parts,)](
            g.data, given.data, _words(signs), packed, dx, partials,
            stack.rows, g.inner, stack.features, stack.layers, stack.abs_layers, tiles, parts, sets, 1,
            *g.strides, *given.strides,
            A=stack.arithmetic, DX=needs_dx, DU=needs_du, DB=needs_db, REST=stack.rest,
            FOURS=g.in_fours and given.in_fours,
            Q=tile.Q, **_order(tile), **tile.options(_TRITON_BACKEND),
        )  # fmt: skip
        if needs_du or needs_db:
            _finish(stack, partials, packed, norms, du, db, _order(tile))
    return dx, du, db
