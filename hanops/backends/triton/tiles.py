"""How much of a stack one Triton program holds: the tile for each width, with what chose it."""

from __future__ import annotations

from dataclasses import dataclass

from hanops.definition.signs import sign_bytes

FUSED_LIMIT = 4096  # features; wider tiles have too few rows to pay for their partial sums of du and db


@dataclass(frozen=True)
class Tile:
    """R * Q rows of K chunks of C columns; the letters are those of han_stack_kernels.

    registers: of a thread, where ptxas is to be told; left to itself it stops at 96 or 168 in some kernels, and spills.
    """

    R: int
    Q: int
    C: int
    K: int
    warps: int
    registers: int | None = None

    @property
    def rows(self) -> int:
        """Rows of the tile."""
        return self.R * self.Q

    @property
    def columns(self) -> int:
        """Columns of the tile, at least `features`."""
        return self.K * self.C

    @property
    def programs_per_sm(self) -> int:
        """Programs that fit one SM's registers, at 255 for each thread."""
        return max(1, 8 // self.warps)

    def options(self, backend: str) -> dict[str, int]:
        """Options of a launch on Triton's backend 'cuda' or 'hip'."""
        if self.registers is None or backend != "cuda":
            return {"num_warps": self.warps}
        return {"num_warps": self.warps, "maxnreg": self.registers}


def _tile(features: int, rows: int, columns: int, warps: int, registers: int | None = None) -> Tile:
    """A tile in which each lane has 4 columns of every chunk."""
    return Tile(rows, max(1, 128 * warps // columns), columns, -(-features // columns), warps, registers)


def forward_tile(features: int, wide: bool) -> Tile | None:
    """The forward's tile, or None where rows are streamed. A chunk has as many columns as a row has sign bytes.

    Args:
        features: columns of a row.
        wide: float64 arithmetic.

    Rows by the registers they take on sm_90 (`python -m hanops info --kernels`): 4 rows of 32 columns a lane take 237
    to 250 of 255. At 16384 a lane has 64 columns, of 1 row: 2 rows spill, as do 2 rows of float64 anywhere, and 4 rows
    up to 64 columns on sm_100.
    """
    if features > (8192 if wide else 16384):
        return None
    columns = min(1024, sign_bytes(features, chunked=True))
    rows = 1 if wide or features > 8192 else 4 if features > 64 else 2
    return _tile(features, rows, columns, max(1, columns // 128), registers=255 if features <= 64 else None)


# features up to, rows in registers, columns of a chunk, warps: 64 elements a lane of each of g and x
_BACKWARD = (
    (32, 8, 16, 1),
    (64, 4, 16, 1),
    (128, 8, 64, 1),
    (256, 4, 64, 1),
    (512, 8, 256, 2),
    (1024, 8, 512, 4),
    (2048, 8, 1024, 8),
    (4096, 4, 1024, 8),
    (8192, 2, 1024, 8),
    (16384, 1, 1024, 8),
)


def backward_tile(features: int, wide: bool) -> Tile | None:
    """The backward's tile, or None where rows are streamed. Up to FUSED_LIMIT it also sums du and db."""
    if wide and features > 4096:
        return None
    for limit, rows, columns, warps in _BACKWARD:
        if features <= limit:
            return _tile(features, max(1, rows // 8) if wide else rows, columns, warps, registers=255 if wide else None)
    return None


def parameter_tile(wide: bool) -> Tile:
    """The tile of du and db where the backward does not sum them: 8 rows of a slice of 128 columns, one warp."""
    return _tile(128, 4 if wide else 8, 128, 1, registers=255)


def streaming_tile() -> Tile:
    """The chunk of a row in memory that a program works on at once: one row, and the 8 bits of C bytes of signs."""
    return Tile(R=1, Q=1, C=1024, K=8, warps=8, registers=255)
