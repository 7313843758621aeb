"""The stack against the float64 reference, on every backend: values, gradients, and what the design defines."""

import os
import subprocess
import sys

import pytest
import torch
from accuracy import Problem, check, problem, relative
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import hanops
from hanops import reference

forward = torch.ops.hanops.han_stack_forward
backward = torch.ops.hanops.han_stack_backward


def stack(x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool = True) -> Tensor:
    return hanops.han_stack(x, u, b, final_abs=final_abs)


def assert_same(value: Tensor, other: Tensor, exactly: bool) -> None:
    """Asserts that two results of one computation agree: bit for bit, or but for the order of their sums."""
    arithmetic = reference.arithmetic_dtype(value.dtype)
    bound = 0.0 if exactly else torch.finfo(value.dtype).eps + 64 * torch.finfo(arithmetic).eps
    assert relative(value, other.double()) <= bound


# ---- accuracy


@pytest.mark.parametrize("features", [1, 7, 30, 127, 200, 333, 784, 1000, 1025, 4097])
def test_widths(backend, device, dtype, features, interpreted):
    rows = 3 if interpreted and features > 500 else 19
    check(stack, problem(rows, features, 3, dtype, device=device))


@pytest.mark.parametrize("rows", [1, 3, 199])
@pytest.mark.parametrize("final_abs", [True, False])
def test_rows(backend, device, dtype, rows, final_abs):
    check(stack, problem(rows, 40, 5, dtype, final_abs=final_abs, device=device))


@pytest.mark.parametrize(
    ("rows", "features"),
    [(16, 64), (17, 1), (17, 7), (64, 33), (100, 30), (100, 63), (199, 31), (199, 32)],
)
@pytest.mark.parametrize("layers", [1, 18])
def test_narrow(backend, device, dtype, rows, features, layers, interpreted):
    """Enough rows for the CPU's kernel with rows in the lanes, and enough layers for its sign words to be exchanged."""
    layers = min(layers, 3) if interpreted else layers
    check(stack, problem(rows, features, layers, dtype, final_abs=rows % 2 == 0, device=device))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("final_abs", [True, False])
@pytest.mark.parametrize("bias", [None, 0.3])
def test_shallow(backend, device, dtype, layers, final_abs, bias):
    check(stack, problem(9, 21, layers, dtype, final_abs=final_abs, bias=bias, device=device))


def test_deep(backend, device, dtype, interpreted, record_property):
    layers = 30 if interpreted else 1000
    record_property("rows on a kink", check(stack, problem(48, 64, layers, dtype, bias=0.07, device=device)))


def test_seven_layers_of_333(backend, device, dtype, interpreted):
    check(stack, problem(19 if interpreted else 199, 333, 7, dtype, device=device))


def test_biases_dwarf_the_input(backend, device, dtype):
    check(stack, problem(64, 64, 4, dtype, bias=1.0, scale=0.01, device=device))


@pytest.mark.parametrize("storage", [torch.float64, torch.bfloat16, torch.float16])
def test_float32_parameters(backend, device, storage):
    check(stack, problem(33, 50, 6, storage, parameters=torch.float32, device=device))


@pytest.mark.parametrize(("groups", "rows"), [(1, 5), (3, 37), (5, 1)])
def test_grouped(backend, device, dtype, groups, rows):
    p = problem(rows, 30, 4, dtype, groups=groups, device=device)
    check(stack, p)
    got = p.run(stack)
    for g in range(groups):
        one = Problem(p.x[g], p.u[g], p.b[g], p.dy[g]).run(stack)
        for name, value in one.items():
            assert_same(got[name][g], value, exactly=backend == "cpu" and name == "y")


@pytest.mark.parametrize("features", [5000, 8193, 16384, 20000])
@pytest.mark.parametrize("final_abs", [True, False])
def test_wide_rows(backend, device, features, final_abs):
    """Wider than what a GPU's registers hold, for all or for du and db."""
    check(stack, problem(2, features, 2, torch.float32, final_abs=final_abs, device=device))


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
    y, signs = torch.ops.hanops.han_stack_forward_reference(p.x, p.u, p.b, True, True)
    arguments = (p.dy, y, signs, p.u, p.b, True, list(map(bool, needs)))
    got = torch.ops.hanops.han_stack_backward(*arguments)
    wanted = torch.ops.hanops.han_stack_backward_reference(*arguments)
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


def test_gradcheck(backend, device, interpreted):
    for final_abs in (True, False):
        p = problem(4, 6, 3, torch.float64, final_abs=final_abs, device=device)
        torch.autograd.gradcheck(lambda *t: stack(*t, final_abs=p.final_abs), p.inputs(), fast_mode=interpreted)
        p = problem(3, 5, 2, torch.float64, groups=2, bias=None, final_abs=final_abs, device=device)
        torch.autograd.gradcheck(lambda x, u: stack(x, u, None, p.final_abs), p.inputs(), fast_mode=interpreted)


INSTRUCTION_SETS = hanops.ops.native.build_info()["instruction_sets"] if hanops.ops.native else []


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_instruction_sets(instruction_set):
    """Each instruction set below this machine's passes the same tests, in a process that is told to use it."""
    order = ["DEFAULT", "AVX2", "AVX512"]
    running = hanops.ops.native.build_info()["instruction_set"]
    if order.index(instruction_set) >= order.index(running):
        pytest.skip(f"{instruction_set} is what this process runs, or more than the machine has")
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": instruction_set.lower()}
    tests = ("widths", "rows", "narrow", "shallow", "grouped", "needs", "strides", "sign_bit_layout", "bad_rows")
    selected = f"(cpu and ({' or '.join('test_' + name for name in tests)})) or test_sign_bit_layout"
    script = (
        "import sys, pytest, hanops;"
        f"assert hanops.ops.native.build_info()['instruction_set'] == {instruction_set!r};"
        f"sys.exit(pytest.main([{__file__!r}, '-q', '-x', '-p', 'no:cacheprovider', '-k', {selected!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- conventions


def test_derivative_at_zero_is_the_sign_bit(backend, device):
    z = torch.tensor([[0.0, -0.0, 1.0, -1.0]], device=device).repeat(17, 1)
    x, u = z.clone().requires_grad_(), torch.zeros(1, 4, device=device)
    hanops.han_stack(x, u).sum().backward()
    assert x.grad.tolist() == [[1.0, -1.0, 1.0, -1.0]] * 17


def test_zero_reflector_is_the_identity(backend, device, dtype):
    p = problem(5, 12, 3, dtype, device=device)
    p.u[1] = 0
    check(stack, p)
    got = p.run(stack)
    assert got["du"][1].abs().max() == 0
    p.u.zero_()
    p.b.zero_()
    assert torch.equal(stack(p.x, p.u, p.b), p.x.abs())


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_of_u_does_not_matter(backend, device, scale):
    p = problem(7, 20, 4, torch.float32, device=device)
    before = p.run(stack)
    p.u *= scale
    after = p.run(stack)
    after["du"] = after["du"].double() * scale
    for name, value in after.items():
        assert relative(value, before[name].double()) < 1e-5, name


def test_scale_of_float64_u_does_not_matter(backend, device):
    p = problem(7, 20, 4, torch.float64, device=device)
    before = p.run(stack)
    for scale in (1e-300, 1e300):
        q = Problem(p.x, p.u * scale, p.b, p.dy)
        assert relative(q.run(stack)["y"], before["y"]) < 1e-13


@pytest.mark.parametrize(("rows", "features"), [(11, 40), (37, 30)])
def test_bad_rows_stay_alone(backend, device, dtype, rows, features):
    p = problem(rows, features, 3, dtype, device=device)
    clean = p.run(stack)
    p.x[4, 7], p.x[6, 0] = float("nan"), float("inf")
    dirty = p.run(stack)
    others = [i for i in range(rows) if i not in (4, 6)]
    assert torch.equal(dirty["y"][others], clean["y"][others])
    assert torch.equal(dirty["dx"][others], clean["dx"][others])
    assert dirty["du"].isnan().all()
    eager = reference.han_stack(p.x, p.u, p.b)
    assert torch.equal(dirty["y"][[4, 6]].isnan(), eager[[4, 6]].isnan())


def test_overflow_is_that_of_the_eager_formula(backend, device):
    x = torch.full((1, 5), 3e38, device=device)
    x[0, 3] = 0
    u = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0]], device=device)
    for layers in (1, 2):
        got, eager = stack(x, u[:layers], None), reference.han_stack(x, u[:layers])
        assert torch.equal(got.isnan(), eager.isnan())
        assert torch.equal(got.isinf(), eager.isinf())


@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8)])
def test_empty_batch(backend, device, shape):
    x = torch.randn(shape, device=device, requires_grad=True)
    u, b = (torch.randn(4, 8, device=device, requires_grad=True) for _ in range(2))
    y = stack(x, u, b)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert u.grad.shape == b.grad.shape == (4, 8)
    assert u.grad.abs().sum() == b.grad.abs().sum() == 0


def test_no_groups(backend, device):
    x, u = torch.randn(0, 3, 8, device=device), torch.randn(0, 4, 8, device=device)
    assert stack(x, u, None).shape == (0, 3, 8)


def test_no_layers_is_a_copy(backend, device, dtype):
    x = torch.randn(3, 8, device=device).to(dtype).requires_grad_()
    u = torch.empty(0, 8, device=device, dtype=dtype, requires_grad=True)
    y = stack(x, u, None)
    assert torch.equal(y, x)
    assert y.data_ptr() != x.data_ptr()
    y.backward(torch.ones_like(y))
    assert torch.equal(x.grad, torch.ones_like(x))
    assert u.grad.shape == (0, 8)


@pytest.mark.parametrize("shape", [(8,), (2, 3, 8), (1, 1, 2, 8)])
def test_leading_shapes(backend, device, shape):
    p = problem(6, 8, 3, torch.float32, device=device)
    rows = torch.randn(shape, device=device)
    y = stack(rows, p.u, p.b)
    assert y.shape == shape
    torch.testing.assert_close(y.reshape(-1, 8), stack(rows.reshape(-1, 8), p.u, p.b))


# ---- memory layouts


def layouts(rows: int, features: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    def new(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    return {
        "column-major": new(features, rows).t(),
        "every other column": new(rows, 2 * features)[:, ::2],
        "every other row": new(2 * rows, features)[::2],
        "one row for all": new(1, features).expand(rows, features),
        "one number for all": new(1, 1).expand(rows, features),
        "axes swapped": new(2, features, rows // 2).transpose(1, 2),
        "batch swapped": new(rows // 2, 2, features).transpose(0, 1),
        "unaligned": new(rows * features + 1)[1:].view(rows, features),
    }


@pytest.mark.parametrize("name", list(layouts(2, 1, torch.float32, torch.device("cpu"))))
@pytest.mark.parametrize(("rows", "features"), [(6, 35), (38, 30)])
def test_strides(backend, device, dtype, name, rows, features):
    x = layouts(rows, features, dtype, device)[name]
    dy = layouts(rows, features, dtype, device)[name]
    p = problem(rows, features, 3, dtype, device=device)
    got = Problem(x, p.u, p.b, dy).run(stack)
    packed = Problem(x.contiguous(), p.u, p.b, dy.contiguous()).run(stack)
    for key, value in got.items():
        assert_same(value, packed[key], exactly=backend == "cpu")
    assert got["y"].is_contiguous()


def test_grouped_strides(backend, device):
    p = problem(5, 9, 2, torch.float32, groups=4, device=device)
    x = p.x.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(stack(x, p.u, p.b), stack(p.x.contiguous(), p.u, p.b))
    shared = p.x[:1].expand(4, -1, -1)
    torch.testing.assert_close(stack(shared, p.u, p.b), stack(shared.contiguous(), p.u, p.b))


def test_strided_parameters(backend, device):
    p = problem(5, 9, 2, torch.float32, device=device)
    u, b = (torch.randn(9, 2, device=device).t() for _ in range(2))
    torch.testing.assert_close(stack(p.x, u, b), stack(p.x, u.contiguous(), b.contiguous()))


def test_more_than_two_to_the_31_elements(backend, device):
    if device.type == "cpu" and backend != "cpu":
        pytest.skip("minutes long in plain torch, and hours in an interpreter")
    features = 1024
    rows = 2**31 // features + 8
    x = torch.randn(1, features, dtype=torch.bfloat16, device=device).expand(rows, features)
    torch.use_deterministic_algorithms(False)  # poisoning 4 GiB takes longer than the test
    y = stack(x, torch.randn(1, features, dtype=torch.bfloat16, device=device), None)
    assert torch.equal(y[-1], y[0])
    assert torch.equal(y[rows // 2], y[0])


# ---- what is computed, what is kept


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)])
@pytest.mark.parametrize(("rows", "features", "layers"), [(21, 133, 4), (37, 30, 18)])
def test_needs(backend, device, needs, rows, features, layers):
    p = problem(rows, features, layers, torch.float32, device=device)
    full = p.run(stack)
    inputs = [t.requires_grad_(bool(need)) for t, need in zip(p.inputs(), needs, strict=True)]
    stack(*inputs).backward(p.dy)
    for t, need, name in zip(inputs, needs, ("dx", "du", "db"), strict=True):
        if need:
            torch.testing.assert_close(t.grad, full[name])
        else:
            assert t.grad is None


def saved_storages(run) -> dict[int, int]:
    """Returns the bytes of each distinct storage that autograd keeps for `run()`, parameters left out."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if not isinstance(t, torch.nn.Parameter):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        run()
    return kept


def test_saved_bytes():
    device = "cpu"
    rows, features, depth = 64, 256, 16
    module = hanops.HanStack(features, depth, device=device)
    x = torch.randn(rows, features, device=device, requires_grad=True)
    bits = rows * features * depth // 8
    assert sum(saved_storages(lambda: module(x)).values()) == x.nbytes + bits
    module.u.requires_grad_(False)  # u frozen: the bits alone
    assert sum(saved_storages(lambda: module(x)).values()) == bits
    with torch.no_grad():
        assert not saved_storages(lambda: module(x))
    assert not saved_storages(lambda: hanops.HanLayer(8, final_abs=False).requires_grad_(False)(x[:, :8].detach()))


@pytest.mark.parametrize("rows", [3, 37])
def test_no_bits_without_gradient(backend, device, rows):
    p = problem(rows, 8, 2, torch.float32, device=device)
    y, signs = forward(p.x, p.u, p.b, True, False)
    assert signs.numel() == 0
    z, signs = forward(p.x, p.u, p.b, True, True)
    assert torch.equal(y, z)
    assert signs.shape == (rows, 2, 1)
    assert forward(p.x, p.u, p.b, False, True)[1].shape == (rows, 1, 1)


def test_sign_bit_layout():
    """Bit j of byte i is column 8 i + j, on every backend of the device: any backward reads any forward."""
    p = problem(5, 21, 3, torch.float64)
    by_backend = {}
    for name in ("auto", "reference"):
        with hanops.use_backend(name):
            by_backend[name] = forward(p.x, p.u, p.b, True, True)
    signs = by_backend["auto"][1]
    assert torch.equal(signs, by_backend["reference"][1])
    z = stack(p.x, p.u[:1], p.b[:1], False)
    for column in range(21):
        assert torch.equal(signs[:, 0, column // 8].bitwise_right_shift(column % 8) & 1, (z[:, column] < 0).byte())


@pytest.mark.parametrize("features", [7, 16, 21, 30, 40, 64])
def test_sign_bit_layout_of_every_layer(features):
    p = problem(37, features, 18, torch.float32)
    signs = forward(p.x, p.u, p.b, True, True)[1]
    bits = (signs.unsqueeze(-1) >> torch.arange(8)) & 1
    for layer in range(18):
        z = stack(p.x, p.u[: layer + 1], p.b[: layer + 1], False)
        assert torch.equal(bits[:, layer].flatten(1)[:, :features], z.signbit().byte())
        assert bits[:, layer].flatten(1)[:, features:].sum() == 0


# ---- autograd


def test_second_backward_gives_the_same(backend, device):
    p = problem(9, 16, 3, torch.float32, device=device)
    inputs = p.inputs()
    y = stack(*inputs)
    first = torch.autograd.grad(y, inputs, p.dy, retain_graph=True)
    second = torch.autograd.grad(y, inputs, p.dy)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, inputs, p.dy)


def test_changing_the_output_in_place_is_caught(backend, device):
    p = problem(9, 16, 3, torch.float32, device=device)
    y = stack(*p.inputs())
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_undefined_gradients_are_zero(backend, device):
    p = problem(3, 8, 2, torch.float32, device=device)
    x, u, b = p.inputs()
    y = stack(x, u, b)
    (y.detach() + 0 * y).sum().backward()
    assert u.grad.abs().max() == 0


# ---- the same bits


@pytest.mark.parametrize("features", [96, 30])
def test_same_bits_for_any_number_of_threads(dtype, features):
    before = torch.get_num_threads()
    p = problem(700, features, 6, dtype)
    results = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(p.run(stack))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, value in other.items():
            assert torch.equal(value, results[0][name]), name


@pytest.mark.skipif(hanops.ops.native is None, reason="a promise of the kernels")
def test_a_row_does_not_depend_on_its_neighbours(dtype):
    p = problem(23, 75, 5, dtype)
    full = p.run(stack)
    for begin, end in ((0, 1), (3, 5), (7, 23)):
        part = Problem(p.x[begin:end], p.u, p.b, p.dy[begin:end]).run(stack)
        assert torch.equal(part["y"], full["y"][begin:end])
        assert torch.equal(part["dx"], full["dx"][begin:end])


# ---- training


def losses(backend: str, device: torch.device, steps: int) -> list[float]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 16), hanops.HanStack(16, depth=4), torch.nn.Linear(16, 1))
    x = torch.rand(64, 2) * 2 - 1
    target = torch.sign(x.prod(dim=1, keepdim=True))
    model, x, target = model.to(device), x.to(device), target.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    history = []
    with hanops.use_backend(backend):
        for _ in range(steps):
            loss = (model(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
    return history


def test_training_goes_alike_on_all_backends(backend, device):
    """50 steps, and the losses stay with those of plain torch to float32 rounding."""
    got, wanted = losses(backend, device, 50), losses("reference", device, 50)
    assert wanted[-1] < wanted[0]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(wanted), rtol=1e-4, atol=1e-5)
