"""The ops' options beside the tensors, save, abs and dim: their defaults, what they may be, and where that is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.func import grad, jvp, vmap

import hanops
from hanops.backends.native import native
from hanops.ops import registration

from .accuracy import problem
from .test_ops import SUFFIXES, op_of

ops = torch.ops.hanops
WRONG = ValueError
# of rows (2, 3, 4): the options, and what is said of them
REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"final_abs": False, "abs": False},
        WRONG,
        "final_abs must be True where no layer takes the absolute value, got False",
    ),
    ({"dim": 0}, WRONG, r"axis 0 of x must have u's 4 features, got shape \[2, 3, 4\]"),
    ({"dim": -2}, WRONG, r"axis 1 of x must have u's 4 features, got shape \[2, 3, 4\]"),
    ({"dim": 3}, WRONG, "dim must be an axis of x, from -3 to 2, got 3"),
    ({"dim": -4}, WRONG, "dim must be an axis of x, from -3 to 2, got -4"),
]
REFUSED_SAVE: list[tuple[int, type[Exception], str]] = [
    (3, WRONG, r"save must be 0 \(nothing\), 1 \(signs\) or 2 \(signs and the rest of y\), got 3"),
    (-1, WRONG, r"save must be 0 \(nothing\), 1 \(signs\) or 2 \(signs and the rest of y\), got -1"),
]


@pytest.fixture(params=REFUSED, ids=lambda case: ",".join(f"{name}={value}" for name, value in case[0].items()))
def refused(request) -> tuple[dict[str, Any], type[Exception], str]:
    return request.param


@pytest.fixture(params=REFUSED_SAVE, ids=lambda case: f"save={case[0]}")
def refused_save(request) -> tuple[int, type[Exception], str]:
    return request.param


@pytest.fixture(params=SUFFIXES, ids=lambda suffix: suffix or "main")
def suffix(request) -> str:
    return request.param


def inputs(device: torch.device, requires_grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    x, u, b = (torch.randn(shape, device=device) for shape in ((2, 3, 4), (5, 4), (5, 4)))
    return x.requires_grad_(requires_grad), u.requires_grad_(requires_grad), b.requires_grad_(requires_grad)


def saved(x: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the tensors of a backward call."""
    y, signs = ops.han_stack_forward(x, u, b, True, 1)
    return torch.randn_like(y), y, signs, u, b


@pytest.mark.plain_torch
def test_schemas():
    """C++ defines the ops, and Python where there is no C++: with the same schemas."""
    schemas = {"han_stack": registration.STACK}
    for end in ("", "_torch", "_triton", "_cuda", "_differentiable"):
        schemas |= {"han_stack_forward" + end: registration.FORWARD, "han_stack_backward" + end: registration.BACKWARD}
    if native is not None:
        schemas |= {"han_stack_forward_by_rows": registration.FORWARD_BY_ROWS}
        schemas |= {"han_stack_backward_by_rows": registration.BACKWARD_BY_ROWS}
    defined = {name.removeprefix("hanops::") for name in torch._C._dispatch_get_all_op_names() if "hanops::" in name}
    assert defined >= {name for name in schemas if not name.endswith("_cuda")}
    assert defined <= set(schemas)
    for name in defined:
        assert getattr(ops, name).default._schema == torch._C.parse_schema(f"hanops::{name}{schemas[name]}")


def test_calls_of_before(backend, device):
    """Calls that say nothing of abs and dim, and of save by True and False, mean what they meant."""
    x, u, b = inputs(device)
    for final_abs in (True, False):
        y, signs = ops.han_stack_forward(x, u, b, final_abs, 1, True, -1)
        for save, kept in ((True, signs), (False, signs.new_empty(0)), (1, signs), (0, signs.new_empty(0))):
            for more in ((), (True,), (True, -1), (True, 2)):
                got = ops.han_stack_forward(x, u, b, final_abs, save, *more)
                torch.testing.assert_close(got, (y, kept), rtol=0, atol=0)
        for flags in ((final_abs,), (final_abs, True), (final_abs, True, 2)):
            assert torch.equal(ops.han_stack(x, u, b, *flags), y)
        dy = torch.randn_like(y)
        wanted = ops.han_stack_backward(dy, y, signs, u, b, final_abs, [True] * 3)
        for more in ((True,), (True, -1), (True, 2)):
            got = ops.han_stack_backward(dy, y, signs, u, b, final_abs, [True] * 3, *more)
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    assert torch.equal(ops.han_stack(x, u, b), ops.han_stack(x, u, b, True, True, -1))


@pytest.mark.parametrize("grouped", [False, True])
def test_dim_of_the_last_axis_under_transforms(backend, device, grouped):
    """Whichever axis is the batch, dim counts those that a call sees; so do derivatives."""
    lead = (2,) if grouped else ()
    x, u, b = (torch.randn(*lead, *shape, device=device) for shape in ((3, 4), (5, 4), (5, 4)))
    last = x.dim() - 1
    for in_dims in product((0, 1, x.dim()), (None, 0), (None, 1)):
        batched = [t if d is None else torch.stack((t, 2 * t), d) for t, d in zip((x, u, b), in_dims, strict=True)]

        def loss(*tensors: Tensor, dim: int) -> Tensor:
            return ops.han_stack(*tensors, dim=dim).square().sum()

        for derive in (lambda f: f, lambda f: grad(f, (0, 1, 2))):
            by_name, by_default = (vmap(derive(lambda *ts, dim=dim: loss(*ts, dim=dim)), in_dims) for dim in (last, -1))
            torch.testing.assert_close(by_name(*batched), by_default(*batched), rtol=0, atol=0)


# ---- what is refused, in every way to call the ops


def calls_of_stack(x: Tensor, u: Tensor, b: Tensor) -> Iterator[Callable[..., Any]]:
    """Yields functions of the options that call `han_stack` directly and in the ways of autograd and torch.func."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, u, b)]
    yield lambda **options: ops.han_stack(x, u, b, **options)
    yield lambda **options: ops.han_stack(*leaves, **options)
    yield lambda **options: grad(lambda x: ops.han_stack(x, u, b, **options).sum())(x)
    yield lambda **options: jvp(lambda x: ops.han_stack(x, u, b, **options), (x,), (x,))
    yield lambda **options: vmap(lambda x: ops.han_stack(x, u, b, **options), 1)(torch.stack((x, x), 1))
    yield lambda **options: vmap(lambda u: ops.han_stack(x, u, b, **options))(torch.stack((u, u)))
    yield lambda **options: hanops.decompositions()[ops.han_stack.default](x, u, b, **options)

    def in_mode(mode: Any) -> Callable[..., Any]:
        def call(**options: Any) -> Any:
            with mode:
                return ops.han_stack(x, u, b, **options)

        return call

    yield in_mode(torch.inference_mode())
    yield in_mode(torch.autocast(x.device.type, dtype=torch.bfloat16))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in (x, u, b)]
    yield lambda **options: ops.han_stack(*fakes, **options)
    yield lambda **options: ops.han_stack(*(t.to("meta") for t in (x, u, b)), **options)


def test_stack_refuses(backend, device, refused):
    options, error, message = refused
    for call in calls_of_stack(*inputs(device)):
        with pytest.raises(error, match=f"^han_stack: {message}"):
            call(**options)


def test_forward_and_backward_refuse(suffix, device, refused):
    options, error, message = refused
    x, u, b = inputs(device)
    options = {"final_abs": True, **options}
    forward, backward = op_of("forward", suffix, device), op_of("backward", suffix, device)
    for save in (0, 1, 2):
        with pytest.raises(error, match=f"^han_stack: {message}"):
            forward(x, u, b, save=save, **options)
    with pytest.raises(error, match=f"^han_stack: {message.replace('of x', 'of dy')}"):
        backward(*saved(x, u, b), needs=[True] * 3, **options)


def test_save_is_refused(suffix, device, refused_save):
    save, error, message = refused_save
    x, u, b = inputs(device)
    with pytest.raises(error, match=f"^han_stack: {message}"):
        op_of("forward", suffix, device)(x, u, b, True, save)


def test_derived_calls_refuse(backend, device):
    """The two ops where they are recorded, transformed, or decomposed."""
    x, u, b = inputs(device)
    given = saved(x, u, b)
    leaves = [t.detach().clone().requires_grad_() for t in (x, u, b)]
    decompositions = hanops.decompositions()
    forward, backward = ops.han_stack_forward, ops.han_stack_backward

    def recorded(dy: Tensor, *others: Tensor, **options: Any) -> Any:
        return backward(dy.clone().requires_grad_(), *others, needs=[True] * 3, **options)

    forwards: list[Callable[..., Any]] = [
        lambda **options: forward(*leaves, **options),
        lambda **options: grad(lambda x: forward(x, u, b, **options)[0].sum())(x),
        lambda **options: jvp(lambda x: forward(x, u, b, **options)[0], (x,), (x,)),
        lambda **options: vmap(lambda x: forward(x, u, b, **options)[0])(torch.stack((x, x))),
        lambda **options: decompositions[forward.default](x, u, b, **options),
    ]
    backwards: list[Callable[..., Any]] = [
        lambda **options: recorded(*given, **options),
        lambda **options: vmap(lambda dy: backward(dy, *given[1:], needs=[True] * 3, **options))(given[0].unsqueeze(0)),
        lambda **options: jvp(lambda dy: backward(dy, *given[1:], needs=[True] * 3, **options), given[:1], given[:1]),
        lambda **options: decompositions[backward.default](*given, needs=[True] * 3, **options),
    ]
    for options, error, message in [*REFUSED, *(({"save": save}, *said) for save, *said in REFUSED_SAVE)]:
        for call in forwards:
            with pytest.raises(error, match=f"^han_stack: {message}"):
                call(**{"final_abs": True, "save": 1, **options})
    for options, error, message in REFUSED:
        for call in backwards:
            with pytest.raises(error, match=f"^han_stack: {message.replace('of x', 'of dy')}"):
                call(**{"final_abs": True, **options})


@pytest.mark.usefixtures("undisturbed_compiler")
def test_compilers_refuse(backend, device):
    x, u, b = inputs(device)
    for options, _, message in REFUSED:
        torch._dynamo.reset()
        compiled = torch.compile(lambda *ts, o=options: ops.han_stack(*ts, **o), fullgraph=True, backend="aot_eager")
        with pytest.raises(Exception, match=f"han_stack: {message}"):
            compiled(x, u, b)


def test_arguments_that_one_call_of_a_batch_may_not_have(backend, device):
    """A batch axis is no axis of the rows, nor of the layers, of which a call lacks one."""
    x, u, _ = inputs(device)
    with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., features\), got \[\]"):
        vmap(lambda x: ops.han_stack(x, u, None))(torch.randn(4, device=device))
    with pytest.raises(ValueError, match=r"u must have shape \(layers, features\) .*got \[4\]"):
        vmap(lambda u: ops.han_stack(x[0], u, None))(u[:3])
    with pytest.raises(ValueError, match=r"b must have the shape of u \(\[5, 4\]\), got \[4\]"):
        vmap(lambda b: ops.han_stack(x, u, b))(u)
    p = problem(3, 4, 2, torch.float32, device=device)
    y, signs = ops.han_stack_forward(p.x, p.u, None, True, 1)
    with pytest.raises(ValueError, match=r"signs must have shape \[3, 2, .\], got \[2, .\]"):
        vmap(lambda dy, signs: ops.han_stack_backward(dy, None, signs, p.u, None, True, [True, False, False]))(
            torch.stack((y, y, y)), signs
        )


# ---- shapes that ops tell


def test_vmap_over_no_stacks(device):
    """A batch of size 0 has the shapes of one that is not empty, also of grouped stacks."""
    for lead in ((), (2,)):
        x, u = torch.randn(0, *lead, 5, 8, device=device), torch.randn(0, *lead, 3, 8, device=device)
        assert vmap(hanops.han_stack)(x, u).shape == x.shape
        gradient = vmap(grad(lambda u, x: hanops.han_stack(x, u).sum()))(u, x)
        assert gradient.shape == u.shape


def test_forward_mode_without_signs(device):
    x, u = torch.randn(5, 8, device=device), torch.randn(3, 8, device=device)
    _, signs = jvp(lambda x: torch.ops.hanops.han_stack_forward(x, u, None, True, 0), (x,), (x,))[0]
    assert signs.shape == torch.ops.hanops.han_stack_forward(x, u, None, True, 0)[1].shape == (0,)
