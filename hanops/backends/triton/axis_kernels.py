"""The Triton kernels of stacks along another axis than the last: no row lies in one piece, positions do.

x is (groups, outer, features, inner). A position, a pair (outer, inner), is what a row is in han_stack_kernels, whose
names hold here too; a tile of them stays in registers while every layer passes over it. Letters:
    Q  lanes that have other positions, 4 each
    C  lanes that have other columns            K  columns of a lane: 32 or 16
A tile is K chunks: chunk m holds column c K + m of lanes c, so that the bits of a lane are of one word. FOURS: 4
positions of a lane lie side by side, and a chunk is [C, Q, 4]; else those of the lanes do, and it is [4, C, Q]. Either
way Triton spreads the lanes alike in all that it loads. WHOLE: no column is past `features`; those that are hold 0.
Signs are words of 32 columns: (groups, outer, planes, W, inner), bit k of word w column 32 w + k. The rest of column
32 w + 4 p + j is byte j of word w in plane p, of 8.
The packed parameters, [layers, {w, b}, D] for each group, have column c K + m at m C + c.
"""

import triton
import triton.language as tl

from hanops.backends.triton.han_stack_kernels import FOLD, _flip, _fours, _sign_bit
from hanops.backends.triton.rounding_kernels import cast, planes, rest_of, restored

# ---- pieces


@triton.jit
def _column_lanes(C: tl.constexpr, FOURS: tl.constexpr):
    """The lanes c, in their axis of a chunk."""
    if FOURS:
        return tl.arange(0, C)[:, None, None]
    else:
        return tl.arange(0, C)[None, :, None]


@triton.jit
def _positions(first, count, inner, Q: tl.constexpr, FOURS: tl.constexpr):
    """The positions of a tile, in their axes of a chunk: indices outer and inner, and which of them there are."""
    word: tl.constexpr = tl.uint64 if inner.dtype == tl.int64 else tl.uint32
    if FOURS:  # four are of the same outer
        own, of_lane = 4 * tl.arange(0, Q)[None, :, None], tl.arange(0, 4)[None, None, :]
        at = (first % inner).to(word) + own.to(word)
        own += of_lane
    else:
        own = tl.arange(0, Q)[None, None, :] + Q * tl.arange(0, 4)[:, None, None]
        at = (first % inner).to(word) + own.to(word)
    outer = (first // inner).to(count.dtype) + (at // inner.to(word)).to(count.dtype)
    at = (at % inner.to(word)).to(inner.dtype)
    if FOURS:
        at += of_lane
    return outer, at, first + own < count


@triton.jit
def _offsets(outer, stride, at, FOURS: tl.constexpr):
    """Offsets of positions."""
    offset = outer.to(tl.int64) * stride + at
    if FOURS:
        offset = tl.multiple_of(tl.max_contiguous(offset, [1, 1, 4]), [1, 1, 4])
    return offset


@triton.jit
def _own_parameters(step, C: tl.constexpr, Q: tl.constexpr, FOURS: tl.constexpr):
    """Where a lane's parameters are in a chunk: step is 1, which the compiler must not know.

    It would spread the lanes in another way than in a chunk of x.
    """
    offset = _column_lanes(C, FOURS) * step
    if FOURS:
        return tl.broadcast_to(offset, (C, Q, 1))
    else:
        return tl.broadcast_to(offset, (1, C, Q))


@triton.jit
def _over_columns(chunk, FOURS: tl.constexpr):
    """The sum over the lanes c."""
    return tl.sum(chunk, axis=0 if FOURS else 1, keep_dims=True)


@triton.jit
def _load(p, column, features, x_feature, m_position, A: tl.constexpr, K: tl.constexpr):
    """A tile in A, K chunks; 0 beyond the matrix."""
    x_feature = tl.cast(x_feature, tl.int64)
    tile = ()
    for m in tl.static_range(K):
        x = tl.load(p + m * x_feature, mask=m_position & (column + m < features), other=0.0)
        tile = tile + (cast(x, A),)
    return tile


@triton.jit
def _store(p, column, features, y_feature, m_position, tile, K: tl.constexpr):
    for m in tl.static_range(K):
        y = cast(tile[m], p.dtype.scalar.element_ty)
        tl.store(p + m * y_feature, y, mask=m_position & (column + m < features))


@triton.jit
def _store_and_rest(
    p, column, features, y_feature, m_position, tile, p_rest, plane, m_word, K: tl.constexpr, REST: tl.constexpr
):  # fmt: skip
    """Writes y and what rounding takes from it, of whole words: K = 32."""
    for m in tl.static_range(0, K, 4):
        word = tl.zeros_like(tile[0]).to(tl.uint32)
        for j in tl.static_range(4):
            y = cast(tile[m + j], p.dtype.scalar.element_ty)
            tl.store(p + (m + j) * y_feature, y, mask=m_position & (column + (m + j) < features))
            word = word | (rest_of(tile[m + j], y, REST).to(tl.uint32) << (8 * j))
        tl.store(p_rest + (m // 4) * plane, word.to(tl.int32, bitcast=True), mask=m_word)


@triton.jit
def _restore(tile, p_rest, column, plane, m_word, K: tl.constexpr, REST: tl.constexpr):
    """A tile of y as it was before it was rounded."""
    y = ()
    for m in tl.static_range(0, K, 4):
        word = tl.load(p_rest + (column % 32 + m) // 4 * plane, mask=m_word, other=0)
        for j in tl.static_range(4):
            y = y + (restored(tile[m + j], (word >> (8 * j)).to(tl.uint8), REST),)
    return y


@triton.jit
def _dot(tile, p_w, C: tl.constexpr, K: tl.constexpr, FOURS: tl.constexpr):
    """The dot product of each position with w."""
    total = tile[0] * tl.load(p_w)
    for m in tl.static_range(1, K):
        total += tile[m] * tl.load(p_w + m * C)
    return _over_columns(total, FOURS)


@triton.jit
def _reflect(
    x, p_w, column, features, C: tl.constexpr, K: tl.constexpr, FOURS: tl.constexpr, WHOLE: tl.constexpr
):  # fmt: skip
    """z = x - 2 (w . x) w + b."""
    a = -2.0 * _dot(x, p_w, C, K, FOURS)
    z = ()
    for m in tl.static_range(K):
        z_m = x[m] + a * tl.load(p_w + m * C) + tl.load(p_w + (K + m) * C)
        if not WHOLE:  # a * 0 may be NaN
            z_m = tl.where(column + m < features, z_m, 0.0)
        z = z + (z_m,)
    return z


@triton.jit
def _word(z, K: tl.constexpr):
    """The signs of z as bits."""
    word = _sign_bit(z[K - 1])
    for m in tl.static_range(1, K):
        word = (word << 1) | _sign_bit(z[K - 1 - m])
    return word


@triton.jit
def _add(p, chunk, started, FOURS: tl.constexpr):
    """Adds the sum of a chunk's positions to memory that one program owns, or starts it."""
    value = tl.sum(tl.sum(chunk, axis=2 if FOURS else 0, keep_dims=True), axis=1 if FOURS else 2, keep_dims=True)
    before = tl.load(p, mask=tl.zeros_like(value).to(tl.int1) | started, other=0.0)
    tl.store(p, before + value)


@triton.jit
def _fold(p_sums, more, layers, D: tl.constexpr, C: tl.constexpr, K: tl.constexpr, DU: tl.constexpr, DB: tl.constexpr):
    """Moves a program's running sums on to its second set, so that rounding does not grow with the positions."""
    tl.debug_barrier()
    for layer in range(layers):
        for kind in tl.static_range(2):  # dw, db
            if (DU and kind == 0) or (DB and kind == 1):
                for m in tl.static_range(K):
                    p = p_sums + (2 * layer + kind) * D + m * C
                    running = tl.load(p)
                    total = p + layers * (2 * D)
                    before = tl.load(total, mask=tl.zeros_like(running).to(tl.int1) | more, other=0.0)
                    tl.store(total, before + running)
                    tl.store(p, tl.zeros_like(running))


# ---- kernels


@triton.jit(
    do_not_specialize=["count", "inner", "features", "layers", "abs_layers", "tiles", "step", "x_group", "x_outer",
                       "x_feature"]
)  # fmt: skip
def forward_axis(
    p_x, p_y, p_words, p_packed, count, inner, features, layers, abs_layers, tiles, step, x_group, x_outer, x_feature,
    A: tl.constexpr, Q: tl.constexpr, C: tl.constexpr, K: tl.constexpr, SAVE: tl.constexpr, REST: tl.constexpr,
    FOURS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One tile through all layers: x in, y, the words of signs and the rest of y out."""
    if FOURS:
        count, inner = _fours(count), _fours(inner)
        x_group, x_outer, x_feature = _fours(x_group), _fours(x_outer), _fours(x_feature)
    D: tl.constexpr = K * C
    group = (tl.program_id(0) // tiles).to(tl.int64)
    outer, at, m_position = _positions((tl.program_id(0) % tiles).to(tl.int64) * (4 * Q), count, inner, Q, FOURS)
    column = _column_lanes(C, FOURS) * K
    p_w = p_packed + group * layers * (2 * D) + _own_parameters(step, C, Q, FOURS)
    words = tl.cdiv(features, 32)
    plane = words.to(tl.int64) * inner
    outers = group * (count // inner)
    p_word = p_words + column // 32 * inner.to(tl.int64)
    p_word += _offsets(outers + outer, planes(abs_layers, REST) * plane, at, FOURS)
    m_word = m_position & (column < features)
    p_tile = p_x + group * x_group + column.to(tl.int64) * x_feature + _offsets(outer, x_outer, at, FOURS)
    x = _load(p_tile, column, features, x_feature, m_position, A, K)
    for _ in range(abs_layers):
        z = _reflect(x, p_w, column, features, C, K, FOURS, WHOLE)
        if SAVE:
            tl.store(p_word, _word(z, K).to(tl.int32, bitcast=True), mask=m_word)
            p_word += plane
        x = ()
        for m in tl.static_range(K):
            x = x + (tl.abs(z[m]),)
        p_w += 2 * D
    for _ in range(abs_layers, layers):  # those without an absolute value
        x = _reflect(x, p_w, column, features, C, K, FOURS, WHOLE)
        p_w += 2 * D
    p_tile = p_y + column.to(tl.int64) * inner + _offsets(outers + outer, features.to(tl.int64) * inner, at, FOURS)
    if REST:
        _store_and_rest(p_tile, column, features, inner.to(tl.int64), m_position, x, p_word, plane, m_word, K, REST)
    else:
        _store(p_tile, column, features, inner.to(tl.int64), m_position, x, K)


@triton.jit(
    do_not_specialize=["count", "inner", "features", "layers", "abs_layers", "tiles", "parts", "sets", "step",
                       "g_group", "g_outer", "g_feature", "y_group", "y_outer", "y_feature"]
)  # fmt: skip
def backward_axis(
    p_dy, p_y, p_words, p_packed, p_dx, p_partials,
    count, inner, features, layers, abs_layers, tiles, parts, sets, step,
    g_group, g_outer, g_feature, y_group, y_outer, y_feature,
    A: tl.constexpr, Q: tl.constexpr, C: tl.constexpr, K: tl.constexpr,
    DX: tl.constexpr, DU: tl.constexpr, DB: tl.constexpr, REST: tl.constexpr, FOURS: tl.constexpr,
):  # fmt: skip
    """Tiles back through all layers, every `parts`-th of a group's, each layer undone from its words of signs.

    A tile's share of dw and db is added to this program's partial sums.
    """
    if FOURS:
        count, inner = _fours(count), _fours(inner)
        g_group, g_outer, g_feature = _fours(g_group), _fours(g_outer), _fours(g_feature)
        y_group, y_outer, y_feature = _fours(y_group), _fours(y_outer), _fours(y_feature)
    D: tl.constexpr = K * C
    group = (tl.program_id(0) // parts).to(tl.int64)
    column = _column_lanes(C, FOURS) * K
    o_lane = _own_parameters(step, C, Q, FOURS)
    p_sums = p_partials + tl.program_id(0).to(tl.int64) * sets * layers * (2 * D) + o_lane
    plane = tl.cdiv(features, 32).to(tl.int64) * inner
    for tile in range(tl.program_id(0) % parts, tiles, parts):
        started = tile >= parts
        outer, at, m_position = _positions(tl.cast(tile, tl.int64) * (4 * Q), count, inner, Q, FOURS)
        outers = group * (count // inner)
        m_word = m_position & (column < features)
        p_tile = p_dy + group * g_group + column.to(tl.int64) * g_feature + _offsets(outer, g_outer, at, FOURS)
        g = _load(p_tile, column, features, g_feature, m_position, A, K)
        p_word = p_words + column // 32 * inner.to(tl.int64)
        p_word += _offsets(outers + outer, planes(abs_layers, REST) * plane, at, FOURS)
        x = ()
        if DU:
            o_y = _offsets(outer, y_outer, at, FOURS)
            p_tile = p_y + group * y_group + column.to(tl.int64) * y_feature + o_y
            y = _load(p_tile, column, features, y_feature, m_position, A, K)
            if REST:
                y = _restore(y, p_word + abs_layers * plane, column, plane, m_word, K, REST)
            total = tl.abs(g[0])
            for m in tl.static_range(1, K):
                total += tl.abs(g[m])
            live = _over_columns(total, FOURS) != 0  # else it adds 0 to du and db, whatever y holds
            for m in tl.static_range(K):
                x = x + (tl.where(live, y[m], 0.0),)
        for i in range(layers):
            layer = layers - 1 - i
            p_w = p_packed + (group * layers + layer) * (2 * D) + o_lane
            if layer < abs_layers:
                word = tl.load(p_word + layer * plane, mask=m_word, other=0).to(tl.uint32, bitcast=True)
                word = word >> (column % 32).to(tl.uint32)
                flipped = ()
                for m in tl.static_range(K):
                    flipped = flipped + (_flip(g[m], word, m),)
                g = flipped
                if DU:
                    flipped = ()
                    for m in tl.static_range(K):
                        flipped = flipped + (_flip(x[m], word, m),)
                    x = flipped
            c = -2.0 * _dot(g, p_w, C, K, FOURS)
            if DU:
                p = ()
                for m in tl.static_range(K):
                    p = p + (x[m] - tl.load(p_w + (K + m) * C),)
                a = -2.0 * _dot(p, p_w, C, K, FOURS)
                x = ()
                for m in tl.static_range(K):
                    x = x + (p[m] + a * tl.load(p_w + m * C),)
            p_part = p_sums + layer * (2 * D)
            below = ()
            for m in tl.static_range(K):
                if DU:
                    _add(p_part + m * C, c * x[m] - a * g[m], started, FOURS)
                if DB:
                    _add(p_part + (K + m) * C, g[m], started, FOURS)
                below = below + (g[m] + c * tl.load(p_w + m * C),)
            g = below
        if DX:
            p_tile = (
                p_dx + column.to(tl.int64) * inner + _offsets(outers + outer, features.to(tl.int64) * inner, at, FOURS)
            )
            _store(p_tile, column, features, inner.to(tl.int64), m_position, g, K)
        if DU or DB:
            if (sets > 1) & (tile // parts % FOLD == FOLD - 1):
                _fold(p_sums, tile >= FOLD * parts, layers, D, C, K, DU, DB)
            tl.debug_barrier()  # partial sums may be read by another lane than wrote them
