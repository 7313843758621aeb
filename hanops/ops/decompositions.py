"""What the ops decompose to in exported graphs: core ATen, by the backend 'torch'."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hanops import _torch
from hanops.backends.plain_torch import backward, forward
from hanops.definition.checks import check_stack
from hanops.ops import fakes
from hanops.ops.registration import backward_op, forward_op


def decompositions() -> dict[_torch.OpOverload, Callable[..., object]]:
    """Returns the decompositions of hanops' ops to core ATen, for graphs that are to run where hanops is not installed.

    >>> import torch, hanops
    >>> program = torch.export.export(hanops.HanStack(8, 2), (torch.randn(4, 8),))
    >>> program = program.run_decompositions(hanops.decompositions())
    >>> any("hanops" in str(node.target) for node in program.graph.nodes)
    False
    """
    ops = torch.ops.hanops

    def stack(
        x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool = True, abs: bool = True, dim: int = -1
    ) -> Tensor:
        check_stack("x", x, u, b, final_abs, abs, dim)
        return forward(x, u, b, final_abs, 0)[0]

    return {
        ops.han_stack.default: stack,
        ops.han_stack_forward.default: forward_op(forward, check=True),
        ops.han_stack_backward.default: backward_op(backward, check=True),
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
