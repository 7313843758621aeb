"""The definition of the Han stack in plain, differentiable torch: the truth that every kernel is tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(u: Tensor) -> Tensor:
    """Returns u / |u| along the last axis, 0 where u = 0.

    u is divided by its largest element first, so that neither tiny nor huge u under- or overflows.
    """
    largest = u.detach().abs().amax(-1, keepdim=True)
    scaled = u / torch.where(largest == 0, 1, largest)
    squares = scaled.square().sum(-1, keepdim=True)
    return scaled / torch.where(squares == 0, 1, squares).sqrt()


def absolute(z: Tensor) -> Tensor:
    """Returns |z| with derivative -1 where z's sign bit is set and +1 elsewhere, never 0."""
    return torch.where(torch.signbit(z), -z, z)


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype that a stack computes in: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def han_stack(x: Tensor, u: Tensor, b: Tensor | None = None, final_abs: bool = True, abs: bool = True) -> Tensor:
    """Applies L Han layers, z = x - 2 (w . x) w + b with w = u / |u|, then x = |z| (Algorithm 1 of arXiv 2106.04088).

    Arithmetic is in float32 (float64 for float64) and nothing is rounded to the dtype of x between layers.

    Args:
        x: (..., features), or (groups, ..., features) where u has a leading axis of groups.
        u: (layers, features) or (groups, layers, features).
        b: biases of the shape of u, or None.
        final_abs: False leaves the last layer's z as it is.
        abs: False leaves every layer's z as it is.

    Returns:
        The output, of the shape and dtype of x.
    """
    dtype = arithmetic_dtype(x.dtype)
    layers = u.shape[-2]
    w = unit(u.to(dtype))
    rows = x.to(dtype)
    if u.dim() == 3:
        rows = rows.flatten(1, -2) if x.dim() > 2 else rows.unsqueeze(1)
        w = w.unsqueeze(1)
        b = b if b is None else b.unsqueeze(1)
    for layer in range(layers):
        w_l = w[..., layer, :]
        z = rows - 2 * (rows * w_l).sum(-1, keepdim=True) * w_l
        if b is not None:
            z = z + b[..., layer, :].to(dtype)
        rows = z if not abs or (layer == layers - 1 and not final_abs) else absolute(z)
    return rows.reshape(x.shape).to(x.dtype, copy=layers == 0)
