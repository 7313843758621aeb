"""The Triton kernels of the Han stack: a tile of rows stays in registers while every layer passes over it.

The letters, in all files of the Triton kernels; csrc/cuda/tile.cuh has the same:
    A  type of the arithmetic: float32, or float64
    R  rows that a lane has in registers    Q  lanes that have other rows: a tile has R * Q
    K  chunks of a row                      C  columns of a chunk: 4 of each lane (V in CUDA) that shares a row
    D  columns of w and b as packed: a row's, padded
Words in capitals are constants too: BYTES of sign bits, SAVE them, FOURS of columns can be read at once; DX, DU, DB
are wanted; FUSED: du and db are summed here; REST, see rounding_kernels.py.

Row r * Q + q of a tile is in register r of lanes q. Chunk m, of shape [Q, R, C], holds columns m C ... m C + C - 1.
Columns past `features` hold 0 throughout. The lanes' axis comes first, which is where Triton spreads what it loads: in
any other order rows would move between lanes, through shared memory.
Sign bits have BYTES bytes per row and layer: bit k of byte c is column k BYTES + c. The rest of y follows those of a
row: byte c of 8 BYTES is column c.
Names: p_ pointers, o_ offsets, m_ masks; w and b are the packed parameters, [layers, {w, b}, D] for each group.
"""

import triton
import triton.language as tl

from hanops.backends.triton.rounding_kernels import cast, planes, rest_of, restored

FOLD = tl.constexpr(16)  # tiles whose sums are added up one after another

# ---- pieces


@triton.jit
def _columns(Q: tl.constexpr, C: tl.constexpr):
    """Columns of a chunk, [Q, 1, C]: of full width, so that parameters come in the layout of the rows.

    Four columns a lane in every access, whatever the width of its type: all of them then share one layout.
    """
    columns = tl.max_contiguous(tl.arange(0, C)[None, None, :], [1, 1, 4])
    return tl.broadcast_to(columns, (Q, 1, C))


@triton.jit
def _rows(first, R: tl.constexpr, Q: tl.constexpr):
    """Rows of a tile, [Q, R, 1], 64-bit."""
    return first + tl.arange(0, R)[None, :, None] * Q + tl.arange(0, Q)[:, None, None]


@triton.jit
def _fours(n):
    """n, a multiple of 4, so that the compiler sees it."""
    return n // 4 * 4


@triton.jit
def _sign_bit(z):
    """1 where the sign bit of z is set, as uint32."""
    width: tl.constexpr = z.dtype.primitive_bitwidth
    word: tl.constexpr = tl.uint64 if width == 64 else tl.uint32
    return (z.to(word, bitcast=True) >> (width - 1)).to(tl.uint32)


@triton.jit
def _flip(v, byte, k):
    """Negates v where bit k of byte is set."""
    width: tl.constexpr = v.dtype.primitive_bitwidth
    word: tl.constexpr = tl.uint64 if width == 64 else tl.uint32
    top = (byte.to(word) >> k) << (width - 1)
    return (v.to(word, bitcast=True) ^ top).to(v.dtype, bitcast=True)


@triton.jit
def _load_rows(p_rows, o_row, features, m_row, columns, A: tl.constexpr, C: tl.constexpr, K: tl.constexpr):
    """A tile of rows in A, K chunks of [Q, R, C]; 0 beyond the matrix."""
    tile = ()
    for m in tl.static_range(K):
        column = m * C + columns
        x = tl.load(p_rows + o_row + column, mask=m_row & (column < features), other=0.0)
        tile = tile + (cast(x, A),)
    return tile


@triton.jit
def _store_rows(p_rows, o_row, features, m_row, columns, tile, C: tl.constexpr, K: tl.constexpr):
    for m in tl.static_range(K):
        column = m * C + columns
        y = cast(tile[m], p_rows.dtype.element_ty)
        tl.store(p_rows + o_row + column, y, mask=m_row & (column < features))


@triton.jit
def _store_rows_and_rest(
    p_rows, o_row, p_signs, o_rest, features, m_row, columns, tile,
    BYTES: tl.constexpr, C: tl.constexpr, K: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Writes rows and, chunk by chunk, what rounding takes from them: 0 beyond `features`."""
    for m in tl.static_range(8 * BYTES // C):
        column = m * C + columns
        rest = tl.zeros_like(tile[0]).to(tl.uint8)
        if m < K:
            y = cast(tile[m], p_rows.dtype.element_ty)
            tl.store(p_rows + o_row + column, y, mask=m_row & (column < features))
            rest = rest_of(tile[m], y, REST)
        tl.store(p_signs + o_rest + column, rest, mask=m_row)


@triton.jit
def _load_restored(
    p_rows, o_row, p_rest, o_rest, features, m_row, columns, C: tl.constexpr, K: tl.constexpr, REST: tl.constexpr
):  # fmt: skip
    """Rows as they were before they were rounded."""
    tile = ()
    for m in tl.static_range(K):
        column = m * C + columns
        m_y = m_row & (column < features)
        y = tl.load(p_rows + o_row + column, mask=m_y, other=0.0)
        rest = tl.load(p_rest + o_rest + column, mask=m_y, other=0)
        tile = tile + (restored(cast(y, tl.float32), rest, REST),)
    return tile


@triton.jit
def _dot(tile, p_w, columns, C: tl.constexpr, K: tl.constexpr):
    """The dot product of each row with w, [Q, R, 1]."""
    total = tile[0] * tl.load(p_w + columns)
    for m in tl.static_range(1, K):
        total += tile[m] * tl.load(p_w + m * C + columns)
    return tl.sum(total, axis=2, keep_dims=True)


@triton.jit
def _reflect(x, p_w, features, columns, D: tl.constexpr, C: tl.constexpr, K: tl.constexpr):
    """z = x - 2 (w . x) w + b."""
    a = -2.0 * _dot(x, p_w, columns, C, K)
    z = ()
    for m in tl.static_range(K):
        w, b = tl.load(p_w + m * C + columns), tl.load(p_w + D + m * C + columns)
        z_m = x[m] + a * w + b
        if m == K - 1:  # a * 0 may be NaN
            z_m = tl.where(m * C + columns < features, z_m, 0.0)
        z = z + (z_m,)
    return z


@triton.jit
def _store_signs(p_signs, o_signs, m_row, columns, z, BYTES: tl.constexpr, C: tl.constexpr, K: tl.constexpr):
    """Packs the signs of z: each of the BYTES / C chunks of bytes takes its bits from 8 chunks of columns."""
    step: tl.constexpr = BYTES // C
    for h in tl.static_range(step):
        byte = tl.zeros_like(z[0]).to(tl.uint32)
        for j in tl.static_range(8):
            if (7 - j) * step + h < K:
                byte = (byte << 1) | _sign_bit(z[(7 - j) * step + h])
        tl.store(p_signs + o_signs + (h * C + columns), byte.to(tl.uint8), mask=m_row)


@triton.jit
def _apply_signs(p_signs, o_signs, m_row, first, columns, g, x, BYTES: tl.constexpr, C: tl.constexpr, K: tl.constexpr):
    """s g and s x for the chunks from column `first` on; x may be an empty tuple."""
    gz = ()
    z = ()
    for m in tl.static_range(K):
        if C <= BYTES:
            k = (first + m * C) // BYTES
            o_byte = o_signs + ((first + m * C) % BYTES + columns)
        else:  # the bits of a chunk's columns lie in different places of their bytes
            k = (m * C + columns) // BYTES
            o_byte = o_signs + tl.max_contiguous((m * C + columns) % BYTES, [1, 1, 4])
        byte = tl.load(p_signs + o_byte, mask=m_row, other=0)
        gz = gz + (_flip(g[m], byte, k),)
        if len(x) > 0:
            z = z + (_flip(x[m], byte, k),)
    return gz, z


@triton.jit
def _live_rows(g, K: tl.constexpr):
    """Where a row of dy is not 0 everywhere, [Q, R, 1]; any other adds 0 to du and db, whatever its y holds."""
    total = tl.abs(g[0])
    for m in tl.static_range(1, K):
        total += tl.abs(g[m])
    return tl.sum(total, axis=2, keep_dims=True) != 0


@triton.jit
def _only(live, x, K: tl.constexpr):
    """x in the rows that are live, 0 in others."""
    kept = ()
    for m in tl.static_range(K):
        kept = kept + (tl.where(live, x[m], 0.0),)
    return kept


@triton.jit
def _add_rows(p, rows, started):
    """Adds the sum of a chunk's rows to memory that one program owns, or starts it."""
    value = tl.sum(tl.sum(rows, axis=1, keep_dims=True), axis=0, keep_dims=True)
    before = tl.load(p, mask=tl.zeros_like(value).to(tl.int1) | started, other=0.0)
    tl.store(p, before + value)


@triton.jit
def _fold(
    p_sums, folded, more, layers, o_column,
    D: tl.constexpr, C: tl.constexpr, K: tl.constexpr, DU: tl.constexpr, DB: tl.constexpr,
):  # fmt: skip
    """Moves a program's running sums on to its second set, so that rounding does not grow with the number of rows."""
    tl.debug_barrier()  # they may be read by another lane than wrote them
    for layer in range(layers):
        for kind in tl.static_range(2):  # dw, db
            if (DU and kind == 0) or (DB and kind == 1):
                for m in tl.static_range(K):
                    p = p_sums + (2 * layer + kind) * D + m * C + o_column
                    running = tl.load(p)
                    before = tl.load(p + folded, mask=tl.zeros_like(running).to(tl.int1) | more, other=0.0)
                    tl.store(p + folded, before + running)
                    tl.store(p, tl.zeros_like(running))


# ---- rows in registers


@triton.jit(do_not_specialize=["rows", "features", "layers", "abs_layers", "tiles", "x_group", "x_row"])
def forward(
    p_x, p_y, p_signs, p_packed, rows, features, layers, abs_layers, tiles, x_group, x_row,
    A: tl.constexpr, R: tl.constexpr, Q: tl.constexpr, C: tl.constexpr, K: tl.constexpr, BYTES: tl.constexpr,
    SAVE: tl.constexpr, REST: tl.constexpr, FOURS: tl.constexpr,
):  # fmt: skip
    """One tile of rows through all layers: x in, y, the sign bits and the rest of y out."""
    if FOURS:
        features, x_group, x_row = _fours(features), _fours(x_group), _fours(x_row)
    D: tl.constexpr = K * C
    group = (tl.program_id(0) // tiles).to(tl.int64)
    first = (tl.program_id(0) % tiles).to(tl.int64) * (R * Q)
    row = _rows(0, R, Q)
    m_row = row < rows - first
    columns = _columns(Q, C)
    p_w = p_packed + group * layers * (2 * D)
    p_signs += (group * rows + first) * planes(abs_layers, REST) * BYTES
    p_y += (group * rows + first) * features
    o_signs = row.to(tl.int64) * planes(abs_layers, REST) * BYTES
    x = _load_rows(p_x + group * x_group + first * x_row, row.to(tl.int64) * x_row, features, m_row, columns, A, C, K)
    for _ in range(abs_layers):
        z = _reflect(x, p_w, features, columns, D, C, K)
        if SAVE:
            _store_signs(p_signs, o_signs, m_row, columns, z, BYTES, C, K)
            o_signs += BYTES
        x = ()
        for m in tl.static_range(K):
            x = x + (tl.abs(z[m]),)
        p_w += 2 * D
    for _ in range(abs_layers, layers):  # those without an absolute value
        x = _reflect(x, p_w, features, columns, D, C, K)
        p_w += 2 * D
    if REST:
        _store_rows_and_rest(p_y, row * features, p_signs, o_signs, features, m_row, columns, x, BYTES, C, K, REST)
    else:
        _store_rows(p_y, row * features, features, m_row, columns, x, C, K)


@triton.jit(
    do_not_specialize=["rows", "features", "layers", "abs_layers", "tiles", "parts", "sets", "g_group", "g_row",
                       "y_group", "y_row"]
)  # fmt: skip
def backward(
    p_dy, p_y, p_signs, p_packed, p_dx, p_partials, p_coefficients, p_live,
    rows, features, layers, abs_layers, tiles, parts, sets, g_group, g_row, y_group, y_row,
    A: tl.constexpr, R: tl.constexpr, Q: tl.constexpr, C: tl.constexpr, K: tl.constexpr, BYTES: tl.constexpr,
    DX: tl.constexpr, DU: tl.constexpr, DB: tl.constexpr, FUSED: tl.constexpr, REST: tl.constexpr,
    FOURS: tl.constexpr,
):  # fmt: skip
    """Tiles of rows back through all layers, every `parts`-th of a group's, each layer undone from its sign bits.

    FUSED: the tile's share of dw and db is added to this program's partial sums. Otherwise, where DU or DB asks for
    them, the coefficients a = 2 w . x and c = -2 w . gz of every row and layer are kept for `parameter_gradients`.
    """
    if FOURS:
        features = _fours(features)
        g_group, g_row, y_group, y_row = _fours(g_group), _fours(g_row), _fours(y_group), _fours(y_row)
    D: tl.constexpr = K * C
    program = tl.program_id(0).to(tl.int64)
    group = (tl.program_id(0) // parts).to(tl.int64)
    columns = _columns(Q, C)
    o_column = _columns(1, C)
    p_sums = p_partials + program * sets * layers * (2 * D)
    for tile in range(tl.program_id(0) % parts, tiles, parts):
        started = tile >= parts
        row = _rows(tl.cast(tile, tl.int64) * (R * Q), R, Q)
        m_row = row < rows
        g = _load_rows(p_dy, group * g_group + row * g_row, features, m_row, columns, A, C, K)
        x = ()
        if DU:
            o_y = group * y_group + row * y_row
            if REST:
                o_rest = ((group * rows + row) * planes(abs_layers, REST) + abs_layers) * BYTES
                x = _load_restored(p_y, o_y, p_signs, o_rest, features, m_row, columns, C, K, REST)
            else:
                x = _load_rows(p_y, o_y, features, m_row, columns, A, C, K)
            live = _live_rows(g, K)
            x = _only(live, x, K)
            if not FUSED:
                tl.store(p_live + group * rows + row, live.to(tl.uint8), mask=m_row)
        for i in range(layers):
            layer = layers - 1 - i
            p_w = p_packed + (group * layers + layer) * (2 * D)
            if layer < abs_layers:
                o_signs = ((group * rows + row) * planes(abs_layers, REST) + layer) * BYTES
                g, x = _apply_signs(p_signs, o_signs, m_row, 0, columns, g, x, BYTES, C, K)
            c = -2.0 * _dot(g, p_w, columns, C, K)
            o_coefficients = ((group * rows + row) * layers + layer) * 2
            if (DU or DB) and not FUSED:
                tl.store(p_coefficients + o_coefficients + 1, c, mask=m_row)
            if DU:
                p = ()
                for m in tl.static_range(K):
                    p = p + (x[m] - tl.load(p_w + D + m * C + columns),)
                a = -2.0 * _dot(p, p_w, columns, C, K)
                if not FUSED:
                    tl.store(p_coefficients + o_coefficients, a, mask=m_row)
                x = ()
                for m in tl.static_range(K):
                    x = x + (p[m] + a * tl.load(p_w + m * C + columns),)
            if FUSED:
                p_part = p_sums + layer * (2 * D)
                for m in tl.static_range(K):
                    if DU:
                        _add_rows(p_part + m * C + o_column, c * x[m] - a * g[m], started)
                    if DB:
                        _add_rows(p_part + D + m * C + o_column, g[m], started)
            below = ()
            for m in tl.static_range(K):
                below = below + (g[m] + c * tl.load(p_w + m * C + columns),)
            g = below
        if DX:
            _store_rows(p_dx, (group * rows + row) * features, features, m_row, columns, g, C, K)
        if FUSED:
            if (sets > 1) & (tile // parts % FOLD == FOLD - 1):
                _fold(p_sums, layers * (2 * D), tile >= FOLD * parts, layers, o_column, D, C, K, DU, DB)
            tl.debug_barrier()  # partial sums may be read by another lane than wrote them


@triton.jit(
    do_not_specialize=["rows", "features", "layers", "abs_layers", "tiles", "parts", "sets", "slices", "g_group",
                       "g_row", "y_group", "y_row"]
)  # fmt: skip
def parameter_gradients(
    p_dy, p_y, p_signs, p_packed, p_partials, p_coefficients, p_live,
    rows, features, layers, abs_layers, tiles, parts, sets, slices, g_group, g_row, y_group, y_row,
    A: tl.constexpr, R: tl.constexpr, Q: tl.constexpr, C: tl.constexpr, K: tl.constexpr, BYTES: tl.constexpr,
    D: tl.constexpr, DU: tl.constexpr, DB: tl.constexpr, REST: tl.constexpr, FOURS: tl.constexpr,
):  # fmt: skip
    """Partial sums of dw and db for a slice of K C columns: with the coefficients at hand, columns do not meet."""
    if FOURS:
        features = _fours(features)
        g_group, g_row, y_group, y_row = _fours(g_group), _fours(g_row), _fours(y_group), _fours(y_row)
    program = (tl.program_id(0) // slices).to(tl.int64)
    first = tl.program_id(0) % slices * (K * C)
    group = (tl.program_id(0) // slices // parts).to(tl.int64)
    columns = _columns(Q, C)
    o_column = _columns(1, C)
    p_sums = p_partials + program * sets * layers * (2 * D) + first
    for tile in range(tl.program_id(0) // slices % parts, tiles, parts):
        started = tile >= parts
        row = _rows(tl.cast(tile, tl.int64) * (R * Q), R, Q)
        m_row = row < rows
        g = _load_rows(p_dy, group * g_group + row * g_row + first, features - first, m_row, columns, A, C, K)
        x = ()
        if DU:
            o_y = group * y_group + row * y_row + first
            if REST:
                o_rest = ((group * rows + row) * planes(abs_layers, REST) + abs_layers) * BYTES + first
                x = _load_restored(p_y, o_y, p_signs, o_rest, features - first, m_row, columns, C, K, REST)
            else:
                x = _load_rows(p_y, o_y, features - first, m_row, columns, A, C, K)
            x = _only(tl.load(p_live + group * rows + row, mask=m_row, other=0) != 0, x, K)
        for i in range(layers):
            layer = layers - 1 - i
            p_w = p_packed + (group * layers + layer) * (2 * D) + first
            p_part = p_sums + layer * (2 * D)
            if layer < abs_layers:
                o_signs = ((group * rows + row) * planes(abs_layers, REST) + layer) * BYTES
                g, x = _apply_signs(p_signs, o_signs, m_row, first, columns, g, x, BYTES, C, K)
            p_row = p_coefficients + ((group * rows + row) * layers + layer) * 2
            c = tl.load(p_row + 1, mask=m_row, other=0.0)
            below = ()
            above = ()
            for m in tl.static_range(K):
                w = tl.load(p_w + m * C + columns)
                if DU:
                    a = tl.load(p_row, mask=m_row, other=0.0)
                    x_m = x[m] - tl.load(p_w + D + m * C + columns) + a * w
                    above = above + (x_m,)
                    _add_rows(p_part + m * C + o_column, c * x_m - a * g[m], started)
                if DB:
                    _add_rows(p_part + D + m * C + o_column, g[m], started)
                below = below + (g[m] + c * w,)
            g = below
            x = above
        if (sets > 1) & (tile // parts % FOLD == FOLD - 1):
            _fold(p_sums, layers * (2 * D), tile >= FOLD * parts, layers, o_column, D, C, K, DU, DB)
        tl.debug_barrier()  # partial sums may be read by another lane than wrote them
