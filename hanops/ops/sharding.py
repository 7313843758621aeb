"""Sharding rules of the ops: how DTensor splits a call over a mesh. Rows are independent, so their axes may be sharded.

DTensor asks a fake for the shape of a result before it looks for the rule, and the fakes import this file then: nothing
is loaded where DTensor is not used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from hanops import _torch

Rules = list[tuple[list[Any], list[Any]]]  # of one dimension of a mesh: placements of the results, and of the arguments


def _dim(flags: Any) -> int:
    """Returns the first of the flags from `dim` on."""
    return flags[0] if flags else -1


def _of_signs(placement: Any, x: Any, dim: int) -> Any:
    """Returns the placement of signs where x has this one: an axis after that of the features counts one more."""
    after = isinstance(placement, Shard) and placement.dim > dim % x.ndim
    return Shard(placement.dim + 1) if after else placement


def _row_axes(x: Any, u: Any, dim: int) -> list[int]:
    """Returns the axes of x that number the rows, or positions, of one stack."""
    return [axis for axis in range(u.ndim - 2, x.ndim) if axis != dim % x.ndim]


def _forward(x: Any, u: Any, b: Any, save: int, dim: int) -> Rules:
    """Returns the rules of y and signs, which are empty unless `save`."""

    def rule(rows: Any, parameters: Any) -> tuple[list[Any], list[Any]]:
        signs = _of_signs(rows, x, dim) if save else Replicate()
        return [rows, signs], [rows, parameters, None if b is None else parameters]

    rules = [rule(Replicate(), Replicate()), *(rule(Shard(axis), Replicate()) for axis in _row_axes(x, u, dim))]
    return [*rules, rule(Shard(0), Shard(0))] if u.ndim == 3 else rules


def han_stack_forward(x: Any, u: Any, b: Any, final_abs: bool, save: int, *flags: Any) -> Rules:
    """Gives the rules of the op `han_stack_forward`."""
    return [
        (results, [*arguments, None, None, *(None for _ in flags)])
        for results, arguments in _forward(x, u, b, save, _dim(flags[1:]))
    ]


def han_stack(x: Any, u: Any, b: Any, *flags: Any) -> Rules:
    """Gives the rules of the op `han_stack`, which is called in inference mode."""
    return [
        (results[:1], [*arguments, *(None for _ in flags)])
        for results, arguments in _forward(x, u, b, 0, _dim(flags[2:]))
    ]


def han_stack_backward(
    dy: Any, y: Any, signs: Any, u: Any, b: Any, final_abs: bool, needs: list[bool], *flags: Any
) -> Rules:
    """Gives the rules of the op `han_stack_backward`; results that are not needed are empty."""
    dim = _dim(flags[1:])

    def rule(rows: Any, parameters: Any, gradients: Any) -> tuple[list[Any], list[Any]]:
        results = [
            placement if need else Replicate()
            for placement, need in zip((rows, gradients, gradients), needs, strict=True)
        ]
        kept = [None if y is None else rows, _of_signs(rows, dy, dim)]
        return results, [rows, *kept, parameters, None if b is None else parameters, None, None, *(None for _ in flags)]

    rules = [
        rule(Replicate(), Replicate(), Replicate()),
        *(rule(Shard(axis), Replicate(), Partial()) for axis in _row_axes(dy, u, dim)),
    ]
    return [*rules, rule(Shard(0), Shard(0), Shard(0))] if u.ndim == 3 else rules


for _rules in (han_stack, han_stack_forward, han_stack_backward):
    _op = getattr(torch.ops.hanops, _rules.__name__).default
    register_sharding(_op)(_rules)
    _torch.tell_calls_apart(_op)
