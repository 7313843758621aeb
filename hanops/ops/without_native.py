"""Schemas, implementation, autograd and autocast of a build without native code, where C++ defines none of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hanops import _torch, backends
from hanops.definition.checks import check_stack
from hanops.definition.signs import is_last
from hanops.ops import autocast, autograd
from hanops.ops.registration import (
    BACKWARD,
    BACKWARDS,
    FORWARD,
    FORWARDS,
    STACK,
    backward_op,
    forward_op,
    library,
    stack_op,
)


def _selected(x: Tensor, u: Tensor) -> str:
    """Returns the backend that runs a call."""
    return backends.select(x.device, x.dtype, u.shape[-1], u.shape[-2], x.numel() // u.shape[-1])


def _forward(x: Tensor, u: Tensor, b: Tensor | None, *flags: Any) -> tuple[Tensor, Tensor]:
    return FORWARDS[_selected(x, u)](x, u, b, *flags)


def _backward(dy: Tensor, y: Tensor | None, signs: Tensor, u: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return BACKWARDS[_selected(dy, u)](dy, y, signs, u, *rest)


def _differentiable_stack(
    x: Tensor,
    u: Tensor,
    b: Tensor | None,
    final_abs: bool = True,
    abs: bool = True,
    dim: int = -1,
    exact: bool = True,
) -> Tensor:
    if not is_last(dim, x.dim()):  # rows are copied above autograd, and only they are kept for the backward
        check_stack("x", x, u, b, final_abs, abs, dim)
        rows = torch.ops.hanops.han_stack(x.movedim(dim, -1), u, b, final_abs, abs, -1, exact)
        return rows.movedim(-1, dim).contiguous()
    save = 2 if exact and autograd.is_differentiated(u) else int(autograd.is_differentiated(x, u, b))
    return torch.ops.hanops.han_stack_forward(x, u, b, final_abs, save, abs, dim)[0]


def _differentiable_forward(x: Tensor, u: Tensor, b: Tensor | None, *flags: bool) -> tuple[Tensor, Tensor]:
    if autograd.is_differentiated(x, u, b):
        return autograd.han_stack_forward(x, u, b, *flags)
    with _torch.below_autograd():
        return torch.ops.hanops.han_stack_forward(x, u, b, *flags)


def _differentiable_backward(
    dy: Tensor, y: Tensor | None, signs: Tensor, u: Tensor, b: Tensor | None, *flags: Any
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (dy, y, signs, u, b, *flags)
    if autograd.is_differentiated(dy, y, u, b):
        return autograd.han_stack_backward(*arguments)
    with _torch.below_autograd():
        return torch.ops.hanops.han_stack_backward(*arguments)


def _autocast(device_type: str) -> Callable[..., Tensor]:
    def cast(x: Tensor, u: Tensor, b: Tensor | None, *flags: bool) -> Tensor:
        tensors = autocast.cast(x, u, b)
        with _torch.without_autocast(device_type):
            return torch.ops.hanops.han_stack(*tensors, *flags)

    return cast


def define() -> None:
    """Defines and implements the ops that csrc/ops.cpp has otherwise, and warns that they are slow."""
    library.define("han_stack" + STACK)
    library.define("han_stack_forward" + FORWARD)
    library.define("han_stack_backward" + BACKWARD)
    library.impl("han_stack", stack_op(_forward), "CompositeExplicitAutograd")
    library.impl("han_stack_forward", forward_op(_forward, check=True), "CompositeExplicitAutograd")
    library.impl("han_stack_backward", backward_op(_backward, check=True), "CompositeExplicitAutograd")
    library.impl("han_stack", _differentiable_stack, "Autograd")
    library.impl("han_stack_forward", _differentiable_forward, "Autograd")
    library.impl("han_stack_backward", _differentiable_backward, "Autograd")
    for device_type in autocast.KINDS:
        library.impl("han_stack", _autocast(device_type), f"Autocast{device_type.upper()}")
    warnings.warn("hanops was built without native code: on a CPU its ops run in plain torch, slowly", stacklevel=2)
