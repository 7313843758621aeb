"""Every derivative that the C++ autograd leaves out: transforms of torch.func, forward mode, and second derivatives.

C++ calls the two ops `..._differentiable` for those, and builds without native code call them for all. They keep what
the C++ autograd keeps. The second derivative rebuilds the activations too, twice: downward and upward again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hanops import _torch
from hanops.backends import by_rows, plain_torch
from hanops.backends.plain_torch import across, as_rows, by_layer, length, plus_minus, split, stacked
from hanops.definition import reference
from hanops.definition.checks import check_backward, check_forward
from hanops.definition.signs import is_last, layers_with_abs


def is_differentiated(*tensors: Tensor | None) -> bool:
    """Tells whether autograd records a call on these tensors, or forward mode derives it."""
    recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return recorded or _torch.has_tangent(*tensors)


def _below(op: Any, *args: Any) -> Any:
    """Calls op below autograd, where the next transform outward, if there is one, derives it in turn."""
    with _torch.next_transform():
        return op(*args)


class _Derived(_torch.SingleLevelFunction):
    """Is single-level: dispatched ops meet the transforms one by one, so a Function here only sees the innermost."""

    @staticmethod
    def _compiled_autograd_key(ctx: Any) -> tuple[int, ...]:
        """Returns what compiled autograd tells nodes apart by, beside their tensors. Only `Function` comes with one."""
        return (_torch.compiled_autograd_id(ctx), *map(int, ctx.flags))


# Nodes are named after the classes: HanStackBackward, as that of C++, and HanStackBackwardBackward.


class HanStack(_Derived):
    """Is `han_stack_forward` with its derivative."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:  # noqa: D102
        return _below(torch.ops.hanops.han_stack_forward, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: D102
        _, u, b, final_abs, _, abs, dim = inputs
        ctx.flags = final_abs, abs, dim
        y, signs = output
        rebuild = ctx.needs_input_grad[1]  # y serves to rebuild the activations, which only du asks for
        ctx.save_for_backward(y if rebuild else None, signs, u, b if rebuild else None)
        ctx.mark_non_differentiable(signs)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # noqa: D102
        if dy is None:
            return (None,) * 7
        y, signs, u, b = ctx.saved_tensors
        final_abs, *flags = ctx.flags
        needs = list(ctx.needs_input_grad[:3])
        grads = torch.ops.hanops.han_stack_backward(dy, y, signs, u, b, final_abs, needs, *flags)
        return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), *(None,) * 4)


class HanStackBackward(_Derived):
    """Is `han_stack_backward` with its derivative."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        return _below(torch.ops.hanops.han_stack_backward, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: D102
        *tensors, final_abs, needs, abs, dim = inputs
        ctx.flags = (final_abs, abs, dim, *needs)
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *vs: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
        final_abs, abs, dim, *needs = ctx.flags
        v_dx, v_du, v_db = (v if need else None for v, need in zip(vs, needs, strict=True))
        dy, y, u, b = double_backward(v_dx, v_du, v_db, *ctx.saved_tensors, final_abs=final_abs, abs=abs, dim=dim)
        grads = (dy, y, None, u, b, *(None,) * 4)
        return tuple(grad if need else None for grad, need in zip(grads, ctx.needs_input_grad, strict=True))


def han_stack_forward(
    x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, save: int, abs: bool = True, dim: int = -1
) -> tuple[Tensor, Tensor]:
    """Is the op `han_stack_forward`, with every derivative in x, u and b. Forward mode derives plain torch."""
    if _torch.has_tangent(x, u, b):  # below, the op itself checks its arguments
        check_forward(x, u, b, final_abs, save, abs, dim)
        y, signs = by_rows.forward(plain_torch.forward, x, u, b, layers_with_abs(u, final_abs, abs), save or 1, dim)
    else:
        with _torch.enable_single_level_autograd_function():
            y, signs = HanStack.apply(x, u, b, final_abs, save or 2, abs, dim)  # type: ignore[attr-defined]
    return y, signs if save else signs.new_empty(0)


def han_stack_backward(
    dy: Tensor,
    y: Tensor | None,
    signs: Tensor,
    u: Tensor,
    b: Tensor | None,
    final_abs: bool,
    needs: list[bool],
    abs: bool = True,
    dim: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Is the op `han_stack_backward`, with every derivative in dy, y, u and b."""
    if _torch.has_tangent(dy, y, u, b):
        check_backward(dy, y, signs, u, b, final_abs, needs, abs, dim)
        abs_layers = layers_with_abs(u, final_abs, abs)
        return by_rows.backward(plain_torch.backward, dy, y, signs, u, b, abs_layers, needs, dim)
    with _torch.enable_single_level_autograd_function():
        return HanStackBackward.apply(  # type: ignore[attr-defined]
            dy, y, signs, u, b, final_abs, needs, abs, dim
        )


# ---- second derivatives


def pushforward(v: Tensor, signs: Tensor, u: Tensor, final_abs: bool, abs: bool) -> Tensor:
    """Returns J v for the stack's Jacobian J = s_L H_L ... s_1 H_1, from its sign bits.

    J is the transpose of the Jacobian of a stack of the same layers in reverse order, which the backward applies.
    """
    last = u.shape[-2] - 1
    if last < 0:
        return v
    needs = [True, False, False]
    backward = torch.ops.hanops.han_stack_backward
    rows, _, _ = backward(v, None, signs[..., :last, :].flip(-2), u.flip(-2), None, not abs, needs, abs)
    return rows * plus_minus(signs, last, as_rows(rows, u)).reshape(rows.shape) if abs and final_abs else rows


def dot(a: Tensor, c: Tensor) -> Tensor:
    """Returns the dot product of each row."""
    return (a * c).sum(-1, keepdim=True)


def reflect(rows: Tensor, w: Tensor) -> Tensor:
    """Returns the rows reflected along a unit vector."""
    return rows - 2 * dot(rows, w) * w


def double_backward(
    v_dx: Tensor | None,
    v_du: Tensor | None,
    v_db: Tensor | None,
    dy: Tensor,
    y: Tensor | None,
    signs: Tensor,
    u: Tensor,
    b: Tensor | None,
    *,
    final_abs: bool,
    abs: bool,
    dim: int = -1,
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of S = v_dx . dx + v_du . du + v_db . db in dy, y, u and b.

    (dx, du, db) are what `han_stack_backward` gives for these arguments; a v that is None counts as 0. All of it can be
    derived again. docs/maths.md has the derivation.
    """
    if u.shape[-2] == 0:
        return v_dx, None, None, None  # dx is dy, and du and db are empty
    if not is_last(dim, dy.dim()):
        signs = by_rows.signs_of(dy, signs, layers_with_abs(u, final_abs, abs), dim)
        moved = (None if t is None else t.movedim(dim, -1) for t in (v_dx, dy, y))
        v_dx, dy, y = moved  # type: ignore[assignment]
        of_dy, of_y, *others = double_backward(v_dx, v_du, v_db, dy, y, signs, u, b, final_abs=final_abs, abs=abs)
        return *(None if t is None else t.movedim(-1, dim) for t in (of_dy, of_y)), *others
    signs, y = split(signs, y, layers_with_abs(u, final_abs, abs))
    if v_du is None and v_db is None:
        if v_dx is None:
            return None, None, None, None
        # dx is linear in dy, and in u as the stack itself is: both gradients are those of a stack without biases.
        m = pushforward(v_dx, signs, u, final_abs, abs)
        needs = [False, True, False]
        return m, None, torch.ops.hanops.han_stack_backward(dy, m, signs, u, None, final_abs, needs, abs)[1], None

    dtype = reference.arithmetic_dtype(dy.dtype)
    wide = by_layer(u).to(dtype)
    ws = reference.unit(wide).unsqueeze(-2)  # (groups, layers, 1, features)
    bs = torch.zeros_like(ws) if b is None else by_layer(b).to(dtype).unsqueeze(-2)
    v = torch.zeros_like(wide) if v_du is None else by_layer(v_du).to(dtype)
    v_b = torch.zeros_like(ws) if v_db is None else by_layer(v_db).to(dtype).unsqueeze(-2)
    w_dots = across(v, wide).unsqueeze(-2)  # the derivative of w where u moves along v

    # Downward, from y and dy to x_0 and g_0. Where y was not kept, du was not asked for, and x meets only zeros.
    g = as_rows(dy, u).to(dtype)
    x = torch.zeros_like(g) if y is None else as_rows(y, u).to(dtype)
    layers = range(u.shape[-2])
    for layer in reversed(layers):
        s = plus_minus(signs, layer, g)
        x = reflect(s * x - bs[:, layer], ws[:, layer])
        g = reflect(s * g, ws[:, layer])

    silent = (g == 0).all(-1, keepdim=True)  # a row whose dy is 0 adds 0 to u's gradient, whatever it holds

    # Upward, with m and k, the gradients of S in g and x of the layer: S is a sum over layers of v_db . gz and
    # -2 ((w_dot . x) (w . gz) + (w . x) (w_dot . gz)), and v_dx . g_0.
    m = torch.zeros_like(g) if v_dx is None else as_rows(v_dx, u).to(dtype)
    k = torch.zeros_like(g)
    dws, d_w_dots, dbs = [], [], []
    for layer in layers:
        w, w_dot = ws[:, layer], w_dots[:, layer]
        gz, p = reflect(g, w), reflect(x, w)
        k = k - 2 * (dot(w, gz) * w_dot + dot(w_dot, gz) * w)
        d_w = dot(w_dot, x) * gz + dot(w_dot, gz) * x + dot(w, gz) * m + dot(w, m) * gz + dot(w, p) * k + dot(w, k) * p
        dws.append(-2 * d_w.masked_fill(silent, 0).sum(-2))
        d_w_dots.append(-2 * (dot(w, gz) * x + dot(w, x) * gz).masked_fill(silent, 0).sum(-2))
        m = reflect(m, w) - 2 * (dot(w_dot, x) * w + dot(w, x) * w_dot) + v_b[:, layer]
        k = reflect(k, w)
        dbs.append(-k.sum(-2))
        s = plus_minus(signs, layer, g)
        m, k, x, g = s * m, s * k, s * (p + bs[:, layer]), s * gz

    # From w = u / |u| and w_dot = (v - (w . v) w) / |u| to u.
    dw, d_w_dot = (stacked(t, wide) for t in (dws, d_w_dots))
    w, w_dot, size = ws.squeeze(-2), w_dots.squeeze(-2), length(wide)
    dw = dw - (dot(d_w_dot, w) * v + dot(w, v) * d_w_dot) / size
    du = across(dw, wide) - dot(d_w_dot, w_dot) / size * w
    return (
        m.reshape(dy.shape).to(dy.dtype),
        None if y is None else k.reshape(dy.shape).to(dy.dtype),
        du.reshape(u.shape).to(u.dtype),
        None if b is None else stacked(dbs, wide).reshape(u.shape).to(u.dtype),
    )
