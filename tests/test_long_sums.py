"""Gradients of parameters over very many rows: their error must not grow with the rows faster than eager float32's."""

import pytest
import torch

from hanops.definition import reference
from hanops.definition.signs import signs_shape

from .accuracy import eager_runs, leave_kinks, problem, relative, stack


@pytest.mark.only("cuda", "triton", "cpu", interpreted=False)
@pytest.mark.parametrize(("features", "layers"), [(2, 1), (33, 2)])
def test_sums_over_many_rows(backend, device, features, layers):
    """2^20 rows on a GPU; the rows run through the kernel's partial sums for hundreds of tiles."""
    rows = (1 << 20 if device.type == "cuda" else 65_537) * 2 // features
    p = problem(rows, features, layers, torch.float32, device=device)
    _, silenced = leave_kinks(p)
    assert silenced <= rows / 1000
    truth = p.run(reference.han_stack, torch.float64)
    eager, got = eager_runs(p), p.run(stack)
    for name in ("du", "db"):
        yardstick = max(relative(run[name], truth[name]) for run in eager)
        error = relative(got[name], truth[name])
        bound = 2 * yardstick + 4 * torch.finfo(torch.float32).eps
        assert error <= bound, f"{name}: error {error:.2e}, eager {yardstick:.2e}"


# one term in a tile of Triton's, and many tiles for each of its programs
@pytest.mark.only("cuda", "triton")
@pytest.mark.parametrize(
    ("features", "every", "rows", "rows_on_gpu"), [(2, 64, 1 << 15, 1 << 24), (4100, 8, 3 << 7, 1 << 15)]
)
def test_small_terms_after_a_large_one(backend, device, features, every, rows, rows_on_gpu):
    """One added after another to 2^24 would be lost: so are those of the first tiles, whatever the number of rows."""
    rows = rows_on_gpu if device.type == "cuda" else rows
    dy = torch.zeros(rows, features, device=device)
    dy[::every, 1] = 1
    dy[0, 1] = 2**24
    y = torch.full_like(dy, 0.5)
    signs = torch.empty(signs_shape(dy, 0), dtype=torch.uint8, device=device)
    u = torch.zeros(1, features, device=device)
    u[0, 0] = 1  # du = 2 y_0 dy in column 1
    _, *sums = torch.ops.hanops.han_stack_backward(dy, y, signs, u, None, False, [False, True, True])
    wanted = dy[:, 1].double().sum()
    for t in sums:
        assert abs(t[0, 1].double() - wanted) <= 40
        assert t.count_nonzero() == 1
