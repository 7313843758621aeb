"""Per-sample gradients by torch's ExpandedWeights: the samples are the groups of one call of the backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hanops import _torch
from hanops.ops import autocast

# By function: its u and b as the op takes them.
_AS_STACK: dict[Any, Callable[..., tuple[Tensor, Tensor | None]]] = {}


def _is_expanded(t: Any) -> bool:
    weights, _ = _torch.expanded_weights()
    return isinstance(t, weights.ExpandedWeight)


def _arguments(
    x: Tensor,
    u: Tensor,
    b: Tensor | None = None,
    *,
    final_abs: bool = True,
    activation: str | None = "abs",
    exact: bool = True,
    dim: int = -1,
) -> tuple[Any, ...]:
    return x, u, b, final_abs, 2 if exact else 1, activation is not None, dim


def _axis_of_samples(x: Tensor, u: Tensor, b: Tensor | None) -> int:
    """Returns the axis of x that numbers samples: the first, or where u has groups the one after theirs.

    Raises:
        ValueError: where x has no such axis, or ExpandedWeights were made for another.
    """
    axis = 1 if len(u.shape) == 3 else 0  # of ExpandedWeights, nothing but the shape is known
    if len(x.shape) < axis + 2:
        raise ValueError(f"han_stack: x must have an axis of samples before its features, got shape {list(x.shape)}")
    weights: list[Any] = [t for t in (u, b) if _is_expanded(t)]
    sizes = {weight.batch_size for weight in weights}
    if axis and sizes != {x.shape[axis]}:
        wanted = " and ".join(map(str, sizes))
        raise ValueError(
            f"han_stack: x must have {wanted} samples in its second axis where u has groups, got shape"
            f" {list(x.shape)}: pass batch_first=False to call_for_per_sample_grads"
        )
    return axis


class HanStackPerSampleGrad(torch.autograd.Function):
    """Is the op `han_stack` with parameters that get a `grad_sample` (`call_for_per_sample_grads`)."""

    @staticmethod
    def forward(ctx: Any, names: tuple[str, ...], function: Any, *given: Any) -> Tensor:
        """Returns y; `given` are the arguments of the function, the last ones by these names."""
        _, tools = _torch.expanded_weights()
        args, kwargs = tools.standard_kwargs(names, given)
        x, u, b, final_abs, save, abs, dim = _arguments(*args, **kwargs)
        axis = _axis_of_samples(x, u, b)
        axes = len(x.shape)
        if dim in (axis, axis - axes):
            raise ValueError(f"han_stack: dim must not be the axis of samples, {axis}, got {dim}")

        def run(x: Tensor, u: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
            stack = autocast.cast(x.movedim(0, axis), *_AS_STACK[function](u, b))
            return torch.ops.hanops.han_stack_forward(*stack, final_abs, save, abs, dim)

        y, signs = tools.forward_helper(run, (x.movedim(axis, 0), u, b), {})
        ctx.save_for_backward(y, signs)
        ctx.call = function, x.dtype, u, b, final_abs, abs, dim - axes if dim >= 0 else dim, axis
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Sets `grad_sample` of u and b, and returns the gradient of x, the third argument."""
        function, dtype, u, b, final_abs, abs, dim, axis = ctx.call
        _, tools = _torch.expanded_weights()
        given = _AS_STACK[function](*(tools.unpack_expanded_weight_or_tensor(t) for t in (u, b)))
        stack = [None if t is None else autocast.beside(dy.dtype, t) for t in given]
        needs = [ctx.needs_input_grad[2], _is_expanded(u), _is_expanded(b)]

        def of_sample(dy: Tensor, y: Tensor, signs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return torch.ops.hanops.han_stack_backward(dy, y, signs, *stack, final_abs, needs, abs, dim)

        dx, du, db = torch.vmap(of_sample, axis)(dy, *ctx.saved_tensors)
        tools.set_grad_sample_if_exists(u, lambda like: du.reshape(-1, *like.shape).to(like.dtype))
        tools.set_grad_sample_if_exists(b, lambda like: db.reshape(-1, *like.shape).to(like.dtype))
        of_x = dx.movedim(0, axis).to(dtype) if needs[0] else None
        return None, None, of_x, *(None for _ in ctx.needs_input_grad[3:])


def implement(function: Any, as_stack: Callable[..., tuple[Tensor, Tensor | None]]) -> None:
    """Makes it what ExpandedWeights run for a function with the arguments of the op, or these by name.

    Args:
        function: takes x, u and b first.
        as_stack: gives u and b of the function an axis of layers, or refuses them.
    """
    _AS_STACK[function] = as_stack
    weights, _ = _torch.expanded_weights()
    weights.implements_per_sample_grads(function)(HanStackPerSampleGrad)
