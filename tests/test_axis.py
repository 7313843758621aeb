"""Stacks along another axis than the last: x is (groups, outer, features, inner), and no row lies in one piece."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, jvp, vmap

import hanops
from hanops.backends import choice
from hanops.definition import reference
from hanops.definition.rest import rest_of
from hanops.definition.signs import rows_of_words, words_of_rows

from .accuracy import ABSOLUTES, Problem, activations, check, problem
from .test_silent_rows import spoilt

ops = torch.ops.hanops
HALVES = [torch.bfloat16, torch.float16]


def along(outer: int, inner: int) -> Callable[..., Tensor]:
    """Returns a stack of rows, (groups, outer * inner, features), that runs with the features between the two axes."""

    def run(x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool = True, abs: bool = True) -> Tensor:
        axis = u.dim() - 1
        moved = x.unflatten(-2, (outer, inner)).movedim(-1, axis).contiguous()
        activation = "abs" if abs else None
        y = hanops.han_stack(moved, u, b, final_abs=final_abs, activation=activation, dim=axis)
        assert y.is_contiguous()
        assert y.shape == moved.shape
        return y.movedim(axis, -1).flatten(-3, -2)

    return run


# outer, features, inner: one word and several, with and without a rest; inner sizes that are no whole vectors
SIZES = [(1, 1, 1), (3, 5, 7), (2, 32, 16), (5, 33, 3), (1, 64, 40), (7, 40, 4), (2, 196, 9), (3, 100, 49)]
LARGE = [(2, 257, 33), (1, 513, 20), (1, 1030, 6), (40, 17, 1)]


@pytest.mark.parametrize(("outer", "features", "inner"), SIZES)
def test_results(backend, device, dtype, outer, features, inner, interpreted):
    if interpreted and features > 64:
        pytest.skip("slow in the interpreter")
    check(along(outer, inner), problem(outer * inner, features, 3, dtype, device=device))


@pytest.mark.parametrize(("outer", "features", "inner"), LARGE)
def test_results_of_many_features(backend, device, outer, features, inner, interpreted):
    if interpreted:
        pytest.skip("slow in the interpreter")
    for dtype in (torch.float32, torch.bfloat16):
        check(along(outer, inner), problem(outer * inner, features, 2, dtype, device=device))


@pytest.mark.parametrize("absolutes", ABSOLUTES.values(), ids=list(ABSOLUTES))
@pytest.mark.parametrize("groups", [None, 3])
@pytest.mark.parametrize("bias", [None, 0.3])
def test_options(backend, device, absolutes, groups, bias):
    final_abs, abs = absolutes
    for layers in (1, 4):
        p = problem(18, 37, layers, torch.float32, groups=groups, bias=bias, device=device)
        p.final_abs, p.abs = final_abs, abs
        check(along(3, 6), p)


def test_mixed_dtypes(backend, device):
    for dtype in HALVES:
        check(along(2, 11), problem(22, 33, 3, dtype, parameters=torch.float32, device=device))


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1)])
def test_needs(backend, device, needs):
    x = torch.randn(3, 37, 10, device=device)
    u, b = torch.randn(2, 4, 37, device=device)
    dy = torch.randn_like(x)

    def gradients(needed: tuple[int, ...]) -> list[Tensor | None]:
        leaves = [t.clone().requires_grad_(bool(need)) for t, need in zip((x, u, b), needed, strict=True)]
        hanops.han_stack(*leaves, dim=1).backward(dy)
        return [leaf.grad for leaf in leaves]

    for got, wanted, need in zip(gradients(needs), gradients((1, 1, 1)), needs, strict=True):
        if need:
            torch.testing.assert_close(got, wanted)
        else:
            assert got is None


# ---- every axis, every order in memory


@pytest.mark.parametrize("dim", [-4, -3, -2, -1, 0, 1, 2, 3])
def test_every_axis(backend, device, dim):
    x = torch.randn(3, 4, 5, 6, device=device, requires_grad=True)
    u, b = torch.randn(2, 2, x.shape[dim], device=device)
    y = hanops.han_stack(x, u, b, dim=dim)
    assert y.is_contiguous()
    rows = x.detach().movedim(dim, -1).requires_grad_()
    wanted = reference.han_stack(rows, u, b)
    torch.testing.assert_close(y, wanted.movedim(-1, dim))
    dy = torch.randn_like(y)
    y.backward(dy)
    (dx,) = torch.autograd.grad(wanted, rows, dy.movedim(dim, -1))
    torch.testing.assert_close(x.grad, dx.movedim(-1, dim))


STRIDED: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.mT.contiguous().mT,
    "a slice of the features": lambda t: torch.cat((t, t), 1)[:, : t.shape[1]],
    "every second feature": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "a slice of the inner axis": lambda t: torch.cat((t, t), -1)[..., : t.shape[-1]],
    "every second position": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "the outer axes swapped": lambda t: t.movedim(0, 1).contiguous().movedim(0, 1),
    "unaligned": lambda t: torch.cat((t.new_zeros(1), t.flatten()))[1:].view(t.shape),
    "expanded": lambda t: t[:1].expand(t.shape),
}


@pytest.mark.parametrize("way", STRIDED.values(), ids=list(STRIDED))
@pytest.mark.parametrize("half", [False, True])
def test_strides(backend, device, way, half):
    dtype = torch.bfloat16 if half else torch.float32
    x, dy = (way(torch.randn(4, 37, 18, device=device).to(dtype)) for _ in range(2))
    u, b = torch.randn(2, 3, 37, device=device).to(dtype)

    def run(x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
        y, signs = ops.han_stack_forward(x, u, b, True, 2, dim=1)
        return y, *ops.han_stack_backward(dy, y, signs, u, b, True, [True] * 3, dim=1)

    got, wanted = run(x, dy), run(x.contiguous(), dy.contiguous())
    assert all(t.is_contiguous() for t in got)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (2, 5, 3, 4, 2), (2, 5, 6)])
def test_memory_format_of_a_module(backend, device, shape):
    """The output lies in memory as the input does, and so does the gradient of the input."""
    stack = hanops.HanStack(5, 2, dim=1, device=device)
    x = torch.randn(shape, device=device)
    last = x.movedim(1, -1).contiguous().movedim(-1, 1)  # channels_last, where it has a name
    for order in (x, last):
        leaf = order.detach().requires_grad_()
        y = stack(leaf)
        assert y.stride() == order.stride()
        y.square().sum().backward()
        assert leaf.grad.stride() == order.stride()
        torch.testing.assert_close(y, reference.han_stack(x.movedim(1, -1), stack.u, stack.b).movedim(-1, 1))
    y.movedim(1, -1).view(-1, 5)  # as Conv2d's output in channels_last allows


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 5, 0), (2, 5, 3, 0)])
def test_empty(backend, device, shape):
    x = torch.randn(shape, device=device, requires_grad=True)
    u = torch.randn(2, 5, device=device, requires_grad=True)
    y = hanops.han_stack(x, u, dim=1)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert u.grad.count_nonzero() == 0


def test_no_layers(backend, device):
    x = torch.randn(2, 5, 3, device=device).mT.contiguous().mT.requires_grad_()
    u = torch.empty(0, 5, device=device)
    y, signs = ops.han_stack_forward(x, u, None, True, 1, dim=1)
    assert torch.equal(y, x)
    assert y.is_contiguous()
    assert signs.shape == (2, 0, 1, 3, 4)


# ---- what is kept


def words_of(negative: Tensor) -> Tensor:
    """Returns the words of booleans (..., features, inner), (..., W, inner, 4)."""
    *_, features, _ = negative.shape
    padded = torch.nn.functional.pad(negative, (0, 0, 0, -features % 32))
    bits = padded.unflatten(-2, (-1, 4, 8)).long() << torch.arange(8, device=negative.device).view(8, 1)
    return bits.sum(-2).movedim(-2, -1).to(torch.uint8)


@pytest.mark.parametrize(("outer", "features", "inner"), [(2, 5, 3), (1, 32, 17), (3, 70, 8), (2, 96, 16)])
def test_signs(backend, device, outer, features, inner):
    """They are where the layout says, and nothing else is."""
    p = problem(outer * inner, features, 3, torch.float32, device=device)
    x = p.x.unflatten(0, (outer, inner)).movedim(-1, 1)
    for final_abs, abs in ABSOLUTES.values():
        p.final_abs, p.abs = final_abs, abs
        zs = [z.unflatten(0, (outer, inner)).mT for z in activations(p)[1:]]
        wanted = [words_of(torch.signbit(z)) for z in zs[: 3 if final_abs and abs else 2 if abs else 0]]
        _, signs = ops.han_stack_forward(x, p.u, p.b, final_abs, 1, abs, 1)
        assert signs.is_contiguous()
        assert signs.shape == (outer, len(wanted), (features + 31) // 32, inner, 4)
        if wanted:
            different = (signs ^ torch.stack(wanted, 1)).count_nonzero()
            assert different <= 1, "but for an element within rounding of 0"


@pytest.mark.parametrize("half", HALVES)
def test_rest(backend, device, half):
    """Byte j of word w in plane p is what rounding took from column 32 w + 4 p + j."""
    features = 70
    x = torch.randn(3, features, 11, device=device).to(half)
    u, b = torch.randn(2, 2, features, device=device)
    y, signs = ops.han_stack_forward(x, u, b, True, 2, dim=1)
    exact = hanops.han_stack(x.float(), u, b, dim=1)
    assert torch.equal(exact.to(half), y)
    bytes_ = signs[:, 2:].permute(0, 2, 1, 4, 3).flatten(1, 3)[:, :features].view(torch.int8)
    assert torch.equal(bytes_, rest_of(exact, y))


@pytest.mark.parametrize("features", [1, 31, 33, 64, 100])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("planes", [2, 10])
def test_words_of_rows(features, chunked, planes):
    """Rows of either layout become words and rows again, in bits and bytes that features have."""
    from hanops.definition.signs import REST_PLANES, sign_bytes, unpack

    size = sign_bytes(features, chunked)
    signs = torch.randint(256, (3, 2, 5, planes, size), dtype=torch.uint8)
    words = words_of_rows(signs, features, 2, 1, chunked)
    assert words.shape == (3, planes, (features + 31) // 32, 2, 5, 4)
    back = rows_of_words(words, features, 2, 1, chunked)
    assert back.shape == signs.shape
    for layer in range(2):
        assert torch.equal(*(unpack(t[..., layer, :], features, chunked) for t in (back, signs)))
    if planes == 2 + REST_PLANES:
        assert torch.equal(*(t[..., 2:, :].flatten(-2)[..., :features] for t in (back, signs)))


def test_saved_bytes():
    outer, features, inner, layers = 4, 64, 36, 3
    stack = hanops.HanStack(features, layers, dim=1)
    kept = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    x = torch.randn(outer, features, inner, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = stack(x)
    others = [t for t in kept if not isinstance(t, torch.nn.Parameter)]
    assert sum(t.nbytes for t in others) == y.nbytes + outer * features * inner * layers // 8


@pytest.mark.parametrize("wide", [False, True])
def test_explanation(backend, device, wide):
    """Where a backend has no kernels for an axis, `explain` says so, and the words of signs are those of rows."""
    most = min(choice.AXIS_FEATURES.get(backend, 0), 600)
    for features in {5, most, most + 1} - {0}:
        x = torch.randn(2, features, 3, device=device, dtype=torch.float64 if wide else torch.float32)
        u = torch.randn(1, features, device=device, dtype=x.dtype, requires_grad=True)
        kept: list[Tensor] = []

        def pack(t: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(t)
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            hanops.han_stack(x, u, dim=1)
        (signs,) = (t for t in kept if t.dtype == torch.uint8)
        by_rows = "run on a copy of x" in hanops.explain(x, u, dim=1).reason
        assert by_rows == (wide or features > choice.AXIS_FEATURES.get(backend, 0))
        assert signs.dim() == (4 if by_rows else 5)
        assert "copy" not in hanops.explain(x.mT, u).reason


def test_rows_without_gradient_add_nothing(backend, device, dtype):
    """Positions whose dy is 0 everywhere add exactly 0 to du and db, whatever their y holds."""
    p = problem(36, 37, 3, dtype, device=device)
    bad = spoilt(p)
    got = bad.run(along(3, 12))
    clean = Problem(p.x, p.u, p.b, bad.dy).run(along(3, 12))
    assert not got["y"].isfinite().all()
    assert got["du"].isfinite().all()
    torch.testing.assert_close(got["du"], clean["du"])
    torch.testing.assert_close(got["db"], clean["db"])


def test_equal_calls_give_equal_bits(backend, device):
    x = torch.randn(5, 70, 33, device=device)
    u, b = torch.randn(2, 3, 70, device=device)
    y, signs = ops.han_stack_forward(x, u, b, True, 1, dim=1)
    dy = torch.randn_like(y)
    runs = [ops.han_stack_backward(dy, y, signs, u, b, True, [True] * 3, dim=1) for _ in range(2)]
    assert all(torch.equal(a, c) for a, c in zip(*runs, strict=True))


# ---- derivatives, transforms, compilers


def tensors(device: torch.device, groups: tuple[int, ...] = ()) -> list[Tensor]:
    shapes = ((*groups, 2, 5, 3), (*groups, 2, 5), (*groups, 2, 5))
    return [torch.randn(shape, device=device, dtype=torch.float64) for shape in shapes]


def by_reference(x: Tensor, u: Tensor, b: Tensor | None) -> Tensor:
    return reference.han_stack(x.movedim(-2, -1), u, b).movedim(-1, -2)


def by_op(x: Tensor, u: Tensor, b: Tensor | None) -> Tensor:
    return ops.han_stack(x, u, b, dim=-2)


@pytest.mark.parametrize("groups", [(), (4,)])
@pytest.mark.parametrize("x_dim", [0, 1, 2, 3])
@pytest.mark.parametrize("u_dim", [None, 0, 1])
def test_vmap(backend, device, groups, x_dim, u_dim):
    """Also of the gradients, whatever axis is the batch."""
    x, u, b = tensors(device, groups)
    batched = torch.stack((x, 2 * x, -x), x_dim), u if u_dim is None else torch.stack((u, u + 1, -u), u_dim), b
    dims = (x_dim, u_dim, None)

    def loss(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *ts: (run(*ts) ** 3).sum()

    torch.testing.assert_close(vmap(by_op, dims)(*batched), vmap(by_reference, dims)(*batched))
    for argnums in ((0, 1, 2), 0):
        got, wanted = (vmap(grad(loss(run), argnums), dims)(*batched) for run in (by_op, by_reference))
        torch.testing.assert_close(got, wanted)


def test_derivatives(backend, device, interpreted):
    """First and second ones, by autograd, reverse and forward mode."""
    if interpreted:
        pytest.skip("slow in the interpreter")
    given = [t.requires_grad_() for t in tensors(device)]
    torch.autograd.gradcheck(by_op, given)
    torch.autograd.gradgradcheck(by_op, given)
    tangents = tuple(torch.randn_like(t) for t in given)
    detached = tuple(t.detach() for t in given)
    torch.testing.assert_close(jvp(by_op, detached, tangents), jvp(by_reference, detached, tangents))
    torch.testing.assert_close(jacrev(by_op, (0, 1, 2))(*detached), jacrev(by_reference, (0, 1, 2))(*detached))


def test_second_derivatives_of_chains_and_last_layers(backend, device, interpreted):
    if interpreted:
        pytest.skip("slow in the interpreter")
    for options in ({"final_abs": False}, {"abs": False}):
        given = [t.requires_grad_() for t in tensors(device)]
        torch.autograd.gradgradcheck(lambda *ts, o=options: ops.han_stack(*ts, dim=1, **o), given)


@pytest.mark.usefixtures("undisturbed_compiler")
@pytest.mark.parametrize("how", ["eager", "aot_eager"])
def test_compile(backend, device, how):
    stack = hanops.HanStack(5, 2, dim=1, device=device)
    compiled = torch.compile(stack, backend=how, fullgraph=True, dynamic=True)
    for shape in ((2, 5, 4, 3), (3, 5, 6, 7)):
        for order in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape, device=device).to(memory_format=order).requires_grad_()
            y = compiled(x)
            wanted = stack(x)
            torch.testing.assert_close(y, wanted)
            assert y.stride() == wanted.stride()
            torch.testing.assert_close(*(torch.autograd.grad(t.square().sum(), x) for t in (y, wanted)))


def test_opcheck(backend, device):
    for dtype in (torch.float32, torch.bfloat16):
        x, u, b = (t.to(dtype).requires_grad_() for t in tensors(device))
        torch.library.opcheck(ops.han_stack.default, (x, u, b, True, True, 1))
        with torch.no_grad():
            y, signs = ops.han_stack_forward(x, u, b, True, 2, True, 1)
        torch.library.opcheck(ops.han_stack_forward.default, (x, u, b, True, 2, True, 1))
        given = (torch.randn_like(y), y, signs, u.detach(), b.detach(), True, [True] * 3, True, 1)
        torch.library.opcheck(ops.han_stack_backward.default, given)


def test_export_and_decompositions():
    stack = hanops.HanStack(5, 2, dim=1)
    sizes = {i: torch.export.Dim.DYNAMIC for i in (0, 2, 3)}
    program = torch.export.export(stack, (torch.randn(2, 5, 4, 3),), dynamic_shapes=(sizes,))
    for run in (program, program.run_decompositions(hanops.decompositions())):
        x = torch.randn(3, 5, 6, 7)
        torch.testing.assert_close(run.module()(x), stack(x))


def test_decomposed_backward(backend, device):
    x, u, b = (t.to(torch.bfloat16) for t in tensors(device))
    y, signs = ops.han_stack_forward(x, u, b, True, 2, True, 1)
    given = (torch.randn_like(y), y, signs, u, b, True, [True] * 3, True, 1)
    decompositions = hanops.decompositions()
    got = decompositions[ops.han_stack_backward.default](*given)
    torch.testing.assert_close(got, ops.han_stack_backward(*given), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(decompositions[ops.han_stack.default](x, u, b, dim=1), y, rtol=2e-2, atol=2e-2)


def test_per_sample_gradients():
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    stack = hanops.HanStack(5, 2, dim=1)
    x = torch.randn(3, 5, 4)
    call_for_per_sample_grads(stack)(x).square().sum().backward()
    parameters = dict(stack.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(stack, parameters, (x.unsqueeze(0),)).square().sum()

    wanted = vmap(grad(loss), (None, 0))({name: p.detach() for name, p in parameters.items()}, x)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad_sample, wanted[name])
    with pytest.raises(ValueError, match="dim must not be the axis of samples, 0, got 0"):
        call_for_per_sample_grads(hanops.HanStack(5, 2, dim=0), batch_size=5)(torch.randn(5, 3))


def test_inverse(backend, device):
    x = torch.randn(2, 5, 3, device=device)
    for activation in (None, "abs"):
        stack = hanops.HanStack(5, 3, dim=1, activation=activation, device=device)
        options: dict[str, Any] = {"dim": 1, "activation": activation}
        y, signs = hanops.han_stack(x, stack.u, stack.b, return_signs=True, **options)
        back = stack.inverse(y, signs if activation else None)
        torch.testing.assert_close(back, x)
        assert back.is_contiguous()


# ---- what is refused


def test_refused(backend, device):
    x, u = torch.randn(2, 5, 3, device=device), torch.randn(2, 5, device=device)
    with pytest.raises(ValueError, match=r"^han_stack: axis 1 of x must have u's 4 features, got shape \[2, 5, 3\]"):
        hanops.han_stack(x, torch.randn(2, 4, device=device), dim=1)
    with pytest.raises(
        ValueError, match=r"^han_stack: dim must not be the first axis of x, that of the groups, got -3"
    ):
        hanops.han_stack(x, torch.randn(2, 2, 2, device=device), dim=-3)
    y, signs = ops.han_stack_forward(x, u, None, True, 1, dim=1)
    with pytest.raises(ValueError, match=r"signs must have shape \[2, 2, 1, 3, 4\], got \[2, 2, 1, 3, 1\]"):
        ops.han_stack_backward(y, y, signs[..., :1], u, None, True, [True] * 3, dim=1)
    assert prod(signs.shape) == 2 * 2 * 3 * 4


def test_meta_tensors_have_no_backend(backend):
    """Shapes are told wherever a call would run, also where a backend is asked for that no meta tensor runs on."""
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), hanops.HanStack(8, 2, dim=1))
        y = model(torch.randn(2, 3, 4, 5))
        y.sum().backward()
    assert (y.device.type, y.shape) == ("meta", (2, 8, 4, 5))
    assert model[1].u.grad.shape == (2, 8)
