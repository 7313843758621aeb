"""The rest of y: the byte per element by which the backward in bfloat16 and float16 undoes the output's rounding."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

import hanops
from hanops.definition import reference
from hanops.definition.rest import bytes_of, planes, rest_of, restored
from hanops.definition.signs import REST_PLANES, is_chunked

from .accuracy import Problem, leave_kinks

ops = torch.ops.hanops
HALVES = [torch.bfloat16, torch.float16]
BITS = {torch.bfloat16: 16, torch.float16: 19}  # of a restored y
pytestmark = pytest.mark.parametrize("half", HALVES, ids=["bfloat16", "float16"])


def problem(half: torch.dtype, features: int, layers: int = 3, rows: int = 9, lead: tuple[int, ...] = ()) -> Problem:
    """Returns one whose biases make the rows grow, and whose rows are slices of longer ones."""
    x, dy = (torch.randn(*lead, rows, features + 1).to(half)[..., 1:] for _ in range(2))
    p = Problem(x, torch.randn(*lead, layers, features), torch.ones(*lead, layers, features), dy)
    leave_kinks(p)
    return p


def du_of(p: Problem, **options: bool) -> Tensor:
    u = p.u.clone().requires_grad_()
    hanops.han_stack(p.x, u, p.b, **options).backward(p.dy)
    return u.grad


def truth_of(p: Problem) -> Tensor:
    u = p.u.double().requires_grad_()
    reference.han_stack(p.x.double(), u, p.b.double()).backward(p.dy.double())
    return u.grad


def error(du: Tensor, truth: Tensor) -> float:
    return float(((du - truth).norm(dim=-1) / truth.norm(dim=-1)).max())


# ---- the definition


def test_restored(half):
    """Of any float32 that the dtype has its full bits for, ties among them; others are no further off than rounded."""
    exact = torch.randn(10_000) * torch.logspace(-3, 3, 10_000)
    exact = exact[exact.abs() > torch.finfo(half).smallest_normal]
    ties = torch.randn(100).to(half).float() * (1 + torch.finfo(half).eps / 2)
    exact = torch.cat([exact, ties, torch.tensor([0.0, -0.0, 1.0, -1.0])])
    rounded = exact.to(half)
    error = (restored(rounded, rest_of(exact, rounded)) - exact).abs() / exact.abs().clamp(min=1e-30)
    assert error.max() <= 2.0 ** -BITS[half] * 2.01  # a tie that was rounded down has 127 for 128
    assert (error <= 2.0 ** -BITS[half] * 1.01).float().mean() > 0.98
    of_itself = rest_of(rounded.float(), rounded)
    assert not of_itself.any()
    tiny = torch.randn(1000) * torch.finfo(half).smallest_normal
    rounded = tiny.to(half)
    assert ((restored(rounded, rest_of(tiny, rounded)) - tiny).abs() <= (rounded.float() - tiny).abs()).all()


def test_what_is_not_finite_has_no_rest(half):
    exact = torch.tensor([torch.inf, -torch.inf, torch.nan, 3e38, -3.4e38])
    rounded = exact.to(half)
    rest = rest_of(exact, rounded)
    assert not rest[~rounded.isfinite()].any()
    assert torch.equal(restored(rounded, rest).isnan(), rounded.isnan())
    assert torch.equal(restored(rounded, rest).isinf(), rounded.isinf())


# ---- the backends

# of every tile of the CPU: rows in the lanes, one register and several, the tail's bytes; and of GPUs, streaming too
FEATURES = [1, 5, 30, 64, 100, 333, 784, 5000]


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("activation", ["abs", None])
def test_bytes(backend, device, half, features, activation):
    """The bytes are those of the backend's own float32 output, which it gives for the same numbers in float32."""
    p = problem(half, features, layers=2 if features > 1000 else 3, rows=3 if features > 1000 else 19)
    x, u, b = (t.to(device) for t in (p.x, p.u, p.b))
    abs_layers = 0 if activation is None else u.shape[0]
    y, signs = ops.han_stack_forward(x, u, b, True, 2, activation == "abs")
    y32, bits = ops.han_stack_forward(x.float(), u, b, True, 2, activation == "abs")
    same, alone = ops.han_stack_forward(x, u, b, True, 1, activation == "abs")
    assert torch.equal(same, y)
    assert signs.shape[-2] == abs_layers + REST_PLANES
    assert torch.equal(signs[..., :abs_layers, :], alone)
    assert bits.shape == alone.shape
    rest = signs[..., abs_layers:, :]
    assert torch.equal(rest, planes(bytes_of(rest, features), is_chunked(device))), "bytes past the features are 0"
    numbers = restored(y, bytes_of(rest, features))
    scale = y32.abs().clamp(min=1e-3 * float(y32.abs().max()))
    assert ((numbers - y32).abs() / scale).max() <= 2.0 ** -BITS[half] * 2.01 + 32 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("features", FEATURES[1:])  # of one feature du is 0, but for rounding
def test_du(backend, device, half, features):
    """It is nearer the truth by what the byte has of bits, and is what float32 rows of these numbers give."""
    p = problem(half, features, layers=2 if features > 1000 else 12, rows=3 if features > 1000 else 21)
    truth = truth_of(p)
    p = Problem(*(t.to(device) for t in (p.x, p.u, p.b, p.dy)))
    exact, rounded = (error(du_of(p, **options).cpu(), truth) for options in ({}, {"exact": False}))
    assert exact < rounded / 20, f"{exact:.1e} and without the byte {rounded:.1e}"


@pytest.mark.parametrize("lead", [(2,), ()])
def test_other_gradients_are_the_same(backend, device, half, lead):
    p = problem(half, 40, lead=lead)
    x, u, b, dy = (t.to(device) for t in (p.x, p.u, p.b, p.dy))
    kept = [ops.han_stack_forward(x, u, b, True, save) for save in (1, 2)]
    without, given = (ops.han_stack_backward(dy, y, signs, u, b, True, [True] * 3) for y, signs in kept)
    assert torch.equal(without[0], given[0])
    assert torch.equal(without[2], given[2])
    assert not torch.equal(without[1], given[1])


def test_bytes_past_the_features_do_not_matter(backend, device, half):
    p = problem(half, 30)
    x, u, b, dy = (t.to(device) for t in (p.x, p.u, p.b, p.dy))
    y, signs = ops.han_stack_forward(x, u, b, True, 2)
    rest = signs[..., -REST_PLANES:, :].flatten(-2)
    spoilt = rest.clone()
    spoilt[..., 30:] = 77
    again = torch.cat([signs[..., :-REST_PLANES, :], spoilt.unflatten(-1, (REST_PLANES, -1))], -2)
    assert rest.shape[-1] > 30
    wanted, got = (ops.han_stack_backward(dy, y, s, u, b, True, [True] * 3) for s in (signs, again))
    assert all(torch.equal(one, other) for one, other in zip(wanted, got, strict=True))


def test_silent_rows(backend, device, half):
    """A row whose dy is 0 adds 0 to du, whatever its y and the rest of it hold."""
    p = problem(half, 70)
    x, u, b, dy = (t.to(device) for t in (p.x, p.u, p.b, p.dy))
    dy = dy.clone()
    dy[2] = 0
    y, signs = ops.han_stack_forward(x, u, b, True, 2)
    spoilt_y, spoilt_signs = y.clone(), signs.clone()
    spoilt_y[2], spoilt_signs[2, -REST_PLANES:] = torch.nan, 99
    wanted, got = (
        ops.han_stack_backward(dy, *saved, u, b, True, [True] * 3) for saved in ((y, signs), (spoilt_y, spoilt_signs))
    )
    assert torch.equal(wanted[1], got[1])


# ---- every way to a derivative


@pytest.mark.plain_torch
@pytest.mark.parametrize("way", ["eager", "grad", "vmap", "checkpoint", "groups", "return_signs", "bfloat16 u"])
def test_ways(half, way):
    p = problem(half, 48, layers=10, rows=32)
    truth = truth_of(p)

    def loss(u: Tensor, x: Tensor = p.x, dy: Tensor = p.dy) -> Tensor:
        return (hanops.han_stack(x, u, p.b) * dy).float().sum()

    if way == "grad":
        du = torch.func.grad(loss)(p.u)
    elif way == "vmap":
        du = torch.vmap(torch.func.grad(loss), (None, 0, 0))(p.u, p.x.unflatten(0, (4, 8)), p.dy.unflatten(0, (4, 8)))
        du = du.sum(0)
    elif way == "checkpoint":
        u = p.u.clone().requires_grad_()
        torch.utils.checkpoint.checkpoint(loss, u, use_reentrant=False).backward()
        du = u.grad
    elif way == "groups":
        grouped = Problem(*(torch.stack((t, t)) for t in (p.x, p.u, p.b, p.dy)))
        du = du_of(grouped)[1]
    elif way == "return_signs":
        u = p.u.clone().requires_grad_()
        y, signs = hanops.han_stack(p.x, u, p.b, return_signs=True)
        assert signs.shape[-2] == 10 + REST_PLANES
        y.backward(p.dy)
        du = u.grad
    elif way == "bfloat16 u":
        p.u, p.b = p.u.to(half), p.b.to(half)
        leave_kinks(p)
        assert error(du_of(p), truth_of(p)) < 2 * torch.finfo(half).eps  # of du itself
        return
    else:
        du = du_of(p)
    assert error(du, truth) < 2.0 ** (6 - BITS[half])


@pytest.mark.plain_torch
def test_second_derivative(half):
    """It starts from the restored y too."""
    p = problem(half, 48, layers=10, rows=32)

    def second(x: Tensor, u: Tensor, b: Tensor, dy: Tensor, stack) -> Tensor:
        u = u.clone().requires_grad_()
        (du,) = torch.autograd.grad(stack(x, u, b), u, dy, create_graph=True)
        return torch.autograd.grad((du * du.detach().flip(-1)).sum(), u)[0]

    truth = second(p.x.double(), p.u.double(), p.b.double(), p.dy.double(), reference.han_stack)
    exact, rounded = (
        error(second(p.x, p.u, p.b, p.dy, lambda *given, e=e: hanops.han_stack(*given, exact=e)), truth)
        for e in (True, False)
    )
    assert exact < rounded / 5, f"{exact:.1e} and without the byte {rounded:.1e}"


@pytest.mark.plain_torch
def test_compiled(half, undisturbed_compiler):
    p = problem(half, 48, layers=8, rows=32)  # as many layers as the byte has bits: the shape alone does not tell
    compiled = torch.compile(lambda u: hanops.han_stack(p.x, u, p.b), backend="aot_eager")
    u = p.u.clone().requires_grad_()
    compiled(u).backward(p.dy)
    torch.testing.assert_close(u.grad, du_of(p), rtol=1e-5, atol=1e-5)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        v = p.u.clone().requires_grad_()
        hanops.han_stack(p.x, v, p.b).backward(p.dy)
    torch.testing.assert_close(v.grad, u.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.plain_torch
@pytest.mark.parametrize("layers", [7, 8, 9])
@pytest.mark.parametrize("options", [{}, {"final_abs": False}, {"activation": None}])
def test_eight_layers_more_or_less(half, layers, options):
    """The planes of the byte and those of eight layers are told apart."""
    p = problem(half, 12, layers=layers)
    given = {}
    for exact in (True, False):
        leaves = [t.clone().requires_grad_() for t in (p.x, p.u, p.b)]
        hanops.han_stack(*leaves, exact=exact, **options).backward(p.dy)
        given[exact] = [t.grad for t in leaves]
    assert torch.equal(given[True][0], given[False][0])
    assert torch.equal(given[True][2], given[False][2])
    assert error(given[True][1], given[False][1]) < 0.2


@pytest.mark.plain_torch
def test_inverse(half):
    """The signs of a forward bring the rest with them."""
    p = problem(half, 48, layers=20)
    for exact in (True, False):
        y, signs = hanops.han_stack(p.x, p.u, p.b, exact=exact, return_signs=True)
        x = hanops.han_stack_inverse(y, p.u, p.b, signs=signs)
        off = float((x.float() - p.x.float()).norm() / p.x.float().norm())
        assert off < torch.finfo(half).eps if exact else off > torch.finfo(half).eps


# ---- what it costs, and how it is left out


@pytest.mark.plain_torch
@pytest.mark.parametrize("needs_u", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_saved_bytes(half, exact, needs_u):
    """An element's are 2 of y, a bit of each layer, and a byte more, where u gets a gradient."""
    stack = hanops.HanStack(64, 16, exact=exact, dtype=half)
    stack.u.requires_grad_(needs_u)
    x = torch.randn(32, 64).to(half)
    sizes: list[int] = []
    parameters = {p.data_ptr() for p in stack.parameters()}

    def pack(t: Tensor) -> Tensor:
        sizes.append(0 if t.data_ptr() in parameters else t.nbytes)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        stack(x)
    assert sum(sizes) == x.numel() * (2 + 2 + exact if needs_u else 2)


@pytest.mark.plain_torch
def test_option(half):
    stack = hanops.HanStack(8, 2, exact=False, dtype=half)
    assert repr(stack) == "HanStack(features=8, depth=2, bias=True, exact=False)"
    assert pickle.loads(pickle.dumps(stack)).exact is False
    del stack.__dict__["exact"]  # as one that was pickled before there was a choice
    assert stack.exact is True
    layer = hanops.HanLayer(8, exact=False, dtype=half)
    assert not layer.exact
    x, u, b = torch.randn(5, 8).to(half), torch.randn(8), torch.randn(8)
    assert torch.equal(hanops.han_layer(x, u, b, exact=False), hanops.han_layer(x, u, b))
    stack.exact = False
    scripted = torch.jit.script(stack)
    assert torch.equal(scripted(x), stack(x))


@pytest.mark.plain_torch
def test_signs_of_another_shape(half):
    x, u = torch.randn(5, 8).to(half), torch.randn(3, 8)
    y, signs = ops.han_stack_forward(x, u, None, True, 2)
    said = r"signs must have shape \[5, 3, 1\], or \[5, 11, 1\] with the rest of y, got \[5, 10, 1\]"
    for y_, u_, s in ((y, u, signs[:, 1:]), *((t.to("meta") for t in (y, u, signs[:, 1:])),)):
        with pytest.raises(ValueError, match=said if y_.is_cpu else "signs must have shape"):
            ops.han_stack_backward(y_, y_, s, u_, None, True, [True] * 3)
    with pytest.raises(ValueError, match=r"signs must have shape \[5, 3, 1\], got \[5, 11, 1\]"):
        ops.han_stack_backward(y.float(), y.float(), signs, u, None, True, [True] * 3)
