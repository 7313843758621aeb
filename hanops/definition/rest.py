"""What rounding takes from a result of 16 bits, in one byte an element, and the result as it was before.

bfloat16 keeps the upper 16 bits of a float32, float16 about the upper 19. The byte holds the next 8, as a signed
difference of the two values' bits. It lies in further planes of the sign bits: byte j of a row's is that of column j.
csrc/cpu/rest.h, csrc/cuda/rest.cuh and hanops/backends/triton/rounding_kernels.py say the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hanops.definition.signs import DROPPED, REST_PLANES, sign_bytes


def rest_of(exact: Tensor, rounded: Tensor) -> Tensor:
    """Returns the bytes, int8, that a float32 tensor has beyond its rounding to bfloat16 or float16.

    They are saturated, and 0 where the rounded value is not finite.
    """
    bits = DROPPED[rounded.dtype]
    difference = exact.view(torch.int32) - rounded.float().view(torch.int32)
    rest = ((difference + (1 << (bits - 1))) >> bits).clamp(-128, 127)
    return torch.where(rounded.isfinite(), rest, 0).to(torch.int8)


def restored(rounded: Tensor, rest: Tensor) -> Tensor:
    """Returns, in float32, a rounded tensor with the bytes that `rest_of` took from it."""
    bits = rest.to(torch.int32) << DROPPED[rounded.dtype]
    return (rounded.float().view(torch.int32) + bits).view(torch.float32)


def planes(rest: Tensor, chunked: bool) -> Tensor:
    """Returns the bytes of rows, int8 (..., features), as planes beside those of sign bits, uint8 (..., 8, S)."""
    size = sign_bytes(rest.shape[-1], chunked)
    padded = torch.nn.functional.pad(rest, (0, REST_PLANES * size - rest.shape[-1]))
    return padded.view(torch.uint8).unflatten(-1, (REST_PLANES, size))


def bytes_of(planes: Tensor, features: int) -> Tensor:
    """Returns the bytes that planes (..., 8, S) hold, int8 (..., features)."""
    return planes.flatten(-2)[..., :features].view(torch.int8)
