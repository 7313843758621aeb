"""What a HanStack is measured against: the layers it replaces, and the same layers without fused kernels."""

from __future__ import annotations

import torch
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


def linear(features: int, dtype: torch.dtype | None = None) -> nn.Module:
    """One dense layer and its ReLU."""
    return nn.Sequential(nn.Linear(features, features, dtype=dtype), nn.ReLU())


def compiled(module: nn.Module) -> nn.Module:
    """`torch.compile` of a module at its best: static shapes, and nothing cached from another shape."""
    torch.compiler.reset()
    result = torch.compile(module, dynamic=False, fullgraph=True)
    assert isinstance(result, nn.Module)
    return result
