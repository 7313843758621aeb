"""HanStack in torch.compile, torch.export, ONNX and AOTInductor: rows of docs/compatibility.md."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jvp, vmap

import hanops
from hanops.definition import reference

from .compatibility import BACKENDS, F64, close, gradients, network, row, stacks, truth_of

pytestmark = pytest.mark.usefixtures("undisturbed_compiler")


def check_compiled(compiled: nn.Module, model: nn.Module, device: torch.device) -> None:
    for n, batch in enumerate((5, 9, 13)):
        if n == 2:
            torch.compiler.set_stance("fail_on_recompile")
        x = torch.randn(batch, 4, device=device)
        close(gradients(compiled, x), gradients(truth_of(model), x.double()))
        with torch.no_grad():
            if n == 2:
                torch.compiler.set_stance("default")
            close(compiled(x), truth_of(model)(x.double()))


@row("Compile and export", "`torch.compile`, one graph, any batch size, forward and backward")
def test_compile(backend, device):
    model = network().to(device)
    check_compiled(torch.compile(model, fullgraph=True, backend="aot_eager"), model, device)


@row("Compile and export", '`mode="reduce-overhead"` of the Inductor')
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")  # with which the Inductor opens its memory
def test_compile_inductor(backend, device):
    model = network().to(device)
    compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    check_compiled(compiled, model, device)
    for _ in range(3):  # of one size: warmed up, captured and replayed
        x = torch.randn(5, 4, device=device)
        close(gradients(compiled, x), gradients(truth_of(model), x.double()))


@row(
    "Compile and export",
    "one graph for any number of features and layers",
    cuda="yes; on a GPU a graph for each power of 2 of the features",
    triton="yes; on a GPU a graph for each power of 2 of the features",
)
def test_compile_dynamic_features(backend, device):
    compiled = torch.compile(hanops.han_stack, fullgraph=True, backend="aot_eager", dynamic=True)
    for n, (rows, features, layers) in enumerate(((5, 16, 3), (7, 24, 4), (9, 30, 6))):
        if n == 2 and device.type == "cpu":
            torch.compiler.set_stance("fail_on_recompile")
        inputs = [torch.randn(size, features, device=device) for size in (rows, layers, layers)]
        results = []
        for function, dtype in ((compiled, torch.float32), (reference.han_stack, F64)):
            leaves = [t.to(dtype).requires_grad_() for t in inputs]
            y = function(*leaves)
            results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
        close(*results)


@row("Compile and export", "compiled transforms: `torch.compile(vmap(grad(...)))`")
def test_compile_of_transforms(backend, device):
    model = hanops.HanStack(8, 2, device=device)
    x = torch.randn(5, 8, device=device)

    def per_sample(model: nn.Module) -> Callable[..., Any]:
        return vmap(grad(lambda p, row: functional_call(model, p, (row,)).square().sum()), (None, 0))

    compiled = torch.compile(per_sample(model), fullgraph=True, backend="aot_eager")
    wide = truth_of(model)
    parameters, wide_parameters = (dict(m.named_parameters()) for m in (model, wide))
    close(compiled(parameters, x), per_sample(wide)(wide_parameters, x.double()))


@row(
    "Compile and export",
    "compiled forward mode: `torch.compile` of `jvp`, `jacfwd` (on 2.11 of one argument), `hessian`, and of `grad`",
)
def test_compile_of_forward_mode(backend, device):
    inputs, v = stacks(device), tuple(stacks(device))

    def loss_of(stack: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *t: stack(*t).square().sum()

    transforms: list[Callable[[Callable[..., Tensor]], Callable[..., Any]]] = [
        lambda s: lambda *t: jvp(s, t, v),
        *(functools.partial(jacfwd, argnums=i) for i in range(3)),
        lambda s: hessian(loss_of(s), 1),
        lambda s: grad(loss_of(s), (0, 1, 2)),
    ]
    if torch.__version__ >= "2.13":  # torch 2.11 compiles no `jacfwd` of several arguments, whatever the function is
        transforms.append(lambda s: jacfwd(s, (0, 1, 2)))
    for transform in transforms:
        compiled = torch.compile(transform(hanops.han_stack), fullgraph=True, backend="aot_eager")
        close(compiled(*inputs), transform(reference.han_stack)(*inputs), 1e-10)
        with forward_ad.dual_level():  # is refused inside another, which a compiler that failed leaves behind
            pass


def gradients_of(
    stack: Callable[..., Tensor], given: list[Tensor], needs: str, order: int, compiler: Callable[..., Any] | None
) -> list[Tensor | None]:
    """Returns what backward() accumulates, of the loss or of the squares of its gradients, by compiled autograd."""
    leaves = [t.clone().requires_grad_(name in needs) for name, t in zip("xub", given, strict=False)]
    needed = [t for t in leaves if t.requires_grad]
    y = stack(*leaves, final_abs=order == 1)
    loss = (y.square() * torch.arange(y.numel(), device=y.device).view_as(y)).sum()
    if order == 2:
        loss = torch.stack([g.square().sum() for g in torch.autograd.grad(loss, needed, create_graph=True)]).sum()
    with torch._dynamo.compiled_autograd._enable(compiler) if compiler else nullcontext():
        loss.backward()
    return [t.grad for t in needed]


@row("Compile and export", "compiled autograd, in one graph, of first and second derivatives")
def test_compiled_autograd(backend, device):
    compiler = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    captures = torch._dynamo.utils.counters["compiled_autograd"]
    for order, (names, needs) in product((1, 2), (("xub", "xub"), ("xub", "xb"), ("xu", "xu"), ("xu", "x"))):
        given = stacks(device)[: len(names)]
        before = captures["captures"]
        got = gradients_of(hanops.han_stack, given, needs, order, compiler)
        close(got, gradients_of(reference.han_stack, given, needs, order, None), 1e-10)
        assert captures["captures"] == before + 1


def exported(model: nn.Module, device: torch.device) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    return torch.export.export(model, (torch.randn(5, 4, device=device),), dynamic_shapes=({0: batch},))


@pytest.fixture
def frozen(device) -> nn.Sequential:
    return network().to(device).requires_grad_(False)


@row("Compile and export", "`torch.export` with a dynamic batch, saved, loaded and run")
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # torch.export.load's, up to 2.11
def test_export(backend, device, frozen, tmp_path):
    torch.export.save(exported(frozen, device), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    assert sum("han_stack" in str(node.target) for node in loaded.graph.nodes) == 2
    x = torch.randn(9, 4, device=device)
    close(loaded.module()(x), truth_of(frozen)(x.double()))


@row("Compile and export", "`hanops.decompositions()`: core ATen, without hanops' ops, inference and training")
def test_decompositions(backend, device, frozen):
    table = {**torch.export.default_decompositions(), **hanops.decompositions()}
    program = exported(frozen, device).run_decompositions(table)
    called = {node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    assert all(torch.Tag.core in op.tags for op in called), called
    x = torch.randn(9, 4, device=device)
    close(program.module()(x), truth_of(frozen)(x.double()))
    x, u, b = stacks(device)
    ours = hanops.decompositions()
    ops = torch.ops.hanops
    y, signs = ops.han_stack_forward(x, u, b, True, True)
    close(ours[ops.han_stack_forward.default](x, u, b, True, True)[0], y)
    arguments = (x, y, signs, u, b, True, [True, True, True])
    close(ours[ops.han_stack_backward.default](*arguments), ops.han_stack_backward(*arguments))


@row("Compile and export", "`torch.onnx.export`, run by onnxruntime", **dict.fromkeys(BACKENDS, "yes, any"))
@pytest.mark.filterwarnings("ignore")
def test_onnx(frozen, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    frozen = frozen.cpu()
    program = exported(frozen, torch.device("cpu")).run_decompositions(hanops.decompositions())
    torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    x = torch.randn(9, 4)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    close(torch.from_numpy(y), truth_of(frozen)(x.double()))


@row("Compile and export", "AOTInductor packages that run without hanops", **dict.fromkeys(BACKENDS, "yes, any"))
@pytest.mark.filterwarnings("ignore")
def test_aot_inductor(frozen, device, tmp_path):
    program = exported(frozen, device).run_decompositions(hanops.decompositions())
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    x = torch.randn(9, 4, device=device)
    torch.save((x, truth_of(frozen)(x.double()).float()), tmp_path / "data.pt")
    script = (
        "import sys, torch\n"
        f"x, y = torch.load({str(tmp_path / 'data.pt')!r})\n"
        f"torch.testing.assert_close(torch._inductor.aoti_load_package({package!r})(x), y)\n"
        "assert 'hanops' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
