"""torch's FlopCounterMode counts the ops: two operations for each multiply-add that the formulas of the maths have."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import hanops


def count(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(("groups", "shape"), [(None, (5, 7, 8)), (4, (4, 6, 8))])
def test_forward_and_backward(groups, shape):
    stack, x = hanops.HanStack(8, 3, groups=groups), torch.randn(shape, requires_grad=True)
    layers = x.numel() * 3
    with torch.no_grad():
        assert count(lambda: stack(x)) == 4 * layers
    with torch.inference_mode():
        assert count(lambda: hanops.han_stack(x, stack.u, stack.b)) == 4 * layers
    assert count(lambda: stack(x)) == 4 * layers
    assert count(lambda: stack(x).sum().backward()) == (4 + 12) * layers
    stack.u.requires_grad_(False)
    assert count(lambda: stack(x).sum().backward()) == (4 + 4) * layers


def test_beside_what_torch_counts():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), hanops.HanStack(8, 2))
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(5, 8))
    assert counter.get_total_flops() == 2 * 5 * 8 * 8 + 4 * 5 * 8 * 2
    assert counter.get_flop_counts()["Sequential.2"] == {torch.ops.hanops.han_stack_forward: 4 * 5 * 8 * 2}


@pytest.mark.parametrize("first", ["import hanops", "import torch.utils.flop_counter"])
def test_any_order_of_imports(first):
    """The counter imports Triton, so hanops does not import it."""
    program = f"""
import sys
{first}
assert ("torch.utils.flop_counter" in sys.modules) == ({first!r} != "import hanops")
import hanops
from torch.utils.flop_counter import FlopCounterMode, flop_registry
import torch
assert torch.ops.hanops.han_stack_backward in flop_registry
assert not any(type(finder).__module__ == "hanops._flops" for finder in sys.meta_path)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
