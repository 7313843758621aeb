"""The ops under `torch.ops.hanops` that are written in Python: those of plain torch, of Triton, and with derivatives.

`han_stack_forward` and `han_stack_backward` run the pair of one backend: `..._torch` (plain torch, which also serves
devices without kernels), `..._triton` (imported by the first call), and, native, `..._cuda` and the CPU's kernels. The
pair `..._differentiable` runs the two ops themselves, and derives what the C++ autograd does not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hanops import _torch, backends
from hanops.backends import by_rows, plain_torch
from hanops.backends.native import native
from hanops.definition.checks import check_backward, check_forward, check_stack
from hanops.definition.signs import layers_with_abs
from hanops.ops import autograd

# What each argument may be: hanops/definition/checks.py. csrc/ops.cpp has the same.
STACK = "(Tensor x, Tensor u, Tensor? b, bool final_abs=True, bool abs=True, int dim=-1, bool exact=True) -> Tensor"
FORWARD = (
    "(Tensor x, Tensor u, Tensor? b, bool final_abs, int save, bool abs=True, int dim=-1) -> (Tensor y, Tensor signs)"
)
BACKWARD = (
    "(Tensor dy, Tensor? y, Tensor signs, Tensor u, Tensor? b, bool final_abs, bool[3] needs, bool abs=True,"
    " int dim=-1) -> (Tensor dx, Tensor du, Tensor db)"
)
FORWARD_BY_ROWS = (
    "(Tensor x, Tensor u, Tensor? b, bool final_abs, int save, bool abs, int dim, str suffix)"
    " -> (Tensor y, Tensor signs)"
)
BACKWARD_BY_ROWS = (
    "(Tensor dy, Tensor? y, Tensor signs, Tensor u, Tensor? b, bool final_abs, bool[3] needs, bool abs, int dim,"
    " str suffix) -> (Tensor dx, Tensor du, Tensor db)"
)

library = torch.library.Library("hanops", "DEF" if native is None else "FRAGMENT")


def forward_triton(x: Tensor, u: Tensor, b: Tensor | None, abs_layers: int, save: int) -> tuple[Tensor, Tensor]:
    """Returns y and what it keeps for the backward, from the Triton kernels."""
    backends.require("triton", x.device)
    from hanops.backends.triton import han_stack

    return han_stack.forward(x, u, b, abs_layers, save)


def backward_triton(
    dy: Tensor, y: Tensor | None, signs: Tensor, u: Tensor, b: Tensor | None, abs_layers: int, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dx, du and db, each of shape (0,) where not needed, from the Triton kernels."""
    backends.require("triton", dy.device)
    from hanops.backends.triton import han_stack

    return han_stack.backward(dy, y, signs, u, b, abs_layers, needs)


FORWARDS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "torch": partial(by_rows.forward, plain_torch.forward),
    "triton": partial(by_rows.forward, forward_triton),
}
BACKWARDS: dict[str, Callable[..., tuple[Tensor, Tensor, Tensor]]] = {
    "torch": partial(by_rows.backward, plain_torch.backward),
    "triton": partial(by_rows.backward, backward_triton),
}


def stack_op(run: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """Makes `run`, which takes what that of `forward_op` takes, an implementation of the op `han_stack`."""

    def stack(
        x: Tensor,
        u: Tensor,
        b: Tensor | None,
        final_abs: bool = True,
        abs: bool = True,
        dim: int = -1,
        exact: bool = True,
    ) -> Tensor:
        check_stack("x", x, u, b, final_abs, abs, dim)
        return run(x, u, b, layers_with_abs(u, final_abs, abs), 0, dim)[0]

    return stack


def forward_op(run: Callable[..., tuple[Tensor, Tensor]], check: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    """Makes `run`, which takes the number of layers with an absolute value, an implementation of the op."""

    def forward(
        x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, save: int, abs: bool = True, dim: int = -1
    ) -> tuple[Tensor, Tensor]:
        if check:
            check_forward(x, u, b, final_abs, save, abs, dim)
        return run(x, u, b, layers_with_abs(u, final_abs, abs), save, dim)

    return forward


def backward_op(
    run: Callable[..., tuple[Tensor, Tensor, Tensor]], check: bool
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Is to the backward op what `forward_op` is to the forward op."""

    def backward(
        dy: Tensor,
        y: Tensor | None,
        signs: Tensor,
        u: Tensor,
        b: Tensor | None,
        final_abs: bool,
        needs: list[bool],
        abs: bool = True,
        dim: int = -1,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if check:
            check_backward(dy, y, signs, u, b, final_abs, needs, abs, dim)
        return run(dy, y, signs, u, b, layers_with_abs(u, final_abs, abs), needs, dim)

    return backward


def forward_by_rows(
    x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, save: int, abs: bool, dim: int, suffix: str
) -> tuple[Tensor, Tensor]:
    """Is the op for a backend whose kernels cannot take this axis: its op `suffix` on rows."""
    op = getattr(torch.ops.hanops, f"han_stack_forward{suffix}")

    def run(x: Tensor, u: Tensor, b: Tensor | None, _: int, save: int) -> tuple[Tensor, Tensor]:
        return op(x, u, b, final_abs, save, abs)

    with _torch.below_autograd():
        return by_rows.forward(run, x, u, b, layers_with_abs(u, final_abs, abs), save, dim)


def backward_by_rows(
    dy: Tensor,
    y: Tensor | None,
    signs: Tensor,
    u: Tensor,
    b: Tensor | None,
    final_abs: bool,
    needs: list[bool],
    abs: bool,
    dim: int,
    suffix: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Is to the backward op what `forward_by_rows` is to the forward op."""
    op = getattr(torch.ops.hanops, f"han_stack_backward{suffix}")

    def run(
        dy: Tensor, y: Tensor | None, signs: Tensor, u: Tensor, b: Tensor | None, _: int, needs: list[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        return op(dy, y, signs, u, b, final_abs, needs, abs)

    with _torch.below_autograd():
        return by_rows.backward(run, dy, y, signs, u, b, layers_with_abs(u, final_abs, abs), needs, dim)


def define() -> None:
    """Defines the ops that no C++ defines, and implements all that are written in Python."""
    check = native is None  # else csrc/ops.cpp checks the arguments
    for name in FORWARDS:
        forward, backward = f"han_stack_forward_{name}", f"han_stack_backward_{name}"
        if native is None:
            library.define(forward + FORWARD)
            library.define(backward + BACKWARD)
        library.impl(forward, forward_op(FORWARDS[name], check), "CompositeExplicitAutograd")
        library.impl(backward, backward_op(BACKWARDS[name], check), "CompositeExplicitAutograd")
    if native is not None:  # csrc/ops.cpp calls them
        library.define("han_stack_forward_by_rows" + FORWARD_BY_ROWS)
        library.define("han_stack_backward_by_rows" + BACKWARD_BY_ROWS)
        library.impl("han_stack_forward_by_rows", forward_by_rows, "CompositeExplicitAutograd")
        library.impl("han_stack_backward_by_rows", backward_by_rows, "CompositeExplicitAutograd")
    library.define(f"han_stack_forward_differentiable{FORWARD}")
    library.define(f"han_stack_backward_differentiable{BACKWARD}")
    library.impl("han_stack_forward_differentiable", autograd.han_stack_forward, "CompositeImplicitAutograd")
    library.impl("han_stack_backward_differentiable", autograd.han_stack_backward, "CompositeImplicitAutograd")
