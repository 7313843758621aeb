"""The packed sign bits: how many bytes a row has, and packing in plain torch.

On the CPU bit j of byte i is column 8 i + j, and a row has S = ceil(d / 8) bytes. Elsewhere ("chunked") bit k of byte c
is column k S + c, with S = next_power_of_2(max(d, 32)) / 8. The layout follows from the device type alone, so that any
backward on a device reads any forward on it. Where the rest of y is kept too (rest.py), it is in 8 further planes, as
many bytes as columns. csrc/signs.h says the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

REST_PLANES = 8  # of the rest of y, of S bytes each
# What a float32 y is rounded to, so that there is a rest: bits of the float32 that not even the rest holds.
DROPPED = {torch.bfloat16: 8, torch.float16: 5}


def sign_bytes(features: int, chunked: bool) -> int:
    """Returns the bytes of a row's sign bits of one layer."""
    return 1 << max((int(features) - 1).bit_length() - 3, 2) if chunked else (features + 7) // 8


def is_chunked(device: torch.device) -> bool:
    """Tells the layout of a device."""
    return device.type != "cpu"


def layers_with_abs(u: Tensor, final_abs: bool, abs: bool = True) -> int:
    """Returns how many layers, from the first on, end in an absolute value, and so have bits. Without abs none does."""
    layers = u.shape[-2]
    if not abs:
        return 0
    return layers if final_abs or layers == 0 else layers - 1


def signs_shape(x: Tensor, abs_layers: int, save: int = 1) -> list[int]:
    """Returns the shape of what a stack on rows like x keeps: bits of so many layers; where save is 2, y's rest too."""
    rest = REST_PLANES if save == 2 and x.dtype in DROPPED else 0
    return [*x.shape[:-1], abs_layers + rest, sign_bytes(x.shape[-1], is_chunked(x.device))]


def _weights(chunked: bool, device: torch.device) -> Tensor:
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=device)
    return weights.unsqueeze(1) if chunked else weights


def pack(negative: Tensor, chunked: bool) -> Tensor:
    """Packs booleans (..., features) into bytes (..., S)."""
    size = sign_bytes(negative.shape[-1], chunked)
    padded = torch.nn.functional.pad(negative, (0, 8 * size - negative.shape[-1]))
    bits = padded.unflatten(-1, (8, size) if chunked else (size, 8)).to(torch.uint8)
    return (bits * _weights(chunked, bits.device)).sum(-2 if chunked else -1, dtype=torch.uint8)


def unpack(signs: Tensor, features: int, chunked: bool) -> Tensor:
    """Unpacks bytes (..., S) into booleans (..., features), True where the sign bit is set."""
    bits = signs.unsqueeze(-2 if chunked else -1).bitwise_and(_weights(chunked, signs.device)).ne(0)
    return bits.flatten(-2)[..., :features]
