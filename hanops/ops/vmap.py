"""Batching rules of the ops: an axis joins the rows, or becomes the groups of one grouped call, never a loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hanops.definition.checks import check_backward, check_forward

Dims = tuple[Any, ...]


def _batched(t: Tensor | None, dim: int | None, size: int, to: int = 0) -> Tensor | None:
    """Moves the batch axis of t to `to`; a t without one is repeated there, without a copy."""
    if t is None:
        return None
    return t.unsqueeze(to).expand(*t.shape[:to], size, *t.shape[to:]) if dim is None else t.movedim(dim, to)


def _one(t: Any, dim: int | None) -> Any:
    """Returns what one call of the batch sees of t, a tensor or None."""
    if dim is None:
        return t
    return t.select(dim, 0) if t.shape[dim] else t.new_empty([*t.shape[:dim], *t.shape[dim + 1 :]])


def _from_the_end(dim: int, axes: int) -> int:
    """Counts an axis from the end, where the batch axis, which comes before it, does not move it."""
    return dim - axes if dim >= 0 else dim


class _Batch:
    """Where the batch axis of one call goes: among the rows, or among the groups."""

    def __init__(self, size: int, u: Tensor, u_dim: int | None, over_stacks: bool) -> None:
        self.size, self.over_stacks = size, over_stacks
        shape = _one(u, u_dim).shape
        self.grouped, self.groups = len(shape) == 3, shape[0]
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
        return t.unflatten(0, (self.size, self.groups)) if self.over_stacks and self.grouped else t


def _forward(
    info: Any,
    in_dims: Dims,
    save: int | None,
    x: Tensor,
    u: Tensor,
    b: Tensor | None,
    final_abs: bool = True,
    abs: bool = True,
    dim: int = -1,
    exact: bool = True,
) -> tuple[_Batch, Any]:
    """Returns the batch, and what the op gives for it: `han_stack`, or where `save` is given `han_stack_forward`."""
    x_dim, u_dim, b_dim = in_dims[:3]
    one = _one(x, x_dim)
    check_forward(one, _one(u, u_dim), _one(b, b_dim), final_abs, save or 0, abs, dim)
    batch = _Batch(info.batch_size, u, u_dim, over_stacks=u_dim is not None or b_dim is not None)
    tensors = batch.rows(x, x_dim), batch.parameters(u, u_dim), batch.parameters(b, b_dim)
    flags = {"abs": abs, "dim": _from_the_end(dim, one.dim())}
    if save is None:
        return batch, torch.ops.hanops.han_stack(*tensors, final_abs, **flags, exact=exact)
    return batch, torch.ops.hanops.han_stack_forward(*tensors, final_abs, save, **flags)


def han_stack(info: Any, in_dims: Dims, *args: Any) -> tuple[Tensor, int]:
    """Is the batching rule of the op `han_stack`."""
    batch, y = _forward(info, in_dims, None, *args)
    return batch.result(y), batch.out


def han_stack_forward(
    info: Any, in_dims: Dims, x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, save: int, *flags: Any
) -> tuple[tuple[Tensor, Tensor], Dims]:
    """Is the batching rule of the op `han_stack_forward`."""
    batch, (y, signs) = _forward(info, in_dims, save, x, u, b, final_abs, *flags)
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
    abs: bool = True,
    dim: int = -1,
) -> tuple[tuple[Tensor, ...], Dims]:
    """Is the batching rule of the op `han_stack_backward`. du and db are those of each stack of the batch."""
    dy_dim, y_dim, signs_dim, u_dim, b_dim = in_dims[:5]
    one = _one(dy, dy_dim)
    saved, parameters = (_one(y, y_dim), _one(signs, signs_dim)), (_one(u, u_dim), _one(b, b_dim))
    check_backward(one, *saved, *parameters, final_abs, needs, abs, dim)
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
        abs,
        _from_the_end(dim, one.dim()),
    )
    results = tuple(batch.result(grad) if need else grad for grad, need in zip(grads, needs, strict=True))
    return results, tuple(batch.out if need else None for need in needs)


def register() -> None:
    """Gives the three ops that users reach their batching rules."""
    for rule in (han_stack, han_stack_forward, han_stack_backward):
        torch.library.register_vmap(f"hanops::{rule.__name__}", rule)
