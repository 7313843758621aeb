"""Results that a call gives before it reaches a kernel, or from parameters of odd strides: as the fakes say them."""

from importlib.util import find_spec

import pytest
import torch
from torch.library import opcheck

import hanops

from .test_ops import SUFFIXES, op_of

needs_expecttest = pytest.mark.skipif(find_spec("expecttest") is None, reason="opcheck needs expecttest")


def strided(layers: int, features: int, kind: str) -> torch.Tensor:
    if kind == "transposed":
        return torch.randn(features, layers).t()
    if kind == "every other":
        return torch.randn(layers, 2 * features)[:, ::2]
    return torch.randn(1, features).expand(layers, features)


@needs_expecttest
@pytest.mark.parametrize("kind", ["transposed", "every other", "one layer for all"])
@pytest.mark.parametrize(("rows", "layers"), [(0, 3), (4, 3), (4, 0), (0, 0)])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_strided_parameters(suffix, device, kind, rows, layers):
    u, b = (strided(layers, 6, kind) for _ in range(2))
    x, dy = torch.randn(6, rows).t(), torch.randn(6, rows).t()
    opcheck(op_of("forward", suffix, device), (x, u, b, True, True))
    y, signs = torch.ops.hanops.han_stack_forward(x, u, b, True, True)
    backward = op_of("backward", suffix, device)
    opcheck(backward, (dy, y, signs, u, b, True, [True] * 3))
    for result in backward(dy, y, signs, u, b, True, [True] * 3):
        assert result.is_contiguous()


@pytest.mark.usefixtures("undisturbed_compiler")
def test_compiled_empty_batch_with_strided_parameters(backend, device):
    u = torch.randn(6, 3, device=device).t().requires_grad_()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(x):
        return hanops.han_stack(x, u).sum()

    loss(torch.randn(0, 6, device=device)).backward()
    assert torch.equal(u.grad, torch.zeros(3, 6, device=device))
