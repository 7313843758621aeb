"""hanops.metrics.growth: how rows grow through a stack, and the error that rebuilding them leaves in du."""

from __future__ import annotations

import pytest
import torch

import hanops
from hanops.definition import reference

from .accuracy import Problem, leave_kinks

# name: layers, size of x, and the biases: each case of docs/maths.md's formula
CASES = {
    "small biases": (20, 1.0, lambda layers: 0.3 * torch.randn(layers, 64)),
    "biases of 1": (20, 1.0, lambda layers: torch.ones(layers, 64)),
    "biases of 1, deep": (200, 1.0, lambda layers: torch.ones(layers, 64)),
    "biases dwarf the input": (20, 0.01, lambda layers: 0.3 * torch.randn(layers, 64)),
    "a last bias of 1000": (
        20,
        1.0,
        lambda layers: torch.cat([0.3 * torch.randn(layers - 1, 64), torch.full((1, 64), 1e3)]),
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("exact", [True, False])
def test_the_error_that_is_told_is_the_one_that_comes(case, dtype, exact):
    layers, scale, biases = CASES[case]
    stack = hanops.HanStack(64, layers)
    stack.b.data.copy_(biases(layers))
    x, dy = (scale * torch.randn(512, 64)).to(dtype), torch.randn(512, 64).to(dtype)
    leave_kinks(Problem(x, stack.u.detach(), stack.b.detach(), dy))
    y = hanops.han_stack(x, stack.u, stack.b, exact=exact)
    (du,) = torch.autograd.grad(y, stack.u, dy)
    u = stack.u.detach().double().requires_grad_()
    truth = reference.han_stack(x.double(), u, stack.b.double())
    (wanted,) = torch.autograd.grad(truth, u, dy.double())
    error = (du - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    growth = hanops.metrics.growth(stack, x)
    torch.testing.assert_close(growth.sizes[-1], truth.detach().norm(), rtol=1e-4, atol=0)
    told = growth.du_error(dtype, exact)
    assert told.shape == (layers,)
    first, told = error[0].item(), told[0].item()
    assert told / 3 < first < 3 * told, f"error {first:.1e}, told {told:.1e}, growth {growth.ratios[0]:.0f}"


@pytest.mark.parametrize("options", [{}, {"final_abs": False}, {"activation": None}, {"bias": False}])
@pytest.mark.parametrize("groups", [None, 2])
def test_sizes(options, groups):
    stack = hanops.HanStack(6, 3, groups=groups, dtype=torch.float64, dim=-2, **options)
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    growth = hanops.metrics.growth(stack, x)
    y = stack(x)
    ends = [t.norm() if groups is None else t.flatten(1).norm(dim=-1) for t in (x, y)]
    torch.testing.assert_close(growth.sizes[..., [0, -1]], torch.stack(ends, -1).detach())
    assert growth.ratios.shape == ((3,) if groups is None else (2, 3))
    if stack.b is None:
        torch.testing.assert_close(growth.ratios, torch.ones_like(growth.ratios))


def test_no_layers():
    growth = hanops.metrics.growth(hanops.HanStack(6, 0), torch.randn(4, 6))
    assert growth.ratios.shape == growth.du_error(torch.bfloat16).shape == (0,)


@pytest.mark.parametrize(("dim", "shape"), [(-1, (5, 7)), (1, (5,))])
def test_growth_refuses_a_wrong_shape(dim, shape):
    wanted = rf"growth: x must have the stack's 8 features along axis {dim}, got shape \[{', '.join(map(str, shape))}\]"
    with pytest.raises(ValueError, match=wanted):
        hanops.metrics.growth(hanops.HanStack(8, 2, dim=dim), torch.zeros(shape))
