"""The Triton kernels of the parameters: w = u / |u| on the way in, du and db from the partial sums on the way out.

Letters and names are those of han_stack_kernels.
"""

import triton
import triton.language as tl

from hanops.backends.triton.rounding_kernels import cast


@triton.jit(do_not_specialize=["features", "layers"])
def prepare(p_u, p_b, p_packed, p_norms, features, D: tl.constexpr, A: tl.constexpr, HAS_B: tl.constexpr):
    """Packs w = u / |u| and b of one layer, 0 beyond `features`; |u| is kept as two factors that do not overflow."""
    BLOCK: tl.constexpr = 1024
    layer = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    p_u += layer * features
    p_packed += layer * 2 * D
    largest = tl.zeros((BLOCK,), A)
    for first in range(0, D, BLOCK):
        u = cast(tl.load(p_u + first + columns, mask=first + columns < features, other=0.0), A)
        largest = tl.maximum(largest, tl.abs(u))
    scale = tl.max(largest, axis=0)
    scale = tl.where(scale > 0, scale, 1.0).to(A)
    squares = tl.zeros((BLOCK,), A)
    for first in range(0, D, BLOCK):
        u = cast(tl.load(p_u + first + columns, mask=first + columns < features, other=0.0), A) / scale
        squares += u * u
    norm = tl.sqrt(tl.sum(squares, axis=0))
    inverse = 1.0 / tl.where(norm == 0, 1.0, norm).to(A)  # u = 0: w = 0, and H = I
    for first in range(0, D, BLOCK):
        m_u = first + columns < features
        u = cast(tl.load(p_u + first + columns, mask=m_u, other=0.0), A)
        tl.store(p_packed + first + columns, u / scale * inverse, mask=first + columns < D)
        b = -1.0 * tl.zeros((BLOCK,), A)  # x + -0.0 is x, even for x = -0.0
        if HAS_B:
            b = cast(tl.load(p_b + layer * features + first + columns, mask=m_u, other=0.0), A)
        tl.store(p_packed + D + first + columns, b, mask=first + columns < D)
    tl.store(p_norms + 2 * layer, scale)
    tl.store(p_norms + 2 * layer + 1, norm)


@triton.jit(do_not_specialize=["size", "parts"])
def sum_parts(p_partials, p_sums, size, parts, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Sums the partial du and db of a group, (parts, size), in a fixed order."""
    blocks = tl.cdiv(size, BLOCK)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    o_column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    o_part = tl.arange(0, PARTS)
    total = tl.zeros((PARTS, BLOCK), p_sums.dtype.element_ty)
    p_partials += group * parts * size
    for first in range(0, parts, PARTS):
        part = (first + o_part)[:, None].to(tl.int64)
        total += tl.load(p_partials + part * size + o_column[None, :], mask=(part < parts) & (o_column < size)[None, :],
                         other=0.0)  # fmt: skip
    tl.store(p_sums + group * size + o_column, tl.sum(total, axis=0), mask=o_column < size)


@triton.jit(do_not_specialize=["features"])
def finish(p_sums, p_packed, p_norms, p_du, p_db, features, D: tl.constexpr, DU: tl.constexpr, DB: tl.constexpr):
    """du = (dw - (w . dw) w) / |u| of one layer, 0 where u = 0; and db."""
    BLOCK: tl.constexpr = 1024
    A: tl.constexpr = p_sums.dtype.element_ty
    layer = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    p_sums += layer * 2 * D
    p_packed += layer * 2 * D
    if DU:
        along = tl.zeros((BLOCK,), A)
        for first in range(0, D, BLOCK):
            m_u = first + columns < features
            dw = tl.load(p_sums + first + columns, mask=m_u, other=0.0)
            along += dw * tl.load(p_packed + first + columns, mask=m_u, other=0.0)
        total = tl.sum(along, axis=0)
        scale, norm = tl.load(p_norms + 2 * layer), tl.load(p_norms + 2 * layer + 1)
        inverse = tl.where(norm == 0, 0.0, 1.0 / tl.where(norm == 0, 1.0, norm)).to(A)
        for first in range(0, D, BLOCK):
            m_u = first + columns < features
            dw = tl.load(p_sums + first + columns, mask=m_u, other=0.0)
            across = (dw - total * tl.load(p_packed + first + columns, mask=m_u, other=0.0)) * inverse / scale
            tl.store(p_du + layer * features + first + columns, cast(across, p_du.dtype.element_ty), mask=m_u)
    if DB:
        for first in range(0, D, BLOCK):
            m_u = first + columns < features
            db = tl.load(p_sums + D + first + columns, mask=m_u, other=0.0)
            tl.store(p_db + layer * features + first + columns, cast(db, p_db.dtype.element_ty), mask=m_u)
