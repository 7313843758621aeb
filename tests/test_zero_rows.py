"""A row whose dy is 0 everywhere adds exactly 0 to du and db, whatever its y holds: an overflow that a loss skips."""

import pytest
import torch

from .accuracy import problem


# sums in one kernel, in a kernel of their own, and rows in memory
@pytest.mark.only("cuda", "triton")
@pytest.mark.parametrize(
    ("dtype", "features"),
    [(torch.float16, 40), (torch.float16, 4100), (torch.float16, 16390), (torch.float64, 4100)],
    ids=str,
)
def test_rows_without_a_gradient(backend, device, dtype, features, interpreted):
    groups = 1 if interpreted and features > 16384 else 2  # rows of two groups are in memory at 4100, of float64
    p = problem(5, features, 2, dtype, groups=groups, device=device)
    p.dy[..., [1, 4], :] = 0
    y, signs = torch.ops.hanops.han_stack_forward(p.x, p.u, p.b, True, True)
    spoiled = y.clone()
    spoiled[..., 1, :] = float("inf")
    spoiled[..., 4, ::3] = float("nan")

    def gradients(y, rows):
        dy, y, bits = (t[..., rows, :].contiguous() for t in (p.dy, y, signs.flatten(-2)))
        bits = bits.unflatten(-1, signs.shape[-2:])
        return torch.ops.hanops.han_stack_backward(dy, y, bits, p.u, p.b, True, [True, True, True])

    every, first = slice(None), slice(4)
    dx, du, db = gradients(spoiled, every)
    assert torch.isfinite(du).all()
    assert du.any()
    assert not dx[..., [1, 4], :].any()
    wanted = gradients(y, every)
    assert torch.equal(dx, wanted[0])
    for alone in (wanted, gradients(spoiled, first)):
        assert torch.equal(du, alone[1])
        assert torch.equal(db, alone[2])
