"""The registered ops: schemas, fakes, argument checks in C++ and in Python."""

from importlib.util import find_spec

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.library import opcheck

import hanops
from hanops.definition import checks

from . import emulation
from .accuracy import problem

ops_under_test = torch.ops.hanops
han_stack = ops_under_test.han_stack.default
SUFFIXES = ["", pytest.param("_torch", marks=pytest.mark.plain_torch), "_triton", "_cuda", "_differentiable"]
needs_expecttest = pytest.mark.skipif(find_spec("expecttest") is None, reason="opcheck needs expecttest")


def op_of(direction: str, suffix: str, device: torch.device) -> torch._ops.OpOverload:
    """Returns a registered op; that of the CUDA kernels runs on the CPU once their emulator is loaded."""
    if suffix == "_cuda" and device.type == "cpu":
        if not emulation.available():
            pytest.skip("the native code was not built here")
        emulation.load()
    return getattr(ops_under_test, f"han_stack_{direction}{suffix}").default


def sample(dtype=torch.float32, grad=False, **options):
    p = problem(6, 11, 3, dtype, **options)
    return [t.requires_grad_(grad) for t in p.inputs()], p


@needs_expecttest
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize("final_abs", [True, False])
def test_opcheck_stack(backend, device, grad, groups, final_abs):
    inputs, _ = sample(grad=grad, groups=groups, device=device)
    opcheck(han_stack, (*inputs, final_abs))
    opcheck(han_stack, (inputs[0], inputs[1], None, final_abs))


@needs_expecttest
@pytest.mark.parametrize("save", [2, True, False])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_opcheck_forward(dtype, save, suffix, device):
    inputs, _ = sample(dtype, device=device)
    op = op_of("forward", suffix, device)
    opcheck(op, (*(t.detach() for t in inputs), True, save))
    if suffix in ("", "_differentiable"):
        opcheck(op, (*(t.requires_grad_() for t in inputs), True, save))


@needs_expecttest
@pytest.mark.parametrize("needs", [[True, True, True], [True, False, False], [False, True, False]])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("half", [False, True])
def test_opcheck_backward(needs, suffix, half, device):
    inputs, p = sample(*([torch.bfloat16] if half else []), device=device)
    x, u, b = (t.detach() for t in inputs)
    y, signs = ops_under_test.han_stack_forward(x, u, b, True, 2 if half else 1)
    op = op_of("backward", suffix, device)
    opcheck(op, (p.dy, y if needs[1] else None, signs, u, b, True, needs))
    if suffix in ("", "_differentiable"):
        leaves = [t.detach().requires_grad_() for t in (p.dy, y, u, b)]
        opcheck(op, (leaves[0], leaves[1] if needs[1] else None, signs, *leaves[2:], True, needs))


def rows(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


BAD = {
    "integer x": ((rows(2, 4, dtype=torch.int64), rows(3, 4), None), TypeError, "x must be float64.*got torch.int64"),
    "complex x": ((rows(2, 4, dtype=torch.complex64), rows(3, 4), None), TypeError, "x must be .*got torch.complex64"),
    "other u": ((rows(2, 4), rows(3, 4, dtype=torch.float64), None), TypeError, "u must have the dtype of x .*float64"),
    "u of 1 axis": ((rows(2, 4), rows(4), None), ValueError, r"u must have shape \(layers, features\).*got \[4\]"),
    "u of 4 axes": ((rows(2, 4), rows(1, 1, 3, 4), None), ValueError, r"u must have shape.*got \[1, 1, 3, 4\]"),
    "no features": ((rows(2, 0), rows(3, 0), None), ValueError, r"u must have at least 1 feature, got shape \[3, 0\]"),
    "scalar x": ((rows(), rows(3, 4), None), ValueError, r"x must have shape \(\.\.\., features\), got \[\]"),
    "x without groups": ((rows(4), rows(2, 3, 4), None), ValueError, r"x must have shape \(groups, \.\.\., features\)"),
    "other features": (
        (rows(2, 5), rows(3, 4), None),
        ValueError,
        r"last axis of x must have u's 4 features.*\[2, 5\]",
    ),
    "other groups": (
        (rows(3, 4), rows(2, 3, 4), None),
        ValueError,
        r"first axis of x must have u's 2 groups.*\[3, 4\]",
    ),
    "b's dtype": ((rows(2, 4), rows(3, 4), rows(3, 4, dtype=torch.float16)), TypeError, "b must have the dtype of u"),
    "b's shape": ((rows(2, 4), rows(3, 4), rows(4)), ValueError, r"b must have the shape of u \(\[3, 4\]\), got \[4\]"),
    "u's device": (
        (rows(2, 4), rows(3, 4).to("meta"), None),
        ValueError,
        r"u must be on the device of x \(cpu\), got meta",
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input(backend, name):
    arguments, error, message = BAD[name]
    with pytest.raises(error, match=message) as raised:
        han_stack(*arguments)
    with pytest.raises(error) as from_python:
        checks.check_stack("x", *arguments)
    assert str(raised.value).splitlines()[0] == str(from_python.value)
    with torch.inference_mode(), pytest.raises(error, match=message):
        han_stack(*arguments)
    with pytest.raises(error, match=message):
        ops_under_test.han_stack_forward(*arguments, True, True)
    if "device" not in name:
        with FakeTensorMode() as mode:
            fakes = [None if t is None else mode.from_tensor(t) for t in arguments]
            with pytest.raises(error, match=message):
                han_stack(*fakes)


def test_bad_backward_input(backend, device):
    inputs, p = sample(device=device)
    x, u, b = (t.detach() for t in inputs)
    y, signs = ops_under_test.han_stack_forward(x, u, b, True, True)
    needs = [True, True, True]
    bad = {
        "y must be given where du is needed": (p.dy, None, signs),
        "y must have the shape and dtype of dy": (p.dy, y[:3], signs),
        "signs must be torch.uint8, got torch.int32": (p.dy, y, signs.int()),
        "signs must have shape": (p.dy, y, signs[:, :2]),
        "the last axis of dy": (p.dy[:, :5], y, signs),
    }
    for message, (dy, out, bits) in bad.items():
        with pytest.raises((TypeError, ValueError), match=message) as raised:
            ops_under_test.han_stack_backward(dy, out, bits, u, b, True, needs)
        with pytest.raises((TypeError, ValueError)) as from_python:
            checks.check_backward(dy, out, bits, u, b, True, needs)
        assert str(raised.value).splitlines()[0] == str(from_python.value)


def test_bad_layer_arguments():
    x, u = rows(2, 4), rows(3, 4)
    with pytest.raises(ValueError, match=r"han_layer: u must have shape \(features,\), got \[3, 4\]"):
        hanops.han_layer(x, u)
    with pytest.raises(ValueError, match=r"han_layer: b must have shape \(features,\), got \[3, 4\]"):
        hanops.han_layer(x, u[0], u)
    with pytest.raises(TypeError, match="positional arguments"):
        hanops.han_stack(x, u, None, False)


def test_meta_device():
    x, u = torch.empty(5, 2, 4, device="meta"), torch.empty(3, 4, device="meta", requires_grad=True)
    y = hanops.han_stack(x, u)
    assert y.shape == (5, 2, 4)
    y.sum().backward()
    assert u.grad.shape == (3, 4)
