"""Rows whose output gradient is 0 everywhere: they add exactly 0 to du and db, whatever their output holds."""

import pytest
import torch
from torch import Tensor

import hanops
from hanops.distributed import shard_features

from .accuracy import Problem, problem, stack
from .test_distributed import mesh, part

SIZES = [(1, 5), (3, 40), (13, 30), (37, 30), (70, 64), (11, 700)]  # rows in the lanes, and tiles of rows
BAD = [float("nan"), float("inf"), float("-inf")]


def spoilt(p: Problem) -> Problem:
    """Returns p with rows that NaN and infinity have ruined, every third one, and without their dy."""
    x, dy = p.x.clone(), p.dy.clone()
    for row in range(0, x.shape[-2], 3):
        x[..., row, row % x.shape[-1]] = BAD[row % 3]
        dy[..., row, :] = -0.0 if row % 2 else 0.0
    return Problem(x, p.u, p.b, dy, p.final_abs)


@pytest.mark.parametrize(("rows", "features"), SIZES)
@pytest.mark.parametrize("groups", [None, 2])
def test_spoilt_rows_without_gradient_add_nothing(backend, device, dtype, rows, features, groups, interpreted):
    if interpreted and (groups or features > 64):
        pytest.skip("slow in the interpreter")
    p = problem(rows, features, 3, dtype, groups=groups, device=device)
    bad = spoilt(p)
    got = bad.run(stack)
    clean = Problem(p.x, p.u, p.b, bad.dy).run(stack)
    assert not got["y"].isfinite().all()
    assert got["du"].isfinite().all()
    assert torch.equal(got["du"], clean["du"])
    assert torch.equal(got["db"], clean["db"])


def test_a_float16_row_that_overflows_in_the_last_rounding(backend, device):
    """Its float32 result fits and its stored one does not; a GradScaler would skip every step of a masked batch."""
    x = torch.full((2, 8), 6.5e4, dtype=torch.float16, device=device)
    x[1] = 1
    u = torch.zeros(2, 8, dtype=torch.float16, device=device)
    u[:, 0] = 1
    b = torch.full_like(u, 600)
    u.requires_grad_()
    y = hanops.han_stack(x, u, b)
    assert y.isinf().any(-1).tolist() == [True, False]
    y.backward(torch.tensor([[0.0], [1.0]], dtype=torch.float16, device=device).expand(2, 8))
    assert u.grad.isfinite().all()
    assert u.grad.abs().max() > 0


@pytest.mark.parametrize("groups", [None, 2])
def test_spoilt_rows_add_nothing_to_second_derivatives(backend, device, groups):
    p = spoilt(problem(13, 6, 3, torch.float64, groups=groups, device=device))
    live = (p.dy != 0).any(-1)

    def second(x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
        u, b = p.u.clone().requires_grad_(), p.b.clone().requires_grad_()
        y = hanops.han_stack(x, u, b)
        loss = torch.where(dy != 0, y, 0).square().sum()  # of the rows that have a gradient
        gu, gb = torch.autograd.grad(loss, (u, b), create_graph=True)
        return torch.autograd.grad((gu * p.u.flip(-1)).sum() + (gb * p.b.flip(-1)).sum(), (u, b))

    got, clean = second(p.x, p.dy), second(torch.where(live.unsqueeze(-1), p.x, 1.0), p.dy)
    assert not hanops.han_stack(p.x, p.u, p.b).isfinite().all()
    for g, wanted in zip(got, clean, strict=True):
        torch.testing.assert_close(g, wanted)


def test_spoilt_rows_with_gradient_still_show(backend, device, dtype):
    """One element of dy that is not 0 is enough, also where it is orthogonal to the last reflector."""
    p = problem(37, 30, 3, dtype, device=device)
    p.x[4, 7] = float("nan")
    p.u[-1, 3] = 0
    p.dy[4] = 0
    p.dy[4, 3] = 1
    assert p.run(stack)["du"].isnan().all()


def sharded() -> None:
    for silent in (True, False):  # dy of the spoilt rows is 0 on all devices, or on all but one
        module = shard_features(hanops.HanStack(24, 3), mesh())
        x, dy = torch.randn(7, 24), torch.randn(7, 24)
        x[2, 5], x[4, 23] = float("nan"), float("inf")
        dy[2] = dy[4] = 0
        dy[2, 0] = 0 if silent else 1
        module(part(x)).backward(part(dy))
        du, db = module.u.grad.full_tensor(), module.b.grad.full_tensor()
        assert du.isfinite().all() if silent else du.isnan().all()
        assert not silent or db.isfinite().all()


def test_spoilt_rows_on_all_shards(run):
    run(sharded)
