"""The limits of a machine that stacks are measured against: a large copy, a copy in a cache, multiply-adds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hanops.profiling.case import FLOORS
from hanops.profiling.ceilings import ceilings
from hanops.profiling.timing import in_turns, seconds_of, seconds_on_gpu, timer

from .cases import Case, powers
from .measure import replayed

CACHED = {"cpu": powers(2**16, 2**21), "cuda": powers(2**20, 2**25)}  # bytes of a tensor whose copy may stay in a cache
COPIES = 20  # in a CUDA graph, so that launches do not count


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second of a copy, read and written, and float32 multiply-adds per second, of elements.

    cache_bytes_per_s: of the fastest copy of tensors that stay in a cache.
    """

    copy_bytes_per_s: float
    operations_per_s: float
    cache_bytes_per_s: float = math.nan

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


def cached_copy_rate(device: torch.device, seconds: float = 0.5) -> float:
    """Measures, for about `seconds`, the bytes per second, read and written, of the fastest of several small copies."""

    def copies(size: int) -> Callable[[], float]:
        source = torch.ones(size // 4, device=device)
        target = torch.empty_like(source)

        def copy() -> object:
            return target.copy_(source)

        if device.type == "cuda":
            return timer(replayed([copy] * COPIES), seconds_on_gpu, turn=2e-3)
        return timer(copy, seconds_of, turn=2e-3)

    samples = in_turns({str(size): copies(size) for size in CACHED[device.type]}, seconds)
    calls = COPIES if device.type == "cuda" else 1
    return max(2 * int(size) * calls / statistics.median(times) for size, times in samples.items())


def measured_ceilings(device: torch.device) -> Ceilings:
    """Measures the limits, on the CPU with torch's threads; NaN where nothing here can measure the multiply-adds."""
    copy, operations = ceilings(device)
    return Ceilings(copy, math.nan if operations is None else operations, cached_copy_rate(device))
