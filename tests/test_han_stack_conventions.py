"""What the design defines, on every backend: zeros, bad rows, empty shapes, any strides, the same bits in every run."""

import pytest
import torch
from torch import Tensor

import hanops
from hanops.backends.native import native
from hanops.definition import reference

from .accuracy import Problem, assert_same, check, problem, relative, stack


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


@pytest.mark.skipif(native is None, reason="a promise of the kernels")
def test_a_row_does_not_depend_on_its_neighbours(dtype):
    p = problem(23, 75, 5, dtype)
    full = p.run(stack)
    for begin, end in ((0, 1), (3, 5), (7, 23)):
        part = Problem(p.x[begin:end], p.u, p.b, p.dy[begin:end]).run(stack)
        assert torch.equal(part["y"], full["y"][begin:end])
        assert torch.equal(part["dx"], full["dx"][begin:end])
