"""The backward, on every backend: what it computes, what is kept for it and in which layout, and training."""

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import hanops
from hanops.definition.signs import is_chunked, sign_bytes

from .accuracy import problem, stack

forward = torch.ops.hanops.han_stack_forward


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)])
@pytest.mark.parametrize(("rows", "features", "layers"), [(21, 133, 4), (37, 30, 18)])
def test_needs(backend, device, needs, rows, features, layers, interpreted):
    p = problem(rows, features, min(layers, 5) if interpreted else layers, torch.float32, device=device)
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
    rows, features, layers = 64, 256, 16
    module = hanops.HanStack(features, layers, device=device)
    x = torch.randn(rows, features, device=device, requires_grad=True)
    bits = rows * features * layers // 8
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
    size = sign_bytes(8, chunked=is_chunked(device))
    assert signs.shape == (rows, 2, size)
    assert forward(p.x, p.u, p.b, False, True)[1].shape == (rows, 1, size)


def test_sign_bit_layout():
    """Bit j of byte i is column 8 i + j, on every backend of the device: any backward reads any forward."""
    p = problem(5, 21, 3, torch.float64)
    by_backend = {}
    for name in ("auto", "torch"):
        with hanops.use_backend(name):
            by_backend[name] = forward(p.x, p.u, p.b, True, True)
    signs = by_backend["auto"][1]
    assert torch.equal(signs, by_backend["torch"][1])
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
    got, wanted = losses(backend, device, 50), losses("torch", device, 50)
    assert wanted[-1] < wanted[0]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(wanted), rtol=1e-4, atol=1e-5)
