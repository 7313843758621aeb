"""The forward and the backward op in plain torch: the backend 'torch', and what exported graphs decompose to."""

from __future__ import annotations

from math import prod
from typing import TypeVar

import torch
from torch import Tensor

from hanops.definition import reference
from hanops.definition.rest import bytes_of, planes, rest_of, restored
from hanops.definition.signs import DROPPED, is_chunked, pack, signs_shape, unpack

Output = TypeVar("Output", Tensor, "Tensor | None")


def as_rows(t: Tensor, u: Tensor) -> Tensor:
    """Views t (..., features) as (groups, rows, features), one group where u has none."""
    groups, lead = (u.shape[0], t.shape[1:-1]) if u.dim() == 3 else (1, t.shape[:-1])
    return t.reshape(groups, prod(lead), t.shape[-1])  # a product of sizes, which exporters know, as they do not numel


def by_layer(t: Tensor) -> Tensor:
    """Views parameters as (groups, layers, features)."""
    return t if t.dim() == 3 else t.unsqueeze(0)


def plus_minus(signs: Tensor, layer: int, rows: Tensor) -> Tensor:
    """Returns -1 where the sign bit of a layer is set and +1 elsewhere, like rows (groups, n, features).

    A last layer without its absolute value has no bits, and gets +1.
    """
    if layer >= signs.shape[-2]:
        return torch.ones_like(rows)
    negative = unpack(signs[..., layer, :], rows.shape[-1], is_chunked(rows.device)).reshape(rows.shape)
    return 1 - 2 * negative.to(rows.dtype)


def kept(rows: Tensor, y: Tensor, bits: Tensor | None, abs_layers: int, save: int) -> Tensor:
    """Returns what the forward keeps beside y: from its rows before they are rounded to y, and the packed sign bits."""
    if not save:
        return y.new_empty([0], dtype=torch.uint8)
    shape = signs_shape(y, abs_layers)
    signs = y.new_empty(shape, dtype=torch.uint8) if bits is None else bits.reshape(shape)
    if save == 1 or y.dtype not in DROPPED:
        return signs
    rest = rest_of(rows.detach().reshape(y.shape), y.detach())
    return torch.cat([signs, planes(rest, is_chunked(y.device))], -2)


def split(signs: Tensor, y: Output, abs_layers: int) -> tuple[Tensor, Output]:
    """Returns the sign bits of what the forward kept, and y: where its rest was kept, in float32 and with it."""
    rest_planes = signs.shape[-2] - abs_layers
    if rest_planes == 0:
        return signs, y
    if y is not None:
        rounded, rest = y.detach(), bytes_of(signs.narrow(-2, abs_layers, rest_planes), y.shape[-1])
        more = torch.where(rounded.isfinite(), restored(rounded, rest) - rounded.float(), 0)
        y = y.float() + more  # exactly what is restored, and derived as y is
    return signs.narrow(-2, 0, abs_layers), y


def length(u: Tensor) -> Tensor:
    """Returns |u| along the last axis, which stays, and 1 where u = 0. Its squares neither under- nor overflow."""
    largest = u.detach().abs().amax(-1, keepdim=True)
    largest = torch.where(largest == 0, 1, largest)
    squares = (u / largest).square().sum(-1, keepdim=True)
    return torch.where(squares == 0, 1, squares).sqrt() * largest


def across(dw: Tensor, u: Tensor) -> Tensor:
    """Returns (dw - (w . dw) w) / |u| with w = u / |u|: what a gradient in w is in u. 0 where u = 0."""
    w = reference.unit(u)
    return torch.where((u == 0).all(-1, keepdim=True), 0, (dw - (w * dw).sum(-1, keepdim=True) * w) / length(u))


def stacked(layers: list[Tensor], like: Tensor) -> Tensor:
    """Stacks (groups, features) of each layer to (groups, layers, features)."""
    return torch.stack(layers, -2) if layers else torch.zeros_like(like)


def forward(x: Tensor, u: Tensor, b: Tensor | None, abs_layers: int, save: int) -> tuple[Tensor, Tensor]:
    """Returns y and what it keeps: bits of the first layers, those that end in an absolute value, and y's rest."""
    dtype = reference.arithmetic_dtype(x.dtype)
    w = reference.unit(by_layer(u).to(dtype))
    rows = as_rows(x, u).to(dtype)
    layers = u.shape[-2]
    signs = []
    for layer in range(layers):
        w_l = w[:, layer, None]
        rows = rows - 2 * (rows * w_l).sum(-1, keepdim=True) * w_l
        if b is not None:
            rows = rows + by_layer(b)[:, layer, None].to(dtype)
        if layer < abs_layers:
            if save:
                signs.append(pack(torch.signbit(rows), is_chunked(x.device)))
            rows = reference.absolute(rows) if save else rows.abs()  # without bits nobody derives it
    y = rows.reshape(x.shape).to(x.dtype, copy=layers == 0).contiguous()
    return y, kept(rows, y, torch.stack(signs, -2) if signs else None, abs_layers, save)


def backward(
    dy: Tensor, y: Tensor | None, signs: Tensor, u: Tensor, b: Tensor | None, abs_layers: int, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dx, du and db, each of shape (0,) where not needed, by undoing the layers from y and the sign bits."""
    needs_dx, needs_du, needs_db = needs
    signs, y = split(signs, y, abs_layers)
    dtype = reference.arithmetic_dtype(dy.dtype)
    wide = by_layer(u).to(dtype)
    w = reference.unit(wide)
    g = as_rows(dy, u).to(dtype)
    x = None
    if needs_du and y is not None:  # a row whose dy is 0 everywhere adds 0 to du, whatever its y holds
        x = as_rows(y, u).to(dtype).masked_fill((g == 0).all(-1, keepdim=True), 0)
    dws, dbs = [], []  # of the last layer first
    for layer in reversed(range(u.shape[-2])):
        w_l = w[:, layer, None]
        s = plus_minus(signs, layer, g) if layer < abs_layers else 1
        g = g * s
        dbs.append(g.sum(-2))
        beta = (g * w_l).sum(-1, keepdim=True)
        if x is not None:
            p = x * s if b is None else x * s - by_layer(b)[:, layer, None].to(dtype)
            alpha = -(p * w_l).sum(-1, keepdim=True)
            x = p + 2 * alpha * w_l
            dws.append(-2 * (alpha * g + beta * x).sum(-2))
        g = g - 2 * beta * w_l
    none = u.new_empty(0)
    return (
        g.reshape(dy.shape).to(dy.dtype, copy=u.shape[-2] == 0).contiguous() if needs_dx else dy.new_empty(0),
        across(stacked(dws[::-1], wide), wide).reshape(u.shape).to(u.dtype).contiguous() if needs_du else none,
        stacked(dbs[::-1], wide).reshape(u.shape).to(u.dtype).contiguous() if needs_db else none.clone(),
    )


def inverse(y: Tensor, signs: Tensor, u: Tensor, b: Tensor | None, abs_layers: int) -> Tensor:
    """Returns the x of which y is the output, by undoing the layers from the sign bits. Differentiable."""
    dtype = reference.arithmetic_dtype(y.dtype)
    w = reference.unit(by_layer(u).to(dtype))
    signs, exact = split(signs, y, abs_layers)
    rows = as_rows(exact, u).to(dtype)
    for layer in reversed(range(u.shape[-2])):
        w_l = w[:, layer, None]
        rows = rows * plus_minus(signs, layer, rows)
        if b is not None:
            rows = rows - by_layer(b)[:, layer, None].to(dtype)
        rows = rows - 2 * (rows * w_l).sum(-1, keepdim=True) * w_l
    return rows.reshape(y.shape).to(y.dtype, copy=u.shape[-2] == 0)
