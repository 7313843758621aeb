"""What bfloat16 and float16 cost du where rows grow, and what each cure of it costs: two tables of docs/maths.md.

    python -m benchmarks.half [--docs docs/maths.md] [--seconds S]

The byte, which is the default, beside the rounded output alone, a float32 output, a forward that is run again, and the
activations of every layer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import hanops
from hanops.definition import reference
from hanops.definition.signs import signs_shape

from .documents import write_part
from .interleave import interleave
from .ratios import median_ratio
from .table import Column, Table

HALVES = (torch.bfloat16, torch.float16)
BYTE, ALONE, WIDE, AGAIN, STORED = "y and a byte", "y alone", "float32 y", "x, run again", "every activation"
FEATURES, ROWS = 64, 512
TIMED = (1, 2, 16)  # layers, on rows of
TIMED_ROWS, TIMED_FEATURES = 4096, 1024

Biases = Callable[[int], Tensor]
Problem = tuple[Tensor, Tensor, Tensor, Tensor]  # x, u, b, dy


def _normal(layers: int) -> Tensor:
    return 0.3 * torch.randn(layers, FEATURES)


# name: layers, size of x, biases
CASES: dict[str, tuple[int, float, Biases]] = {
    "b ~ N(0, 0.3²)": (20, 1.0, _normal),
    "b = 1": (20, 1.0, lambda layers: torch.ones(layers, FEATURES)),
    "b = 1, deep": (200, 1.0, lambda layers: torch.ones(layers, FEATURES)),
    "x ~ 0.01, b = 0.3": (20, 0.01, lambda layers: torch.full((layers, FEATURES), 0.3)),
    "last b = 1,000": (20, 1.0, lambda layers: torch.cat([_normal(layers - 1), torch.full((1, FEATURES), 1e3)])),
}


def problem(case: str, dtype: torch.dtype) -> Problem:
    """Returns x, u, b and dy, without rows that lie so near a kink that a rounding moves them over it."""
    layers, scale, biases = CASES[case]
    u, b = torch.randn(layers, FEATURES), biases(layers)
    x, dy = (scale * torch.randn(2 * ROWS, FEATURES)).to(dtype), torch.randn(2 * ROWS, FEATURES).to(dtype)
    signs = [hanops.han_stack(x.to(t), u.to(t), b.to(t), return_signs=True)[1] for t in (torch.float32, torch.float64)]
    same = (signs[0] == signs[1]).flatten(1).all(1).nonzero().squeeze(1)[:ROWS]
    return x[same], u, b, dy[same]


def wide(x: Tensor, u: Tensor, b: Tensor) -> Tensor:
    return hanops.han_stack(x.float(), u, b).to(x.dtype)


def stored(x: Tensor, u: Tensor, b: Tensor) -> Tensor:
    """The stack as separate layers, whose activations are rounded for the backward alone."""

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor, u: Tensor, b: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
            y, signs = torch.ops.hanops.han_stack_forward(x, u, b, True, 1)
            ctx.save_for_backward(x.to(half), signs, u, b)
            return y

        @staticmethod
        def backward(ctx, dy: Tensor):  # type: ignore[no-untyped-def]
            x, signs, u, b = ctx.saved_tensors
            y = hanops.han_stack(x.float(), u, b)
            dx, du, db = torch.ops.hanops.han_stack_backward(dy, y, signs, u, b, True, [True] * 3)
            return dx, du, db

    half, rows = x.dtype, x.float()
    for layer in range(u.shape[0]):
        rows = Layer.apply(rows, u[layer : layer + 1], b[layer : layer + 1])
    return rows.to(half)


CURES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    ALONE: lambda x, u, b: hanops.han_stack(x, u, b, exact=False),
    BYTE: hanops.han_stack,
    WIDE: wide,
    AGAIN: lambda x, u, b: checkpoint(wide, x, u, b, use_reentrant=False),
    STORED: stored,
}


def kept_bytes(cure: str, features: int, layers: int) -> float:
    """Returns the bytes per element that stay for the backward."""
    bits = signs_shape(torch.empty(1, features), layers)[-1] * layers / features
    return {ALONE: 2 + bits, BYTE: 3 + bits, WIDE: 4 + bits, AGAIN: 2, STORED: 2 * layers + bits}[cure]


def error(cure: str, given: Problem, truth: Tensor) -> float:
    """Returns the relative error of the layer's du that has the largest."""
    x, u, b, dy = given
    leaf = u.clone().requires_grad_()
    (du,) = torch.autograd.grad(CURES[cure](x, leaf, b), leaf, dy)
    return float(((du - truth).norm(dim=-1) / truth.norm(dim=-1)).max())


def errors() -> Table:
    """Returns the error of du, of every case and cure."""
    torch.manual_seed(0)
    lines = []
    for case, (layers, _, _) in CASES.items():
        for dtype in (torch.float32, *HALVES):
            given = problem(case, dtype)
            x, u, b, dy = given
            leaf = u.double().requires_grad_()
            y = reference.han_stack(x.double(), leaf, b.double())
            (truth,) = torch.autograd.grad(y, leaf, dy.double())
            growth = float(y.detach().norm() / x.double().norm())
            names = CURES if dtype in HALVES else (ALONE,)
            found = {name: f"{error(name, given, truth):.0e}".replace("e-0", "e-") for name in names}
            cells = [found.get(name, "") for name in CURES]
            lines.append([case, f"{layers}", f"{growth:,.0f}", str(dtype).removeprefix("torch."), *cells])
    columns = [Column("case", is_text=True), Column("L"), Column("growth"), Column("dtype", is_text=True)]
    return Table([*columns, *map(Column, CURES)], lines)


def costs(seconds: float) -> Table:
    """Returns the bytes of every cure, and its time forward + backward over that without one."""
    torch.manual_seed(0)
    lines = []
    for layers in TIMED:
        x = torch.randn(TIMED_ROWS, TIMED_FEATURES).bfloat16().requires_grad_()
        u, b = (torch.randn(layers, TIMED_FEATURES).requires_grad_() for _ in range(2))
        dy = torch.randn(TIMED_ROWS, TIMED_FEATURES).bfloat16()

        def step(name: str) -> Callable[[], object]:
            return lambda: torch.autograd.grad(CURES[name](x, u, b), (x, u, b), dy)

        names = [name for name in CURES if name != STORED]
        times = interleave({name: step(name) for name in names}, seconds)
        for name in names:
            ratio = median_ratio(times[name], times[ALONE])
            kept = f"{kept_bytes(name, TIMED_FEATURES, layers):.3g}"
            lines.append([f"{layers}", name, kept, f"{ratio:.2f}"])
    return Table([Column("L"), Column("kept", is_text=True), Column("bytes an element"), Column("time")], lines)


def main() -> None:
    """Measures, prints, and writes the two tables where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, help="the page with the marks of the two tables")
    parser.add_argument("--seconds", type=float, default=5.0, help="of every number of layers")
    given = parser.parse_args()
    tables = {"half-errors": errors(), "half-costs": costs(given.seconds)}
    for name, table in tables.items():
        print(table.markdown(), end="\n\n")
        if given.docs:
            write_part(given.docs, table.markdown(), name)


if __name__ == "__main__":
    main()
