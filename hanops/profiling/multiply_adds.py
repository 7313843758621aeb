"""The instruction ceiling of a GPU: a kernel of independent multiply-adds. Imported only to measure a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

WARPS, CHAINS, STEPS = 8, 8, 64  # of a program; elements of a thread; multiply-adds of an element in an iteration
_PROGRAMS, _ITERATIONS = 8, 500  # of an SM; of a program


@triton.jit
def multiply_add(p_out, iterations, accumulate: tl.constexpr, block: tl.constexpr, steps: tl.constexpr):
    """Runs one chain of multiply-adds for each of `block` elements, `iterations * steps` long."""
    offsets = tl.program_id(0) * block + tl.arange(0, block)
    x = offsets.to(accumulate)
    factor = tl.full((block,), 0.999, accumulate)
    term = tl.full((block,), 0.001, accumulate)
    for _ in range(iterations):
        for _ in tl.static_range(steps):
            x = tl.fma(x, factor, term)
    tl.store(p_out + offsets, x)


def multiply_adds(dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], object], int]:
    """Returns a call that does nothing but multiply-adds, and how many of them.

    Args:
        dtype: of the arithmetic, float32 or float64.
        device: the GPU, which must be the current one.
    """
    block = 32 * WARPS * CHAINS
    programs = _PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count
    out = torch.empty(programs * block, dtype=dtype, device=device)
    accumulate = tl.float64 if dtype == torch.float64 else tl.float32

    def run() -> None:
        multiply_add[(programs,)](out, _ITERATIONS, accumulate=accumulate, block=block, steps=STEPS, num_warps=WARPS)

    return run, programs * block * _ITERATIONS * STEPS
