"""The CUDA kernels for features that are not the last axis, on their emulator: each tile, its edges, its sums."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import Tensor

from hanops.definition.rest import bytes_of, rest_of
from hanops.definition.signs import rows_of_words

from .accuracy import ABSOLUTES, Problem, check, problem
from .test_axis import along
from .test_cuda import emulated, emulator, plan  # noqa: F401

# ruff: noqa: F811  the fixture is an argument

ops = torch.ops.hanops
TILES = {"two positions a lane": (1, "64 positions, 2 a lane"), "one position a lane": (1000, "32 positions, 1 a lane")}
MOST = 512  # features of tiles of one position


def check_tile(library, tile: str, outer: int, features: int, inner: int, p: Problem) -> None:
    sms, starts = TILES[tile]
    library.set_sms(sms)
    for backward in (False, True):
        told = plan(library, outer * inner, features, p.u.shape[-2], backward=backward, inner=inner)
        assert told.startswith(starts), told
    check(along(outer, inner), p)


# ---- tiles and their edges


@emulated
@pytest.mark.parametrize("features", [1, 31, 32, 33, 64, 196, 225, 256])
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_words_of_features(emulator, tile, features, dtype):
    """The last warp has one feature, some, or all; the last tile a few positions."""
    outer, inner = (9, 62) if features <= 32 else (5, 46)
    check_tile(emulator, tile, outer, features, inner, problem(outer * inner, features, 3, dtype))


@emulated
@pytest.mark.parametrize("features", [257, 384, 385, 512, 513])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_features(emulator, features, dtype):
    """Beyond what a block holds, both go by rows."""
    if features <= MOST:
        assert plan(emulator, 66, features, 2, backward=True, inner=22).startswith("32 positions, 1 a lane")
        assert plan(emulator, 660, features, 2, backward=False, inner=22).startswith("64 positions, 2 a lane")
    check(along(3, 22), problem(66, features, 2, dtype))


@emulated
@pytest.mark.parametrize("inner", [1, 2, 3, 4, 49, 196])
@pytest.mark.parametrize("positions", ["few", "many"])
def test_inner_sizes(emulator, inner, positions):
    """A tile spans several outer positions, or is a part of one."""
    outer = 1 if positions == "few" else 400 // inner + 1
    for dtype in (torch.float32, torch.bfloat16):
        check(along(outer, inner), problem(outer * inner, 100, 3, dtype))


@emulated
def test_float64_goes_by_rows(emulator):
    check(along(2, 6), problem(12, 40, 2, torch.float64))


# ---- sums of du and db


@emulated
@pytest.mark.parametrize("sms", [1, 3])
def test_sums_over_many_tiles(emulator, sms):
    """More tiles than are added up one after another; several blocks, the last with a tile less."""
    emulator.set_sms(sms)
    assert "1 blocks of 8" in plan(emulator, 1300, 256, 2, backward=True, inner=26) or sms > 1
    check(along(50, 26), problem(1300, 256, 2, torch.float32))


@emulated
def test_sums_that_a_block_cannot_hold(emulator):
    check(along(2, 35), problem(70, 250, 110, torch.float32))


@emulated
@pytest.mark.parametrize("sms", [1, 7])
@pytest.mark.parametrize("absolutes", ABSOLUTES.values(), ids=list(ABSOLUTES))
def test_groups(emulator, sms, absolutes):
    emulator.set_sms(sms)
    final_abs, abs = absolutes
    for groups, outer, inner, features in ((3, 5, 14, 70), (2, 33, 3, 200)):
        p = problem(outer * inner, features, 4, torch.float32, groups=groups, final_abs=final_abs, abs=abs)
        check(along(outer, inner), p)


@emulated
@pytest.mark.parametrize("tile", TILES)
def test_positions_without_gradient_add_nothing(emulator, tile):
    """Not even where y is NaN or infinite."""
    emulator.set_sms(TILES[tile][0])
    x, dy, u, b = (torch.randn(*shape) for shape in ((7, 70, 26), (7, 70, 26), (3, 70), (3, 70)))
    dy[::2, :, ::3] = 0
    y, signs = ops.han_stack_forward_cuda(x, u, b, True, 1, True, 1)
    spoiled = y.clone()
    spoiled[::2, 5, ::3] = float("nan")
    spoiled[::4, 69, ::3] = float("inf")
    got, wanted = (ops.han_stack_backward_cuda(dy, t, signs, u, b, True, [True] * 3, True, 1) for t in (spoiled, y))
    assert spoiled.isnan().any()
    for a, c in zip(got, wanted, strict=True):
        assert torch.equal(a, c)
    assert got[1].any()


@emulated
def test_same_bits_in_every_run(emulator):
    emulator.set_sms(5)
    p = problem(330, 200, 4, torch.float32)
    first, second = p.run(along(15, 22)), p.run(along(15, 22))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@emulated
@pytest.mark.parametrize("tile", TILES)
def test_a_position_does_not_depend_on_its_place(emulator, tile):
    emulator.set_sms(TILES[tile][0])
    x, u, b = torch.randn(9, 100, 38), torch.randn(4, 100), torch.randn(4, 100)
    y, _ = ops.han_stack_forward_cuda(x, u, b, True, 0, True, 1)
    turned, _ = ops.han_stack_forward_cuda(x.flip(0, 2), u, b, True, 0, True, 1)
    assert torch.equal(turned.flip(0, 2), y)


# ---- the rest of y


def in_words(tile: Tensor, features: int, layers: int) -> Tensor:
    return rows_of_words(tile, features, layers, 1, chunked=False)


@emulated
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("abs_layers", [0, 2, 3])
def test_rest(emulator, tile, dtype, abs_layers):
    """Bytes are those of the same kernel's float32 y; du begins with them, and zeros are beyond the features."""
    emulator.set_sms(TILES[tile][0])
    shape = (4, 75, 18)
    x, dy = (torch.randn(shape).to(dtype) for _ in range(2))
    x[1, :, 3] = float("nan")
    dy[1, :, 3] = 0
    u, b = torch.randn(2, 3, 75)
    flags = {"final_abs": abs_layers != 2, "abs": abs_layers > 0}
    y, signs = ops.han_stack_forward_cuda(x, u, b, save=2, dim=1, **flags)
    exact, without = ops.han_stack_forward_cuda(x.float(), u, b, save=1, dim=1, **flags)
    assert signs.shape == (4, abs_layers + 8, 3, 18, 4)
    assert y.nan_to_num().equal(exact.to(dtype).nan_to_num())
    valid = torch.ones(prod(shape[::2]), dtype=torch.bool).view(4, 18)
    valid[1, 3] = False
    rows, rows_without = (in_words(t, 75, abs_layers)[valid] for t in (signs, without))
    assert rows[:, :abs_layers].equal(rows_without)
    rest = bytes_of(in_words(signs, 75, abs_layers)[..., abs_layers:, :], 75).movedim(-1, 1)
    assert rest.equal(rest_of(exact, y))
    beyond = signs[:, abs_layers:, 2]  # byte j of plane p is column 64 + 4 p + j
    assert not beyond[:, 2, :, 3].any()
    assert not beyond[:, 3:].any()

    def backward(t: Tensor, kept: Tensor) -> tuple[Tensor, ...]:
        return ops.han_stack_backward_cuda(dy.to(t.dtype), t, kept, u, b, needs=[True] * 3, dim=1, **flags)

    _, du, db = backward(y, signs)
    _, du_exact, _ = backward(exact, without)
    _, du_without, db_without = backward(y, without)
    assert db.equal(db_without)
    assert (du - du_exact).norm() < (du_without - du_exact).norm() / 20
