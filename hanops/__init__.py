"""hanops: Han layers (Householder reflection and absolute value, arXiv 2106.04088), fused and reversible."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from hanops import metrics, models
from hanops.backends import Explanation, explain, use_backend
from hanops.chain import Householder, han_stack_inverse, orthogonal
from hanops.conversion import convert
from hanops.functional import han_layer, han_stack
from hanops.modules import HanLayer, HanStack
from hanops.ops.decompositions import decompositions
from hanops.ops.translations import onnx_translations
from hanops.optim import param_groups_weight_decay

__version__ = "0.2.0"
__all__ = [
    "Explanation",
    "HanLayer",
    "HanStack",
    "Householder",
    "convert",
    "decompositions",
    "explain",
    "han_layer",
    "han_stack",
    "han_stack_inverse",
    "metrics",
    "models",
    "onnx_translations",
    "orthogonal",
    "param_groups_weight_decay",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    """Imports `hanops.distributed` and `hanops.peft` when they are used: DTensor is slow to import."""
    if name == "distributed":
        return import_module("hanops.distributed")
    if name == "peft":
        return import_module("hanops.peft")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Returns the module's names, and those of what is imported when it is used."""
    return sorted({*globals(), "distributed", "peft"})
