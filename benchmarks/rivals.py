"""What a HanStack is measured against: the layers it replaces, the same layers without fused kernels, a copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import hanops

from .cases import (
    BF16,
    COMPILE,
    COMPILED,
    COPY,
    DEEP,
    EAGER,
    HOUSEHOLDER,
    LINEAR,
    OWN,
    POINTWISE,
    SLIM,
    TF32,
    TRANSPOSED,
    TUNED,
    Case,
)

OUT_OF_MEMORY, OVER_MEMORY, OVER_TIME = "out of memory", "over the memory limit", "over the time limit"


@dataclass(frozen=True)
class Limits:
    """What a rival may take: bytes of weights and multiply-adds of dense layers, elements x layers of eager Han."""

    weights: float
    multiply_adds: float
    element_layers: int


LIMITS = {"cpu": Limits(1e9, 5e9, 2**26), "cuda": Limits(2e10, 2e13, 2**31)}


class EagerHanStack(nn.Module):
    """Han layers as the authors write them in PyTorch: normalise, dot product, rank-1 update, bias, absolute value."""

    def __init__(self, features: int, layers: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        state = hanops.HanStack(features, layers, dtype=dtype).state_dict()
        self.u = nn.ParameterList([nn.Parameter(row.clone().unsqueeze(1)) for row in state["u"]])
        self.b = nn.ParameterList([nn.Parameter(row.clone()) for row in state["b"]])

    def forward(self, x: Tensor) -> Tensor:
        for u, b in zip(self.u, self.b, strict=True):
            w = u / u.norm()
            x = torch.abs(x - 2 * (x @ w) @ w.t() + b)
        return x


class HouseholderProduct(nn.Module):
    """One Han layer by torch.linalg.householder_product, which makes the d x d matrix of the reflection."""

    def __init__(self, features: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        state = hanops.HanStack(features, 1, dtype=dtype).state_dict()
        self.u, self.b = nn.Parameter(state["u"][0].clone()), nn.Parameter(state["b"][0].clone())

    def forward(self, x: Tensor) -> Tensor:
        v = self.u / self.u[0]  # the function takes the first element of a reflector as 1
        reflectors = nn.functional.pad(v.unsqueeze(1), (0, len(v) - 1))
        matrix = torch.linalg.householder_product(reflectors, (2 / v.square().sum()).unsqueeze(0))
        return torch.abs(nn.functional.linear(x, matrix) + self.b)


class OnTransposed(nn.Module):
    """A module of the last axis on the second last, by a transposed copy and one back."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.module(x.transpose(-1, -2).contiguous())
        return y.transpose(-1, -2).contiguous()


class Groups(nn.Module):
    """One module for each input."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([part(x[i]) for i, part in enumerate(self.parts)])


def linear(features: int, to: int, dtype: torch.dtype | None = None) -> nn.Module:
    """One dense layer and its ReLU."""
    return nn.Sequential(nn.Linear(features, to, dtype=dtype), nn.ReLU())


def slim(features: int, layers: int, dtype: torch.dtype | None = None) -> nn.Module:
    """Two dense layers through `layers` features: what maps d features to d with the 2 d L parameters of a HanStack,
    d + L biases aside, where a whole d x d layer has d / (2 L) times as many.
    """
    return nn.Sequential(linear(features, layers, dtype), linear(layers, features, dtype))


def compiled(module: nn.Module, mode: str | None = None) -> nn.Module:
    """`torch.compile` of a module at its best: static shapes. `torch.compiler.reset()` drops an earlier case's."""
    result = torch.compile(module, dynamic=False, fullgraph=True, mode=mode)
    assert isinstance(result, nn.Module)
    return result


def _own(case: Case) -> nn.Module:
    dim = -1 if case.inner is None else -2
    return hanops.HanStack(case.features, case.layers, dim=dim, groups=case.groups, dtype=case.dtype)


def _eager(case: Case) -> nn.Module:
    return EagerHanStack(case.features, case.layers, case.dtype)


_PLAIN: dict[str, Callable[[Case], nn.Module]] = {
    LINEAR: lambda case: linear(case.features, case.features, case.dtype),
    DEEP: lambda case: nn.Sequential(*(linear(case.features, case.features, case.dtype) for _ in range(case.layers))),
    SLIM: lambda case: slim(case.features, case.layers, case.dtype),
    EAGER: _eager,
    COMPILED: _eager,
    TUNED: _eager,
    HOUSEHOLDER: lambda case: HouseholderProduct(case.features, case.dtype),
    COPY: lambda case: nn.Identity(),
    TRANSPOSED: lambda case: _own(replace(case, inner=None)),
    POINTWISE: lambda case: nn.Sequential(nn.Conv1d(case.features, case.features, 1, dtype=case.dtype), nn.ReLU()),
}


def stored(name: str, case: Case) -> Case:
    """Returns the case in the storage type that a rival takes its inputs in."""
    return replace(case, dtype=torch.bfloat16) if name.endswith(BF16) else case


def build(name: str, case: Case, device: torch.device) -> nn.Module:
    """Returns a rival's module for a case; its name may end in ', <backend>', ', TF32', ', bf16', ', torch.compile'."""
    if name.endswith(COMPILE):
        return compiled(build(name.removesuffix(COMPILE), case, device))
    base, case = name.removesuffix(TF32).removesuffix(BF16), stored(name, case)
    with torch.device(device):  # weights of gigabytes are made where they are used
        if base.startswith(OWN) and base != TRANSPOSED:
            return _own(case)
        module = _PLAIN[base](case)
        if case.groups is not None:
            module = Groups([module, *(_PLAIN[base](case) for _ in range(case.groups - 1))])
    if case.inner is not None and base != POINTWISE:
        module = OnTransposed(module)
    if base == TUNED:
        return compiled(module, "max-autotune-no-cudagraphs")
    return compiled(module) if base == COMPILED else module


def unfit(name: str, case: Case, device: str) -> str | None:
    """Returns why a rival is not measured in a case, None where it is: dense layers of great width take too long.

    device: 'cpu' or 'cuda'.
    """
    most = LIMITS[device]
    if name.endswith((TF32, BF16)) and (case.dtype != torch.float32 or device == "cpu"):
        return "only for float32 on a GPU"
    if name in (TRANSPOSED, POINTWISE) and case.inner is None:
        return "only along another axis than the last"
    if name.startswith(SLIM):
        return None
    if name.startswith(LINEAR):
        layers = case.layers if name.startswith(DEEP) else 1
        if name.startswith(DEEP) and case.layers == 1:
            return f"the same as one {LINEAR}"
        if case.features**2 * layers * case.dtype.itemsize > most.weights:
            return OVER_MEMORY
        return OVER_TIME if case.elements * case.features * layers > most.multiply_adds else None
    if name == HOUSEHOLDER and case.dtype not in (torch.float32, torch.float64):
        return "only for float32 and float64"
    if name in (EAGER, COMPILED, TUNED) and case.element_layers > most.element_layers:
        return OVER_TIME
    return None
