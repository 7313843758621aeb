"""How the Triton kernels round to the type of rows, and the rest of y: the byte an element that rounding takes from it.

REST is the shift that makes a byte of the difference of two float32 words, 8 for bfloat16 and 5 for float16, or 0 where
no rest is kept. hanops/definition/rest.py has the same in plain torch.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def cast(v, dtype: tl.constexpr):
    """v in dtype, rounded to nearest even. Triton's interpreter truncates to bfloat16, and mistakes its subnormals."""
    if INTERPRETED and dtype == tl.bfloat16 and v.dtype == tl.float32:
        word = v.to(tl.uint32, bitcast=True)
        rounded = (word + 0x7FFF + ((word >> 16) & 1)) >> 16
        return tl.where(v == v, rounded, 0x7FC0).to(tl.uint16).to(dtype, bitcast=True)
    elif INTERPRETED and dtype == tl.float32 and v.dtype == tl.bfloat16:
        return (v.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(dtype, bitcast=True)
    else:
        return v.to(dtype)


@triton.jit
def rest_of(v, rounded, REST: tl.constexpr):
    """What rounding took from v, as the byte of an int8; 0 where `rounded` is not finite."""
    near = cast(rounded, tl.float32)
    difference = v.to(tl.int32, bitcast=True) - near.to(tl.int32, bitcast=True)
    rest = tl.minimum((difference + (1 << (REST - 1))) >> REST, 127)
    if REST != 8:  # as float16 rounds subnormals; bfloat16 takes half of a word at most, -128 up to 128
        rest = tl.maximum(rest, -128)
    return tl.where(tl.abs(near) < float("inf"), rest, 0).to(tl.uint8)


@triton.jit
def restored(near, rest, REST: tl.constexpr):
    """What was rounded to `near`, which is in float32 again."""
    word = near.to(tl.int32, bitcast=True) + (rest.to(tl.int8, bitcast=True).to(tl.int32) << REST)
    return word.to(tl.float32, bitcast=True)


@triton.jit
def planes(abs_layers, REST: tl.constexpr):
    """Planes of BYTES bytes that a row has: one of bits for each layer with an absolute value, and 8 of the rest."""
    if REST:
        return abs_layers + 8
    else:
        return abs_layers
