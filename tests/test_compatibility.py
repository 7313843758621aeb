"""What HanStack works with in PyTorch: each test is a row of docs/compatibility.md, which this file writes.

Values are compared with the float64 reference, on every backend. `python tests/test_compatibility.py` writes the page.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import emulation
import pytest
import torch
from accuracy import relative
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

import hanops
from hanops import reference

PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"
BACKENDS = ("cpu", "cuda", "triton", "reference")
F64 = torch.float64


@dataclass
class Row:
    group: str
    feature: str
    test: str
    notes: dict[str, str]

    def __str__(self) -> str:
        cells = (self.notes.get(name, "yes") for name in BACKENDS)
        return f"| {self.feature} | {' | '.join(cells)} | `{self.test}` |"


ROWS: list[Row] = []


def row(group: str, feature: str, **notes: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a test a row of the table; a note of a backend stands in its cell, and 'no: why' skips the test for it."""

    def add(test: Callable[..., None]) -> Callable[..., None]:
        ROWS.append(Row(group, feature, test.__name__, notes))
        lacks = {backend: note for backend, note in notes.items() if note.startswith("no")}
        return pytest.mark.lacks(lacks)(test) if lacks else test

    return add


# ---- models, and their truth


class Truth(hanops.HanStack):
    """A HanStack in plain, differentiable torch."""

    def forward(self, x: Tensor) -> Tensor:
        return reference.han_stack(x, self.u, self.b, self.final_abs)


def truth_of(model: nn.Module) -> nn.Module:
    """Returns a copy of model in float64 whose HanStacks are plain torch."""
    wide = copy.deepcopy(model).double()
    for module in wide.modules():
        if type(module) is hanops.HanStack:
            module.__class__ = Truth
    return wide


def network(features: int = 8) -> nn.Sequential:
    last = hanops.HanStack(features, 2, final_abs=False)
    return nn.Sequential(
        nn.Linear(4, features), hanops.HanStack(features, 3), nn.LayerNorm(features), last, nn.Linear(features, 2)
    )


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Returns the output, and the gradients of a loss in x and in the parameters."""
    x = x.detach().requires_grad_()
    y = model(x)
    weights = torch.arange(y.numel(), dtype=y.dtype, device=y.device).view_as(y) / y.numel()
    return [y.detach(), *torch.autograd.grad((y * weights).sum() + y.square().sum(), [x, *model.parameters()])]


def close(got: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    """Asserts that tensors, or trees of them, agree in norm: float32 against float64."""
    got, wanted = torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(wanted)
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        assert relative(a.cpu(), b.double().cpu()) < tolerance


def stacks(device: torch.device, dtype: torch.dtype = F64, *lead: int) -> list[Tensor]:
    """Returns x, u and b of a small stack; `lead` are axes before all of theirs."""
    new = [torch.randn(*lead, *shape, dtype=dtype, device=device) for shape in ((5, 6), (3, 6), (3, 6))]
    return [new[0], new[1], 0.3 * new[2]]


def loss_of(stack: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns a loss of (x, u, b) whose second derivatives are all nonzero."""

    def loss(x: Tensor, u: Tensor, b: Tensor) -> Tensor:
        y = stack(x, u, b)
        return (y.square() * torch.arange(y.numel(), dtype=y.dtype, device=y.device).view(y.shape)).sum()

    return loss


class Recorder(TorchDispatchMode):
    """Keeps the ops that reach the kernels, and their tensor arguments' shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[tuple[int, ...]]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        shapes = [tuple(a.shape) for a in args if isinstance(a, Tensor)]
        self.calls.append((func.overloadpacket.__name__, shapes))
        return func(*args, **(kwargs or {}))

    def han(self) -> list[tuple[str, list[tuple[int, ...]]]]:
        return [call for call in self.calls if call[0].startswith("han_stack")]


@pytest.fixture(autouse=True)
def undisturbed_compiler(poisoned_memory):
    """The compiler is guarded by the mode of deterministic algorithms; here it is off but where a test says so."""
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()
    yield
    torch.compiler.set_stance("default")


# ---- compilers and exporters


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
def test_compile_inductor(backend, device):
    model = network().to(device)
    check_compiled(torch.compile(model, fullgraph=True, mode="reduce-overhead"), model, device)


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


def exported(model: nn.Module, device: torch.device) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    return torch.export.export(model, (torch.randn(5, 4, device=device),), dynamic_shapes=({0: batch},))


@pytest.fixture
def frozen(device) -> nn.Sequential:
    return network().to(device).requires_grad_(False)


@row("Compile and export", "`torch.export` with a dynamic batch, saved, loaded and run")
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


# ---- derivatives and transforms


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


# ---- mixed precision

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


# ---- life of a module


@row("Life of a module", "`torch.utils.checkpoint`, both kinds")
def test_checkpoint(backend, device):
    model = network().to(device)
    x = torch.randn(5, 4, device=device)
    wanted = gradients(truth_of(model), x.double())
    for reentrant in (True, False):

        class Checkpointed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = model

            def forward(self, x: Tensor) -> Tensor:
                return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=reentrant)

        if not reentrant:
            close(gradients(Checkpointed(), x), wanted)
            continue
        leaf = x.detach().requires_grad_()  # the reentrant kind has backward() alone
        y = Checkpointed()(leaf)
        weights = torch.arange(y.numel(), device=device).view_as(y) / y.numel()
        ((y * weights).sum() + y.square().sum()).backward()
        close([y.detach(), leaf.grad, *(p.grad for p in model.parameters())], wanted)


@row("Life of a module", "hooks of modules and tensors, `saved_tensors_hooks`")
def test_hooks(backend, device):
    model = hanops.HanStack(8, 3, device=device)
    wide = truth_of(model)
    x = torch.randn(5, 8, device=device)
    results = []
    for m, rows in ((model, x), (wide, x.double())):
        seen: list[Tensor] = []
        m.register_forward_pre_hook(lambda _, inputs: (inputs[0] + 1,))
        m.register_forward_hook(lambda _, inputs, output: 2 * output)
        m.register_full_backward_hook(lambda _, dx, dy, seen=seen: seen.extend((*dx, *dy)))
        m.u.register_hook(lambda g: 3 * g)
        with torch.autograd.graph.save_on_cpu():
            seen += gradients(m, rows)
        results.append(seen)
    close(*results)


@row("Life of a module", "`torch.nn.utils.parametrize` and `prune`")
def test_wrapped_parameters(backend, device):
    class Doubled(nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            return 2 * t

    def check(model: hanops.HanStack, kept: Tensor, factor: Tensor | float) -> None:
        """`model.u` is `factor * kept`, and so is its gradient."""
        x = torch.randn(5, 8, device=device)
        y = model(x)
        u = model.u.detach().double().requires_grad_()
        wanted = reference.han_stack(x.double(), u, model.b.detach())
        close(y, wanted)
        (du,) = torch.autograd.grad(wanted.square().sum(), u)
        close(torch.autograd.grad(y.square().sum(), kept), [factor * du])

    model = hanops.HanStack(8, 3, device=device)
    nn.utils.parametrize.register_parametrization(model, "u", Doubled())
    check(model, model.parametrizations.u.original, 2.0)
    model = hanops.HanStack(8, 3, device=device)
    prune.random_unstructured(model, "u", amount=0.5)
    assert (model.u == 0).sum() == 12
    check(model, model.u_orig, model.u_mask)


@row("Life of a module", "`skip_init`, the meta device, `to_empty`, `reset_parameters`")
def test_late_initialisation(backend, device):
    assert nn.utils.skip_init(hanops.HanStack, 8, 2, device=device).u.shape == (2, 8)
    model = hanops.HanStack(8, 2, device="meta")
    x = torch.randn(3, 8, device="meta")
    assert model(x).is_meta
    model = model.to_empty(device=device)
    model.reset_parameters()
    close(model.u.norm(dim=-1), torch.ones(2))
    x = torch.randn(3, 8, device=device)
    close(gradients(model, x), gradients(truth_of(model), x.double()))


@pytest.fixture
def on_cpu(device) -> None:
    if device.type == "cuda":
        pytest.skip("about tensors on the CPU")


@row("Life of a module", "`share_memory`: trained by another process")
def test_shared_memory(backend, on_cpu):
    model = hanops.HanStack(8, 2).share_memory()
    wide = truth_of(model)
    x = torch.randn(5, 8)
    process = torch.multiprocessing.get_context("spawn").Process(target=step, args=(model, x, backend))
    process.start()
    process.join()
    assert process.exitcode == 0
    step(wide, x.double(), "reference")
    close(list(model.parameters()), list(wide.parameters()))


def step(model: nn.Module, x: Tensor, backend: str) -> None:
    """Takes one step of gradient descent."""
    with ExitStack() as stack:
        enter(backend, stack)
        model(x).square().sum().backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.01 * p.grad


def enter(backend: str, stack: ExitStack) -> None:
    if backend == "cuda":
        emulation.load()
    stack.enter_context(hanops.use_backend(backend))


class Rows(torch.utils.data.Dataset):
    """A data set whose rows are made by a HanStack, in the worker."""

    def __init__(self, model: nn.Module, x: Tensor, backend: str) -> None:
        self.model, self.x, self.backend = model, x, backend

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor:
        with ExitStack() as stack, torch.no_grad():
            enter(self.backend, stack)
            return self.model(self.x[index])


@row("Life of a module", "in the workers of a `DataLoader`, forked and spawned, on the CPU")
@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_data_loader(backend, on_cpu, start):
    model = hanops.HanStack(8, 3)
    x = torch.randn(6, 8)
    model(torch.randn(4096, 8))  # the parent's threads have run
    data = Rows(model, x, backend)
    loader = torch.utils.data.DataLoader(data, batch_size=3, num_workers=1, multiprocessing_context=start)
    close(torch.cat(list(loader)), truth_of(model)(x.double()))


@row("Life of a module", "in-place ops before, and after: right, or autograd's own error")
def test_in_place_ops(backend, device):
    model = hanops.HanStack(8, 3, device=device)
    wide = truth_of(model)
    x = torch.randn(5, 8, device=device)

    def before(m: nn.Module, x: Tensor) -> list[Tensor]:
        rows = 2 * x
        y = m(rows.add_(1))
        if m is model:
            rows.zero_()  # x is not kept: it may be changed
        return list(torch.autograd.grad(y.square().sum(), [x, *m.parameters()]))

    leaf = x.clone().requires_grad_()
    close(before(model, leaf), before(wide, x.double().requires_grad_()))
    y = model(leaf)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    model.u.requires_grad_(False)  # y is not kept then
    y = model(leaf)
    y.mul_(2)
    (dx,) = torch.autograd.grad(y.sum(), leaf)
    rows = x.double().requires_grad_()
    close(dx, torch.autograd.grad(2 * wide(rows).sum(), rows)[0])
    y = model(leaf)
    with torch.no_grad():
        model.u.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@row(
    "Life of a module",
    "CUDA graphs (`torch.cuda.make_graphed_callables`)",
    cpu="no: a CPU has no CUDA graphs",
    cuda="yes, not run on a GPU yet",
    triton="yes, not run on a GPU yet",
    reference="yes, not run on a GPU yet",
)
def test_cuda_graphs(backend, device):
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    model = hanops.HanStack(64, 3, device=device)
    wide = truth_of(model)
    sample = torch.randn(32, 64, device=device, requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(model, (sample,))
    for _ in range(3):
        x = torch.randn(32, 64, device=device)
        close(gradients(graphed, x), gradients(wide, x.double()))


@row("Life of a module", "`torch.use_deterministic_algorithms`: the same bits in every run")
def test_deterministic_algorithms(backend, device):
    torch.use_deterministic_algorithms(True)
    model = network(30).to(device)
    x = torch.randn(70, 4, device=device)
    first, second = gradients(model, x), gradients(model, x)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    close(first, gradients(truth_of(model), x.double()))


@row("Life of a module", "two threads in forward and backward at once", triton="yes; its interpreter in turns")
def test_two_threads(backend, device):
    model = network(16).to(device)
    xs = [torch.randn(40, 4, device=device) for _ in range(2)]
    results: list[list[list[Tensor]]] = [[], []]

    def work(index: int) -> None:
        results[index] = [gradients(model, xs[index]) for _ in range(4)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for x, several in zip(xs, results, strict=True):
        wanted = gradients(truth_of(model), x.double())
        assert len(several) == 4
        for got in several:
            close(got, wanted)


@row("Life of a module", "`torch.inference_mode`, frozen parameters, `torch.no_grad`")
def test_inference(backend, device):
    model = network().to(device)
    x = torch.randn(5, 4, device=device)
    wanted = truth_of(model)(x.double())
    with torch.inference_mode():
        close(model(x), wanted)
    with torch.no_grad():
        close(model(x), wanted)
    close(model.requires_grad_(False)(x), wanted)


# ---- the page


def page() -> str:
    """Returns docs/compatibility.md."""
    lines = [
        "# What HanStack works with",
        "",
        "Each row is a test of `tests/test_compatibility.py`, which `make test` runs for every backend and compares",
        "with the float64 reference. `python tests/test_compatibility.py` writes this page from those tests.",
        "",
        "Without a GPU, `cuda` runs in an emulator and `triton` in its interpreter. The backend is chosen inside the",
        "op, so no graph depends on it. Builds without native code pass the tests of `reference` too.",
    ]
    for group in dict.fromkeys(r.group for r in ROWS):
        lines += ["", f"## {group}", "", f"| feature | {' | '.join(BACKENDS)} | test |", "|---" * 6 + "|"]
        lines += [str(r) for r in ROWS if r.group == group]
    return "\n".join(lines) + "\n"


def test_page():
    """The page is that of these tests, and every test but this one is a row of it."""
    assert PAGE.read_text() == page()
    tests = {name for name in globals() if name.startswith("test_")} - {"test_page"}
    assert tests == {r.test for r in ROWS}


if __name__ == "__main__":
    PAGE.write_text(page())
