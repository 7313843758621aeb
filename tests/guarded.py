"""Runs the CPU kernels in guarded memory: every tile's edge, storage, combination of needs and instruction set.

    python -m tests.guarded [pairwise] [full] [sweep] [--seed N]

runs cases in a process for each instruction set, whose tensors and scratch end where a page faults. `pairwise` has
every pair of values of two factors in some case, `full` every width with every number of rows, storage and combination
of needs. `sweep` compares every gradient with float64 by the rule of tests/accuracy.py.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hanops.backends.native import native
from hanops.definition import reference
from hanops.definition.signs import rows_of_words

from . import accuracy, emulation
from .accuracy import ABSOLUTES, Problem, Stack, check, leave_kinks, near_kinks, problem

CAPABILITIES = {"DEFAULT": "default", "AVX2": "avx2", "AVX512": "avx512"}
MOST_FEATURES = 2200
ARRANGEMENTS = ("packed", "slice", "columns apart", "one row for all")


def instruction_sets() -> list[str]:
    """Returns those that this build has and this machine runs."""
    built, best = (native.build_info()[key] for key in ("instruction_sets", "instruction_set"))
    return built[: built.index(best) + 1]


def edges() -> list[int]:
    """Returns the widths at which a kernel takes another path, and their neighbours.

    Tiles of R rows with one or two planes go side by side as their number fits in 32 KiB (csrc/cpu/tile.h); narrow
    stacks run with rows in the lanes; sums fold after 64 vectors, which have 8 or 16 lanes; sign words have 32 columns.
    """
    tiles = product((1, 2, 3, 4, 8), (1, 2), (4, 8), (1, 2, 3, 4))
    widths = {(32 << 10) // (rows * planes * item * count) for rows, planes, item, count in tiles}
    widths |= {32, 64, 128, 512, 1024, 1109, 2048}
    near = {width + step for width in widths for step in (-1, 0, 1, 8, 16)}
    return sorted(width for width in near | set(range(1, 18)) if 1 <= width <= MOST_FEATURES)


FACTORS: dict[str, tuple[Any, ...]] = {
    "features": tuple(edges()),
    "rows": (1, 2, 3, 4, 5, 7, 8, 12, 15, 16, 17, 31, 33, 64, 70),
    "layers": (1, 2, 3, 9),
    "dtype": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    "float32 parameters": (False, True),
    "save": (1, 2),
    "needs": tuple(list(needs) for needs in product((True, False), repeat=3) if any(needs)),
    "bias": (True, False),
    "absolutes": tuple(ABSOLUTES),
    "groups": (None, 2),
    "inner": (None, 1, 3, 16, 21, 70),  # None: the features are the last axis; else so many positions beside each other
    "x": ARRANGEMENTS,
    "dy": ARRANGEMENTS,
}
Case = dict[str, Any]


def pairwise(seed: int) -> Iterator[Case]:
    """Yields cases until every pair of values of two factors has been in one, choosing greedily among random cases."""
    draw = random.Random(seed)
    names = list(FACTORS)
    missing = {
        (a, i, b, j) for a, b in combinations(names, 2) for i in range(len(FACTORS[a])) for j in range(len(FACTORS[b]))
    }

    def pairs(chosen: dict[str, int]) -> set[tuple[str, int, str, int]]:
        return {(a, chosen[a], b, chosen[b]) for a, b in combinations(names, 2)} & missing

    while missing:
        wanted = draw.choice(tuple(missing)) if len(missing) < 500 else next(iter(missing))
        candidates = []
        for _ in range(4):
            chosen = {name: draw.randrange(len(FACTORS[name])) for name in names}
            chosen[wanted[0]], chosen[wanted[2]] = wanted[1], wanted[3]
            candidates.append(chosen)
        best = max(candidates, key=lambda chosen: len(pairs(chosen)))
        missing -= pairs(best)
        yield {name: FACTORS[name][i] for name, i in best.items()}


def full() -> Iterator[Case]:
    """Yields every width with every number of rows, storage and combination of needs; the rest is drawn."""
    draw = random.Random(0)
    outer = ("features", "rows", "dtype", "needs")
    for values in product(*(FACTORS[name] for name in outer)):
        case = {name: draw.choice(values) for name, values in FACTORS.items()}
        yield case | dict(zip(outer, values, strict=True))


def arranged(shape: tuple[int, ...], dtype: torch.dtype, arrangement: str) -> Tensor:
    """Returns random rows whose last element, but for the packed, ends their memory too."""
    *lead, rows, features = shape
    if arrangement == "slice":
        return torch.randn(*lead, rows, features + 3, dtype=torch.float32).to(dtype)[..., 3:]
    if arrangement == "columns apart":
        return torch.randn(*lead, rows, 2 * features - 1, dtype=torch.float32).to(dtype)[..., ::2]
    if arrangement == "one row for all":
        return torch.randn(*lead, 1, features, dtype=torch.float32).to(dtype).expand(shape)
    return torch.randn(shape, dtype=torch.float32).to(dtype)


def arranged_along(shape: tuple[int, ...], dtype: torch.dtype, arrangement: str) -> Tensor:
    """Returns the same of (..., outer, features, inner), whose inner axis stays in one piece."""
    *lead, outer, features, inner = shape
    if arrangement == "one row for all":
        return torch.randn(*lead, 1, features, inner).to(dtype).expand(shape)
    columns = {"packed": features, "slice": features + 3, "columns apart": 2 * features - 1}[arrangement]
    wide = torch.randn(*lead, outer, columns, inner).to(dtype)
    return wide[..., 3:, :] if arrangement == "slice" else wide[..., ::2, :] if columns > features else wide


def run_along(case: Case) -> None:
    """Runs both directions with positions in the place of rows, and compares them with rows of the same bits."""
    lead = () if case["groups"] is None else (case["groups"],)
    features, layers, dtype, inner = (case[name] for name in ("features", "layers", "dtype", "inner"))
    outer, dim = min(case["rows"], 3), len(lead) + 1
    parameters = torch.float32 if case["float32 parameters"] else dtype
    x, dy = (arranged_along((*lead, outer, features, inner), dtype, case[name]) for name in ("x", "dy"))
    u = torch.randn(*lead, layers, features).to(parameters)
    b = torch.randn(*lead, layers, features).to(parameters) if case["bias"] else None
    (final_abs, abs), needs = ABSOLUTES[case["absolutes"]], case["needs"]
    y, signs = torch.ops.hanops.han_stack_forward(x, u, b, final_abs, case["save"], abs, dim)
    without_bits, _ = torch.ops.hanops.han_stack_forward(x, u, b, final_abs, 0, abs, dim)
    given = y if needs[1] else None, signs, u, b, final_abs, needs, abs
    grads = torch.ops.hanops.han_stack_backward(dy, *given, dim)
    assert torch.equal(y, without_bits), case

    abs_layers = layers if final_abs and abs else layers - 1 if abs else 0
    as_rows = [None if t is None else t.movedim(dim, -1) for t in (x, dy, given[0])]
    bits = rows_of_words(signs, features, abs_layers, dim, False)
    y_of_rows, _ = torch.ops.hanops.han_stack_forward(as_rows[0], u, b, final_abs, 0, abs)
    wanted = torch.ops.hanops.han_stack_backward(as_rows[1], as_rows[2], bits, *given[2:])
    moved = (t.movedim(-1, dim) if t.numel() else t for t in (y_of_rows, wanted[0]))
    for value, other, need in zip((y, *grads), (*moved, *wanted[1:]), (True, *needs), strict=True):
        assert (value.numel() > 0) == need, case
        assert accuracy.relative(value, other.double()) <= 1e-4 + 2 * torch.finfo(value.dtype).eps, case


def run(case: Case) -> None:
    """Runs both directions, and looks at every element of what they gave."""
    if case["inner"] is not None:
        return run_along(case)
    lead = () if case["groups"] is None else (case["groups"],)
    rows, features, layers, dtype = (case[name] for name in ("rows", "features", "layers", "dtype"))
    parameters = torch.float32 if case["float32 parameters"] else dtype
    x, dy = (arranged((*lead, rows, features), dtype, case[name]) for name in ("x", "dy"))
    u = torch.randn(*lead, layers, features).to(parameters)
    b = torch.randn(*lead, layers, features).to(parameters) if case["bias"] else None
    (final_abs, abs), needs = ABSOLUTES[case["absolutes"]], case["needs"]
    y, signs = torch.ops.hanops.han_stack_forward(x, u, b, final_abs, case["save"], abs)
    without_bits, _ = torch.ops.hanops.han_stack_forward(x, u, b, final_abs, False, abs)
    grads = torch.ops.hanops.han_stack_backward(dy, y if needs[1] else None, signs, u, b, final_abs, needs, abs)
    assert torch.equal(y, without_bits), case
    for value, need in zip((y, *grads), (True, *needs), strict=True):
        assert value.isfinite().all(), case
        assert (value.numel() > 0) == need, case


def separately(needs: list[bool]) -> Any:
    """Returns the stack with a backward for what `needs` asks for, and another one for the rest."""

    class Stack(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, abs: bool = True) -> Tensor:
            y, signs = torch.ops.hanops.han_stack_forward(x, u, b, final_abs, 2, abs)
            ctx.save_for_backward(y, signs, u, b)
            ctx.flags = final_abs, abs, len(ctx.needs_input_grad) - 3
            return y

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
            y, signs, u, b = ctx.saved_tensors
            final_abs, abs, more = ctx.flags
            grads: list[Tensor | None] = [None, None, None]
            for wanted in (needs, [not need for need in needs]):
                kept = y if wanted[1] else None
                got = torch.ops.hanops.han_stack_backward(dy, kept, signs, u, b, final_abs, wanted, abs)
                grads = [new if need else old for old, new, need in zip(grads, got, wanted, strict=True)]
            return (*grads[:2], None if b is None else grads[2], *(None,) * more)

    return Stack.apply


def check_penalty(p: Problem) -> None:
    """Compares the gradients in u and dy of v . dx, v = x: what a gradient penalty derives."""

    def derive(stack: Stack, q: Problem, dtype: torch.dtype | None = None) -> list[Tensor]:
        x, u, *b = q.inputs(dtype)
        dy = q.dy.to(dtype or q.dy.dtype).detach().requires_grad_()
        (dx,) = torch.autograd.grad(
            stack(x, u, *b or [None], q.final_abs, *([] if q.abs else [False])), x, dy, create_graph=True
        )
        return list(torch.autograd.grad(dx, [u, dy], x.detach()))

    zs, _ = leave_kinks(p)
    kept = ~near_kinks(p, zs)
    wide = reference.arithmetic_dtype(p.x.dtype)
    truth, got = derive(reference.han_stack, p, torch.float64), derive(accuracy.stack, p)
    eager = derive(reference.han_stack, p, wide)
    layers = p.u.shape[-2]
    allowance = (16 + layers / 25) * torch.finfo(p.x.dtype).eps / 2
    for name, t, g, e in zip(("du", "ddy"), truth, got, eager, strict=True):
        if name == "ddy":
            t, g, e = t[kept], g[kept], e[kept]
        terms = p.x.double().norm() * p.dy.double().norm() / p.u.double().norm() if name == "du" else 0
        scale = max(t.norm().item(), float(terms))
        error, yardstick = (g.double() - t).norm().item(), (e.to(g.dtype).double() - t).norm().item()
        assert error <= 2 * yardstick + allowance * scale, f"{name} of a penalty: {error / scale:.2e}"


def run_check(case: Case) -> None:
    """Compares both directions with float64: with all of their gradients, and with those of `needs` apart."""
    final_abs, abs = ABSOLUTES[case["absolutes"]]
    p = problem(
        case["rows"], case["features"], case["layers"], case["dtype"],
        groups=case["groups"], parameters=torch.float32 if case["float32 parameters"] else None,
        bias=0.3 if case["bias"] else None, final_abs=final_abs, abs=abs,
    )  # fmt: skip
    check(separately(case["needs"]), p)
    check_penalty(p)


def sweep() -> Iterator[Case]:
    """Yields every edge and 1 to 2,200 by 37 in every storage, the rest drawn."""
    draw = random.Random(0)
    widths = sorted({*edges(), *range(1, MOST_FEATURES + 1, 37)})
    for features, dtype in product(widths, FACTORS["dtype"]):
        yield {name: draw.choice(values) for name, values in FACTORS.items()} | {"features": features, "dtype": dtype}


CASES = {"pairwise": pairwise, "full": lambda seed: full(), "sweep": lambda seed: sweep()}


def child(kind: str, seed: int, last: Path) -> None:
    """Runs in guarded memory. The file `last`, which outlives a crash, has the case at hand."""
    faulthandler.enable()
    guarded = ctypes.CDLL(None).guarded_blocks
    guarded.restype = ctypes.c_longlong
    torch.manual_seed(seed)
    before, count = guarded(), 0
    for case in CASES[kind](seed):
        last.write_text(repr(case))
        (run_check if kind == "sweep" else run)(case)
        count += 1
    name = native.build_info()["instruction_set"]
    print(f"{name}: {count:,} cases, {guarded() - before:,} blocks between guard pages")


def environment(instruction_set: str) -> dict[str, str]:
    """Returns the environment of a guarded process."""
    library = str(emulation.BUILD / "libguarded_memory.so")
    return {**os.environ, "LD_PRELOAD": library, "ATEN_CPU_CAPABILITY": CAPABILITIES[instruction_set]}


def run_child(kind: str, instruction_set: str, seed: int = 0) -> tuple[int, str]:
    """Runs the cases of a kind in a guarded process; returns its exit status and what it said, with a failing case."""
    emulation.build("guarded_memory")
    with tempfile.TemporaryDirectory() as folder:
        last = Path(folder) / "case"
        command = [sys.executable, "-m", "tests.guarded", kind, "--seed", str(seed), "--child", str(last)]
        done = subprocess.run(command, env=environment(instruction_set), capture_output=True, text=True)
        case = f"\nin the case {last.read_text()}" if done.returncode and last.exists() else ""
    return done.returncode, f"{done.stdout}{done.stderr}{case}"


def main() -> int:
    """Runs the cases for every instruction set of the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=CASES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.kinds[0], arguments.seed, arguments.child)
        return 0
    failed = 0
    for kind, name in product(arguments.kinds, instruction_sets()):
        status, said = run_child(kind, name, arguments.seed)
        print(said if status == 0 else f"{name}: exit status {status}\n{said}", flush=True)
        failed += status != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
