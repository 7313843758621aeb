"""The packed sign bits: how many bytes a row has, and packing in plain torch.

On the CPU bit j of byte i is column 8 i + j, and a row has S = ceil(d / 8) bytes. Elsewhere ("chunked") bit k of byte c
is column k S + c, with S = next_power_of_2(max(d, 32)) / 8. The layout follows from the device type alone, so that any
backward on a device reads any forward on it. Where the rest of y is kept too (rest.py), it is in 8 further planes, as
many bytes as columns.

Where the columns are along another axis than the last one, `dim`, the signs are words of 32 columns for each position
along the axes after it, on every device: x.shape with (planes, W, 4 bytes) in place of the features, W = ceil(d / 32),
the bytes at the end. Bit k of word w is column 32 w + k; of the rest, byte j of word w in plane p is column
32 w + 4 p + j. csrc/signs.h says the same.
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


def is_last(dim: int, axes: int) -> bool:
    """Tells whether `dim` is the last of so many axes."""
    return dim in (-1, axes - 1)


def word_count(features: int) -> int:
    """Returns the words of 32 columns of a position's sign bits of one layer."""
    return (features + 31) // 32


def signs_shape(x: Tensor, abs_layers: int, save: int = 1, dim: int = -1) -> list[int]:
    """Returns the shape of what a stack along axis `dim` of x keeps.

    That is bits of so many layers; where save is 2, y's rest too.
    """
    planes = abs_layers + (REST_PLANES if save == 2 and x.dtype in DROPPED else 0)
    if is_last(dim, x.dim()):
        return [*x.shape[:-1], planes, sign_bytes(x.shape[-1], is_chunked(x.device))]
    axis = dim % x.dim()
    return [*x.shape[:axis], planes, word_count(x.shape[axis]), *x.shape[axis + 1 :], 4]


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


def _resized(t: Tensor, size: int) -> Tensor:
    """Cuts the last axis, or fills it up with zeros."""
    return torch.nn.functional.pad(t, (0, size - t.shape[-1]))


def words_of_rows(signs: Tensor, features: int, abs_layers: int, axis: int, chunked: bool) -> Tensor:
    """Returns what rows keep, (..., planes, S), as words: (planes, W) at `axis`, that of x's features, and 4 bytes.

    The leading axes are those of x, its features left out.
    """
    words = word_count(features)
    bits = signs.narrow(-2, 0, abs_layers)
    bits = pack(unpack(bits, features, True), False) if chunked else bits
    planes = [_resized(bits, 4 * words).unflatten(-1, (words, 4))]
    if signs.shape[-2] > abs_layers:
        rest = _resized(signs.narrow(-2, abs_layers, REST_PLANES).flatten(-2), 32 * words)
        planes.append(rest.unflatten(-1, (words, REST_PLANES, 4)).transpose(-3, -2))
    return torch.cat(planes, -3).movedim((-3, -2), (axis, axis + 1)).contiguous()


def rows_of_words(signs: Tensor, features: int, abs_layers: int, axis: int, chunked: bool) -> Tensor:
    """Returns what `words_of_rows` made, as rows keep it."""
    signs = signs.movedim((axis, axis + 1), (-3, -2))  # (..., planes, W, 4)
    bytes_of_bits = signs.narrow(-3, 0, abs_layers).flatten(-2)
    bits = _resized(bytes_of_bits, sign_bytes(features, False))
    planes = [pack(unpack(bits, features, False), True) if chunked else bits]
    if signs.shape[-3] > abs_layers:
        size = sign_bytes(features, chunked)
        rest = signs.narrow(-3, abs_layers, REST_PLANES).transpose(-3, -2).flatten(-3)
        planes.append(_resized(rest, REST_PLANES * size).unflatten(-1, (REST_PLANES, size)))
    return torch.cat(planes, -2)
