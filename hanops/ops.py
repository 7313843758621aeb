"""The registered ops under `torch.ops.hanops`, where C++ does not define them, and their fakes.

`han_stack_forward` and `han_stack_backward` run the pair of one backend: `..._reference` (plain torch, which also
serves devices without kernels), `..._triton` (imported by the first call), and, native, `..._cuda` and the CPU's
kernels. The pair `..._differentiable` runs the two ops themselves, and derives what the C++ autograd does not. A build
without native code has its schemas, its autocast and its autograd from here.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from hanops import autograd, backends, plain
from hanops.checks import check_saved, check_stack, signs_shape
from hanops.native import native

_FORWARD = "(Tensor x, Tensor u, Tensor? b, bool final_abs, bool save) -> (Tensor y, Tensor signs)"
_BACKWARD = (
    "(Tensor dy, Tensor? y, Tensor signs, Tensor u, Tensor? b, bool final_abs, bool[3] needs)"
    " -> (Tensor dx, Tensor du, Tensor db)"
)


library = torch.library.Library("hanops", "DEF" if native is None else "FRAGMENT")


# ---- the two ops in Triton


def forward_triton(x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, save: bool) -> tuple[Tensor, Tensor]:
    """Returns y and, where `save`, the packed sign bits, from the Triton kernels."""
    backends.require("triton", x.device)
    from hanops.triton import han_stack

    return han_stack.forward(x, u, b, final_abs, save)


def backward_triton(
    dy: Tensor, y: Tensor | None, signs: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dx, du and db, each of shape (0,) where not needed, from the Triton kernels."""
    backends.require("triton", dy.device)
    from hanops.triton import han_stack

    return han_stack.backward(dy, y, signs, u, b, final_abs, needs)


_FORWARDS = {"reference": plain.forward, "triton": forward_triton}
_BACKWARDS = {"reference": plain.backward, "triton": backward_triton}


def _checked_forward(run: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def forward(x: Tensor, u: Tensor, b: Tensor | None, *flags: bool) -> tuple[Tensor, Tensor]:
        check_stack("x", x, u, b)
        return run(x, u, b, *flags)

    return forward


def _checked_backward(run: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    def backward(
        dy: Tensor, y: Tensor | None, signs: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, needs: list[bool]
    ) -> tuple[Tensor, ...]:
        check_stack("dy", dy, u, b)
        check_saved(dy, y, signs, u, final_abs, needs)
        return run(dy, y, signs, u, b, final_abs, needs)

    return backward


for _name in _FORWARDS:
    _forward, _backward = f"han_stack_forward_{_name}", f"han_stack_backward_{_name}"
    if native is None:
        library.define(_forward + _FORWARD)
        library.define(_backward + _BACKWARD)
        library.impl(_forward, _checked_forward(_FORWARDS[_name]), "CompositeExplicitAutograd")
        library.impl(_backward, _checked_backward(_BACKWARDS[_name]), "CompositeExplicitAutograd")
    else:  # csrc/ops.cpp defines them, and checks the arguments
        library.impl(_forward, _FORWARDS[_name], "CompositeExplicitAutograd")
        library.impl(_backward, _BACKWARDS[_name], "CompositeExplicitAutograd")


# ---- the two ops with every derivative

library.define(f"han_stack_forward_differentiable{_FORWARD}")
library.define(f"han_stack_backward_differentiable{_BACKWARD}")
library.impl("han_stack_forward_differentiable", autograd.han_stack_forward, "CompositeImplicitAutograd")
library.impl("han_stack_backward_differentiable", autograd.han_stack_backward, "CompositeImplicitAutograd")


# ---- schemas, implementation, autograd and autocast of a build without native code


def _define_without_native() -> None:
    def selected(x: Tensor, u: Tensor) -> str:
        return backends.select(x.device, x.dtype, u.shape[-1], u.shape[-2], x.numel() // u.shape[-1])

    def forward(x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, save: bool) -> tuple[Tensor, Tensor]:
        check_stack("x", x, u, b)
        return _FORWARDS[selected(x, u)](x, u, b, final_abs, save)

    def backward(
        dy: Tensor, y: Tensor | None, signs: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, needs: list[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        check_stack("dy", dy, u, b)
        check_saved(dy, y, signs, u, final_abs, needs)
        return _BACKWARDS[selected(dy, u)](dy, y, signs, u, b, final_abs, needs)

    def stack(x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool = True) -> Tensor:
        return forward(x, u, b, final_abs, False)[0]

    def differentiable_stack(x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool = True) -> Tensor:
        save = autograd.is_differentiated(x, u, b)
        return torch.ops.hanops.han_stack_forward(x, u, b, final_abs, save)[0]

    def differentiable_forward(x: Tensor, u: Tensor, b: Tensor | None, *flags: bool) -> tuple[Tensor, Tensor]:
        if autograd.is_differentiated(x, u, b):
            return autograd.han_stack_forward(x, u, b, *flags)
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.hanops.han_stack_forward(x, u, b, *flags)

    def differentiable_backward(
        dy: Tensor, y: Tensor | None, signs: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, needs: list[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        arguments = (dy, y, signs, u, b, final_abs, needs)
        if autograd.is_differentiated(dy, y, u, b):
            return autograd.han_stack_backward(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.hanops.han_stack_backward(*arguments)

    def autocast(device_type: str) -> Callable[..., Tensor]:
        key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device_type.upper()}"))

        def cast(x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool = True) -> Tensor:
            casts = x.dtype in (torch.float32, torch.bfloat16, torch.float16)
            x = x.to(torch.get_autocast_dtype(device_type)) if casts else x
            with torch._C._ExcludeDispatchKeyGuard(key):
                return torch.ops.hanops.han_stack(x, u, b, final_abs)

        return cast

    library.define("han_stack(Tensor x, Tensor u, Tensor? b, bool final_abs=True) -> Tensor")
    library.define("han_stack_forward" + _FORWARD)
    library.define("han_stack_backward" + _BACKWARD)
    library.impl("han_stack", stack, "CompositeExplicitAutograd")
    library.impl("han_stack_forward", forward, "CompositeExplicitAutograd")
    library.impl("han_stack_backward", backward, "CompositeExplicitAutograd")
    library.impl("han_stack", differentiable_stack, "Autograd")
    library.impl("han_stack_forward", differentiable_forward, "Autograd")
    library.impl("han_stack_backward", differentiable_backward, "Autograd")
    for device_type in ("cpu", "cuda"):
        library.impl("han_stack", autocast(device_type), f"Autocast{device_type.upper()}")
    warnings.warn(
        "hanops was built without native code (HANOPS_NO_NATIVE): its ops run in plain torch, slowly", stacklevel=2
    )


if native is None:
    _define_without_native()


# ---- fakes


def _load_sharding_rules() -> None:
    """Registers the rules for DTensor where it is in use: it asks a fake for a shape before it looks for a rule."""
    if "torch.distributed.tensor" in sys.modules:
        from hanops import sharding  # noqa: F401


@torch.library.register_fake("hanops::han_stack")
def _han_stack_fake(x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool = True) -> Tensor:
    _load_sharding_rules()
    check_stack("x", x, u, b)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _forward_fake(x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, save: bool) -> tuple[Tensor, Tensor]:
    _load_sharding_rules()
    check_stack("x", x, u, b)
    signs = x.new_empty(signs_shape(x, u, final_abs) if save else [0], dtype=torch.uint8)
    return torch.empty_like(x, memory_format=torch.contiguous_format), signs


def _backward_fake(
    dy: Tensor, y: Tensor | None, signs: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    _load_sharding_rules()
    check_stack("dy", dy, u, b)
    check_saved(dy, y, signs, u, final_abs, needs)
    return (
        torch.empty_like(dy, memory_format=torch.contiguous_format) if needs[0] else dy.new_empty(0),
        torch.empty_like(u, memory_format=torch.contiguous_format) if needs[1] else u.new_empty(0),
        torch.empty_like(u, memory_format=torch.contiguous_format) if needs[2] else u.new_empty(0),
    )


for _suffix in ("", "_reference", "_triton") if native is None else ("", "_reference", "_triton", "_cuda"):
    torch.library.register_fake(f"hanops::han_stack_forward{_suffix}", _forward_fake)
    torch.library.register_fake(f"hanops::han_stack_backward{_suffix}", _backward_fake)
