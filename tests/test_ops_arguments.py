"""What no kernel may see: tensors that are not strided, None, another device, on every op that can be called."""

import pytest
import torch

import hanops
from hanops.definition import checks

from .accuracy import problem
from .test_ops import SUFFIXES, op_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CS. tensor support"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]
ops = torch.ops.hanops
NAMES = ("x", "u", "b")


@pytest.fixture(params=SUFFIXES, ids=lambda suffix: suffix or "main")
def suffix(request):
    return request.param


def arguments(rows: int = 5):
    p = problem(rows, 6, 3, torch.float32)
    y, signs = ops.han_stack_forward(p.x, p.u, p.b, True, True)
    return p, y, signs


def nested(layout):
    return torch.nested.nested_tensor([torch.randn(2, 6), torch.randn(3, 6)], layout=layout)


def others(rows: int) -> dict[str, tuple[torch.Tensor | None, str]]:
    """Returns what is no strided tensor, of `rows` rows, and what a message calls it."""
    dense = torch.randn(rows, 6)
    made = {
        "None": (None, "None"),
        "coo": (dense.to_sparse(), "one of layout torch.sparse_coo"),
        "csr": (dense.to_sparse_csr(), "one of layout torch.sparse_csr"),
        "csc": (dense.to_sparse_csc(), "one of layout torch.sparse_csc"),
        "nested": (nested(torch.strided), "a nested tensor"),
        "jagged": (nested(torch.jagged), "a nested tensor"),
    }
    if rows and torch.backends.mkldnn.is_available():
        made["mkldnn"] = dense.to_mkldnn(), "one of layout torch._mkldnn"
    return made


@pytest.mark.parametrize("rows", [5, 0])
@pytest.mark.parametrize("kind", ["None", "coo", "csr", "csc", "nested", "jagged", "mkldnn"])
def test_forward_of_what_is_not_strided(suffix, device, rows, kind):
    p, _, _ = arguments()
    wrong, name = others(rows)[kind] if kind in others(rows) else pytest.skip("there is no empty one")
    op = op_of("forward", suffix, device)
    for i, argument in enumerate(NAMES):
        if (argument, kind) == ("b", "None"):
            continue
        given = [p.x, p.u, p.b]
        given[i] = wrong
        calls = [lambda given=given: op(*given, True, True)]
        if suffix == "":
            calls += [lambda given=given: hanops.explain(*given)]
        if suffix == "" and (argument, kind) != ("x", "jagged"):
            calls += [lambda given=given: hanops.han_stack(*given)]
        message = f"han_stack: {argument} must be a strided tensor, got {name}"
        for call in calls:
            with pytest.raises(TypeError, match=message):
                call()
            with torch.inference_mode(), pytest.raises(TypeError, match=message):
                call()


@pytest.mark.parametrize("kind", ["None", "coo", "csr", "nested", "jagged"])
def test_backward_of_what_is_not_strided(suffix, device, kind):
    p, y, signs = arguments()
    wrong, name = others(5)[kind]
    op = op_of("backward", suffix, device)
    for i, argument in enumerate(("dy", "y", "signs", "u", "b")):
        if kind == "None" and argument in ("y", "b"):
            continue
        given = [p.dy, y, signs, p.u, p.b]
        given[i] = wrong
        with pytest.raises(TypeError, match=f"han_stack: {argument} must be a strided tensor, got {name}"):
            op(*given, True, [True] * 3)


def test_nothing_but_none(suffix, device):
    with pytest.raises(TypeError, match="x must be a strided tensor, got None"):
        op_of("forward", suffix, device)(None, None, None, True, True)
    with pytest.raises(TypeError, match="dy must be a strided tensor, got None"):
        op_of("backward", suffix, device)(None, None, None, None, None, True, [True] * 3)


def test_layers_of_none():
    with pytest.raises(TypeError, match="han_layer: u must be a Tensor, got None"):
        hanops.han_layer(torch.randn(2, 6), None)


def test_saved_on_another_device(suffix, device):
    """y and signs on meta have no memory to read."""
    p, y, signs = arguments()
    op = op_of("backward", suffix, device)
    for name, saved in (("y", (y.to("meta"), signs)), ("signs", (y, signs.to("meta")))):
        with pytest.raises(ValueError, match=rf"{name} must be on the device of dy \(cpu\), got meta"):
            op(p.dy, *saved, p.u, p.b, True, [True] * 3)
        with pytest.raises(ValueError, match=rf"{name} must be on the device of dy \(cpu\), got meta"):
            checks.check_backward(p.dy, *saved, p.u, p.b, True, [True] * 3)


BAD_FORWARD = {
    "x must be float64, float32, bfloat16 or float16, got torch.int64": lambda p: (p.x.long(), p.u, p.b),
    "the last axis of x must have u's 1 features": lambda p: (p.x, p.u[:, :1], None),
    r"b must have the shape of u \(\[3, 6\]\), got \[3, 1\]": lambda p: (p.x, p.u, p.b[:, :1]),
    "b must have the dtype of u": lambda p: (p.x, p.u, p.b.double()),
    "u must have shape": lambda p: (p.x, p.u[0], None),
}
BAD_BACKWARD = {
    "y must be given where du is needed, got None": lambda p, y, s: (p.dy, None, s, p.u, p.b),
    r"signs must have shape \[5, 3, 1\], got \[5, 2, 1\]": lambda p, y, s: (p.dy, y, s[:, :2], p.u, p.b),
    "signs must be torch.uint8": lambda p, y, s: (p.dy, y, s.float(), p.u, p.b),
    "y must have the shape and dtype of dy": lambda p, y, s: (p.dy, y.double(), s, p.u, p.b),
    "dy must be float64, float32, bfloat16 or float16": lambda p, y, s: (p.dy.int(), y, s, p.u, p.b),
}


@pytest.mark.parametrize("message", list(BAD_FORWARD))
def test_every_forward_checks_its_arguments(suffix, device, message):
    given = BAD_FORWARD[message](arguments()[0])
    op = op_of("forward", suffix, device)
    with pytest.raises((TypeError, ValueError), match=message):
        op(*given, True, True)
    with torch.inference_mode(), pytest.raises((TypeError, ValueError), match=message):
        op(*given, True, False)


@pytest.mark.parametrize("message", list(BAD_BACKWARD))
def test_every_backward_checks_its_arguments(suffix, device, message):
    given = BAD_BACKWARD[message](*arguments())
    op = op_of("backward", suffix, device)
    with pytest.raises((TypeError, ValueError), match=message):
        op(*given, True, [True] * 3)
    with torch.inference_mode(), pytest.raises((TypeError, ValueError), match=message):
        op(*given, True, [True] * 3)


def test_differentiable_ops_check_tangents():
    """Forward mode runs in plain torch, which would take a b that only broadcasts."""
    p, _, _ = arguments()

    def stack(x):
        return ops.han_stack_forward_differentiable(x, p.u, p.b[:, :1], True, True)[0]

    with pytest.raises(ValueError, match="b must have the shape of u"):
        torch.func.jvp(stack, (p.x,), (p.x,))


def test_jagged_that_is_refused():
    rows = [torch.randn(n, 8) for n in (3, 1)]
    x = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    with pytest.raises(ValueError, match="the last axis of x must be of one length, got the jagged axis"):
        hanops.han_stack(x.transpose(1, 2), torch.randn(2, 8))
    with pytest.raises(ValueError, match="x must be a strided tensor where u has groups, got a jagged one"):
        hanops.han_stack(x, torch.randn(2, 3, 8))
    with pytest.raises(
        TypeError, match=r"x must be a strided tensor, got a nested tensor: make it .*layout=torch.jagged"
    ):
        hanops.han_stack(torch.nested.as_nested_tensor(rows, layout=torch.strided), torch.randn(2, 8))
    with pytest.raises(TypeError, match="u must be a strided tensor, got a nested tensor"):
        hanops.han_stack(rows[0], x)
