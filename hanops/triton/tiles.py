"""How much of a stack one Triton program holds: the tile for each width, with what chose it."""

from __future__ import annotations

from dataclasses import dataclass

from hanops.signs import sign_bytes

STREAMING_COLUMNS, STREAMING_WARPS = 1024, 8
FORWARD_LIMIT = BACKWARD_LIMIT = 16384  # features; wider rows do not fit in registers
FUSED_LIMIT = 4096  # features; wider tiles have too few rows to pay for their partial sums of du and db


@dataclass(frozen=True)
class Tile:
    """R * Q rows, r * Q + q of them in registers r and lanes q, of K chunks of C columns."""

    R: int
    Q: int
    C: int
    K: int
    warps: int

    @property
    def rows(self) -> int:
        """Rows of the tile."""
        return self.R * self.Q

    @property
    def columns(self) -> int:
        """Columns of the tile, at least `features`."""
        return self.K * self.C

    @property
    def programs_per_processor(self) -> int:
        """Programs that fit one multiprocessor's registers, at 255 for each thread."""
        return max(1, 8 // self.warps)


def _tile(features: int, rows: int, columns: int, warps: int, wide: bool) -> Tile:
    """A tile with `rows` registers' rows, halved for float64, in which each lane has 4 columns of every chunk."""
    lanes = 128 * warps
    return Tile(
        R=max(1, rows // 2) if wide else rows,
        Q=max(1, lanes // columns),
        C=columns,
        K=-(-features // columns),
        warps=warps,
    )


def forward_tile(features: int, wide: bool) -> Tile | None:
    """The forward's tile, or None where rows are streamed. A chunk has as many columns as a row has sign bytes.

    Args:
        features: columns of a row.
        wide: float64 arithmetic.

    Rows by the registers they need on sm_90 (`python -m hanops info --kernels`): 4 rows of 32 columns a lane take 223
    to 250 of 255; at 16384 a lane has 64 columns.
    """
    if features > FORWARD_LIMIT:
        return None
    columns = min(1024, sign_bytes(features, chunked=True))
    return _tile(features, 4 if features <= 8192 else 2, columns, max(1, columns // 128), wide)


# features up to, rows in registers, columns of a chunk, warps: 64 elements a lane of each of g and x
_BACKWARD = (
    (32, 8, 16, 1),
    (64, 4, 16, 1),
    (128, 4, 32, 1),
    (256, 4, 64, 1),
    (512, 4, 128, 1),
    (1024, 8, 512, 4),
    (2048, 4, 512, 4),
    (4096, 4, 1024, 8),
    (8192, 2, 1024, 8),
    (16384, 1, 1024, 8),
)


def backward_tile(features: int, wide: bool) -> Tile | None:
    """The backward's tile, or None where rows are streamed. Up to FUSED_LIMIT it also sums du and db."""
    for limit, rows, columns, warps in _BACKWARD:
        if features <= limit:
            return _tile(features, rows, columns, warps, wide)
    return None


def parameter_tile(wide: bool) -> Tile:
    """The tile of du and db where the backward does not sum them: 8 rows of a slice of 256 columns, one warp."""
    return _tile(256, 8, 128, 1, wide)
