"""Derivatives of the ops where there are no layers, no rows, or no gradients to give."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

ops = torch.ops.hanops


@pytest.mark.parametrize("needs", [[True] * 3, [True, False, False], [False, True, True], [False, True, False]])
@pytest.mark.parametrize(("rows", "layers"), [(4, 0), (0, 0), (0, 2)])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
def test_gradcheck_of_the_backward(backend, device, needs, rows, layers, fast):
    dy, u, b = (torch.randn(n, 6, dtype=torch.float64, device=device) for n in (rows, layers, layers))
    y, signs = ops.han_stack_forward(dy, u, b, True, True)

    def backward(*tensors):
        results = ops.han_stack_backward(tensors[0], tensors[1], signs, *tensors[2:], True, needs)
        return tuple(result for result, need in zip(results, needs, strict=True) if need)

    inputs = tuple(t.clone().requires_grad_() for t in (dy, y, u, b))
    assert gradcheck(backward, inputs, fast_mode=fast)
    assert gradgradcheck(backward, inputs, fast_mode=fast)
