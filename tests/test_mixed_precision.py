"""HanStack in half precision, by its inputs and by autocast: rows of docs/compatibility.md."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hanops
from hanops.definition import reference

from .compatibility import F64, Recorder, close, gradients, row, truth_of

pytestmark = pytest.mark.usefixtures("undisturbed_compiler")
HALVES = [torch.bfloat16, torch.float16]


@row("Mixed precision", "half activations with float32 parameters: no casts")
@pytest.mark.parametrize("half", HALVES)
def test_half_activations(backend, device, half):
    model = hanops.HanStack(16, 3, device=device)
    x = torch.randn(9, 16, device=device).to(half)
    with Recorder() as recorder:
        results = gradients(model, x)
    assert recorder.han()
    assert [r.dtype for r in results] == [half, half, torch.float32, torch.float32]
    casts = [shapes for name, shapes in recorder.calls if name in ("_to_copy", "copy_")]
    assert not [shapes for shapes in casts if (3, 16) in shapes or (9, 16) in shapes]
    close(results, gradients(truth_of(model), x.double()), 3 * torch.finfo(half).eps)


@row("Mixed precision", "`torch.autocast`: x is cast, u and b are not; float64 stays")
@pytest.mark.parametrize("half", HALVES)
def test_autocast(backend, device, half):
    model = nn.Sequential(nn.Linear(4, 16), hanops.HanStack(16, 3), nn.Linear(16, 2)).to(device)
    x = torch.randn(9, 4, device=device)
    seen: list[list[torch.dtype]] = []
    model[1].register_forward_hook(lambda _, inputs, output: seen.append([inputs[0].dtype, output.dtype]))
    with torch.autocast(device.type, half):
        dtypes = [r.dtype for r in gradients(model, x)]
        stack = model[1]
        wide = torch.randn(3, 16, device=device)
        assert stack(wide).dtype == model[0](x).dtype == half
        assert hanops.han_stack(wide.double(), stack.u.double()).dtype == F64
        with torch.autocast(device.type, enabled=False):
            assert stack(wide).dtype == torch.float32
    assert seen[0] == [half, half]
    assert dtypes == [half] + [torch.float32] * 7
    rows = torch.randn(9, 16, device=device).to(half)  # as autocast rounds them: no kink lies between
    with torch.autocast(device.type, half):
        results = gradients(stack, rows.float())
    close(results, gradients(truth_of(stack), rows.double()), 3 * torch.finfo(half).eps)


@row("Mixed precision", "`torch.autocast` to one half dtype with parameters of the other: they are widened")
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("dim", [-1, 1])
def test_autocast_of_the_other_half(backend, device, half, dim):
    other = next(dtype for dtype in HALVES if dtype != half)
    stack = hanops.HanStack(8, 3, dim=dim, dtype=other, device=device)
    x = torch.randn(9, 8, 5, device=device).movedim(1, dim).bfloat16().to(other)  # exact in both: no kink lies between
    with torch.autocast(device.type, half):
        y, *grads = gradients(stack, x)
        assert hanops.han_stack(x, stack.u, stack.b, dim=dim, return_signs=True)[0].dtype == half
    assert y.dtype == half
    assert [g.dtype for g in grads] == [other] * 3
    close([y, *grads], gradients(truth_of(stack), x.double()), 0.05)


@row("Mixed precision", "`torch.autocast` with `return_signs=True`: the signs of the cast output, which undo it")
@pytest.mark.parametrize("half", HALVES)
def test_autocast_with_signs(backend, device, half):
    """The signs of a call are those of the output that it gives without them."""
    stack, x = hanops.HanStack(16, 3, device=device), torch.randn(9, 16, device=device)
    with torch.autocast(device.type, half):
        y, signs = hanops.han_stack(x, stack.u, stack.b, return_signs=True)
        back = stack.inverse(y, signs)
        assert torch.equal(y, stack(x))
        assert hanops.han_stack(x.double(), stack.u, stack.b, return_signs=True)[0].dtype == F64
    assert y.dtype == back.dtype == half
    torch.testing.assert_close(back.float(), x, atol=0.05, rtol=0.05)


@row("Mixed precision", "`torch.autocast`: inverses, `orthogonal` and `Householder` keep their dtypes")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("groups", [None, 2])
def test_autocast_of_chains(backend, device, groups, compiled):
    stack = hanops.HanStack(8, 3, activation=None, groups=groups, device=device)
    linear = nn.Linear(8, 8, device=device)
    nn.utils.parametrize.register_parametrization(linear, "weight", hanops.Householder())
    y = torch.randn(*stack.u.shape[:-2], 5, 8, device=device)

    def chains() -> tuple[torch.Tensor, ...]:
        return stack.inverse(y), stack.inverse(y.bfloat16()), hanops.orthogonal(stack.u), linear.weight

    plain = chains()
    with torch.autocast(device.type, torch.bfloat16):
        results = (torch.compile(chains, fullgraph=True, backend="aot_eager") if compiled else chains)()
    for result, wanted in zip(results, plain, strict=True):
        torch.testing.assert_close(result, wanted)
    q = results[-1]
    torch.testing.assert_close(q.mT @ q, torch.eye(8, device=device))


@row("Mixed precision", "`torch.amp.GradScaler`")
def test_grad_scaler(backend, device):
    model = nn.Sequential(hanops.HanStack(8, 3), nn.Linear(8, 1)).to(device)
    wide = truth_of(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (model, wide)]
    scaler = torch.amp.GradScaler(device.type, init_scale=256.0)
    for _ in range(3):
        x = torch.randn(16, 8, device=device).half().float()
        with torch.autocast(device.type, torch.float16):
            loss = model(x).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizers[0])
        scaler.update()
        wide(x.double()).square().mean().backward()
        optimizers[1].step()
        for optimizer in optimizers:
            optimizer.zero_grad()
    close(list(model.parameters()), list(wide.parameters()), 1e-3)


@row("Mixed precision", "float16: nothing overflows between layers")
def test_no_overflow_between_layers(backend, device):
    """The dot product and the first layer's output are beyond 65,504; y and dx are not."""
    x = torch.full((3, 64), 3e4, dtype=torch.float16, device=device)
    u = torch.zeros(3, 64, device=device)
    u[0, :2] = torch.tensor([1.0, -0.2])
    u[1:] = 1.0
    b = torch.zeros(3, 64, device=device)
    b[0], b[1], b[2] = 6e4, -6e4, 1.2e5
    leaves = [x.clone().requires_grad_(), u.requires_grad_(), b.requires_grad_()]
    results = []
    for function, dtype in ((hanops.han_stack, None), (reference.han_stack, F64)):
        inputs = [t.detach().to(dtype or t.dtype).requires_grad_() for t in leaves]
        y = function(*inputs)
        results.append((y, *torch.autograd.grad(y, inputs, torch.full_like(y, 1000.0))))
    assert reference.han_stack(x.double(), u[:1], b[:1]).max() > 65504
    assert all(t.isfinite().all() for t in results[0])
    close(results[0], results[1], 4e-3)
