"""The registered ops under `torch.ops.hanops`: the native library, their fakes, and their definition in plain torch.

The plain-torch pair (`han_stack_forward_reference`, `han_stack_backward_reference`) serves the backend 'reference',
devices without kernels, and builds without native code, in which the schemas are defined here. The Triton pair
(`..._triton`) launches the kernels of `hanops.triton`, which is imported by the first call. The CUDA pair (`..._cuda`)
is native.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from hanops import backends, reference
from hanops.checks import check_saved, check_stack, signs_shape
from hanops.native import native
from hanops.signs import is_chunked, pack, unpack

_FORWARD = "(Tensor x, Tensor u, Tensor? b, bool final_abs, bool save) -> (Tensor y, Tensor signs)"
_BACKWARD = (
    "(Tensor dy, Tensor? y, Tensor signs, Tensor u, Tensor? b, bool final_abs, bool[3] needs)"
    " -> (Tensor dx, Tensor du, Tensor db)"
)


library = torch.library.Library("hanops", "DEF" if native is None else "FRAGMENT")


# ---- the two ops in plain torch


def _as_rows(t: Tensor, u: Tensor) -> Tensor:
    """Views t (..., features) as (groups, rows, features), one group where u has none."""
    groups = u.shape[0] if u.dim() == 3 else 1
    rows = t.numel() // (groups * t.shape[-1]) if groups else 0
    return t.reshape(groups, rows, t.shape[-1])


def _layers(t: Tensor) -> Tensor:
    """Views parameters as (groups, layers, features)."""
    return t if t.dim() == 3 else t.unsqueeze(0)


def forward_reference(x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, save: bool) -> tuple[Tensor, Tensor]:
    """Returns y and, where `save`, the packed sign bits of every layer that ends in an absolute value."""
    dtype = reference.arithmetic_dtype(x.dtype)
    w = reference.unit(_layers(u).to(dtype))
    rows = _as_rows(x, u).to(dtype)
    layers = u.shape[-2]
    signs = x.new_empty(signs_shape(x, u, final_abs) if save else [0], dtype=torch.uint8)
    for layer in range(layers):
        w_l = w[:, layer, None]
        rows = rows - 2 * (rows * w_l).sum(-1, keepdim=True) * w_l
        if b is not None:
            rows = rows + _layers(b)[:, layer, None].to(dtype)
        if final_abs or layer < layers - 1:
            if save:
                signs[..., layer, :] = pack(torch.signbit(rows), is_chunked(x.device)).view(signs[..., layer, :].shape)
            rows = rows.abs()
    return rows.reshape(x.shape).to(x.dtype, copy=layers == 0).contiguous(), signs


def backward_reference(
    dy: Tensor, y: Tensor | None, signs: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dx, du and db, each of shape (0,) where not needed, by undoing the layers from y and the sign bits."""
    needs_dx, needs_du, needs_db = needs
    dtype = reference.arithmetic_dtype(dy.dtype)
    wide = _layers(u).to(dtype)
    w = reference.unit(wide)
    g = _as_rows(dy, u).to(dtype)
    x = _as_rows(y, u).to(dtype) if needs_du and y is not None else None
    dw, db = torch.zeros_like(wide), torch.zeros_like(wide)
    for layer in reversed(range(u.shape[-2])):
        w_l = w[:, layer, None]
        if layer < signs.shape[-2]:
            negative = unpack(signs[..., layer, :], dy.shape[-1], is_chunked(dy.device)).view(g.shape)
            s = 1 - 2 * negative.to(torch.int8)
            g = g * s
            x = None if x is None else x * s
        db[:, layer] = g.sum(-2)
        beta = (g * w_l).sum(-1, keepdim=True)
        if x is not None:
            p = x if b is None else x - _layers(b)[:, layer, None].to(dtype)
            alpha = -(p * w_l).sum(-1, keepdim=True)
            x = p + 2 * alpha * w_l
            dw[:, layer] = -2 * (alpha * g + beta * x).sum(-2)
        g = g - 2 * beta * w_l
    largest = wide.abs().amax(-1, keepdim=True)
    largest = torch.where(largest == 0, 1, largest)
    norm = (wide / largest).square().sum(-1, keepdim=True).sqrt()
    across = (dw - (w * dw).sum(-1, keepdim=True) * w) / torch.where(norm == 0, 1, norm) / largest
    du = torch.where(norm == 0, 0, across)
    none = u.new_empty(0)
    return (
        g.reshape(dy.shape).to(dy.dtype, copy=u.shape[-2] == 0).contiguous() if needs_dx else dy.new_empty(0),
        du.view(u.shape).to(u.dtype) if needs_du else none,
        db.view(u.shape).to(u.dtype) if needs_db else none.clone(),
    )


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


_FORWARDS = {"reference": forward_reference, "triton": forward_triton}
_BACKWARDS = {"reference": backward_reference, "triton": backward_triton}
for _name in _FORWARDS:
    library.define(f"han_stack_forward_{_name}{_FORWARD}")
    library.define(f"han_stack_backward_{_name}{_BACKWARD}")
    library.impl(f"han_stack_forward_{_name}", _FORWARDS[_name], "CompositeExplicitAutograd")
    library.impl(f"han_stack_backward_{_name}", _BACKWARDS[_name], "CompositeExplicitAutograd")


# ---- schemas, implementation and autograd of a build without native code


class _HanStack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool) -> Tensor:  # type: ignore[no-untyped-def]
        y, signs = torch.ops.hanops.han_stack_forward(x, u, b, final_abs, True)
        rebuild = ctx.needs_input_grad[1]
        ctx.save_for_backward(y if rebuild else None, signs, u, b if rebuild else None)
        ctx.final_abs = final_abs
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):  # type: ignore[no-untyped-def]
        y, signs, u, b = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:3])
        grads = torch.ops.hanops.han_stack_backward(dy, y, signs, u, b, ctx.final_abs, needs)
        return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), None)


class _HanStackBackward(torch.autograd.Function):
    """Refuses a second derivative where it would be used, instead of leaving it out."""

    @staticmethod
    def forward(ctx, *args):  # type: ignore[no-untyped-def]
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.hanops.han_stack_backward(*args)

    @staticmethod
    def backward(ctx, *grads: Tensor):  # type: ignore[no-untyped-def]
        raise NotImplementedError("han_stack: double backward is not implemented")


def _requires_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _han_stack_backward_autograd(
    dy: Tensor, y: Tensor | None, signs: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    if _requires_grad(dy, y, u, b):
        return _HanStackBackward.apply(dy, y, signs, u, b, final_abs, needs)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.hanops.han_stack_backward(dy, y, signs, u, b, final_abs, needs)


def _han_stack_autograd(x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool = True) -> Tensor:
    check_stack("x", x, u, b)
    if _requires_grad(x, u, b):
        return _HanStack.apply(x, u, b, final_abs)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.hanops.han_stack_forward(x, u, b, final_abs, False)[0]


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

    def composed(x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool = True) -> Tensor:
        return forward(x, u, b, final_abs, False)[0]

    library.define("han_stack(Tensor x, Tensor u, Tensor? b, bool final_abs=True) -> Tensor")
    library.define("han_stack_forward" + _FORWARD)
    library.define("han_stack_backward" + _BACKWARD)
    library.impl("han_stack", composed, "CompositeExplicitAutograd")
    library.impl("han_stack_forward", forward, "CompositeExplicitAutograd")
    library.impl("han_stack_backward", backward, "CompositeExplicitAutograd")
    library.impl("han_stack", _han_stack_autograd, "Autograd")
    library.impl("han_stack_backward", _han_stack_backward_autograd, "Autograd")
    warnings.warn(
        "hanops was built without native code (HANOPS_NO_NATIVE): its ops run in plain torch, slowly", stacklevel=2
    )


if native is None:
    _define_without_native()


# ---- fakes


@torch.library.register_fake("hanops::han_stack")
def _han_stack_fake(x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool = True) -> Tensor:
    check_stack("x", x, u, b)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _forward_fake(x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, save: bool) -> tuple[Tensor, Tensor]:
    check_stack("x", x, u, b)
    signs = x.new_empty(signs_shape(x, u, final_abs) if save else [0], dtype=torch.uint8)
    return torch.empty_like(x, memory_format=torch.contiguous_format), signs


def _backward_fake(
    dy: Tensor, y: Tensor | None, signs: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
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
