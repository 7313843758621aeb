"""The two limits of a machine that stacks are measured against, as `python -m hanops profile` measures them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hanops.profiling.case import FLOORS
from hanops.profiling.ceilings import ceilings

from .cases import Case


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second of a copy, read and written, and float32 multiply-adds per second, of elements."""

    copy_bytes_per_s: float
    operations_per_s: float

    def shares(self, device: str, direction: str, case: Case, seconds: float) -> dict[str, object]:
        """Returns the shares of both limits that a time reaches, and which limit is the nearer.

        direction: one of a stack on its own; a training step has other work in it. A stack in float64 has no share of
        the multiply-adds, which are float32.
        """
        floors = FLOORS[device]
        operations = {**floors, "both": floors["forward with bits"] + floors["backward"]}.get(direction)
        if operations is None:
            return {}
        of_copy = case.bytes_moved(direction) / self.copy_bytes_per_s / seconds
        if case.dtype == torch.float64 or math.isnan(self.operations_per_s):
            return {"share_of_copy": of_copy}
        of_operations = operations * case.element_layers / self.operations_per_s / seconds
        return {
            "share_of_copy": of_copy,
            "share_of_instructions": of_operations,
            "bound_by": "bytes" if of_copy > of_operations else "instructions",
        }


def measured_ceilings(device: torch.device) -> Ceilings:
    """Measures both limits, on the CPU with torch's threads; NaN where nothing here can measure the second."""
    copy, operations = ceilings(device)
    return Ceilings(copy, math.nan if operations is None else operations)
