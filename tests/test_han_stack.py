"""The stack against the float64 reference, on every backend: values and gradients of all sizes and dtypes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hanops
from hanops.backends.native import native
from hanops.definition import reference

from .accuracy import ABSOLUTES, Problem, assert_same, check, problem, relative, stack


@pytest.mark.parametrize("features", [1, 7, 30, 127, 200, 333, 784, 1000, 1025, 4097])
def test_widths(backend, device, dtype, features, interpreted):
    rows = 3 if interpreted and features > 500 else 19
    check(stack, problem(rows, features, 3, dtype, device=device))


@pytest.mark.parametrize("rows", [1, 3, 199])
@pytest.mark.parametrize("absolutes", ABSOLUTES)
def test_rows(backend, device, dtype, rows, absolutes):
    final_abs, abs = ABSOLUTES[absolutes]
    check(stack, problem(rows, 40, 5, dtype, final_abs=final_abs, abs=abs, device=device))


@pytest.mark.parametrize(
    ("rows", "features"),
    [(16, 64), (17, 1), (17, 7), (64, 33), (100, 30), (100, 63), (199, 31), (199, 32)],
)
@pytest.mark.parametrize("layers", [1, 18])
def test_narrow(backend, device, dtype, rows, features, layers, interpreted):
    """Enough rows for the CPU's kernel with rows in the lanes, and enough layers for its sign words to be exchanged."""
    layers = min(layers, 3) if interpreted else layers
    check(stack, problem(rows, features, layers, dtype, final_abs=rows % 2 == 0, device=device))
    check(stack, problem(rows, features, layers, dtype, abs=False, device=device))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("absolutes", ABSOLUTES)
@pytest.mark.parametrize("bias", [None, 0.3])
def test_shallow(backend, device, dtype, layers, absolutes, bias):
    final_abs, abs = ABSOLUTES[absolutes]
    check(stack, problem(9, 21, layers, dtype, final_abs=final_abs, abs=abs, bias=bias, device=device))


def test_deep(backend, device, dtype, interpreted, emulated, record_property):
    rows, layers = 16 if emulated else 48, 30 if interpreted else 1000
    record_property("rows on a kink", check(stack, problem(rows, 64, layers, dtype, bias=0.07, device=device)))


def test_deep_without_abs(backend, device, dtype, interpreted, emulated):
    rows, layers = 16 if emulated else 48, 30 if interpreted else 1000
    check(stack, problem(rows, 64, layers, dtype, bias=0.07, abs=False, device=device))


@pytest.mark.parametrize("features", [127, 200, 333, 784, 1000, 1025, 4097])
def test_widths_without_abs(backend, device, features, interpreted):
    """Of every tile on a GPU: they have kernels of their own there."""
    rows = 3 if interpreted and features > 500 else 19
    check(stack, problem(rows, features, 3, torch.float32, abs=False, device=device))


def test_seven_layers_of_333(backend, device, dtype, interpreted):
    check(stack, problem(19 if interpreted else 199, 333, 7, dtype, device=device))


def test_biases_dwarf_the_input(backend, device, dtype):
    check(stack, problem(64, 64, 4, dtype, bias=1.0, scale=0.01, device=device))


@pytest.mark.parametrize("storage", [torch.float64, torch.bfloat16, torch.float16])
def test_float32_parameters(backend, device, storage):
    check(stack, problem(33, 50, 6, storage, parameters=torch.float32, device=device))


@pytest.mark.parametrize(("groups", "rows"), [(1, 5), (3, 37), (5, 1)])
def test_grouped(backend, device, dtype, groups, rows, interpreted):
    p = problem(rows, 30, 4, dtype, groups=groups, device=device)
    check(stack, p)
    got = p.run(stack)
    for g in {0, groups // 2, groups - 1} if interpreted else range(groups):
        one = Problem(p.x[g], p.u[g], p.b[g], p.dy[g]).run(stack)
        for name, value in one.items():
            assert_same(got[name][g], value, exactly=backend == "cpu" and name == "y")


@pytest.mark.parametrize("features", [5000, 8193, 16384, 20000])
@pytest.mark.parametrize("absolutes", ABSOLUTES)
def test_wide_rows(backend, device, features, absolutes):
    """Wider than what a GPU's registers hold, for all or for du and db."""
    final_abs, abs = ABSOLUTES[absolutes]
    check(stack, problem(2, features, 2, torch.float32, final_abs=final_abs, abs=abs, device=device))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_wide_grouped_rows(backend, device, dtype):
    check(stack, problem(2, 17000, 2, dtype, groups=2, device=device))


def test_widest_rows(backend, device, interpreted):
    p = problem(1, 65536, 2, torch.float32, device=device)
    p.u.requires_grad_(not interpreted)
    y = hanops.han_stack(p.x, p.u, p.b)
    torch.testing.assert_close(y, reference.han_stack(p.x, p.u, p.b))
    if not interpreted:
        (du,) = torch.autograd.grad(y, p.u, p.dy)
        (wanted,) = torch.autograd.grad(reference.han_stack(p.x, p.u, p.b), p.u, p.dy)
        assert relative(du, wanted.double()) < 1e-5


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
@pytest.mark.parametrize("features", [5000, 17000])
def test_needs_of_wide_rows(backend, device, features, needs):
    p = problem(2, features, 2, torch.float32, device=device)
    y, signs = torch.ops.hanops.han_stack_forward_torch(p.x, p.u, p.b, True, True)
    arguments = (p.dy, y, signs, p.u, p.b, True, list(map(bool, needs)))
    got = torch.ops.hanops.han_stack_backward(*arguments)
    wanted = torch.ops.hanops.han_stack_backward_torch(*arguments)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 70),
    features=st.integers(2, 90),
    layers=st.integers(1, 9),
    groups=st.one_of(st.none(), st.integers(1, 3)),
    final_abs=st.booleans(),
    bias=st.sampled_from([None, 0.0, 0.5]),
)
def test_any_shape(rows, features, layers, groups, final_abs, bias):
    p = problem(rows, features, layers, torch.float32, groups=groups, final_abs=final_abs, bias=bias)
    if bias == 0.0:
        p.b.zero_()
    check(stack, p)


def test_rounding_after_every_layer_is_caught(dtype):
    """The tolerance means something: a stack that rounds to bfloat16 between layers fails it, in every dtype."""

    def careless(x, u, b, final_abs):
        for layer in range(u.shape[-2]):
            one = slice(layer, layer + 1)
            x = stack(x, u[one], b[one], True)
            x = x + (x.detach().to(torch.bfloat16).to(x.dtype) - x.detach()) if dtype != torch.bfloat16 else x
        return x

    with pytest.raises(AssertionError, match="error"):
        check(careless, problem(199, 333, 7, dtype))


@pytest.mark.parametrize(("rows", "features", "layers"), [(70, 2, 9), (1, 3, 20), (16, 33, 4)])
def test_a_wrong_gradient_of_one_layer_is_caught(rows, features, layers):
    """The same of few features, of which float32 errs more, and of one group, however short the other one's u is."""

    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u):
            return u.view_as(u)

        @staticmethod
        def backward(ctx, du):
            du = du.clone()
            du[1, du[1].norm(dim=-1).argmax()] *= 1 + 1e-4  # a layer whose gradient does not cancel
            return du

    def careless(x, u, b, final_abs):
        return stack(x, Spoilt.apply(u), b, final_abs)

    for shorter in (1.0, 1e-3):
        p = problem(rows, features, layers, torch.float32, groups=2)
        p.u.copy_(torch.ones(features) + 0.5 * torch.randn(p.u.shape))
        p.u[0] *= shorter
        check(stack, p)
        with pytest.raises(AssertionError, match=r"du\[\d+\] of group 1"):
            check(careless, p)


def test_gradcheck(backend, device, interpreted):
    for final_abs in (True, False):
        p = problem(4, 6, 3, torch.float64, final_abs=final_abs, device=device)
        torch.autograd.gradcheck(lambda *t: stack(*t, final_abs=p.final_abs), p.inputs(), fast_mode=interpreted)
        p = problem(3, 5, 2, torch.float64, groups=2, bias=None, final_abs=final_abs, device=device)
        torch.autograd.gradcheck(lambda x, u: stack(x, u, None, p.final_abs), p.inputs(), fast_mode=interpreted)


INSTRUCTION_SETS = native.build_info()["instruction_sets"] if native else []


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_instruction_sets(instruction_set):
    """Each instruction set below this machine's passes the same tests, in a process that is told to use it."""
    order = ["DEFAULT", "AVX2", "AVX512"]
    running = native.build_info()["instruction_set"]
    if order.index(instruction_set) >= order.index(running):
        pytest.skip(f"{instruction_set} is what this process runs, or more than the machine has")
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": instruction_set.lower()}
    tests = ("widths", "rows", "narrow", "shallow", "grouped", "needs", "strides", "sign_bit_layout", "bad_rows")
    selected = f"(cpu and ({' or '.join('test_' + name for name in tests)})) or test_sign_bit_layout"
    files = sorted(str(file) for file in Path(__file__).parent.glob("test_han_stack*.py"))
    script = (  # the hanops of this process, which pytest is to import
        f"import sys; sys.path[0] = {str(Path(hanops.__file__).parent.parent)!r};"
        f"import pytest; status = pytest.main([*{files!r}, '-q', '-x', '-p', 'no:cacheprovider', '-k', {selected!r}]);"
        "from hanops.backends.native import native;"
        f"assert native.build_info()['instruction_set'] == {instruction_set!r};"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
