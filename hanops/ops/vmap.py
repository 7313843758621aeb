"""Batching rules of the ops: an axis joins the rows, or becomes the groups of one grouped call, never a loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Dims = tuple[Any, ...]


def _batched(t: Tensor | None, dim: int | None, size: int, to: int = 0) -> Tensor | None:
    """Moves the batch axis of t to `to`; a t without one is repeated there, without a copy."""
    if t is None:
        return None
    return t.unsqueeze(to).expand(*t.shape[:to], size, *t.shape[to:]) if dim is None else t.movedim(dim, to)


class _Batch:
    """Where the batch axis of one call goes: among the rows, or among the groups."""

    def __init__(self, size: int, u: Tensor, u_dim: int | None, over_stacks: bool) -> None:
        self.size, self.over_stacks = size, over_stacks
        self.grouped = u.dim() - (u_dim is not None) == 3
        self.out = 0 if over_stacks or not self.grouped else 1

    def rows(self, t: Tensor | None, dim: int | None) -> Tensor | None:
        """Gives t (x, y, dy or signs) the shape that the op takes."""
        t = _batched(t, dim, self.size, self.out)
        return t.flatten(0, 1) if self.over_stacks and self.grouped and t is not None else t

    def parameters(self, t: Tensor | None, dim: int | None) -> Tensor | None:
        """Gives u or b the shape that the op takes."""
        if not self.over_stacks:
            return t
        t = _batched(t, dim, self.size)
        return t.flatten(0, 1) if self.grouped and t is not None else t

    def result(self, t: Tensor) -> Tensor:
        """Gives an output of the op its batch axis back, at `out`."""
        return t.unflatten(0, (self.size, -1)) if self.over_stacks and self.grouped else t


def _forward(op: Any, info: Any, in_dims: Dims, x: Tensor, u: Tensor, b: Tensor | None, *flags: bool) -> Any:
    x_dim, u_dim, b_dim = in_dims[:3]
    batch = _Batch(info.batch_size, u, u_dim, over_stacks=u_dim is not None or b_dim is not None)
    return batch, op(batch.rows(x, x_dim), batch.parameters(u, u_dim), batch.parameters(b, b_dim), *flags)


def han_stack(info: Any, in_dims: Dims, *args: Any) -> tuple[Tensor, int]:
    """Is the batching rule of the op `han_stack`."""
    batch, y = _forward(torch.ops.hanops.han_stack, info, in_dims, *args)
    return batch.result(y), batch.out


def han_stack_forward(info: Any, in_dims: Dims, *args: Any) -> tuple[tuple[Tensor, Tensor], Dims]:
    """Is the batching rule of the op `han_stack_forward`."""
    batch, (y, signs) = _forward(torch.ops.hanops.han_stack_forward, info, in_dims, *args)
    save = args[-1]
    return (batch.result(y), batch.result(signs) if save else signs), (batch.out, batch.out if save else None)


def han_stack_backward(
    info: Any,
    in_dims: Dims,
    dy: Tensor,
    y: Tensor | None,
    signs: Tensor,
    u: Tensor,
    b: Tensor | None,
    final_abs: bool,
    needs: list[bool],
) -> tuple[tuple[Tensor, ...], Dims]:
    """Is the batching rule of the op `han_stack_backward`. du and db are those of each stack of the batch."""
    dy_dim, y_dim, signs_dim, u_dim, b_dim = in_dims[:5]
    stacks = u_dim is not None or b_dim is not None or needs[1] or needs[2]
    batch = _Batch(info.batch_size, u, u_dim, over_stacks=stacks)
    grads = torch.ops.hanops.han_stack_backward(
        batch.rows(dy, dy_dim),
        batch.rows(y, y_dim),
        batch.rows(signs, signs_dim),
        batch.parameters(u, u_dim),
        batch.parameters(b, b_dim),
        final_abs,
        needs,
    )
    results = tuple(batch.result(grad) if need else grad for grad, need in zip(grads, needs, strict=True))
    return results, tuple(batch.out if need else None for need in needs)


def register() -> None:
    """Gives the three ops that users reach their batching rules."""
    for rule in (han_stack, han_stack_forward, han_stack_backward):
        torch.library.register_vmap(f"hanops::{rule.__name__}", rule)
