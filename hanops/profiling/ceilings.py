"""The two ceilings of a machine: bytes per second of a copy, and multiply-adds per second."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable

import torch

from hanops import backends
from hanops.backends.native import native
from hanops.profiling.timing import in_turns, seconds_of, seconds_on_gpu, timer

COPY_BYTES = 256 << 20  # of the tensor whose copy is the ceiling of bytes: more than a cache holds
_TURN, _WARM = 2e-3, 20e-3  # seconds of calls that make one sample, and that come before the first


def sampler(call: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """Returns what measures the seconds of a call on a device."""
    return timer(call, seconds_on_gpu if device.type == "cuda" else seconds_of, turn=_TURN, seconds=_WARM)


def copy_rate(device: torch.device) -> Callable[[], float]:
    """Returns what measures the bytes per second, read and written, of a copy of COPY_BYTES."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    seconds = sampler(lambda: target.copy_(source), device)
    return lambda: 2 * source.nbytes / seconds()


def multiply_add_rate(device: torch.device, arithmetic: torch.dtype) -> Callable[[], float] | None:
    """Returns what measures the element-wise multiply-adds per second of the whole device, or None."""
    if device.type == "cuda":
        if backends.missing("triton"):
            return None
        from hanops.profiling.multiply_adds import multiply_adds

        run, count = multiply_adds(arithmetic, device)
        try:
            seconds = sampler(run, device)
        except Exception as error:  # where Triton finds no C compiler, say: the copy and the kernels are still timed
            warnings.warn(f"the rate of multiply-adds is not measured: {error}", stacklevel=2)
            return None
        return lambda: count / seconds()
    if native is None:
        return None
    module, threads = native, torch.get_num_threads()
    lanes = module.build_info()["float32_lanes"] * 4 // arithmetic.itemsize
    return lambda: threads * lanes * module.fma_vectors_per_second(_TURN)


def ceilings(device: torch.device, seconds: float = 1.0) -> tuple[float, float | None]:
    """Measures the two ceilings of a device, for about `seconds`.

    Returns:
        Bytes per second of a copy, read and written, and float32 multiply-adds of elements per second, or None where
        nothing here can measure them. Medians.
    """
    samplers = {"copy": copy_rate(device)}
    if rate := multiply_add_rate(device, torch.float32):
        samplers["instructions"] = rate
    samples = in_turns(samplers, seconds)
    return statistics.median(samples["copy"]), statistics.median(samples["instructions"]) if rate else None
