"""Per-sample gradients by torch's ExpandedWeights: the samples are the groups of one call of the backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hanops import _torch

weights, tools = _torch.expanded_weights()


def _arguments(
    x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool = True, abs: bool = True, dim: int = -1
) -> tuple[Any, ...]:
    return x, u, b, final_abs, abs, dim


def _check(x: Tensor, u: Tensor) -> None:
    """Checks that the first axis of x numbers samples: ExpandedWeights know no other, and of u the shape alone.

    Raises:
        ValueError: where it does not.
    """
    if len(u.shape) == 3:
        raise ValueError(
            "han_stack: u must have no groups where ExpandedWeights ask for per-sample gradients, got shape"
            f" {list(u.shape)}: use torch.func.vmap(torch.func.grad(...)) over x's second axis"
        )
    if x.dim() < 2:
        raise ValueError(f"han_stack: x must have an axis of samples before its features, got shape {list(x.shape)}")


class HanStackPerSampleGrad(torch.autograd.Function):
    """Is the op `han_stack` with parameters that get a `grad_sample` (`call_for_per_sample_grads`)."""

    @staticmethod
    def forward(ctx: Any, names: tuple[str, ...], _: Any, *given: Any) -> Tensor:
        """Returns y; `given` are the arguments of the op, the last ones by these names."""
        args, kwargs = tools.standard_kwargs(names, given)
        x, u, b, final_abs, *flags = _arguments(*args, **kwargs)
        _check(x, u)
        op = torch.ops.hanops.han_stack_forward
        y, signs = tools.forward_helper(op, (x, u, b, final_abs, 1, *flags), {})
        ctx.save_for_backward(y, signs)
        ctx.stack = u, b, final_abs
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Sets `grad_sample` of u and b, and returns the gradient of x, the third argument."""
        u, b, final_abs = ctx.stack
        parameters = [tools.unpack_expanded_weight_or_tensor(t) for t in (u, b)]
        needs = [ctx.needs_input_grad[2], *(isinstance(t, weights.ExpandedWeight) for t in (u, b))]

        def of_sample(dy: Tensor, y: Tensor, signs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return torch.ops.hanops.han_stack_backward(dy, y, signs, *parameters, final_abs, needs)

        dx, du, db = torch.vmap(of_sample)(dy, *ctx.saved_tensors)
        tools.set_grad_sample_if_exists(u, lambda _: du)
        tools.set_grad_sample_if_exists(b, lambda _: db)
        return None, None, dx if needs[0] else None, *(None for _ in ctx.needs_input_grad[3:])


def implement(function: Any) -> None:
    """Makes it what ExpandedWeights run for a function with the arguments of the op, or these by name."""
    weights.implements_per_sample_grads(function)(HanStackPerSampleGrad)
