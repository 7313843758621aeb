"""HanStack from its initialisation to its use by other processes and threads: rows of docs/compatibility.md."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import hanops
from hanops.definition import reference

from . import emulation
from .compatibility import Recorder, close, gradients, network, row, truth_of

pytestmark = pytest.mark.usefixtures("undisturbed_compiler")


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
    step(wide, x.double(), "torch")
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
    cuda="yes",
    triton="yes",
    torch="yes",
)
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream:UserWarning")  # torch holds its warm-up's outputs
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
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS, but there was no current CUDA context:UserWarning")
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


@row("Life of a module", "profilers, anomaly mode and printed tensors name its backward `HanStackBackward`")
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled", "ignore:.*Profiler clears events")
def test_name_of_the_backward(backend, device):
    model = hanops.HanStack(8, 3, device=device)
    y = model(torch.randn(5, 8, device=device))
    assert y.grad_fn.name() == "HanStackBackward"
    assert "grad_fn=<HanStackBackward>" in repr(y)
    with torch.profiler.profile() as profile:
        y.sum().backward()
    names = {event.name for event in profile.events()}
    assert "autograd::engine::evaluate_function: HanStackBackward" in names
    with torch.autograd.detect_anomaly(), pytest.raises(RuntimeError, match="Function 'HanStackBackward' returned nan"):
        model(torch.full((5, 8), torch.nan, device=device)).sum().backward()


@row("Life of a module", "jagged nested tensors: their values in one call, with the same offsets")
def test_jagged(backend, device):
    rows = [torch.randn(n, 2, 8, device=device) for n in (3, 1, 4)]
    model = hanops.HanStack(8, 3, device=device)
    wide = truth_of(model)

    def check(function, x: Tensor, parts: list[Tensor]) -> None:
        leaf = x.detach().requires_grad_()
        y = function(leaf)
        assert y.layout == torch.jagged
        assert (y + leaf).shape == x.shape  # of the same ragged size
        got = torch.autograd.grad(y.values().square().sum(), [leaf, *model.parameters()])
        close([*y.unbind(), *got[0].unbind(), *got[1:]], truth(parts))

    def truth(parts: list[Tensor]) -> list[Tensor]:
        leaves = [t.double().requires_grad_() for t in parts]
        ys = [wide(t) for t in leaves]
        loss = torch.stack([y.square().sum() for y in ys]).sum()
        return [*ys, *torch.autograd.grad(loss, [*leaves, *wide.parameters()])]

    x = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    with Recorder() as recorder:
        model(x)
    assert [name for name, _ in recorder.han()] == ["han_stack_forward"]
    check(model, x, rows)
    check(model, x.transpose(1, 2), [t.transpose(0, 1) for t in rows])
    check(torch.compile(model, fullgraph=True, backend="aot_eager"), x, rows)
    wanted = truth(rows)[:3]
    with torch.inference_mode():
        close(list(model(x).unbind()), wanted)
    with torch.autocast(device.type, torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
