"""The definition itself, against the paper's formula written out, and its own conventions."""

import torch

from hanops.definition import reference


def test_formula():
    x, u, b = torch.randn(5, 4, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64), torch.randn(1, 4).double()
    householder = torch.eye(4, dtype=torch.float64) - 2 * u.T @ u / (u @ u.T)
    torch.testing.assert_close(reference.han_stack(x, u, b), (x @ householder + b).abs())
    torch.testing.assert_close(reference.han_stack(x, u, b, final_abs=False), x @ householder + b)


def test_jacobian_is_orthogonal():
    u, b = torch.randn(9, 12, dtype=torch.float64), torch.randn(9, 12, dtype=torch.float64)
    for x in (torch.randn(12, dtype=torch.float64), torch.zeros(12, dtype=torch.float64)):
        jacobian = torch.autograd.functional.jacobian(lambda t: reference.han_stack(t, u, b), x)
        torch.testing.assert_close(jacobian @ jacobian.T, torch.eye(12, dtype=torch.float64))


def test_gradcheck():
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 6), (3, 6), (3, 6))]
    torch.autograd.gradcheck(reference.han_stack, inputs)
    torch.autograd.gradgradcheck(reference.han_stack, inputs)


def test_unit_is_scale_safe():
    u = torch.randn(3, 5)
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(reference.unit(u * scale), reference.unit(u))
    assert torch.equal(reference.unit(torch.zeros(2, 5)), torch.zeros(2, 5))


def test_absolute_has_the_derivative_of_the_sign_bit():
    z = torch.tensor([0.0, -0.0, 2.0, -2.0], requires_grad=True)
    (grad,) = torch.autograd.grad(reference.absolute(z).sum(), z)
    assert grad.tolist() == [1.0, -1.0, 1.0, -1.0]


def test_grouped_equals_a_loop():
    x, u, b = torch.randn(3, 2, 5, 8), torch.randn(3, 4, 8), torch.randn(3, 4, 8)
    together = reference.han_stack(x, u, b)
    torch.testing.assert_close(together, torch.stack([reference.han_stack(x[g], u[g], b[g]) for g in range(3)]))
