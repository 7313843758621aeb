"""HanStack and HanLayer behave as nn.Linear does: parameters, initialisation, state, copies, errors."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

import hanops
from hanops.definition import reference
from hanops.models.layers import GroupedLinear


def test_parameters_and_initialisation():
    stack = hanops.HanStack(200, 30)
    assert [(name, tuple(p.shape)) for name, p in stack.named_parameters()] == [("u", (30, 200)), ("b", (30, 200))]
    torch.testing.assert_close(stack.u.norm(dim=-1), torch.ones(30))
    bound = 1 / math.sqrt(200)
    assert stack.b.abs().max() <= bound
    assert stack.b.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert (stack.u @ stack.u.t() - torch.eye(30)).abs().max() < 0.5  # directions are independent


def test_reset_parameters_draws_anew():
    stack = hanops.HanStack(8, 2)
    before = stack.u.clone()
    stack.reset_parameters()
    assert not torch.equal(before, stack.u)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    stack = hanops.HanStack(16, 3, dtype=dtype)
    assert stack.u.dtype == stack.b.dtype == dtype
    assert stack(torch.randn(2, 16, dtype=dtype)).dtype == dtype
    torch.testing.assert_close(stack.u.float().norm(dim=-1), torch.ones(3), rtol=1e-2, atol=0)
    moved = hanops.HanStack(16, 3).to(dtype)
    assert moved(torch.randn(2, 16, dtype=dtype)).dtype == dtype


def test_float32_parameters_take_any_type():
    assert "float32 parameters take any of the four" in hanops.HanStack.__doc__
    stack = hanops.HanStack(16, 3)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert stack(torch.randn(2, 16, dtype=dtype)).dtype == dtype


def test_groups():
    stack = hanops.HanStack(16, 3, groups=5)
    assert stack.u.shape == stack.b.shape == (5, 3, 16)
    x = torch.randn(5, 7, 16)
    torch.testing.assert_close(stack(x), reference.han_stack(x, stack.u, stack.b))


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_dim(dim):
    x = torch.randn(4, 6, 8, requires_grad=True)
    stack = hanops.HanStack(x.shape[dim], 3, dim=dim)
    y = stack(x)
    assert y.shape == x.shape
    moved = reference.han_stack(x.movedim(dim, -1), stack.u, stack.b).movedim(-1, dim)
    torch.testing.assert_close(y, moved)
    dy = torch.randn_like(y)
    torch.testing.assert_close(*(torch.autograd.grad(out, x, dy)[0] for out in (y, moved)))


def test_dim_with_groups():
    x = torch.randn(4, 6, 8)
    stack = hanops.HanStack(6, 2, dim=1, groups=4)
    torch.testing.assert_close(stack(x), reference.han_stack(x.mT, stack.u, stack.b).mT)
    with pytest.raises(ValueError, match="dim -3 is the axis of the groups"):
        hanops.HanStack(4, 2, dim=-3, groups=4)(x)


def test_layer_is_a_stack_of_depth_one():
    layer = hanops.HanLayer(8)
    assert isinstance(layer, hanops.HanStack)
    assert layer.depth == 1
    x = torch.randn(3, 8)
    torch.testing.assert_close(layer(x), hanops.han_layer(x, layer.u[0], layer.b[0]))


def test_final_abs_and_no_bias():
    stack = hanops.HanStack(8, 1, final_abs=False, bias=False)
    assert stack.b is None
    x = torch.randn(5, 8)
    torch.testing.assert_close(stack(stack(x)), x)  # a reflection is its own inverse


def test_repr():
    assert repr(hanops.HanStack(8, 2)) == "HanStack(features=8, depth=2, bias=True)"
    full = hanops.HanStack(8, 2, dim=1, groups=3, bias=False, final_abs=False)
    assert full.extra_repr() == "features=8, depth=2, dim=1, groups=3, bias=False, final_abs=False"


def test_state_dict_round_trip():
    a, b = hanops.HanStack(8, 2), hanops.HanStack(8, 2)
    x = torch.randn(3, 8)
    assert list(a.state_dict()) == ["u", "b"]
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(x), b(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        hanops.HanStack(8, 3).load_state_dict(a.state_dict())


def test_copies():
    stack = nn.Sequential(hanops.HanStack(8, 2), nn.Linear(8, 1))
    x = torch.randn(3, 8)
    buffer = io.BytesIO()
    torch.save(stack, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(stack), pickle.loads(pickle.dumps(stack)), torch.load(buffer, weights_only=False)]
    for other in copies:
        assert torch.equal(other(x), stack(x))
        assert other[0].u.data_ptr() != stack[0].u.data_ptr()


def test_meta_device():
    stack = hanops.HanStack(8, 2, device="meta")
    assert stack.u.is_meta
    stack = stack.to_empty(device="cpu")
    stack.reset_parameters()
    torch.testing.assert_close(stack.u.norm(dim=-1), torch.ones(2))
    torch.nn.utils.skip_init(hanops.HanStack, 8, 2)


def test_marks_of_transformers():
    """The steps of its from_pretrained: what was not loaded is drawn, what was loaded or trained stays."""
    for loaded in ("u", "b", "ub", ""):
        stack = hanops.HanStack(8, 2, device="meta")
        assert not getattr(stack, "_is_hf_initialized", False)
        for name in "ub":
            setattr(stack, name, nn.Parameter(torch.full((2, 8), 5.0 if name in loaded else math.nan)))
            if name in loaded:
                getattr(stack, name)._is_hf_initialized = True
        stack._is_hf_initialized = True
        torch.testing.assert_close(stack.u.norm(dim=-1), torch.full((2,), 5 * 8**0.5 if "u" in loaded else 1.0))
        assert (stack.b == 5).all() if "b" in loaded else stack.b.abs().max() <= 8**-0.5
    trained = hanops.HanStack(8, 2)
    assert trained._is_hf_initialized  # initialize_weights passes it by
    unbiased = hanops.HanStack(8, 2, bias=False, device="meta")
    unbiased._is_hf_initialized = True
    assert unbiased.u.is_meta


def test_marks_of_transformers_on_dense_layers():
    for loaded in (False, True):
        dense = GroupedLinear(4, 3, 2, device="meta")
        for name, parameter in list(dense.named_parameters()):
            setattr(dense, name, nn.Parameter(torch.full_like(parameter, 5.0 if loaded else math.nan, device="cpu")))
            getattr(dense, name)._is_hf_initialized = loaded
        dense._is_hf_initialized = True
        for parameter in dense.parameters():
            assert (parameter == 5).all() if loaded else parameter.abs().max() <= 4**-0.5
    assert GroupedLinear(4, 3, 2)._is_hf_initialized


def test_a_parameter_of_a_subclass_is_its_own():
    class Scaled(hanops.HanStack):
        def __init__(self) -> None:
            super().__init__(8, 2)
            self.scale = nn.Parameter(torch.full((8,), 3.0))

    stack = Scaled()
    stack.reset_parameters()
    stack._is_hf_initialized = True
    assert (stack.scale == 3).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 1), ValueError, "HanStack: features must be at least 1, got 0"),
        ((4, -1), ValueError, "HanStack: depth must be at least 0, got -1"),
        ((4.0, 1), TypeError, "HanStack: features must be an int, got 4.0"),
        ((4, True), TypeError, "HanStack: depth must be an int, got True"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        hanops.HanStack(*arguments)


def test_bad_options():
    with pytest.raises(ValueError, match="groups must be at least 1, got 0"):
        hanops.HanStack(4, 1, groups=0)
    with pytest.raises(TypeError, match="dim must be an int, got '1'"):
        hanops.HanStack(4, 1, dim="1")
    with pytest.raises(ValueError, match="dim must not be 0, the axis of the groups"):
        hanops.HanStack(4, 1, dim=0, groups=2)
    with pytest.raises(ValueError, match=r"HanLayer: x must have an axis 2, got shape \[3, 4\]"):
        hanops.HanLayer(4, dim=2)(torch.randn(3, 4))
    with pytest.raises(ValueError, match="HanLayer: features must be at least 1"):
        hanops.HanLayer(0)
    with pytest.raises(TypeError, match=r"HanStack: dtype must be float64, .* or float16, got torch\.int64"):
        hanops.HanStack(4, 1, dtype=torch.int64)


@pytest.mark.parametrize("x", [[1.0, 2.0], "rows", 3])
def test_what_is_no_tensor(x):
    u = torch.randn(1, 2)
    for call in (lambda: hanops.han_stack(x, u), lambda: hanops.han_layer(x, u[0]), lambda: hanops.HanStack(2, 1)(x)):
        with pytest.raises(TypeError, match=f"han_stack: x must be a Tensor, got {type(x).__name__}"):
            call()
    with pytest.raises(TypeError, match=f"HanStack: x must be a Tensor, got {type(x).__name__}"):
        hanops.HanStack(2, 1, dim=0)(x)
    with pytest.raises(TypeError, match=f"han_stack: b must be a Tensor or None, got {type(x).__name__}"):
        hanops.han_stack(u, u, x)
    with pytest.raises(TypeError, match=f"han_layer: u must be a Tensor, got {type(x).__name__}"):
        hanops.han_layer(u, x)


def test_training_reduces_the_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), hanops.HanStack(32, 8), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    x = torch.rand(256, 2) * 2 - 1
    target = torch.sign(torch.sin(4 * x[:, :1]) * torch.sin(4 * x[:, 1:]))
    losses = []
    for _ in range(200):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


def test_names_of_what_is_imported_late():
    assert {"distributed", "peft", "HanStack"} <= set(dir(hanops))
