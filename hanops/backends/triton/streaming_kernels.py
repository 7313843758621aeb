"""The Triton kernels of the Han stack for rows too long for registers: one at a time, in memory of each program.

Letters, names and layouts are those of han_stack_kernels.
"""

import triton
import triton.language as tl

from hanops.backends.triton.han_stack_kernels import _flip, _fours, _sign_bit
from hanops.backends.triton.rounding_kernels import cast, planes, rest_of, restored


@triton.jit(do_not_specialize=["rows", "features", "layers", "abs_layers", "all_rows", "programs", "x_group", "x_row"])
def forward_streaming(
    p_x, p_y, p_signs, p_packed, p_scratch,
    rows, features, layers, abs_layers, all_rows, programs, x_group, x_row,
    A: tl.constexpr, C: tl.constexpr, BYTES: tl.constexpr, SAVE: tl.constexpr, REST: tl.constexpr, FOURS: tl.constexpr,
):  # fmt: skip
    """Rows too long for registers: one pass per layer updates a row and takes the next layer's dot product."""
    if FOURS:
        features, x_group, x_row = _fours(features), _fours(x_group), _fours(x_row)
    D: tl.constexpr = 8 * BYTES
    program = tl.program_id(0).to(tl.int64)
    columns = tl.max_contiguous(tl.arange(0, C), 4)
    p_scratch += program * D
    for index in range(tl.program_id(0), all_rows, programs):
        group, own = tl.cast(index // rows, tl.int64), tl.cast(index % rows, tl.int64)
        row = group * rows + own
        p_w = p_packed + group * layers * (2 * D)
        total = tl.zeros((C,), A)
        for first in range(0, D, C):
            column = first + columns
            x = cast(tl.load(p_x + group * x_group + own * x_row + column, mask=column < features, other=0.0), A)
            tl.store(p_scratch + column, x)
            total += x * tl.load(p_w + column)
        for layer in range(layers):
            a = -2.0 * tl.sum(total, axis=0)
            tl.debug_barrier()
            p_next = p_w + (layer + 1 < layers) * (2 * D)
            total = tl.zeros((C,), A)
            for first in range(0, BYTES, C):
                byte = tl.zeros((C,), tl.uint32)
                for j in tl.static_range(8):
                    column = (7 - j) * BYTES + first + columns
                    z = tl.load(p_scratch + column) + a * tl.load(p_w + column) + tl.load(p_w + D + column)
                    z = tl.where(column < features, z, 0.0)
                    byte = (byte << 1) | _sign_bit(z)
                    x = tl.where(layer < abs_layers, tl.abs(z), z)
                    tl.store(p_scratch + column, x)
                    total += x * tl.load(p_next + column)
                if SAVE:
                    o_byte = (row * planes(abs_layers, REST) + layer) * BYTES + first + columns
                    tl.store(p_signs + o_byte, byte.to(tl.uint8), mask=(columns >= 0) & (layer < abs_layers))
            p_w = p_next
        tl.debug_barrier()
        for first in range(0, D, C):
            column = first + columns
            x = tl.load(p_scratch + column)
            y = cast(x, p_y.dtype.element_ty)
            tl.store(p_y + row * features + column, y, mask=column < features)
            if REST:
                o_rest = (row * planes(abs_layers, REST) + abs_layers) * BYTES
                tl.store(p_signs + o_rest + column, rest_of(x, y, REST))
        tl.debug_barrier()  # the next row takes the same scratch memory


@triton.jit
def _silence(p_live, p_p, found, columns, A: tl.constexpr, C: tl.constexpr, D: tl.constexpr):
    """Writes whether a row of dy has an element that is not 0. A row without goes on from p = 0, and adds 0 to dw."""
    live = tl.max(found.to(tl.int32), axis=0)
    tl.store(p_live, live.to(tl.uint8))
    if live == 0:
        tl.debug_barrier()  # another lane may have written there
        for first in range(0, D, C):
            tl.store(p_p + first + columns, tl.zeros((C,), A))


@triton.jit(
    do_not_specialize=["rows", "features", "layers", "abs_layers", "all_rows", "programs", "g_group", "g_row",
                       "y_group", "y_row"]
)  # fmt: skip
def backward_streaming(
    p_dy, p_y, p_signs, p_packed, p_dx, p_scratch, p_coefficients, p_live,
    rows, features, layers, abs_layers, all_rows, programs, g_group, g_row, y_group, y_row,
    A: tl.constexpr, C: tl.constexpr, BYTES: tl.constexpr,
    DX: tl.constexpr, DU: tl.constexpr, DB: tl.constexpr, REST: tl.constexpr, FOURS: tl.constexpr,
):  # fmt: skip
    """dx of rows too long for registers, and the coefficients that `parameter_gradients` needs.

    One pass per layer undoes the layer above and takes the dot products of this one.
    """
    if FOURS:
        features = _fours(features)
        g_group, g_row, y_group, y_row = _fours(g_group), _fours(g_row), _fours(y_group), _fours(y_row)
    D: tl.constexpr = 8 * BYTES
    program = tl.program_id(0).to(tl.int64)
    columns = tl.max_contiguous(tl.arange(0, C), 4)
    p_g = p_scratch + program * (2 * D)
    p_p = p_g + D
    for index in range(tl.program_id(0), all_rows, programs):
        group, own = tl.cast(index // rows, tl.int64), tl.cast(index % rows, tl.int64)
        row = group * rows + own
        found = tl.zeros((C,), tl.int1)
        for first in range(0, D, C):
            column = first + columns
            g = tl.load(p_dy + group * g_group + own * g_row + column, mask=column < features, other=0.0)
            tl.store(p_g + column, cast(g, A))
            if DU:
                found = found | (g != 0)
                y = tl.load(p_y + group * y_group + own * y_row + column, mask=column < features, other=0.0)
                y = cast(y, A)
                if REST:
                    o_rest = (row * planes(abs_layers, REST) + abs_layers) * BYTES
                    y = restored(y, tl.load(p_signs + o_rest + column, mask=column < features, other=0), REST)
                tl.store(p_p + column, y)
        if DU:
            _silence(p_live + row, p_p, found, columns, A, C, D)
        a = tl.full((), 0.0, A)  # of the layer above; there is none above the last
        c = tl.full((), 0.0, A)
        p_above = p_packed + (group * layers + layers - 1) * (2 * D)
        for i in range(layers):
            layer = layers - 1 - i
            tl.debug_barrier()
            p_w = p_packed + (group * layers + layer) * (2 * D)
            total_g = tl.zeros((C,), A)
            total_p = tl.zeros((C,), A)
            for first in range(0, BYTES, C):
                o_byte = (row * planes(abs_layers, REST) + layer) * BYTES + first + columns
                byte = tl.load(p_signs + o_byte, mask=(columns >= 0) & (layer < abs_layers), other=0)
                for k in tl.static_range(8):
                    column = k * BYTES + first + columns
                    w, w_above = tl.load(p_w + column), tl.load(p_above + column)
                    gz = _flip(tl.load(p_g + column) + c * w_above, byte, k)
                    tl.store(p_g + column, gz)
                    total_g += gz * w
                    if DU:
                        p = _flip(tl.load(p_p + column) + a * w_above, byte, k) - tl.load(p_w + D + column)
                        tl.store(p_p + column, p)
                        total_p += p * w
            c = -2.0 * tl.sum(total_g, axis=0)
            a = -2.0 * tl.sum(total_p, axis=0)
            if DU or DB:
                tl.store(p_coefficients + (row * layers + layer) * 2, a)
                tl.store(p_coefficients + (row * layers + layer) * 2 + 1, c)
            p_above = p_w
        if DX:
            tl.debug_barrier()
            for first in range(0, D, C):
                column = first + columns
                dx = tl.load(p_g + column) + c * tl.load(p_above + column)
                tl.store(p_dx + row * features + column, cast(dx, p_dx.dtype.element_ty), mask=column < features)
            tl.debug_barrier()  # the next row takes the same scratch memory
