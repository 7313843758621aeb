"""A test that is a row of docs/compatibility.md, and the float64 truth that it compares with, on every backend."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import hanops
from hanops.definition import reference

from .accuracy import relative

BACKENDS = ("cpu", "cuda", "triton", "torch")
F64 = torch.float64


@dataclass
class TableRow:
    group: str
    feature: str
    module: str
    test: str
    notes: dict[str, str]

    def __str__(self) -> str:
        cells = (self.notes.get(name, "yes") for name in BACKENDS)
        return f"| {self.feature} | {' | '.join(cells)} | `{self.test}` |"


ROWS: list[TableRow] = []


def row(group: str, feature: str, **notes: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a test a row of the table; a note of a backend stands in its cell, and 'no: why' skips the test for it."""

    def add(test: Callable[..., None]) -> Callable[..., None]:
        ROWS.append(TableRow(group, feature, test.__module__, test.__name__, notes))
        lacks = {backend: note for backend, note in notes.items() if note.startswith("no")}
        return pytest.mark.lacks(lacks)(test) if lacks else test

    return add


# ---- models, and their truth


class Truth(hanops.HanStack):
    """A HanStack in plain, differentiable torch."""

    def forward(self, x: Tensor) -> Tensor:
        return reference.han_stack(x.movedim(self.dim, -1), self.u, self.b, self.final_abs).movedim(-1, self.dim)


def truth_of(model: nn.Module) -> nn.Module:
    """Returns a copy of model in float64 whose Han layers are plain torch."""
    wide = copy.deepcopy(model).double()
    for module in wide.modules():
        if type(module) in (hanops.HanStack, hanops.HanLayer):
            module.__class__ = Truth
    return wide


def network(features: int = 8) -> nn.Sequential:
    last = hanops.HanStack(features, 2, final_abs=False)
    return nn.Sequential(
        nn.Linear(4, features), hanops.HanStack(features, 3), nn.LayerNorm(features), last, nn.Linear(features, 2)
    )


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Returns the output, and the gradients of a loss in x and in the parameters."""
    x = x.detach().requires_grad_()
    y = model(x)
    weights = torch.arange(y.numel(), dtype=y.dtype, device=y.device).view_as(y) / y.numel()
    return [y.detach(), *torch.autograd.grad((y * weights).sum() + y.square().sum(), [x, *model.parameters()])]


def close(got: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    """Asserts that tensors, or trees of them, agree in norm: float32 against float64."""
    got, wanted = torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(wanted)
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        assert relative(a.cpu(), b.double().cpu()) < tolerance


def stacks(device: torch.device, dtype: torch.dtype = F64, *lead: int) -> list[Tensor]:
    """Returns x, u and b of a small stack; `lead` are axes before all of theirs."""
    new = [torch.randn(*lead, *shape, dtype=dtype, device=device) for shape in ((5, 6), (3, 6), (3, 6))]
    return [new[0], new[1], 0.3 * new[2]]


class Recorder(TorchDispatchMode):
    """Keeps the ops that reach the kernels, and their tensor arguments' shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[tuple[int, ...]]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        shapes = [tuple(a.shape) for a in args if isinstance(a, Tensor)]
        self.calls.append((func.overloadpacket.__name__, shapes))
        return func(*args, **(kwargs or {}))

    def han(self) -> list[tuple[str, list[tuple[int, ...]]]]:
        return [call for call in self.calls if call[0].startswith("han_stack")]
