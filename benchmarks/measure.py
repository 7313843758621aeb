"""What is read of a module: its time in each direction, what autograd keeps for it, its peak of memory."""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import hanops
from hanops.profiling.timing import seconds_on_gpu

from .cases import COPY, GRAPH, TF32, Case
from .interleave import interleave
from .ratios import Samples
from .rivals import build, stored

Call = Callable[[], object]
ROOT = Path(__file__).resolve().parent.parent


def on_backend(name: str, call: Call) -> Call:
    """Returns `call` as it runs on a backend."""

    def switched() -> object:
        with hanops.use_backend(name):
            return call()

    return switched


def with_tf32(call: Call) -> Call:
    """Returns `call` with float32 products in TensorFloat-32."""

    def switched() -> None:
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            call()
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False

    return switched


def in_settings(call: Call, name: str, backend: str | None) -> Call:
    """Returns a rival's call on the backend, and with the precision, that it asks for."""
    call = with_tf32(call) if name.endswith(TF32) else call
    return on_backend(backend, call) if backend else call


def call_of(module: nn.Module, direction: str, x: Tensor, dy: Tensor) -> Call:
    """Returns a call of a module in a direction.

    'forward' is inference; 'backward' all gradients of an output at hand; 'both' the two with no optimizer; 'step' is a
    whole training step: forward, squared error, backward, fused AdamW.
    """
    parameters = list(module.parameters())
    inputs = [x, *parameters]
    if direction == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                y: Tensor = module(x)
                return y

        return forward
    if direction == "backward":
        kept: list[Tensor] = []

        def backward() -> object:
            if not kept:  # not before it is called: while y lives, its leaves are bound to the stream that it came from
                kept.append(module(x))
            return torch.autograd.grad(kept[0], inputs, dy, retain_graph=True)

        return backward
    if direction == "both":
        return lambda: torch.autograd.grad(module(x), inputs, dy)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(module(x), dy).backward()
        optimizer.step()

    return step


def rotated(calls: Sequence[Call]) -> Call:
    """Returns a call of the next of several equal calls, so that inputs do not stay in a GPU's L2."""
    turn = 0

    def call() -> object:
        nonlocal turn
        turn = (turn + 1) % len(calls)
        return calls[turn]()

    return call


def replayed(calls: Sequence[Call]) -> Call:
    """Returns the replay of one CUDA graph of all of several equal calls, one after the other."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in [*calls, *calls]:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return partial(_replay, graph, tuple(calls))


def _replay(graph: torch.cuda.CUDAGraph, calls: tuple[Call, ...]) -> None:
    """Replays a graph; the calls hold the tensors that it reads and writes, which nothing else may."""
    graph.replay()


def input_sets(case: Case, device: torch.device) -> int:
    """Returns how many inputs take turns: on a GPU as many as are twice its L2, up to 16."""
    if device.type != "cuda":
        return 1
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(16, -(-2 * l2 // max(1, case.elements * case.dtype.itemsize))))


@dataclass
class Timed:
    """Samples in seconds, and a GPU's peaks of memory in bytes, by 'rival, way'; what went wrong, by rival."""

    samples: Samples = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def calls_of(
    case: Case, name: str, backend: str | None, ways: Collection[str], inputs: list[tuple[Tensor, Tensor]]
) -> dict[str, list[Call]]:
    """Returns, by way, a rival's call for each of the inputs, pairs of x and dy."""
    if name == COPY:
        each: list[Call] = [partial(dy.copy_, x.detach()) for x, dy in inputs]
        return {"forward": each, **({f"forward{GRAPH}": each} if any(way.endswith(GRAPH) for way in ways) else {})}
    module = build(name, case, inputs[0][0].device)
    inputs = [(x.detach().requires_grad_(), dy) for x, dy in inputs]  # no other rival's output is bound to these
    with hanops.use_backend(backend) if backend else nullcontext():
        made = {d: [call_of(module, d, x, dy) for x, dy in inputs] for d in {way.removesuffix(GRAPH) for way in ways}}
    return {way: [in_settings(call, name, backend) for call in made[way.removesuffix(GRAPH)]] for way in ways}


def time_case(
    case: Case,
    names: Mapping[str, str | None],
    ways: Collection[str],
    device: torch.device,
    seconds: float,
    rehearsal: bool = False,
) -> Timed:
    """Times all rivals of a case in all ways in turns. A rival that cannot be built or called is left out, and named.

    Args:
        case: what is measured.
        names: rivals, each with the backend to run on, or None for the preferred one.
        ways: directions, and on a GPU those that are also timed in a CUDA graph, with ', graph'. Inputs take turns in
            both, so that they do not stay in the L2.
        device: where.
        seconds: of measuring, about, warm-up aside.
        rehearsal: whether a few rounds will do.
    """
    on_gpu = device.type == "cuda"
    sets = input_sets(case, device)
    inputs: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    calls: dict[str, Call] = {}
    found = Timed()

    def made(name: str, backend: str | None) -> dict[str, list[Call]]:
        own = stored(name, case)
        if own.dtype not in inputs:
            inputs[own.dtype] = [(own.input(device=device), own.input(grad=False, device=device)) for _ in range(sets)]
        return calls_of(own, name, backend, ways, inputs[own.dtype])

    def ready(row: str, each: list[Call]) -> Call:
        if row.endswith(GRAPH):
            return replayed(each)
        call = rotated(each)
        if on_gpu:
            found.peaks[row] = peak_on_gpu(call)
        else:
            call()
        return call

    if any("compile" in name for name in names):
        torch.compiler.reset()  # drops what was compiled for another case's shape
    for name, backend in names.items():
        row = f"{name}, build"
        try:
            each_way = made(name, backend)
            # A graph cannot capture leaves of an output that lives on another stream, as that of 'backward' does.
            for way in sorted(each_way, key=lambda way: (way == "backward", way.endswith(GRAPH))):
                row = f"{name}, {way}"
                calls[row] = ready(row, each_way[way])
        except Exception:  # an error itself would keep the memory of the frames that it came through
            found.failed[name] = f"{row}:\n{traceback.format_exc()}"
    if rehearsal:
        found.samples = interleave(calls, 0.0, warmup=1, least=2, turn=0)
    elif on_gpu:
        found.samples = interleave(calls, seconds, measure=seconds_on_gpu, turn=1e-3)
        for row in found.samples:
            if row.endswith(GRAPH):
                found.samples[row] = [sample / sets for sample in found.samples[row]]
    else:
        found.samples = interleave(calls, seconds, warmup=2)
    return found


def peak_on_gpu(call: Call) -> int:
    """Returns what a call allocates at its peak beyond what is there before it."""
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """Returns the bytes that autograd keeps for the backward, parameters aside, each storage once.

    An input that the caller holds anyway counts where it is saved.
    """
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        y = module(x)  # held, so that no storage is used twice
        del y
    return sum(kept.values())


# ---- peak of memory on a CPU: the resident set of a process of its own


def peaks_on_cpu(name: str, cases: list[Case]) -> list[int]:
    """Returns the peak of memory of a training step in each case, the smallest first, in a fresh process."""
    sizes = json.dumps([[case.rows, case.features, case.layers, case.dtype_name] for case in cases])
    command = [sys.executable, "-m", "benchmarks.measure", name, sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return list(json.loads(done.stdout))


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def _peak(name: str, case: Case) -> int:
    import ctypes
    import gc

    module = build(name, case, torch.device("cpu"))
    step = call_of(module, "both", case.input(), case.input(grad=False))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _main() -> None:
    name, sizes = sys.argv[1:]
    cases = [Case(rows, features, layers, getattr(torch, dtype)) for rows, features, layers, dtype in json.loads(sizes)]
    _peak(name, Case(8, 8, 1))  # what torch allocates once
    print(json.dumps([_peak(name, case) for case in cases]))


if __name__ == "__main__":
    _main()
