"""The CPU kernels for another axis: the heights of their tiles, spare lanes, long sums, threads."""

import pytest
import torch

import hanops
from hanops.backends.native import native

from .accuracy import Problem, check, eager_runs, problem, relative
from .test_axis import along

pytestmark = pytest.mark.skipif(native is None, reason="kernels of the CPU")
ops = torch.ops.hanops


@pytest.fixture(autouse=True)
def cpu():
    with hanops.use_backend("cpu"):
        yield


# lanes are 8 or 16: one to four lane groups, the last one full or not, in one outer, two or many
@pytest.mark.parametrize(
    ("outer", "inner"), [(1, 8), (1, 16), (1, 63), (1, 64), (1, 65), (9, 7), (5, 13), (3, 24), (2, 49), (1, 200)]
)
@pytest.mark.parametrize("features", [1, 32, 65, 130])
def test_heights_of_tiles(outer, inner, features):
    for dtype in (torch.float32, torch.bfloat16):
        check(along(outer, inner), problem(outer * inner, features, 3, dtype))


@pytest.mark.parametrize("features", [3, 33, 200])
def test_positions_do_not_depend_on_their_neighbours(features):
    """A lane's sums run in one order, whatever the tile: y is the same bit for bit, and so is dx."""
    x, dy = torch.randn(2, 3, features, 50)
    u, b = torch.randn(2, 4, features)

    def run(x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, signs = ops.han_stack_forward(x, u, b, True, 1, dim=1)
        return y, ops.han_stack_backward(dy, y, signs, u, b, True, [True, False, False], dim=1)[0]

    whole = run(x, dy)
    for begin, end in ((0, 1), (5, 22), (17, 50)):
        for part, of in zip(run(x[..., begin:end], dy[..., begin:end]), whole, strict=True):
            assert torch.equal(part, of[..., begin:end])


def test_spare_lanes_add_nothing():
    """Lanes without a position go through the layers too, with biases as large as float32 takes."""
    x, dy = torch.randn(2, 1, 40, 5)
    u, b = torch.randn(3, 40), torch.full((3, 40), 1e37)
    y, signs = ops.han_stack_forward(x, u, b, True, 1, dim=1)
    _, du, db = ops.han_stack_backward(torch.zeros_like(dy), y, signs, u, b, True, [True] * 3, dim=1)
    assert du.count_nonzero() == db.count_nonzero() == 0


def test_long_sums():
    """Dot products over many features are summed in blocks: one chain through all would be 3e-6 off."""
    p = problem(16, 20_000, 1, torch.float32, bias=None)
    p.x.abs_()
    p.u.abs_()
    p.final_abs = False  # y = x - 2 (w . x) w, and w . x is a sum of terms of one sign
    truth = Problem(p.x, p.u, None, p.dy, False).run(hanops.definition.reference.han_stack, torch.float64)
    yardstick = max(relative(run["y"], truth["y"]) for run in eager_runs(p))
    got = p.run(along(1, 16))
    assert relative(got["y"], truth["y"]) <= 2 * yardstick + 4 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("groups", [None, 3])
@pytest.mark.parametrize(("outer", "features", "inner"), [(9, 30, 70), (4, 200, 49), (300, 65, 2)])
def test_threads_give_the_same_sums(groups, outer, features, inner):
    before = torch.get_num_threads()
    for dtype in (torch.float32, torch.bfloat16):
        p = problem(outer * inner, features, 3, dtype, groups=groups)
        try:
            torch.set_num_threads(1)
            wanted = p.run(along(outer, inner))
            torch.set_num_threads(4)
            got = p.run(along(outer, inner))
        finally:
            torch.set_num_threads(before)
        for name, value in got.items():
            assert torch.equal(value, wanted[name]), name
