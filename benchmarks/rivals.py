"""What a HanStack is measured against: the layers it replaces, the same layers without fused kernels, a copy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from cases import COMPILE, COMPILED, COPY, DEEP, EAGER, HOUSEHOLDER, LINEAR, OWN, Case
from torch import Tensor, nn

import hanops


class EagerHanStack(nn.Module):
    """Han layers as the authors write them in PyTorch: normalise, dot product, rank-1 update, bias, absolute value."""

    def __init__(self, features: int, depth: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        state = hanops.HanStack(features, depth, dtype=dtype).state_dict()
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


class OnTokens(nn.Module):
    """A module on the second last axis."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.module(x.transpose(-1, -2)).transpose(-1, -2)
        return y


class Groups(nn.Module):
    """One module for each input."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([part(x[i]) for i, part in enumerate(self.parts)])


def linear(features: int, dtype: torch.dtype | None = None) -> nn.Module:
    """One dense layer and its ReLU."""
    return nn.Sequential(nn.Linear(features, features, dtype=dtype), nn.ReLU())


def compiled(module: nn.Module) -> nn.Module:
    """`torch.compile` of a module at its best: static shapes, and nothing cached from another shape."""
    torch.compiler.reset()
    result = torch.compile(module, dynamic=False, fullgraph=True)
    assert isinstance(result, nn.Module)
    return result


def _own(case: Case) -> nn.Module:
    dim = -1 if case.channels is None else -2
    return hanops.HanStack(case.features, case.layers, dim=dim, groups=case.groups, dtype=case.dtype)


def _eager(case: Case) -> nn.Module:
    return EagerHanStack(case.features, case.layers, case.dtype)


_PLAIN: dict[str, Callable[[Case], nn.Module]] = {
    LINEAR: lambda case: linear(case.features, case.dtype),
    DEEP: lambda case: nn.Sequential(*(linear(case.features, case.dtype) for _ in range(case.layers))),
    EAGER: _eager,
    COMPILED: _eager,
    HOUSEHOLDER: lambda case: HouseholderProduct(case.features, case.dtype),
    COPY: lambda case: nn.Identity(),
}


def build(name: str, case: Case, device: torch.device) -> nn.Module:
    """Returns a rival's module for a case; its name may end in ', <backend>', ', TF32' or ', torch.compile'."""
    if name.endswith(COMPILE):
        return compiled(build(name.removesuffix(COMPILE), case, device))
    base = name.removesuffix(", TF32")
    if base.startswith(OWN):
        return _own(case).to(device)
    module = _PLAIN[base](case)
    if case.groups is not None:
        module = Groups([module, *(_PLAIN[base](case) for _ in range(case.groups - 1))])
    if case.channels is not None:
        module = OnTokens(module)
    module = module.to(device)
    return compiled(module) if base == COMPILED else module


def fits(name: str, case: Case, device: torch.device) -> bool:
    """Tells whether a rival is worth its time and memory: dense layers of great width are neither."""
    depth = case.layers if DEEP in name else 1
    if name.startswith("Linear"):
        work, memory = case.elements * case.features * depth, case.features**2 * depth * case.dtype.itemsize
        most_work, most_memory = (5e9, 1e9) if device.type == "cpu" else (2e13, 2e10)
        return work <= most_work and memory <= most_memory and not (DEEP in name and case.layers == 1)
    if name == HOUSEHOLDER:
        return case.dtype in (torch.float32, torch.float64)
    if name in (EAGER, COMPILED):
        return case.element_layers <= (2**26 if device.type == "cpu" else 2**31)
    return True
