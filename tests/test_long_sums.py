"""Gradients of parameters over very many rows: their error must not grow with the rows faster than eager float32's."""

import pytest
import torch
from accuracy import eager_runs, leave_kinks, problem, relative, stack

from hanops import reference


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
