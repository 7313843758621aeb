"""Draws the figures of docs/kernels.md: a tile, a layer's pass, a sum over lanes, and the backward's tile."""

from __future__ import annotations

from pathlib import Path

from docs.tools.svg import BLUE, GREEN, GREY, LINE, ORANGE, SOFT, STRONG, Drawing

FOLDER = Path(__file__).parents[1] / "figures"
WIDTH = 860
HOT = STRONG[ORANGE]


def tile() -> Drawing:
    """One row of 1,024 columns over the 32 lanes of a warp, the registers of a lane, and its sign word."""
    drawing = Drawing("A forward tile of 4 rows and 1,024 columns in the lanes of one warp", WIDTH, 436)
    left, top, chunk, lane = 20, 44, 102.5, 5
    drawing.text(
        left, 24, "One row in memory: 8 chunks of 128 columns, 4 columns for each lane", 13, bold=True, anchor="start"
    )
    for m in range(8):
        x = left + m * chunk
        drawing.box(x, top, chunk - 4, 34, GREEN)
        cell = (chunk - 4) / 32
        for t in range(1, 32):
            drawing.lines.append(
                f'<path d="M{x + t * cell:g} {top} v34" stroke="{LINE}" stroke-width="0.3" fill="none"/>'
            )
        drawing.box(x + lane * cell, top, cell, 34, HOT, HOT, radius=0)
        drawing.text(x + chunk / 2 - 2, top + 50, f"chunk {m}", 11, SOFT)
    drawing.text(
        left,
        top + 74,
        "Lane 5 of the warp (orange) owns columns 128 m + 20 to 128 m + 23 of every chunk m.",
        12,
        anchor="start",
    )
    drawing.text(
        left,
        top + 91,
        "32 lanes read one chunk of a row together: 512 bytes of float32, 256 of bfloat16, without a gap.",
        12,
        anchor="start",
    )

    y = 174
    drawing.text(left, y, "What lane 5 holds in registers", 13, bold=True, anchor="start")
    size = 15
    for r in range(4):
        drawing.text(left + 56, y + 27 + r * (size + 5), f"x, row {r}", 11, SOFT, "end")
        for e in range(32):
            x = left + 64 + e * size + e // 4 * 5
            drawing.box(x, y + 14 + r * (size + 5), size - 2, size, ORANGE, STRONG[ORANGE], radius=1)
    drawing.text(left + 56, y + 27 + 4 * (size + 5) + 6, "w", 11, SOFT, "end")
    for e in range(32):
        x = left + 64 + e * size + e // 4 * 5
        drawing.box(x, y + 20 + 4 * (size + 5), size - 2, size, BLUE, STRONG[BLUE], radius=1)
    for m in range(8):
        x = left + 64 + m * (4 * size + 5)
        drawing.text(x + 2 * size - 1, y + 132, f"chunk {m}", 10, SOFT)
    right = left + 64 + 8 * (4 * size + 5) + 18
    for i, line in enumerate(
        [
            "128 registers of x:",
            "read once, written once.",
            "32 of w, from the L1 cache:",
            "read once a layer, used for",
            "4 rows. 4 of a, 1 a row.",
            "No shared memory.",
        ]
    ):
        drawing.text(right, y + 26 + i * 19, line, 12, anchor="start")

    y = 334
    drawing.text(left, y, "The sign bits of one row and layer: 128 bytes, 4 of lane 5", 13, bold=True, anchor="start")
    for c in range(4):
        for k in range(8):
            x = left + 64 + c * 130 + (7 - k) * 15
            drawing.box(x, y + 16, 14, 20, ORANGE, STRONG[ORANGE], radius=1)
            drawing.text(x + 7, y + 30, str(k), 10, SOFT)
        drawing.text(left + 64 + c * 130 + 60, y + 52, f"byte {20 + c}", 11, SOFT)
    for i, line in enumerate(
        [
            "Bit k of byte c is column 128 k + c.",
            "A lane's 8 chunks are 8 bits of its",
            "4 bytes: one word, one store, no shuffle.",
        ]
    ):
        drawing.text(left + 64 + 4 * 130 + 6, y + 24 + i * 17, line, 12, anchor="start")
    drawing.text(
        left,
        y + 86,
        "In each further row and layer the same lane writes the same 4 bytes, one stride further on.",
        12,
        anchor="start",
    )
    return drawing


def layer() -> Drawing:
    """What a lane does in one layer: update, sign, next dot product, sum over lanes."""
    drawing = Drawing("One layer of the forward kernel", WIDTH, 292)
    left, step, wide = 96, 66, 60
    drawing.text(20, 26, "One layer, chunk by chunk, 4 rows in each step", 13, bold=True, anchor="start")
    rows = {"w, b": 46, "update": 104, "sign": 150, "dot": 196}
    drawing.text(20, rows["w, b"] + 19, "read", 12, SOFT, "start")
    drawing.text(20, rows["update"] + 19, "z", 12, SOFT, "start")
    drawing.text(20, rows["sign"] + 19, "bit", 12, SOFT, "start")
    drawing.text(20, rows["dot"] + 19, "dot", 12, SOFT, "start")
    for i, m in enumerate(range(7, -1, -1)):
        x = left + i * step
        drawing.box(x, rows["w, b"], wide, 28, BLUE, STRONG[BLUE])
        drawing.text(x + wide / 2, rows["w, b"] + 18, f"b, w' {m}", 11)
        drawing.box(x, rows["update"], wide, 28, ORANGE, STRONG[ORANGE])
        drawing.text(x + wide / 2, rows["update"] + 18, f"chunk {m}", 11)
        drawing.box(x, rows["sign"], wide, 28, GREY)
        drawing.text(x + wide / 2, rows["sign"] + 18, f"bit {m}", 11)
        drawing.box(x + step, rows["dot"], wide, 28, GREEN, STRONG[GREEN])
        drawing.text(x + step + wide / 2, rows["dot"] + 18, f"chunk {m}", 11)
        drawing.arrow(x + wide / 2, rows["w, b"] + 28, x + wide / 2, rows["update"] - 1)
        drawing.arrow(x + wide / 2, rows["update"] + 28, x + wide / 2, rows["sign"] - 1)
    x = left + 9 * step + 8
    drawing.box(x, rows["dot"] - 14, 148, 56, GREEN, STRONG[GREEN])
    drawing.text(x + 74, rows["dot"] + 8, "sum over 32 lanes", 12, bold=True)
    drawing.text(x + 74, rows["dot"] + 26, "9 shuffles for 4 rows", 11, SOFT)
    drawing.arrow(left + 8 * step + wide + 1, rows["dot"] + 14, x - 1, rows["dot"] + 14)
    drawing.text(x + 74, rows["sign"] - 10, "a of the next layer", 12)
    drawing.arrow(x + 74, rows["dot"] - 15, x + 74, rows["sign"] - 4)
    drawing.box(left, 246, 8 * step - 6, 28, GREY)
    drawing.text(left + 4 * step - 3, 264, "4 words of bits, one for each row, to device memory", 11)
    return drawing


def lanes() -> Drawing:
    """The sums of 4 rows over 32 lanes: fold, butterfly, unfold."""
    drawing = Drawing("Sums of 4 rows over 32 lanes in 9 shuffles", WIDTH, 306)
    drawing.text(
        20,
        26,
        "Sums of 4 rows over 32 lanes. A column of boxes is a register; the number is the row that it holds.",
        13,
        bold=True,
        anchor="start",
    )
    tones = ["#fbe3c8", "#d9e6fb", "#d8f0de", "#eadcf5"]
    stages = [
        ("before", 4, 20),
        ("exchange with the lane 16 away", 2, 236),
        ("exchange with the lane 8 away", 1, 420),
        ("add the lanes 4, 2, 1 away", 1, 604),
        ("back", 4, 740),
    ]
    for name, count, x in stages:
        for group in range(4):
            y = 76 + group * 46
            for r in range(count):
                row = r ^ group
                drawing.box(x + 56 + r * 27 if x == 20 else x + r * 27, y, 25, 30, tones[row], LINE)
                drawing.text(
                    (x + 56 if x == 20 else x) + r * 27 + 12.5,
                    y + 20,
                    str(row),
                    12,
                    bold=name in ("add the lanes 4, 2, 1 away", "back"),
                )
            if x == 20:
                drawing.text(20, y + 14, "lanes", 10, SOFT, "start")
                drawing.text(20, y + 27, f"{8 * group} to {8 * group + 7}", 10, SOFT, "start")
    for (x1, x2), title in zip(
        [(186, 232), (294, 416), (450, 600), (634, 736)],
        ["2 shuffles", "1 shuffle", "3 shuffles", "1 + 2 shuffles"],
        strict=True,
    ):
        drawing.arrow(x1, 168, x2, 168)
        drawing.text((x1 + x2) / 2, 160, title, 11, SOFT)
    for x, first, second in [
        (130, "register r of a lane", "is row r ^ (lane / 8)"),
        (262, "halves of", "4 rows"),
        (432, "one row", "a lane"),
        (618, "one row,", "all 32 lanes"),
        (792, "every lane has", "all 4 sums"),
    ]:
        drawing.text(x, 274, first, 11)
        drawing.text(x, 289, second, 11)
    return drawing


def backward() -> Drawing:
    """The backward's tile: columns over warps, 16 rows in each lane."""
    drawing = Drawing("A backward tile of 16 rows and 1,024 columns over the 8 warps of a block", WIDTH, 392)
    left, top, warp = 84, 52, 92
    drawing.text(
        20,
        26,
        "A block: 8 warps, 16 rows, 1,024 columns; each lane holds 4 columns of all 16 rows",
        13,
        bold=True,
        anchor="start",
    )
    for w in range(8):
        x = left + w * (warp + 2)
        drawing.box(x, top, warp, 96, GREEN)
        drawing.text(x + warp / 2, top + 112, f"warp {w}", 11, SOFT)
        for r in range(1, 16):
            drawing.lines.append(
                f'<path d="M{x} {top + 6 * r} h{warp}" stroke="{LINE}" stroke-width="0.3" fill="none"/>'
            )
    drawing.box(left + 2 * (warp + 2) + 30, top, 6, 96, HOT, HOT, radius=0)
    drawing.text(74, top + 52, "16 rows", 11, SOFT, "end")
    x = left + 2 * (warp + 2) + 33
    drawing.arrow(x, top + 97, x, top + 158)
    y = top + 160
    drawing.box(x - 130, y, 260, 42, ORANGE, STRONG[ORANGE])
    drawing.text(x, y + 18, "dw, db of 4 columns", 12, bold=True)
    drawing.text(x, y + 34, "summed over 16 rows in one lane", 11, SOFT)
    drawing.arrow(x, y + 43, x, y + 72)
    drawing.box(x - 150, y + 74, 300, 42, BLUE, STRONG[BLUE])
    drawing.text(x, y + 92, "the block's partial sums, in L2", 12, bold=True)
    drawing.text(x, y + 108, "one writer for each address: no atomics, one order", 11, SOFT)
    drawing.arrow(x, y + 117, x, y + 146)
    drawing.text(x, y + 162, "after the last tile: added over the blocks; du and db", 12)
    right = 640
    drawing.box(right - 128, y, 340, 116, GREY)
    for i, (line, bold) in enumerate(
        [
            ("two dot products of each row: w . p and w . gz", True),
            ("over the lanes of a warp by shuffles,", False),
            ("over the 8 warps through shared memory:", False),
            ("two halves of it take turns, so that one", False),
            ("barrier a layer is enough", False),
        ]
    ):
        drawing.text(right + 42, y + 22 + i * 20, line, 12, bold=bold)
    drawing.arrow(left + 6 * (warp + 2), top + 97, right + 42, y - 1)
    return drawing


def figures() -> dict[Path, str]:
    """Returns the figures by file."""
    drawn = {"forward-tile": tile, "forward-layer": layer, "sum-over-lanes": lanes, "backward-tile": backward}
    return {FOLDER / f"{name}.svg": str(draw()) for name, draw in drawn.items()}
