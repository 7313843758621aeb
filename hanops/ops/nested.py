"""The op `han_stack` on nested tensors: jagged rows are one call on their values, whose result gets their offsets."""

from __future__ import annotations

import torch
from torch import Tensor

from hanops import _torch
from hanops.definition.checks import check_dim, check_strided
from hanops.ops.registration import library


def _check(x: Tensor | None, u: Tensor, b: Tensor | None, dim: int) -> None:
    """Checks what the call on the values does not see."""
    if x is None or not x.is_nested:
        check_strided("x", x)
    elif x.layout != torch.jagged:
        raise TypeError(
            "han_stack: x must be a strided tensor, got a nested tensor: make it a jagged one, by"
            " torch.nested.as_nested_tensor(x, layout=torch.jagged)"
        )
    check_strided("u", u)
    if b is not None:
        check_strided("b", b)
    if x is None or not x.is_nested:
        return
    if u.dim() == 3:
        raise ValueError("han_stack: x must be a strided tensor where u has groups, got a jagged one")
    if check_dim("x", x.dim(), dim) != x.dim() - 1:
        raise ValueError(
            f"han_stack: dim must be the last axis of x where it is jagged (-1 or {x.dim() - 1}), got {dim}"
        )
    if _torch.jagged_axis(x) == x.dim() - 1:
        raise ValueError("han_stack: the last axis of x must be of one length, got the jagged axis")


def han_stack(
    x: Tensor,
    u: Tensor,
    b: Tensor | None,
    final_abs: bool = True,
    abs: bool = True,
    dim: int = -1,
    exact: bool = True,
) -> Tensor:
    """Is the op where an argument is nested, which x may be in the layout `torch.jagged`, before its features."""
    _check(x, u, b, dim)
    return _torch.jagged_like(x, torch.ops.hanops.han_stack(_torch.jagged_values(x), u, b, final_abs, abs, exact=exact))


def register() -> None:
    """Implements the op for nested tensors, above autograd, which derives what it calls."""
    for key in ("CompositeImplicitAutogradNestedTensor", "AutogradNestedTensor"):  # the compiler asks for the latter
        library.impl("han_stack", han_stack, key)
