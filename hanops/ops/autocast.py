"""What autocast does to a stack: x is cast, float64 excepted; u and b stay as they are. csrc/ops.cpp has the same."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

KINDS = ("cpu", "cuda")
HALVES = (torch.bfloat16, torch.float16)


def _is_on(x: Tensor) -> bool:
    return isinstance(x, Tensor) and x.device.type in KINDS and torch.is_autocast_enabled(x.device.type)


def cast(x: Tensor, u: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns x in the dtype that autocast gives it, and u and b as they go with it."""
    if not _is_on(x) or x.dtype not in (torch.float32, *HALVES):
        return x, u, b
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), beside(dtype, u), None if b is None else beside(dtype, b)


def beside(dtype: torch.dtype, t: Tensor) -> Tensor:
    """Returns a parameter as it goes with rows of a dtype: of the other half dtype it is widened, which is exact."""
    return t.float() if {dtype, t.dtype} == {*HALVES} else t


def disabled(x: Tensor) -> AbstractContextManager[None]:
    """Returns a context in which autocast is off on x's device."""
    return torch.autocast(x.device.type, enabled=False) if _is_on(x) else nullcontext()
