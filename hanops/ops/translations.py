"""What the ops become in an ONNX graph: operators of ONNX's own, for `torch.onnx.export`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hanops import _torch


def onnx_translations() -> dict[_torch.OpOverload, Callable[..., Any]]:
    """Returns a table for `custom_translation_table` of `torch.onnx.export(model, args, dynamo=True)`.

    A layer is six operators of ONNX, beside two that cut its u and b out of the stack's. Without the table torch
    exports the decompositions, and each layer is more operators.

    Raises:
        ModuleNotFoundError: where onnxscript is not installed, which torch's exporter needs too.

    >>> import torch, hanops
    >>> table = hanops.onnx_translations()
    >>> torch.ops.hanops.han_stack.default in table
    True
    """
    from onnxscript import ir, opset18

    op: Any = opset18  # its annotations leave out the lists and numbers that become constants

    def unit(u: Any, zero: Any, one: Any) -> Any:
        """Returns u / |u| along the last axis, 0 where u = 0. Its squares neither under- nor overflow."""
        largest = op.ReduceMax(op.Abs(u), [-1], keepdims=1)
        scaled = op.Div(u, op.Where(op.Equal(largest, zero), one, largest))
        squares = op.ReduceSum(op.Mul(scaled, scaled), [-1], keepdims=1)
        return op.Div(scaled, op.Sqrt(op.Where(op.Equal(squares, zero), one, squares)))

    def stack(
        x: Any, u: Any, b: Any, final_abs: bool = True, abs: bool = True, dim: int = -1, exact: bool = True
    ) -> Any:
        rank, layers = len(x.shape), u.shape[-2]
        if not isinstance(layers, int):
            raise ValueError(
                f"han_stack: u must have a fixed number of layers in an ONNX graph by this table, got {layers}:"
                " leave out custom_translation_table, and the graph gets a loop"
            )
        if layers == 0:
            return op.Identity(x)
        dtype = ir.DataType.DOUBLE if x.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
        zero, one, two = (op.Constant(value=ir.tensor(value, dtype=dtype)) for value in (0.0, 1.0, 2.0))
        between = list(range(1, rank - 1)) if len(u.shape) == 3 else []  # axes of x that a group's u and b lack

        def wide(t: Any) -> Any:
            return t if t.dtype == dtype else op.Cast(t, to=dtype)

        def of_layer(t: Any, layer: int) -> Any:
            t = op.Gather(t, layer, axis=-2)
            return op.Unsqueeze(t, between) if between else t

        axes = [axis for axis in range(rank) if axis != dim % rank] + [dim % rank]
        moved = axes != sorted(axes)
        rows = op.Transpose(wide(x), perm=axes) if moved else wide(x)
        w, bias = unit(wide(u), zero, one), None if b is None else wide(b)
        for layer in range(layers):
            w_l = of_layer(w, layer)
            dot = op.ReduceSum(op.Mul(rows, w_l), [-1], keepdims=1)
            rows = op.Sub(rows, op.Mul(op.Mul(two, dot), w_l))
            if bias is not None:
                rows = op.Add(rows, of_layer(bias, layer))
            if abs and (final_abs or layer < layers - 1):
                rows = op.Abs(rows)
        if moved:
            rows = op.Transpose(rows, perm=[axes.index(axis) for axis in range(rank)])
        return rows if x.dtype == dtype else op.Cast(rows, to=x.dtype)

    def forward(x: Any, u: Any, b: Any, final_abs: bool, save: int, abs: bool = True, dim: int = -1) -> tuple[Any, Any]:
        if save:
            raise ValueError(f"han_stack_forward: save must be 0 in an ONNX graph, which has no backward, got {save}")
        return stack(x, u, b, final_abs, abs, dim), op.Constant(value=ir.tensor([], dtype=ir.DataType.UINT8))

    ops = torch.ops.hanops
    return {ops.han_stack.default: stack, ops.han_stack_forward.default: forward}
