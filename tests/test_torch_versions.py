"""The private names of torch in hanops/_torch.py do on this version what hanops needs, and no other file has any."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.fx.experimental.proxy_tensor import make_fx

import hanops
from hanops import _torch

PACKAGE = Path(hanops.__file__).parent
FILES = {str(file.relative_to(PACKAGE)): file for file in PACKAGE.rglob("*.py")}
TABLES = {"_modules", "_parameters", "_buffers"}  # nn.Module's own, which subclasses outside of torch live on


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def own_names(sources: list[str]) -> set[str]:
    """Returns what the package itself calls so: its functions, classes, modules, variables and attributes."""
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    stored = [node for node in nodes if isinstance(getattr(node, "ctx", None), ast.Store)]
    return defined | {getattr(node, "id", None) or getattr(node, "attr", "") for node in stored}


def private_names(source: str, own: set[str]) -> list[str]:
    """Returns the private names that a source takes from elsewhere, in imports, attributes and names of modules."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            found += [ast.unparse(node)] if is_private(node.attr) and node.attr not in own | TABLES else []
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names if is_private(name.name)]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name.name}" for name in node.names]
            found += [name for name in names if is_private(name) and not name.startswith("hanops.")]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += re.findall(r"\btorch(?:\.\w+)*\._\w+", node.value)
    return found


OWN = own_names([file.read_text() for file in FILES.values()]) | {Path(name).stem for name in FILES}


@pytest.mark.parametrize("name", sorted(FILES.keys() - {"_torch.py"}))
def test_no_other_file_has_a_private_name(name):
    assert not private_names(FILES[name].read_text(), OWN)


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch._C._get_graph_executor_optimize",
        "import torch._dynamo",
        "from torch._ops import OpOverload",
        "from torch.autograd.function import _SingleLevelFunction",
        "def f(ctx):\n    return ctx._autograd_function_id",
        "when_imported('torch.nn.utils._expanded_weights', act)",
    ],
)
def test_a_private_name_is_found(source):
    assert private_names(source, OWN)
    assert not private_names("import torch\nfrom hanops import _torch\n_torch.has_hooks(torch.ones(1))", OWN)


def test_each_name_is_used_and_tried():
    used = {node.attr for file in FILES.values() for node in of_torch(file)}
    tried = {node.attr for node in of_torch(Path(__file__))}
    assert set(_torch.__all__) == used == tried


def of_torch(file: Path) -> list[ast.Attribute]:
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)]
    return [n for n in nodes if isinstance(n.value, ast.Name) and n.value.id == "_torch" and not n.attr.startswith("_")]


# ---- autograd and the dispatcher


def test_tangents():
    x, tangent = torch.ones(2), torch.ones(2)
    assert not _torch.has_tangent(x, None)
    with forward_ad.dual_level():
        assert _torch.has_tangent(None, x, forward_ad.make_dual(x, tangent))
    assert not _torch.has_tangent(torch.nested.nested_tensor([x], layout=torch.jagged), x.to_sparse())


def test_below_autograd():
    x = torch.ones(2, requires_grad=True)
    with _torch.below_autograd():
        assert not (2 * x).requires_grad
    assert (2 * x).requires_grad


class Doubled(_torch.SingleLevelFunction):
    """A Function that only sees the innermost transform."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        with _torch.next_transform():
            return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        assert isinstance(_torch.compiled_autograd_id(ctx), int)

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        return 2 * dy


def test_functions_of_one_level():
    x = torch.tensor(3.0, requires_grad=True)
    with _torch.enable_single_level_autograd_function():
        y = Doubled.apply(x)
    (dx,) = torch.autograd.grad(y, x)
    assert dx == 2


def test_the_next_transform_derives_what_is_called_below():
    """Autograd's own context alone would hide the op from it: forward mode and recording are off there."""
    x = torch.ones(2, requires_grad=True)
    with torch.no_grad(), _torch.next_transform():
        assert torch.is_grad_enabled()
        assert not (2 * x).requires_grad


def test_without_autocast():
    a = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with _torch.without_autocast("cpu"):
            assert (a @ a).dtype == torch.float32


def test_kernels():
    assert _torch.has_kernel("aten::mm", "CPU")
    assert not _torch.has_kernel("aten::mm", "AutogradFunctionality")


def test_hooks():
    x = torch.ones(2, requires_grad=True)
    assert not _torch.has_hooks(x)
    handle = x.register_hook(lambda g: g)
    assert _torch.has_hooks(x)
    handle.remove()
    assert not _torch.has_hooks(x)
    x.register_post_accumulate_grad_hook(lambda x: None)
    assert _torch.has_hooks(x)


def test_classes():
    assert isinstance(torch.ops.aten.mm.default, _torch.OpOverload)
    for name in ("Dropout", "Dropout1d", "Dropout2d", "AlphaDropout", "FeatureAlphaDropout"):
        assert issubclass(getattr(nn, name), _torch.Dropout)


def test_decompositions():
    def double(x: Tensor) -> Tensor:
        return x + x

    with torch.library._scoped_library("hanops_versions", "DEF") as library:
        library.define("double(Tensor x) -> Tensor")
        op = torch.ops.hanops_versions.double.default
        _torch.register_decomposition(op)(double)
        _torch.register_decomposition(op, type="meta")(double)
        assert torch._decomp.decomposition_table.pop(op) is double
        assert torch._decomp.meta_table.pop(op) is double


def test_scan():
    def sums(x: Tensor) -> list[Tensor]:
        return _torch.scan(lambda total, x: [total + x, total * x], [torch.zeros(2)], [x])

    x = torch.arange(6.0).view(3, 2)
    total, products = sums(x)
    assert total.tolist() == [6, 9]
    assert products.tolist() == [[0, 0], [0, 3], [8, 20]]
    graph = make_fx(sums, tracing_mode="symbolic")(x)
    assert [node.target for node in graph.graph.nodes].count(torch.ops.higher_order.scan) == 1
    x = torch.arange(10.0).view(5, 2)
    assert graph(x)[0].tolist() == [20, 25]


# ---- jagged tensors


def test_jagged():
    x = torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(1, 3)], layout=torch.jagged)
    assert _torch.jagged_axis(x) == 1
    assert _torch.jagged_values(x).shape == (3, 3)
    y = _torch.jagged_like(x, 2 * _torch.jagged_values(x))
    assert y.layout == torch.jagged
    assert [part.tolist() for part in y.unbind()] == [[[2.0] * 3] * 2, [[0.0] * 3]]
    assert (x + y).unbind()[0].sum() == 18  # of one shape: the same offsets


# ---- DTensors, and Functions that torch.compile traces


class Squared(torch.autograd.Function):
    """A Function whose result `to` would make one of its intermediate tensors."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        y = x * x
        y.add_(1)
        ctx.save_for_backward(x)
        return _torch.own_output(y, x.dtype)

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * dy


def test_results_of_a_compiled_function():
    x = torch.tensor([2.0, 3.0], requires_grad=True)
    for call in (Squared.apply, torch.compile(Squared.apply, backend="aot_eager", fullgraph=True)):
        (dx,) = torch.autograd.grad(call(x).sum(), x)
        assert dx.tolist() == [4.0, 6.0]
    assert _torch.own_output(x, torch.bfloat16).dtype == torch.bfloat16
    assert _torch.own_output(x, x.dtype) is x


def shards() -> None:
    t = distribute_tensor(torch.ones(2, 5), init_device_mesh("cpu", (2,)), [Shard(1)]).requires_grad_()
    shard = _torch.local_shard(t)
    assert type(shard) is Tensor
    shard.sum().backward()
    assert (t.grad.placements, t.grad.stride()) == (t.placements, t.stride())
    assert t.grad.full_tensor().sum() == 10


def test_local_shards(pools):
    pools[2](shards)


def test_where_the_compiler_has_jacobians_of_several_arguments():
    """tests/test_compile_and_export.py leaves such a Jacobian out where torch has none of its own functions."""
    x = torch.ones(2)
    compiled = torch.compile(torch.func.jacfwd(torch.mul, (0, 1)), backend="aot_eager", fullgraph=True)
    if torch.__version__ >= "2.13":
        assert [j.shape for j in compiled(x, x)] == [(2, 2)] * 2
    elif torch.__version__ < "2.12":
        with pytest.raises(Exception, match="data-dependent"):
            compiled(x, x)


# ---- what is imported late


def test_expanded_weights():
    weights, tools = _torch.expanded_weights()
    assert weights.__name__.startswith(_torch.EXPANDED_WEIGHTS)
    for name in ("forward_helper", "set_grad_sample_if_exists", "standard_kwargs", "unpack_expanded_weight_or_tensor"):
        assert callable(getattr(tools, name)), name
    p = nn.Parameter(torch.ones(2))
    wrapped = weights.ExpandedWeight(p, 4, loss_reduction="sum")
    assert torch.equal(tools.unpack_expanded_weight_or_tensor(wrapped), p)
    tools.set_grad_sample_if_exists(wrapped, lambda _: torch.zeros(4, 2))
    assert p.grad_sample.shape == (4, 2)
    assert callable(weights.implements_per_sample_grads)


def test_calls_are_told_apart():
    known = DTensor._op_dispatcher.sharding_propagator.op_to_schema_info
    _torch.tell_calls_apart(torch.ops.hanops.han_stack.default)
    schema = known[torch.ops.hanops.han_stack.default]
    assert (schema.static_argnum, schema.needs_pytree) == (1, True)


def test_late_imports_are_late():
    late = [_torch.EXPANDED_WEIGHTS, "torch.distributed.tensor"]
    program = f"import sys, hanops; sys.exit(any(name in sys.modules for name in {late}))"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", program]).returncode == 0
