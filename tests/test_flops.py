"""Counters of operations: what torch's FlopCounterMode counts for the ops, and the hooks for other packages."""

import subprocess
import sys
import textwrap

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
import textwrap
{first}
assert ("torch.utils.flop_counter" in sys.modules) == ({first!r} != "import hanops")
import hanops
from torch.utils.flop_counter import FlopCounterMode, flop_registry
import torch
assert torch.ops.hanops.han_stack_backward in flop_registry
assert not any(getattr(finder, "name", None) == "torch.utils.flop_counter" for finder in sys.meta_path)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(("hooks", "attribute"), [("ptflops_hooks", "__flops__"), ("thop_hooks", "total_ops")])
def test_hooks_of_modules(hooks, attribute):
    """Both packages put an attribute on a module of a known type, and add to it in a forward hook."""
    for stack, layers in ((hanops.HanStack(8, 3, dim=1), 3), (hanops.HanLayer(8, dim=1), 1)):
        setattr(stack, attribute, 5)
        stack.register_forward_hook(getattr(hanops.metrics, hooks)()[type(stack)])
        stack(torch.randn(4, 8, 6))
        assert getattr(stack, attribute) == 5 + 2 * 4 * 8 * 6 * layers


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("groups", "shape"), [(None, (5, 7, 8)), (4, (4, 6, 8))])
def test_handles_of_ops(groups, shape):
    """fvcore traces a model, and gives a handle the inputs of a node of that name."""
    x = torch.randn(shape)
    graph, _ = torch.jit._get_trace_graph(hanops.HanStack(8, 3, groups=groups), x)
    ((name, handle),) = hanops.metrics.fvcore_handles().items()
    (node,) = (node for node in graph.nodes() if node.kind() == name)
    assert handle(list(node.inputs()), list(node.outputs())) == 2 * x.numel() * 3


def test_a_search_for_the_counter_before_its_import():
    """What looks for a module without importing it, as dependency checks do, does not use up what hanops waits for."""
    program = """
        import importlib.util, torch, hanops
        for name in ("torch.utils.flop_counter", "torch.nn.utils._expanded_weights"):
            assert importlib.util.find_spec(name) is not None
        from torch.utils.flop_counter import FlopCounterMode
        from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
        stack, x = hanops.HanStack(8, 2), torch.randn(3, 8)
        with FlopCounterMode(display=False) as counter:
            stack(x)
        assert counter.get_total_flops() == 4 * x.numel() * 2, counter.get_total_flops()
        call_for_per_sample_grads(stack)(x).sum().backward()
        assert stack.u.grad_sample.shape == (3, 2, 8)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
