"""What is profiled: the sizes of one stack, and the instructions that it cannot do without."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import hanops

# Instructions of an element and layer that no kernel can do without, each taking the issue slot of a multiply-add.
FLOORS = {
    "cpu": {"forward": 4, "forward with bits": 5, "backward": 10},
    "cuda": {"forward": 3, "forward with bits": 4, "backward": 12},
}
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class ProfileCase:
    """What is measured: a stack of layers on x of shape (rows, features), or (groups, rows, features)."""

    features: int
    layers: int
    rows: int
    groups: int | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = _CPU

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of x."""
        return (*([] if self.groups is None else [self.groups]), self.rows, self.features)

    @property
    def storage(self) -> str:
        """The dtype's name."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def element_layers(self) -> int:
        """Elements of x times layers."""
        return (self.groups or 1) * self.rows * self.features * self.layers

    @property
    def bytes_held(self) -> int:
        """Bytes of x, y, their gradients, the parameters and theirs: the least that a measurement holds."""
        groups, size = self.groups or 1, self.dtype.itemsize
        return 4 * groups * self.features * (self.rows + self.layers) * size

    def stack(self) -> hanops.HanStack:
        """Returns a new stack of these sizes."""
        return hanops.HanStack(self.features, self.layers, groups=self.groups, device=self.device, dtype=self.dtype)

    def random(self) -> Tensor:
        """Returns normal numbers of the shape of x."""
        return torch.randn(self.shape, device=self.device, dtype=self.dtype)
