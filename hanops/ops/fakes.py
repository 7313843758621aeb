"""The fakes: shapes and dtypes of the ops' results, after the same argument checks, for compilers and exporters."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from hanops.backends.native import native
from hanops.definition.checks import check_backward, check_forward, check_stack
from hanops.definition.signs import layers_with_abs, signs_shape


def _load_sharding_rules() -> None:
    """Registers the rules for DTensor where it is in use: it asks a fake for a shape before it looks for a rule."""
    if "torch.distributed.tensor" in sys.modules:
        from hanops.ops import sharding  # noqa: F401


def stack(
    x: Tensor,
    u: Tensor,
    b: Tensor | None,
    final_abs: bool = True,
    abs: bool = True,
    dim: int = -1,
    exact: bool = True,
) -> Tensor:
    """Is the fake of the op `han_stack`."""
    _load_sharding_rules()
    check_stack("x", x, u, b, final_abs, abs, dim)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def forward(
    x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, save: int, abs: bool = True, dim: int = -1
) -> tuple[Tensor, Tensor]:
    """Is the fake of the op `han_stack_forward`."""
    _load_sharding_rules()
    check_forward(x, u, b, final_abs, save, abs, dim)
    shape = signs_shape(x, layers_with_abs(u, final_abs, abs), save, dim) if save else [0]
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(shape, dtype=torch.uint8)


def backward(
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
    """Is the fake of the op `han_stack_backward`."""
    _load_sharding_rules()
    check_backward(dy, y, signs, u, b, final_abs, needs, abs, dim)
    return (
        torch.empty_like(dy, memory_format=torch.contiguous_format) if needs[0] else dy.new_empty(0),
        torch.empty_like(u, memory_format=torch.contiguous_format) if needs[1] else u.new_empty(0),
        torch.empty_like(u, memory_format=torch.contiguous_format) if needs[2] else u.new_empty(0),
    )


def register() -> None:
    """Gives every op but the differentiable ones, which run the others, its fake."""
    torch.library.register_fake("hanops::han_stack", stack)
    for suffix in ("", "_torch", "_triton") if native is None else ("", "_torch", "_triton", "_cuda"):
        torch.library.register_fake(f"hanops::han_stack_forward{suffix}", forward)
        torch.library.register_fake(f"hanops::han_stack_backward{suffix}", backward)
