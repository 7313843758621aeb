"""Chains of reflections and orthogonal matrices beside their peers: two tables of docs/performance.md.

    python -m benchmarks.orthogonal [--docs docs/performance.md] [--seconds S]

The peers are torch.linalg.householder_product, and the package torch-householder where it is installed. Both make the
product's first columns from as many reflectors. A whole matrix of fewer reflectors they make with others that are 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

import hanops

from .documents import write_part
from .interleave import interleave
from .measure import saved_bytes
from .ratios import median_ratio
from .table import Column, Table, digits, seconds, size

OWN, LINALG, PACKAGE = "hanops", "householder_product", "torch-householder"
CHAIN = (1024, 128, 32)  # rows, features, layers
# groups, rows, columns: of tall matrices, as many reflectors as columns
SIZES = [
    (None, 64, 16),
    (None, 128, 32),
    (None, 128, 128),
    (None, 256, 64),
    (None, 512, 64),
    (None, 512, 128),
    (16, 128, 32),
]
Product = Callable[[Tensor], Tensor]  # of reflectors (..., features, layers) to a matrix (..., features, layers)


def linalg(v: Tensor) -> Tensor:
    """The product by LAPACK, which takes the diagonal of v for 1 and what is above it for 0."""
    return torch.linalg.householder_product(v, 2 / v.square().sum(-2))


def linalg_padded(v: Tensor) -> Tensor:
    """The whole matrix."""
    more = v.shape[-2] - v.shape[-1]
    return torch.linalg.householder_product(pad(v, (0, more)), pad(2 / v.square().sum(-2), (0, more)))


def products(is_whole: bool) -> dict[str, Product]:
    """Returns what makes matrices."""
    made: dict[str, Product] = {
        OWN: lambda v: hanops.orthogonal(v.mT, None if is_whole else v.shape[-1]),
        LINALG: linalg_padded if is_whole else linalg,
    }
    if find_spec("torch_householder") is not None:
        from torch_householder import torch_householder_orgqr  # type: ignore[import-not-found]

        made[PACKAGE] = lambda v: torch_householder_orgqr(pad(v, (0, v.shape[-2] - v.shape[-1])) if is_whole else v)
    return made


def reflectors(*shape: int) -> nn.Parameter:
    """Returns those that all take, (..., features, layers): 1 on the diagonal, 0 above it."""
    v = torch.randn(shape).tril(-1)
    v.diagonal(dim1=-2, dim2=-1).fill_(1)
    return nn.Parameter(v)


class Applied(nn.Module):
    """A call on rows, as a module whose parameter is the reflectors."""

    def __init__(self, call: Callable[[], Tensor], v: nn.Parameter) -> None:
        super().__init__()
        self.call, self.v = call, v

    def forward(self, _: Tensor) -> Tensor:
        """Returns what is called, on rows that it holds itself."""
        return self.call()


def multiplied(x: Tensor, v: Tensor, product: Product) -> Tensor:
    return x @ product(v)


def both(call: Callable[[], Tensor], leaves: tuple[Tensor, ...]) -> Callable[[], object]:
    """Returns a call with its backward."""
    dy = torch.randn_like(call())
    return lambda: torch.autograd.grad(call(), leaves, dy)


def without_grad(call: Callable[[], Tensor]) -> Callable[[], object]:
    def run() -> Tensor:
        with torch.no_grad():
            return call()

    return run


def errors(v: Tensor) -> dict[str, str]:
    """Returns, against float64, how far each is off in its matrix, and in the gradient below the diagonal."""
    weights = torch.randn(v.shape)

    def of(product: Product, dtype: torch.dtype) -> list[Tensor]:
        leaf = v.detach().to(dtype).requires_grad_()
        matrix = product(leaf)
        (grad,) = torch.autograd.grad((matrix * weights.to(dtype)).sum(), leaf)
        return [matrix.detach().double(), grad.double().tril(-1)]

    truth = of(products(False)[OWN], torch.float64)
    found = {}
    for name, product in products(False).items():
        off = [float((a - b).norm() / b.norm()) for a, b in zip(of(product, torch.float32), truth, strict=True)]
        found[name] = ", ".join(f"{value:.0e}".replace("e-0", "e-") for value in off)
    return found


def ratio(value: float) -> str:
    return f"{value:.{digits(value)}f}"


def chain(span: float) -> Table:
    """Returns a chain applied to rows, beside a matrix that is made and multiplied."""
    rows, features, layers = CHAIN
    x, v = torch.randn(rows, features, requires_grad=True), reflectors(features, layers)
    calls: dict[str, Callable[[], Tensor]] = {
        OWN: lambda: hanops.han_stack(x, v.mT, activation=None),
        "hanops.orthogonal, then a product": partial(multiplied, x, v, products(True)[OWN]),
    }
    for name, product in products(True).items():
        if name != OWN:
            calls[f"{name}, then a product"] = partial(multiplied, x, v, product)
    times = interleave({name: both(call, (x, v)) for name, call in calls.items()}, span)
    lines = []
    for name in calls:
        middle = torch.tensor(times[name]).median().item()
        kept = size(saved_bytes(Applied(calls[name], v), x))
        over = "" if name == OWN else ratio(median_ratio(times[name], times[OWN]))
        lines.append([name, seconds(middle), over, kept])
    columns = [Column("", is_text=True), Column("forward + backward"), Column("over hanops"), Column("saved")]
    return Table(columns, lines, f"{layers} reflections of {rows} rows of {features} features, float32")


def matrices(span: float) -> Table:
    """Returns tall matrices of every size."""
    lines = []
    for groups, features, columns in SIZES:
        v = reflectors(*(() if groups is None else (groups,)), features, columns)
        calls: dict[str, Callable[[], Tensor]] = {name: partial(m, v) for name, m in products(False).items()}
        forward = interleave({name: without_grad(call) for name, call in calls.items()}, span)
        whole = interleave({name: both(call, (v,)) for name, call in calls.items()}, span)
        shape = f"{'' if groups is None else f'{groups} of '}{features} x {columns}"
        line = [shape, *(seconds(torch.tensor(times[OWN]).median().item()) for times in (forward, whole))]
        for name in (LINALG, PACKAGE):
            line += [ratio(median_ratio(t[name], t[OWN])) if name in t else "" for t in (forward, whole)]
        found = errors(v)
        lines.append([*line, *(found.get(name, "") for name in (OWN, LINALG, PACKAGE))])
    own = [Column("forward", OWN), Column("both", OWN)]
    peers = [Column(way, name) for name in (LINALG, PACKAGE) for way in ("forward", "both")]
    off = [Column(name, "error") for name in (OWN, LINALG, PACKAGE)]
    return Table([Column("matrix", is_text=True), *own, *peers, *off], lines)


def main() -> None:
    """Measures, prints, and writes the two tables where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, help="the page with the marks of the tables")
    parser.add_argument("--seconds", type=float, default=2.0, help="of every table's line")
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # as LAPACK has for sizes like these
    made = {"chain": chain(3 * given.seconds), "matrices": matrices(given.seconds)}
    for name, table in made.items():
        print(table, end="\n\n")
        if given.docs:
            write_part(given.docs, table.markdown(), name)


if __name__ == "__main__":
    main()
