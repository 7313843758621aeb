"""Schemas, implementation, autograd and autocast of a build without native code, where C++ defines none of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from hanops import backends
from hanops.definition.checks import check_saved, check_stack
from hanops.ops import autograd
from hanops.ops.registration import BACKWARD, BACKWARDS, FORWARD, FORWARDS, library


def _selected(x: Tensor, u: Tensor) -> str:
    """Returns the backend that runs a call."""
    return backends.select(x.device, x.dtype, u.shape[-1], u.shape[-2], x.numel() // u.shape[-1])


def _forward(x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, save: bool) -> tuple[Tensor, Tensor]:
    check_stack("x", x, u, b)
    return FORWARDS[_selected(x, u)](x, u, b, final_abs, save)


def _backward(
    dy: Tensor, y: Tensor | None, signs: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    check_stack("dy", dy, u, b)
    check_saved(dy, y, signs, u, final_abs, needs)
    return BACKWARDS[_selected(dy, u)](dy, y, signs, u, b, final_abs, needs)


def _stack(x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool = True) -> Tensor:
    return _forward(x, u, b, final_abs, False)[0]


def _differentiable_stack(x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool = True) -> Tensor:
    save = autograd.is_differentiated(x, u, b)
    return torch.ops.hanops.han_stack_forward(x, u, b, final_abs, save)[0]


def _differentiable_forward(x: Tensor, u: Tensor, b: Tensor | None, *flags: bool) -> tuple[Tensor, Tensor]:
    if autograd.is_differentiated(x, u, b):
        return autograd.han_stack_forward(x, u, b, *flags)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.hanops.han_stack_forward(x, u, b, *flags)


def _differentiable_backward(
    dy: Tensor, y: Tensor | None, signs: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (dy, y, signs, u, b, final_abs, needs)
    if autograd.is_differentiated(dy, y, u, b):
        return autograd.han_stack_backward(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.hanops.han_stack_backward(*arguments)


def _autocast(device_type: str) -> Callable[..., Tensor]:
    key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device_type.upper()}"))

    def cast(x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool = True) -> Tensor:
        casts = x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        x = x.to(torch.get_autocast_dtype(device_type)) if casts else x
        with torch._C._ExcludeDispatchKeyGuard(key):
            return torch.ops.hanops.han_stack(x, u, b, final_abs)

    return cast


def define() -> None:
    """Defines and implements the ops that csrc/ops.cpp has otherwise, and warns that they are slow."""
    library.define("han_stack(Tensor x, Tensor u, Tensor? b, bool final_abs=True) -> Tensor")
    library.define("han_stack_forward" + FORWARD)
    library.define("han_stack_backward" + BACKWARD)
    library.impl("han_stack", _stack, "CompositeExplicitAutograd")
    library.impl("han_stack_forward", _forward, "CompositeExplicitAutograd")
    library.impl("han_stack_backward", _backward, "CompositeExplicitAutograd")
    library.impl("han_stack", _differentiable_stack, "Autograd")
    library.impl("han_stack_forward", _differentiable_forward, "Autograd")
    library.impl("han_stack_backward", _differentiable_backward, "Autograd")
    for device_type in ("cpu", "cuda"):
        library.impl("han_stack", _autocast(device_type), f"Autocast{device_type.upper()}")
    warnings.warn(
        "hanops was built without native code (HANOPS_NO_NATIVE): its ops run in plain torch, slowly", stacklevel=2
    )
