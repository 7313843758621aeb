"""What is measured: the sizes and the storage type of a stack and its input."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    rows: int
    features: int
    layers: int
    dtype: torch.dtype = torch.float32
    seconds: float = 4.0

    def __str__(self) -> str:
        dtype = "" if self.dtype == torch.float32 else f", {str(self.dtype).removeprefix('torch.')}"
        return f"N={self.rows}, d={self.features}, L={self.layers}{dtype}"

    @property
    def element_layers(self) -> int:
        return self.rows * self.features * self.layers

    @property
    def bits(self) -> int:
        """Bytes of one bit per element and layer."""
        return self.rows * self.layers * -(-self.features // 8)

    def input(self, grad: bool = True, device: torch.device | None = None) -> Tensor:
        return torch.randn(self.rows, self.features, dtype=self.dtype, device=device, requires_grad=grad)

    def rehearsed(self) -> Case:
        """Returns the case at a size for Triton's interpreter."""
        return replace(self, rows=min(self.rows, 5), features=min(self.features, 48), layers=min(self.layers, 2))
