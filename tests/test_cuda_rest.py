"""The rest of y in the CUDA kernels, on their emulator: every kind of tile keeps its bytes and begins with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hanops.definition import reference
from hanops.definition.rest import bytes_of, rest_of, restored

from .accuracy import ABSOLUTES, Problem, leave_kinks, problem, relative
from .test_cuda import emulated, emulator, plan  # noqa: F401

# ruff: noqa: F811  the fixture is an argument

HALF = [torch.bfloat16, torch.float16]

# name: SMs of the emulator, rows, features, what the plans start with
TILES = {
    **{
        f"many rows, {features}": (1, rows, features, ("2 rows", "4 rows", "8 rows", "16 rows"))
        for features, rows in {30: 1100, 64: 600, 100: 400, 200: 300, 512: 150, 1000: 150, 2000: 21, 4096: 21}.items()
    },
    "many rows, coefficients kept": (1, 21, 8000, ("2 rows", "4 rows", "8 rows")),
    **{f"one row, {features}": (1000, 9, features, ("1 row,",)) for features in (3, 30, 100, 1000, 4096)},
    "streamed": (1, 3, 8196, ("rows streamed",)),
    "streamed, odd": (1, 3, 8201, ("rows streamed",)),
}


def forward(p: Problem, save: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    return torch.ops.hanops.han_stack_forward_cuda(p.x.to(dtype or p.x.dtype), p.u, p.b, p.final_abs, save, p.abs)


def backward(p: Problem, y: Tensor, signs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dy = p.dy.to(y.dtype)
    return torch.ops.hanops.han_stack_backward_cuda(dy, y, signs, p.u, p.b, p.final_abs, [True] * 3, p.abs)


def strided(t: Tensor) -> Tensor:
    """Returns t as a slice of a larger tensor, aligned for access by vectors or not by chance."""
    before, after = (0, 16) if torch.rand(()) < 0.5 else (1, 2)
    wide = torch.empty(*t.shape[:-1], before + t.shape[-1] + after, dtype=t.dtype)
    return wide.narrow(-1, before, t.shape[-1]).copy_(t)


def check_bytes(p: Problem) -> None:
    """Asserts that a call keeps the definition's bytes of its own float32 y, and starts back from them.

    The same kernel gives that y where x is float32 with the same values.
    """
    bits = 0 if not p.abs else p.u.shape[-2] - (not p.final_abs)
    y, signs = forward(p, 2)
    y_without, signs_without = forward(p, 1)
    exact, _ = forward(p, 0, torch.float32)
    assert y.equal(y_without)
    assert y.equal(exact.to(y.dtype))
    assert signs[..., :bits, :].equal(signs_without)
    rest = bytes_of(signs[..., bits:, :], p.x.shape[-1])
    assert rest.equal(rest_of(exact, y))
    normal = exact.abs() >= torch.finfo(y.dtype).tiny
    error = ((restored(y, rest) - exact) / exact).abs()[normal]
    unit = 2.0 ** (-15 if y.dtype == torch.bfloat16 else -18)
    assert (error <= torch.where(rest == 127, unit, unit / 2)[normal]).all()  # 128 does not fit a byte

    dx, du, db = backward(p, strided(y), signs)
    dx_without, du_without, db_without = backward(p, y, signs_without)
    _, wanted, _ = backward(p, exact, signs_without)
    assert dx.equal(dx_without)
    assert db.equal(db_without)
    assert 20 * relative(du, wanted.double()) < relative(du_without, wanted.double())


@emulated
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("tile", TILES)
def test_bytes_of_each_tile(emulator, tile, dtype):
    sms, rows, features, starts = TILES[tile]
    emulator.set_sms(sms)
    for way in (False, True):
        assert plan(emulator, rows, features, 3, backward=way).startswith(starts)
    check_bytes(problem(rows, features, 3, dtype, parameters=torch.float32))


@emulated
@pytest.mark.parametrize("which", ABSOLUTES)
@pytest.mark.parametrize("tile", ["many rows, 200", "many rows, coefficients kept", "one row, 100", "streamed"])
def test_bytes_behind_any_number_of_layers_with_bits(emulator, tile, which):
    sms, rows, features, _ = TILES[tile]
    emulator.set_sms(sms)
    final_abs, abs = ABSOLUTES[which]
    for layers in (1, 4):
        check_bytes(
            problem(rows, features, layers, torch.bfloat16, parameters=torch.float32, final_abs=final_abs, abs=abs)
        )


@emulated
@pytest.mark.parametrize(("sms", "rows", "features"), [(7, 70, 200), (1, 33, 1000), (1000, 5, 30), (1, 2, 8201)])
def test_bytes_of_groups(emulator, sms, rows, features):
    emulator.set_sms(sms)
    check_bytes(problem(rows, features, 3, torch.float16, groups=3, parameters=torch.float32))


@emulated
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("tile", ["many rows, 100", "one row, 30", "streamed, odd"])
def test_rows_that_are_not_finite_have_none(emulator, tile, dtype):
    """NaN, inf, and what is finite in float32 alone; and such a row adds nothing to du where its dy is 0."""
    sms, rows, features, _ = TILES[tile]
    emulator.set_sms(sms)
    p = problem(rows, features, 3, dtype, parameters=torch.float32)
    p.x[0] = float("nan")
    p.x[1, 0] = float("inf")
    p.x[2] = 0.9 * torch.finfo(dtype).max
    y, signs = forward(p, 2)
    exact, _ = forward(p, 0, torch.float32)
    rest = bytes_of(signs[..., 3:, :], features)
    assert rest.equal(rest_of(exact, y))
    assert not rest[:2].any()
    p.dy[:3] = 0
    _, du, _ = backward(p, y, signs)
    assert du.isfinite().all()


@emulated
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    "tile", ["many rows, 200", "many rows, 1000", "many rows, coefficients kept", "one row, 100", "streamed"]
)
def test_du_of_rows_that_grow(emulator, tile, dtype):
    """20 layers with biases of 1 make rows grow 25-fold: du loses as many digits without the rest."""
    sms, rows, features, _ = TILES[tile]
    emulator.set_sms(sms)
    p = problem(rows, features, 20, dtype, parameters=torch.float32)
    p.b.fill_(1)
    leave_kinks(p)
    truth = p.run(reference.han_stack, torch.float64)["du"]
    error = [relative(backward(p, *forward(p, save))[1], truth) for save in (1, 2)]
    assert error[0] > 20 * error[1]
