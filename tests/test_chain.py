"""Chains of reflections: stacks without absolute values, the inverse of every stack, and orthogonal matrices."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, hessian, jacrev, jvp, vmap
from torch.nn.utils import parametrize

import hanops
from hanops.definition import reference

from .accuracy import ABSOLUTES, activations, assert_same, near_kinks, problem, relative
from .compatibility import Recorder

F64 = torch.float64


def inputs(*lead: int, dtype: torch.dtype = F64, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    x, u, b = (torch.randn(*lead, n, 6, dtype=dtype, device=device) for n in (5, 4, 4))
    return x, u, b


def chain(x: Tensor, u: Tensor, b: Tensor | None = None) -> Tensor:
    return hanops.han_stack(x, u, b, activation=None)


def truth(x: Tensor, u: Tensor, b: Tensor | None = None) -> Tensor:
    return reference.han_stack(x, u, b, abs=False)


# ---- activation=None


def test_a_chain_keeps_no_bits(backend, device):
    x, u, b = (t.requires_grad_() for t in inputs(dtype=torch.float32, device=device))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t), Recorder() as recorder:
        y = chain(x, u, b)
        y.sum().backward()
    rows = [t for t in kept if t.shape[:-1] != u.shape[:-1]]
    assert sum(t.numel() * t.element_size() for t in rows) == y.numel() * 4
    assert [name for name, _ in recorder.han()] == ["han_stack_forward", "han_stack_backward"]


def test_a_chain_is_linear(backend, device):
    x, u, b = inputs(device=device)
    y = chain(x, u, b) - chain(torch.zeros_like(x), u, b)
    torch.testing.assert_close(y, chain(x, u))
    torch.testing.assert_close(chain(-2 * x, u), -2 * chain(x, u))
    torch.testing.assert_close(chain(x, u).norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("lead", [(), (2,)])
def test_every_derivative(backend, device, interpreted, lead):
    leaves = [t.requires_grad_() for t in inputs(*lead, device=device)]
    torch.autograd.gradcheck(chain, leaves, fast_mode=interpreted, check_forward_ad=True)
    torch.autograd.gradgradcheck(chain, leaves, fast_mode=True)
    torch.autograd.gradgradcheck(chain, leaves[:2], fast_mode=True)


def test_transforms(backend, device):
    x, u, b = inputs(device=device)
    batch = torch.stack((u, -u.roll(1, 0)))

    def loss_of(stack: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *tensors: stack(*tensors).pow(3).sum()

    def results(stack: Callable[..., Tensor]) -> list[Any]:
        loss = loss_of(stack)
        return [
            grad(loss, (0, 1, 2))(x, u, b),
            jacrev(grad(loss, 0), 1)(x, u, b),
            hessian(loss, 1)(x, u, b),
            jvp(loss, (x, u, b), (x, b, u)),
            vmap(grad(loss, (0, 1, 2)), (0, None, None))(x, u, b),
            vmap(grad(loss, (0, 1)), (None, 0, None))(x, batch, b),
        ]

    torch.testing.assert_close(results(chain), results(truth))


def test_modules(backend, device):
    for kind, arguments in ((hanops.HanStack, (6, 3)), (hanops.HanLayer, (6,))):
        for dim, groups in product((-1, 1), (None, 2)):
            module = kind(*arguments, dim=dim, groups=groups, activation=None, dtype=F64, device=device)
            shape = (2, 6, 6) if groups is None else (2, 6, 3, 6)
            x = torch.randn(shape, dtype=F64, device=device)
            if groups is not None and dim == 1:
                x = x[:, :, :, :3]
            y = module(x)
            wanted = truth(x.movedim(dim, -1), module.u, module.b).movedim(-1, dim)
            torch.testing.assert_close(y, wanted)
            torch.testing.assert_close(module.inverse(y), x)
            assert "activation=None" in repr(module)
            assert "activation" not in repr(kind(*arguments))


def test_old_modules_have_an_activation():
    """A module that was pickled by 0.1 has no such attribute."""
    stack = hanops.HanStack(4, 2)
    vars(stack).pop("activation")
    assert copy.deepcopy(stack).activation == "abs"
    assert torch.equal(stack(torch.ones(1, 4)), hanops.han_stack(torch.ones(1, 4), stack.u, stack.b))


def test_scripted_traced_compiled_and_exported(undisturbed_compiler):
    for module in (hanops.HanStack(6, 3, activation=None), hanops.HanStack(6, 3, dim=1, activation=None)):
        x = torch.randn(2, 6, 6)
        wanted = module(x)
        scripted = torch.jit.script(module)
        memory = io.BytesIO()
        torch.jit.save(scripted, memory)
        memory.seek(0)
        program = torch.export.export(module, (x,)).run_decompositions(hanops.decompositions())
        ways = {
            "script": scripted,
            "script, saved": torch.jit.load(memory),
            "fx": torch.fx.symbolic_trace(module),
            "compile": torch.compile(module, fullgraph=True),
            "export": program.module(),
        }
        for name, way in ways.items():
            torch.testing.assert_close(way(x), wanted, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("call", [hanops.han_stack, hanops.han_layer, hanops.han_stack_inverse])
def test_another_activation_is_refused(call):
    u = torch.ones(3) if call is hanops.han_layer else torch.ones(2, 3)
    for activation in ("relu", "Abs", "", False, 1):
        with pytest.raises(ValueError, match=f"activation must be 'abs' or None, got {activation!r}"):
            call(torch.ones(2, 3), u, activation=activation)


def test_what_modules_refuse():
    with pytest.raises(ValueError, match="HanStack: activation must be 'abs' or None, got 'relu'"):
        hanops.HanStack(4, 2, activation="relu")
    with pytest.raises(ValueError, match="HanLayer: final_abs must not be given where activation is None, got False"):
        hanops.HanLayer(4, activation=None, final_abs=False)


def test_old_calls_of_the_module_and_the_op_mean_what_they_meant():
    x, u, b = inputs(dtype=torch.float32)
    assert torch.equal(hanops.han_stack(x, u, b), torch.ops.hanops.han_stack(x, u, b))
    assert torch.equal(hanops.han_stack(x, u, b, final_abs=False), torch.ops.hanops.han_stack(x, u, b, False))


# ---- inverses


@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("absolutes", ABSOLUTES)
@pytest.mark.parametrize("bias", [True, False])
def test_inverse(backend, device, dtype, lead, absolutes, bias):
    final_abs, abs = ABSOLUTES[absolutes]
    x, u, b = inputs(*lead, dtype=dtype, device=device)
    b = b if bias else None
    options = {"final_abs": final_abs, "activation": "abs" if abs else None}
    y, signs = hanops.han_stack(x, u, b, return_signs=True, **options)
    # a GPU's compiler may order float64's sums otherwise where bits are kept
    assert_same(y, hanops.han_stack(x, u, b, **options), exactly=device.type == "cpu")
    back = hanops.han_stack_inverse(y, u, b, signs=signs if abs else None, **options)
    assert back.dtype == x.dtype
    growth = max(1.0, (y.double().norm() / x.double().norm()).item())
    assert relative(back, x.double()) < 16 * growth * torch.finfo(dtype).eps


@pytest.mark.parametrize("abs", [True, False])
def test_inverse_is_differentiable(abs):
    x, u, b = inputs()
    activation = "abs" if abs else None
    y, signs = hanops.han_stack(x, u, b, activation=activation, return_signs=True)
    leaves = [t.detach().clone().requires_grad_() for t in (y, u, b)]

    def inverse(y: Tensor, u: Tensor, b: Tensor) -> Tensor:
        return hanops.han_stack_inverse(y, u, b, activation=activation, signs=signs if abs else None)

    torch.autograd.gradcheck(inverse, leaves)
    torch.autograd.gradgradcheck(inverse, leaves, fast_mode=True)


def test_signs_with_gradients():
    """The bits come with a y that has a derivative, and have none."""
    x, u, b = (t.requires_grad_() for t in inputs())
    y, signs = hanops.han_stack(x, u, b, return_signs=True)
    assert y.requires_grad
    assert not signs.requires_grad
    wanted = torch.autograd.grad(hanops.han_stack(x, u, b).sum(), (x, u, b))
    torch.testing.assert_close(torch.autograd.grad(y.sum(), (x, u, b)), wanted)


def test_what_inverses_refuse():
    x, u, b = inputs()
    y, signs = hanops.han_stack(x, u, b, return_signs=True)
    with pytest.raises(ValueError, match="signs must be given where the activation is 'abs', got None"):
        hanops.han_stack_inverse(y, u, b)
    with pytest.raises(ValueError, match="signs must be None where the activation is None"):
        hanops.han_stack_inverse(y, u, b, activation=None, signs=signs)
    with pytest.raises(ValueError, match="the last axis of y must have u's 6 features, got shape"):
        hanops.han_stack_inverse(y[:, :5], u, b)
    with pytest.raises(ValueError, match="signs must have shape"):
        hanops.han_stack_inverse(y, u, b, signs=signs[:, :1])
    with pytest.raises(ValueError, match="HanStack: x must have an axis 2"):
        hanops.HanStack(6, 2, dim=2, activation=None).inverse(y)


# ---- orthogonal matrices


@pytest.mark.parametrize("columns", [None, 0, 1, 6])
@pytest.mark.parametrize("lead", [(), (2,)])
def test_orthogonal(backend, device, dtype, lead, columns):
    x, u, _ = inputs(*lead, dtype=dtype, device=device)
    q = hanops.orthogonal(u, columns)
    assert q.shape == (*lead, 6, 6 if columns is None else columns)
    tolerance = {"rtol": 0, "atol": 8 * torch.finfo(dtype).eps}
    torch.testing.assert_close(q.double(), truth_of_orthogonal(u)[..., :columns], **tolerance)
    whole = hanops.orthogonal(u).double()
    torch.testing.assert_close(chain(x.double(), u.double()), x.double() @ whole, rtol=0, atol=64 * tolerance["atol"])


def truth_of_orthogonal(u: Tensor) -> Tensor:
    """The product of the reflections, written out."""
    q = torch.eye(u.shape[-1], dtype=F64, device=u.device)
    for layer in range(u.shape[-2]):
        w = reference.unit(u.double()[..., layer, :]).unsqueeze(-1)
        q = q @ (torch.eye(u.shape[-1], dtype=F64, device=u.device) - 2 * w @ w.mT)
    return q


@pytest.mark.parametrize("lead", [(), (2,)])
def test_gradients_of_orthogonal(lead):
    _, u, _ = inputs(*lead)
    u.requires_grad_()
    torch.autograd.gradcheck(lambda u: hanops.orthogonal(u, 3), u)
    torch.autograd.gradgradcheck(lambda u: hanops.orthogonal(u, 3), u, fast_mode=True)


def test_against_householder_product():
    """torch's own, whose vectors are 0 above the diagonal, where they have a 1, and are not normalised."""
    matrix = torch.randn(7, 5, dtype=F64)
    packed, scales = torch.geqrf(matrix)
    v = packed.tril(-1) + torch.eye(7, 5, dtype=F64)
    wanted = torch.linalg.householder_product(packed, scales)
    torch.testing.assert_close(hanops.orthogonal(v.mT.contiguous(), 5), wanted)


def test_what_orthogonal_refuses():
    with pytest.raises(TypeError, match="orthogonal: u must be a Tensor, got NoneType"):
        hanops.orthogonal(None)
    with pytest.raises(TypeError, match=r"orthogonal: columns must be an int, got 1\.5"):
        hanops.orthogonal(torch.ones(2, 3), 1.5)
    for columns in (-1, 4):
        with pytest.raises(ValueError, match=f"orthogonal: columns must be from 0 to u's 3 features, got {columns}"):
            hanops.orthogonal(torch.ones(2, 3), columns)
    with pytest.raises(ValueError, match=r"orthogonal: u must have shape \(layers, features\) or"):
        hanops.orthogonal(torch.ones(3))


# ---- the parametrization


@pytest.mark.parametrize("shape", [(6, 6), (6, 3), (3, 6), (2, 5, 4), (2, 4, 5), (1, 1), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_parametrized_weight_is_orthogonal_and_keeps_its_value(shape, dtype):
    module = nn.Module()
    start = torch.empty(shape, dtype=dtype)
    for matrix in start if len(shape) == 3 else [start]:
        nn.init.orthogonal_(matrix)
    module.weight = nn.Parameter(start.clone())
    parametrize.register_parametrization(module, "weight", hanops.Householder())
    torch.testing.assert_close(module.weight, start)
    tall = module.weight.mT if shape[-2] < shape[-1] else module.weight
    identity = torch.eye(min(shape[-2:]), dtype=dtype).expand_as(tall.mT @ tall)
    torch.testing.assert_close(tall.mT @ tall, identity)
    other = start.flip(-1)
    module.weight = other
    torch.testing.assert_close(module.weight, other)
    assert module.weight.requires_grad


@pytest.mark.parametrize("shape", [(4, 4), (5, 2)])
def test_signed_identities_can_be_represented_and_left(shape):
    """Matrices whose reflectors LAPACK leaves out: each column is still reflected, so that a gradient comes through."""
    for flips in product((1.0, -1.0), repeat=shape[1]):
        linear = nn.Linear(shape[1], shape[0], bias=False, dtype=F64)
        start = torch.eye(*shape, dtype=F64) * torch.tensor(flips, dtype=F64)
        parametrize.register_parametrization(linear, "weight", hanops.Householder())
        linear.weight = start
        torch.testing.assert_close(linear.weight, start)
        (linear.weight * torch.randn(shape, dtype=F64)).sum().backward()
        assert (linear.parametrizations.weight.original.grad.abs().amax(-1) > 0).all()


def test_any_matrix_starts_from_its_qr_decomposition():
    linear = nn.Linear(4, 6, dtype=F64)
    q, r = torch.linalg.qr(linear.weight.detach())
    parametrize.register_parametrization(linear, "weight", hanops.Householder())
    torch.testing.assert_close(linear.weight, q * r.diagonal().sign())


def test_a_parametrized_weight_trains_saves_and_loads():
    torch.manual_seed(0)
    target = nn.init.orthogonal_(torch.empty(8, 5))
    linear = parametrize.register_parametrization(nn.Linear(5, 8, bias=False), "weight", hanops.Householder())
    optimizer = torch.optim.Adam(linear.parameters(), 0.05)
    losses = []
    for _ in range(200):
        loss = (linear.weight - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]
    torch.testing.assert_close(linear.weight.mT @ linear.weight, torch.eye(5))
    other = parametrize.register_parametrization(nn.Linear(5, 8, bias=False), "weight", hanops.Householder())
    other.load_state_dict(linear.state_dict())
    torch.testing.assert_close(other.weight, linear.weight)
    torch.testing.assert_close(copy.deepcopy(linear).weight, linear.weight)


def test_what_the_parametrization_refuses():
    for shape in ((3,), (2, 2, 3, 3)):
        module = nn.Module()
        module.weight = nn.Parameter(torch.zeros(shape))
        with pytest.raises(ValueError, match="Householder: the tensor must have shape"):
            parametrize.register_parametrization(module, "weight", hanops.Householder())


def test_problem_of_a_chain_has_no_kink():
    p = problem(9, 8, 3, F64, abs=False)
    assert not near_kinks(p, activations(p)).any()
