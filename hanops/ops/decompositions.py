"""What the ops decompose to in exported graphs: core ATen, by the backend 'torch'."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hanops import _torch
from hanops.backends import by_rows
from hanops.backends.plain_torch import as_rows, backward, by_layer, forward, kept
from hanops.definition import reference
from hanops.definition.signs import is_chunked, pack
from hanops.ops import fakes
from hanops.ops.registration import backward_op, forward_op, stack_op


def _forward(x: Tensor, u: Tensor, b: Tensor | None, abs_layers: int, save: int) -> tuple[Tensor, Tensor]:
    """Returns what `han_stack_forward` does; where the number of layers is a symbol, by a loop in the graph."""
    layers = u.shape[-2]
    if not isinstance(layers, torch.SymInt):
        return forward(x, u, b, abs_layers, save)
    dtype = reference.arithmetic_dtype(x.dtype)
    of_layers = [reference.unit(by_layer(u).to(dtype)), *([] if b is None else [by_layer(b).to(dtype)])]
    each = [t.movedim(1, 0).unsqueeze(2) for t in of_layers]  # (layers, groups, 1, features)
    all_take_abs, none_takes_abs = abs_layers == layers, not isinstance(abs_layers, torch.SymInt)
    if not all_take_abs and not none_takes_abs:
        each.append(torch.arange(layers, device=x.device) < abs_layers)

    def layer(rows: Tensor, w: Tensor, *rest: Tensor) -> list[Tensor]:
        rows = rows - 2 * (rows * w).sum(-1, keepdim=True) * w
        rows = rows if b is None else rows + rest[0]
        if none_takes_abs:
            return [rows]
        signs = [pack(torch.signbit(rows), is_chunked(rows.device))] if save else []
        return [rows.abs() if all_take_abs else torch.where(rest[-1], rows.abs(), rows), *signs]

    y, *signs = _torch.scan(layer, [as_rows(x, u).to(dtype, copy=True)], each)
    bits = signs[0].narrow(0, 0, abs_layers).movedim(0, -2) if signs else None  # (groups, rows, layers, bytes)
    result = y.reshape(x.shape).to(x.dtype).contiguous()
    return result, kept(y, result, bits, abs_layers, save)


def _backward(dy: Tensor, y: Tensor | None, signs: Tensor, u: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(u.shape[-2], torch.SymInt):
        raise ValueError(
            f"han_stack: u must have a fixed number of layers where a backward is decomposed, got {u.shape[-2]}:"
            " keep its axis of layers static"
        )
    return backward(dy, y, signs, u, *rest)


def decompositions() -> dict[_torch.OpOverload, Callable[..., object]]:
    """Returns the decompositions of hanops' ops to core ATen, for graphs that are to run where hanops is not installed.

    Returns:
        A table for `run_decompositions` of an exported program: functions by the op that they decompose.

    >>> import torch, hanops
    >>> program = torch.export.export(hanops.HanStack(8, 2), (torch.randn(4, 8),))
    >>> program = program.run_decompositions(hanops.decompositions())
    >>> any("hanops" in str(node.target) for node in program.graph.nodes)
    False
    """
    ops = torch.ops.hanops
    run_forward, run_backward = partial(by_rows.forward, _forward), partial(by_rows.backward, _backward)
    return {
        ops.han_stack.default: stack_op(run_forward),
        ops.han_stack_forward.default: forward_op(run_forward, check=True),
        ops.han_stack_backward.default: backward_op(run_backward, check=True),
    }


def register() -> None:
    """Adds the decompositions to torch's own table, from which torch.onnx.export takes them by itself.

    Of an op in that table, torch asks the decomposition for the shape of a result, unless the op has a meta function.
    """
    metas: dict[str, Callable[..., object]]
    metas = {"han_stack": fakes.stack, "han_stack_forward": fakes.forward, "han_stack_backward": fakes.backward}
    for op, run in decompositions().items():
        _torch.register_decomposition(op)(run)
        _torch.register_decomposition(op, type="meta")(metas[op.overloadpacket.__name__])
