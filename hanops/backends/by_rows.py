"""A stack along another axis than the last by kernels for rows: x is copied to rows, their results brought back."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hanops.definition.signs import is_chunked, is_last, rows_of_words, words_of_rows


def signs_of(x: Tensor, signs: Tensor, abs_layers: int, dim: int) -> Tensor:
    """Returns what a stack along axis `dim` of x kept, as rows keep it."""
    return rows_of_words(signs, x.shape[dim], abs_layers, dim % x.dim(), is_chunked(x.device))


def forward(
    run: Callable[..., tuple[Tensor, Tensor]],
    x: Tensor,
    u: Tensor,
    b: Tensor | None,
    abs_layers: int,
    save: int,
    dim: int,
) -> tuple[Tensor, Tensor]:
    """Returns y and what is kept, by `run`, which takes all but `dim`, and x of rows."""
    if is_last(dim, x.dim()):
        return run(x, u, b, abs_layers, save)
    y, signs = run(x.movedim(dim, -1), u, b, abs_layers, save)
    if save:
        signs = words_of_rows(signs, x.shape[dim], abs_layers, dim % x.dim(), is_chunked(x.device))
    return y.movedim(-1, dim).contiguous(), signs


def backward(
    run: Callable[..., tuple[Tensor, Tensor, Tensor]],
    dy: Tensor,
    y: Tensor | None,
    signs: Tensor,
    u: Tensor,
    b: Tensor | None,
    abs_layers: int,
    needs: list[bool],
    dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dx, du and db, by `run`, which takes all but `dim`, and rows."""
    if is_last(dim, dy.dim()):
        return run(dy, y, signs, u, b, abs_layers, needs)
    rows = None if y is None else y.movedim(dim, -1)
    signs = signs_of(dy, signs, abs_layers, dim)
    dx, du, db = run(dy.movedim(dim, -1), rows, signs, u, b, abs_layers, needs)
    return dx.movedim(-1, dim).contiguous() if needs[0] else dx, du, db
