"""Compares what the fuzzer's calls return with float64, as tests/accuracy.py does, where that has a meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hanops.definition import reference

from .accuracy import Problem, activations, assert_same, compare, near_kinks
from .fuzz_cases import SMALL, FuzzCase

NEAR = "too near to kinks"  # of a right outcome that was not compared
MASKED = 0.05  # of a case's rows may lie near a kink
Stack = Callable[..., Tensor]  # of x, u, b, and which layers take the absolute value, as the case has them


@dataclass
class Outcome:
    """What became of a case: 'right', 'refused', 'unmade' (for lack of memory), 'failed', 'crashed' or 'hung'.

    message: of what was refused or failed. rows, masked: compared with float64, and left out for lying near a kink.
    """

    kind: str
    message: str = ""
    rows: int = 0
    masked: int = 0


def compared(case: FuzzCase, stack: Stack, y: Tensor, x: Tensor, u: Tensor, b: Tensor | None) -> Outcome:
    """Compares a result, and the gradients that the case asks for, with float64."""
    assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)
    if x.device.type != "cpu" or max(*x.shape, x.numel(), *u.shape, u.numel()) > SMALL:
        return Outcome("right")
    assert case.x is not None
    x, u = x.detach(), u.detach()
    b = b if b is None else b.detach()
    if x.numel() == 0 or u.shape[-2] == 0 or not x.any():
        return _compared_exactly(case, stack, y.detach(), x, u, b)
    if case.x.values == "not finite" and case.call != "backward":
        return _compared_rows(case, stack, y.detach(), x, u, b)
    p = Problem(x, u, b, torch.randn(x.shape).to(x.dtype), case.final_abs, case.abs)
    zs = activations(p)
    near = near_kinks(p, zs)
    rows, masked = x.numel() // x.shape[-1], int(near.sum())
    if masked > MASKED * rows:
        return Outcome("right", NEAR)
    p.dy[near] = 0
    # float64 is measured by the spread of its runs, and that of one feature is 0.
    ordered = x.shape[-1] > 1 or x.dtype != torch.float64
    if case.u is not None and (case.u.strides in ("expanded", "overlapping") or not ordered):
        _check_strides(stack, p)
    else:
        compare(stack, p, zs)
    asked = [flag for flag, t in zip(case.gradients, (x, u, b), strict=True) if t is not None]
    if any(asked) and not all(asked):
        _check_some(case, stack, p)
    return Outcome("right", rows=rows, masked=masked)


def _check_strides(stack: Stack, p: Problem) -> None:
    """Asserts that a problem's results are those of a copy without its strides.

    What x and a u of repeated elements have in common cancels du, so that its error is measured by what it is a sum of.
    """
    whole = p.run(stack)
    b = p.b if p.b is None else p.b.contiguous()
    copied = replace(p, x=p.x.contiguous(), u=p.u.contiguous(), b=b)
    other = copied.run(stack)
    du, du_of_copy = whole.pop("du"), other.pop("du")
    for name, value in whole.items():
        assert_same(value, other[name], exactly=False)
    lengths = p.u.double().norm(dim=-1)
    size = 4 * p.dy.double().norm() * p.x.double().norm() / lengths[lengths != 0].min() if lengths.any() else 0.0
    eps = torch.finfo(du.dtype).eps + 64 * torch.finfo(reference.arithmetic_dtype(p.x.dtype)).eps
    error = (du.double() - du_of_copy.double()).norm()
    assert error <= eps * (du_of_copy.double().norm() + size), f"du: strides make a difference of {error:.2e}"


def _check_some(case: FuzzCase, stack: Stack, p: Problem) -> None:
    """Asserts that what is asked for is the same where the rest is not."""
    whole = p.run(stack)
    x, u, b = p.x.clone(), p.u.clone(), None if p.b is None else p.b.clone()
    wanted = {}
    for name, t, asked in zip(("dx", "du", "db"), (x, u, b), case.gradients, strict=True):
        if t is not None and asked:
            wanted[name] = t.requires_grad_()
    grads = torch.autograd.grad(stack(x, u, b, p.final_abs), list(wanted.values()), p.dy)
    for name, value in zip(wanted, grads, strict=True):
        assert_same(value, whole[name], exactly=False)


def _compared_exactly(case: FuzzCase, stack: Stack, y: Tensor, x: Tensor, u: Tensor, b: Tensor | None) -> Outcome:
    """Compares outputs where there is nothing to derive: no rows, no layers, or rows of zeros, which are a kink."""
    truth = reference.han_stack(x.double(), u.double(), b if b is None else b.double(), case.final_abs, case.abs)
    eps = torch.finfo(x.dtype).eps
    torch.testing.assert_close(y, truth.to(y.dtype), rtol=16 * eps, atol=64 * eps, equal_nan=True)
    inputs = [t.clone().requires_grad_() for t in (x, u, b) if t is not None]
    output = stack(*inputs[:2], inputs[2] if len(inputs) > 2 else None, case.final_abs)
    grads = torch.autograd.grad(output, inputs, torch.ones_like(output))
    assert all(g.shape == t.shape for g, t in zip(grads, inputs, strict=True))
    assert not x.isfinite().all() or all(g.isfinite().all() for g in grads)
    if x.numel() == 0:
        assert not any(g.any() for g in grads)
    if u.shape[-2] == 0:
        torch.testing.assert_close(y, x, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(grads[0], torch.ones_like(x))
    return Outcome("right")


def _compared_rows(case: FuzzCase, stack: Stack, y: Tensor, x: Tensor, u: Tensor, b: Tensor | None) -> Outcome:
    """Asserts that rows beside those with NaN or infinity are not touched by them, forward and backward."""
    good = x.isfinite().all(-1)
    clean = torch.where(good.unsqueeze(-1), x, 0).requires_grad_()
    spoiled = x.clone().requires_grad_()
    outputs = [stack(t, u, b, case.final_abs) for t in (clean, spoiled)]
    gradients = [
        torch.autograd.grad(o, t, torch.ones_like(o))[0] for o, t in zip(outputs, (clean, spoiled), strict=True)
    ]
    for value, other in ((outputs[0], y), (outputs[1], y), (gradients[0], gradients[1])):
        assert_same(value[good].detach(), other[good].detach(), exactly=False)
    assert not y[~good].isfinite().all() or good.all()
    return Outcome("right")
