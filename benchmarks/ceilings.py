"""The two limits of a machine that kernels are measured against: the rate of a copy, and of instructions."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import hanops

# Vector operations for each element and layer that cannot be avoided: dot product, update, bias (the absolute value is
# free on a GPU), the sign bit; backward twice the dots and updates, two signs, and the sums of du and db.
SLOTS = {
    "cpu": {"forward": 4, "backward": 10, "both": 15},
    "cuda": {"forward": 3, "backward": 12, "both": 16},
}


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second of a copy, read and written, and float32 operations per second (a multiply-add is one)."""

    copy_bytes_per_s: float
    operations_per_s: float

    def shares(
        self, device: str, direction: str, bytes_moved: int, element_layers: int, seconds: float
    ) -> dict[str, object]:
        """Returns the shares of both limits that a time reaches, and which limit is the nearer."""
        slots = SLOTS[device].get(direction)
        if slots is None:
            return {}
        copy = bytes_moved / self.copy_bytes_per_s / seconds
        operations = slots * element_layers / self.operations_per_s / seconds
        return {
            "share_of_copy": copy,
            "share_of_instructions": operations,
            "bound_by": "bytes" if copy > operations else "instructions",
        }


def measured_ceilings(device: torch.device) -> Ceilings:
    """Measures both limits of a device, on the CPU with torch's threads."""
    native = hanops.ops.native
    lanes = native.build_info()["float32_lanes"]
    rate = native.fma_vectors_per_second(0.2) * lanes * torch.get_num_threads()
    x = torch.randn(2**24)
    y = torch.empty_like(x)
    import statistics

    from interleave import interleave

    t = statistics.median(interleave({"copy": lambda: y.copy_(x)}, 0.3)["copy"])
    return Ceilings(2 * x.nbytes / t, rate)
