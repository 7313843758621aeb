"""What torch's FlopCounterMode counts for the ops: every multiply-add as two operations, as in a matrix product.

A layer of d features on one row costs, forward, a dot product and the update of the row: 2 d multiply-adds. Backward,
where only the gradients of x and b are asked for, it is the same reflection of the gradient: 2 d. For the gradient of
u, the row is rebuilt too, 2 d, and two products are added to it: 6 d in all. Sums, signs and |u| are not counted, as
those of a Linear and its ReLU are not.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from math import prod
from types import ModuleType
from typing import Any

import torch

_COUNTER = "torch.utils.flop_counter"


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


class _WhenImported(importlib.abc.MetaPathFinder):
    """Adds the formulas when torch's counter is imported: it imports Triton, which takes longer than all of hanops."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_add(module: ModuleType) -> None:
            execute(module)
            _add_to(module)

        spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Adds the formulas to torch's FlopCounterMode, at once or when it is imported."""
    if _COUNTER in sys.modules:
        _add_to(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _WhenImported())
