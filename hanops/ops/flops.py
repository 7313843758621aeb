"""What torch's FlopCounterMode counts for the ops: every multiply-add as two operations, as in a matrix product.

A layer of d features on one row costs, forward, a dot product and the update of the row: 2 d multiply-adds. Backward,
where only the gradients of x and b are asked for, it is the same reflection of the gradient: 2 d. For the gradient of
u, the row is rebuilt too, 2 d, and two products are added to it: 6 d in all. Sums, signs and |u| are not counted, as
those of a Linear and its ReLU are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from hanops.ops.when_imported import when_imported


def forward_flops(x: Sequence[int], u: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """Returns 4 operations for each element and layer, from the shapes of x (..., d) and u (..., layers, d)."""
    return 4 * prod(x) * u[-2]


def backward_flops(
    dy: Sequence[int],
    y: Any,
    signs: Any,
    u: Sequence[int],
    b: Any,
    final_abs: bool,
    needs: Sequence[bool],
    *args: Any,
    **kwargs: Any,
) -> int:
    """Returns 12 operations for each element and layer where du is needed, else 4."""
    return (12 if needs[1] else 4) * prod(dy) * u[-2]


def _add_to(counter: Any) -> None:
    of = {"han_stack": forward_flops, "han_stack_forward": forward_flops, "han_stack_backward": backward_flops}
    for name, formula in of.items():
        counter.register_flop_formula(getattr(torch.ops.hanops, name))(formula)


def register() -> None:
    """Adds the formulas to torch's FlopCounterMode, at once or when it is imported: it imports Triton."""
    when_imported("torch.utils.flop_counter", _add_to)
