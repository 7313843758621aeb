"""HanStack's derivatives of every order, and torch.func's transforms: rows of docs/compatibility.md."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

import hanops
from hanops.definition import reference

from .compatibility import F64, Recorder, close, network, row, stacks, truth_of

pytestmark = pytest.mark.usefixtures("undisturbed_compiler")


def loss_of(stack: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns a loss of (x, u, b) whose second derivatives are all nonzero."""

    def loss(x: Tensor, u: Tensor, b: Tensor) -> Tensor:
        y = stack(x, u, b)
        return (y.square() * torch.arange(y.numel(), dtype=y.dtype, device=y.device).view(y.shape)).sum()

    return loss


def against_truth(derive: Callable[[Callable[..., Tensor]], Any]) -> None:
    """Asserts that `derive(stack)` is the same for han_stack and for the reference, in float64."""
    close(derive(hanops.han_stack), derive(reference.han_stack), 1e-10)


@row("Derivatives", "`gradcheck` and `gradgradcheck` in float64, single and grouped")
def test_gradgradcheck(backend, device, interpreted):
    for lead, final_abs in [((2,), False)] if interpreted else product(((), (2,)), (True, False)):
        inputs = [t.requires_grad_() for t in stacks(device, F64, *lead)]

        def stack(x: Tensor, u: Tensor, b: Tensor | None = None) -> Tensor:
            return hanops.han_stack(x, u, b, final_abs=final_abs)

        torch.autograd.gradcheck(stack, inputs, fast_mode=interpreted, check_forward_ad=True)
        torch.autograd.gradgradcheck(stack, inputs, fast_mode=True)
        torch.autograd.gradgradcheck(stack, inputs[:2], fast_mode=True)


@row("Derivatives", "gradient penalties: a loss of the input's gradient, in the kernels")
def test_gradient_penalty(backend, device):
    model = network().to(device)

    def penalty(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        x = x.detach().requires_grad_()
        (dx,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        loss = (dx.norm(dim=-1) - 1).square().sum()
        return torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)

    x = torch.randn(7, 4, device=device)
    close(penalty(model, x), penalty(truth_of(model), x.double()))
    stack = hanops.HanStack(8, 3, device=device)
    x = torch.randn(7, 8, device=device, requires_grad=True)
    (dx,) = torch.autograd.grad(stack(x).sum(), x, create_graph=True)
    with Recorder() as recorder:
        torch.autograd.grad(dx.square().sum(), stack.u)
    assert [name for name, _ in recorder.han()] == ["han_stack_backward"] * 2


@row("Derivatives", "Hessian-vector products, in x, u and b; third derivatives")
def test_hessian_vector_products(backend, device):
    inputs, v = stacks(device), stacks(device)

    def products(stack: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in inputs]
        first = torch.autograd.grad(loss_of(stack)(*leaves), leaves, create_graph=True)
        second = torch.autograd.grad(first, leaves, v, create_graph=True)
        return [*second, *torch.autograd.grad(second, leaves, v)]

    against_truth(products)


@row("Derivatives", "`torch.func.grad`, `vjp` and nested `grad`")
def test_func_grad(backend, device):
    x, u, b = stacks(device)
    against_truth(lambda s: grad(loss_of(s), (0, 1, 2))(x, u, b))
    against_truth(lambda s: vjp(s, x, u, b)[1](x))
    against_truth(lambda s: grad(lambda u: grad(loss_of(s), 1)(x, u, b).square().sum())(u))


@row("Derivatives", "`jacrev`, `jacfwd`, `jvp`, `torch.func.hessian`; forward mode runs in plain torch")
def test_jacobians(backend, device):
    x, u, b = stacks(device)
    v = tuple(stacks(device))
    against_truth(lambda s: jacrev(lambda *t: s(*t), (0, 1, 2))(x, u, b))
    against_truth(lambda s: jacfwd(lambda *t: s(*t), (0, 1, 2))(x, u, b))
    against_truth(lambda s: jvp(lambda *t: s(*t), (x, u, b), v))
    against_truth(lambda s: jvp(lambda *t: grad(loss_of(s), (0, 1, 2))(*t), (x, u, b), v))
    against_truth(lambda s: hessian(loss_of(s), 1)(x, u, b))


@row("Derivatives", "forward mode in a dual level that was entered from C, as the graphs of `torch.compile` do")
def test_dual_level_entered_from_c(backend, device):
    x, u, b = stacks(device)
    v = stacks(device)
    level = torch._C._enter_dual_level()
    try:
        duals = [torch._VF._make_dual(t, tangent, level=level) for t, tangent in zip((x, u, b), v, strict=True)]
        got = torch._VF._unpack_dual(hanops.han_stack(*duals), level=level)
    finally:
        torch._C._exit_dual_level(level=level)
    close(list(got), jvp(reference.han_stack, (x, u, b), tuple(v)), 1e-10)


@row("Transforms", "`vmap` over x: one call, the axis joins the rows")
def test_vmap_over_x(backend, device):
    x, u, b = stacks(device)
    xs = torch.stack([x, x + 1, -x])
    with Recorder() as recorder:
        vmap(hanops.han_stack, (0, None, None))(xs, u, b)
    assert recorder.han() == [("han_stack_forward", [(3, 5, 6), (3, 6), (3, 6)])]
    against_truth(lambda s: vmap(lambda *t: s(*t), (0, None, None))(xs, u, b))
    against_truth(lambda s: vmap(lambda *t: s(*t), (1, None, None))(xs.movedim(0, 1), u, b))
    groups = [t.unsqueeze(0).repeat(2, 1, 1) for t in (u, b)]
    against_truth(lambda s: vmap(lambda *t: s(*t), (0, None, None))(torch.stack([xs, xs + 1], 1), *groups))


@row("Transforms", "`vmap` over parameters, alone or with x: one call of the grouped kernel")
def test_vmap_over_parameters(backend, device):
    x, u, b = stacks(device)
    us, bs, xs = (torch.stack([t, t + 1, -t]) for t in (u, b, x))
    cases = {"u": (None, 0, None), "b": (None, None, 0), "u, b": (None, 0, 0), "x, u, b": (0, 0, 0)}
    for name, dims in cases.items():
        inputs = [many if dim == 0 else one for dim, many, one in zip(dims, (xs, us, bs), (x, u, b), strict=True)]
        with Recorder() as recorder:
            vmap(hanops.han_stack, dims)(*inputs)
        assert recorder.han() == [("han_stack_forward", [(3, 5, 6), (3, 3, 6), (3, 3, 6)])], name
        against_truth(lambda s: vmap(lambda *t: s(*t), dims)(*inputs))
        against_truth(lambda s: vmap(grad(loss_of(s), (0, 1, 2)), dims)(*inputs))
        against_truth(lambda s: vmap(grad(lambda *t: grad(loss_of(s), 1)(*t).square().sum()), dims)(*inputs))
    grouped = [torch.stack([t, 1 - t], 1) for t in (xs, us, bs)]  # a batch of grouped stacks
    against_truth(lambda s: vmap(lambda *t: s(*t))(*grouped))
    against_truth(lambda s: vmap(grad(loss_of(s), (0, 1, 2)), (None, 0, None))(grouped[0][0], us, bs[0]))
    nested = vmap(vmap(hanops.han_stack, (0, None, None)), (None, 0, 0))
    with Recorder() as recorder:
        nested(xs, us, bs)
    assert recorder.han() == [("han_stack_forward", [(3, 3, 5, 6), (3, 3, 6), (3, 3, 6)])]


@row("Transforms", "per-sample gradients: `vmap(grad(...))` over rows, one call of the grouped kernel")
def test_per_sample_gradients(backend, device):
    model = hanops.HanStack(8, 3, device=device)
    x = torch.randn(5, 8, device=device)

    def per_sample(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
            return functional_call(model, parameters, (row,)).square().mul(torch.arange(8, device=device)).sum()

        parameters = {name: p.detach() for name, p in model.named_parameters()}
        return vmap(grad(loss), (None, 0))(parameters, x)

    close(per_sample(model, x), per_sample(truth_of(model), x.double()))
    with Recorder() as recorder:
        per_sample(model, x)
    backwards = [shapes for name, shapes in recorder.han() if name == "han_stack_backward"]
    assert [shapes[0] for shapes in backwards] == [(5, 8)]
    assert (5, 3, 8) in backwards[0]


@row(
    "Transforms",
    "per-sample gradients by ExpandedWeights (`call_for_per_sample_grads`), in one call too; also of groups",
)
def test_expanded_weights(backend, device):
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    def check(model: nn.Module, x: Tensor, axis: int = 0) -> None:
        wide = truth_of(model)
        parameters = {name: p.detach() for name, p in wide.named_parameters()}
        weights = torch.arange(x.shape[-1], device=device)

        def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
            return (functional_call(wide, parameters, (row,)).square() * weights).sum()

        du, dx = vmap(grad(loss, (0, 1)), (None, axis))(parameters, x.double())
        for reduction, factor in (("sum", 1), ("mean", x.shape[axis])):
            leaf = x.clone().requires_grad_()
            y = call_for_per_sample_grads(model, loss_reduction=reduction, batch_first=axis == 0)(leaf)
            with Recorder() as recorder:
                (y.square() * weights).sum().backward()
            assert [name for name, _ in recorder.han()] == ["han_stack_backward"]
            got = {name: p.grad_sample / factor for name, p in model.named_parameters() if p.requires_grad}
            close((got, leaf.grad), ({name: du[name] for name in got}, dx.movedim(0, axis)))
            for p in model.parameters():
                p.grad_sample = None

    x = torch.randn(5, 8, device=device)
    check(hanops.HanStack(8, 3, device=device), x)
    check(hanops.HanStack(8, 3, bias=False, final_abs=False, device=device), torch.randn(5, 2, 8, device=device))
    grouped = hanops.HanStack(8, 3, groups=2, device=device)
    for shape in ((2, 5, 8), (2, 5, 3, 8)):
        check(grouped, torch.randn(shape, device=device), axis=1)
    grouped.u.requires_grad_(False)
    check(grouped, torch.randn(2, 5, 8, device=device), axis=1)
    with pytest.raises(ValueError, match=r"x must have 2 samples in its second axis .* pass batch_first=False"):
        call_for_per_sample_grads(grouped)(torch.randn(2, 5, 8, device=device))
    with pytest.raises(ValueError, match=r"x must have an axis of samples before its features, got shape \[8\]"):
        call_for_per_sample_grads(hanops.HanStack(8, 3, device=device))(x[0])

    class ByName(nn.Module):
        """A module of a user's own, which calls `han_layer`."""

        def __init__(self, u: Tensor, b: Tensor) -> None:
            super().__init__()
            self.u, self.b = nn.Parameter(u.detach()), nn.Parameter(b.detach())

        def forward(self, x: Tensor) -> Tensor:
            return hanops.han_layer(x, self.u, b=self.b)

    layer = hanops.HanLayer(8, device=device)
    one = ByName(layer.u[0], layer.b[0])
    for module in (layer, one):
        call_for_per_sample_grads(module)(x).square().sum().backward()
    close([p.grad_sample.unsqueeze(1) for p in one.parameters()], [p.grad_sample for p in layer.parameters()])
    with pytest.raises(ValueError, match=r"han_layer: u must have shape \(features,\), got \[1, 8\]"):
        call_for_per_sample_grads(ByName(layer.u, layer.b))(x)


@row("Transforms", "the same under `torch.autocast`")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_expanded_weights_under_autocast(backend, device, dtype):
    """As `HanStack` itself; parameters of the other half dtype are widened."""
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    model, x = hanops.HanStack(8, 3, dtype=dtype, device=device), torch.randn(5, 8, dtype=dtype, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        wanted = torch.autograd.grad(model(x).float().square().sum(), list(model.parameters()))
        leaf = x.clone().requires_grad_()
        y = call_for_per_sample_grads(model)(leaf)
        y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert leaf.grad.dtype == dtype
    close([p.grad_sample.sum(0) for p in model.parameters()], wanted, 0.01)


@row("Transforms", "`functional_call`, and ensembles by `stack_module_state`")
def test_ensembles(backend, device):
    models = [network().to(device) for _ in range(3)]
    x = torch.randn(6, 4, device=device)

    def predict(models: list[nn.Module], x: Tensor) -> Tensor:
        parameters, buffers = stack_module_state(models)
        base = copy.deepcopy(models[0])
        return vmap(lambda p, s: functional_call(base, (p, s), (x,)))(parameters, buffers)

    wide = [truth_of(model) for model in models]
    close(predict(models, x), torch.stack([model(x.double()) for model in wide]))
    with Recorder() as recorder:
        predict(models, x)
    assert len(recorder.han()) == 2
