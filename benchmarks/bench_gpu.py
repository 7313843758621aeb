"""What `make gpu` measures on a GPU, in order of importance; DEVICE=cpu rehearses it, interpreted and emulated.

"HanStack" runs on the preferred backend, "HanStack, triton" and the like on the others that are there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import emulation
import pytest
import torch
from cases import Case
from interleave import Replay, Samples, interleave, seconds_on_device
from rivals import EagerHanStack, compiled, linear
from torch import Tensor, nn

import hanops
from hanops import backends

pytestmark = pytest.mark.benchmark(timer=Replay.clock)


STORAGE = (torch.bfloat16, torch.float32)
COPIES = [Case(2**26 // d, d, 1, dtype) for d in (1024, 4096, 256) for dtype in STORAGE]
STACKS = [Case(2**25 // d, d, 16, dtype) for d in (1024, 4096, 256) for dtype in STORAGE]
SMALL = [Case(100, 30, 20, torch.float32), Case(256, 784, 20, torch.float32), Case(1, 1024, 16, torch.bfloat16)]
DIRECTIONS = {"forward": 1.0, "forward + backward": 2.5}  # copies that cannot be avoided: x, y; then y, dy, dx

OTHER = "HanStack, {}"
MODULES: dict[str, Callable[[Case], nn.Module]] = {
    "HanStack": lambda c: hanops.HanStack(c.features, c.layers, dtype=c.dtype),
    **{
        OTHER.format(name): lambda c: hanops.HanStack(c.features, c.layers, dtype=c.dtype)
        for name in ("cuda", "triton")
    },
    "compiled eager Han": lambda c: compiled(EagerHanStack(c.features, c.layers, c.dtype)),
    "Linear + ReLU, as deep": lambda c: nn.Sequential(*(linear(c.features, c.dtype) for _ in range(c.layers))),
    "Linear + ReLU, one layer": lambda c: linear(c.features, c.dtype),
    "eager Han": lambda c: EagerHanStack(c.features, c.layers, c.dtype),
}
RIVALS = [*MODULES, "Linear + ReLU, as deep, TF32", "Linear + ReLU, one layer, TF32"]


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    chosen = request.config.getoption("--device")
    if chosen == "none":
        pytest.skip("runs by `make gpu`")
    if chosen == "cuda" and not torch.cuda.is_available():
        pytest.fail("torch sees no GPU")
    return torch.device(chosen)


def backends_of(case: Case, device: torch.device) -> dict[str, str]:
    """Returns the GPU's backends that are there by the names of their rows, the preferred one first."""
    if device.type == "cpu" and emulation.available():
        emulation.load()
    there = [name for name in ("cuda", "triton") if backends.missing(name) is None]
    sizes = (case.dtype, case.features, case.layers, case.rows)
    preferred = backends.select(device, *sizes) if device.type == "cuda" else there[0]
    return {"HanStack": preferred} | {OTHER.format(name): name for name in there if name != preferred}


@contextmanager
def tf32(on: bool):  # type: ignore[no-untyped-def]
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def step_of(module: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], object]:
    """Returns a call of the module and its backward, gradients returned and not accumulated."""
    inputs = [x, *module.parameters()]
    return lambda: torch.autograd.grad(module(x), inputs, dy)


def replayed(step: Callable[[], object]) -> Callable[[], object]:
    """Returns the step as the replay of a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def peak_bytes(step: Callable[[], object]) -> int:
    """Returns what a step allocates at its peak beyond what is there before it."""
    step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def time_all(calls: dict[str, Callable[[], object]], device: torch.device, seconds: float) -> Samples:
    if device.type == "cpu":
        return interleave(calls, 0.0, warmup=1, least=2, turn=0)
    return interleave(calls, seconds, measure=seconds_on_device, turn=1e-3)


def on_backend(name: str, call: Callable[[], object]) -> Callable[[], object]:
    """Returns `call` as it runs on a backend."""

    def switched() -> object:
        with hanops.use_backend(name):
            return call()

    return switched


def time_copies(case: Case, device: torch.device) -> Samples:
    """Times one layer against copies of the same bytes, in the same turns."""
    x, dy = case.input(device=device), case.input(grad=False, device=device)
    target, source = torch.empty_like(dy), x.detach()
    module = hanops.HanStack(case.features, case.layers, dtype=case.dtype).to(device)

    def forward() -> Tensor:
        with torch.no_grad():
            return module(x)

    calls: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    for row, name in backends_of(case, device).items():
        calls[f"{row}, forward"] = on_backend(name, forward)
        calls[f"{row}, forward + backward"] = on_backend(name, step_of(module, x, dy))
    return time_all(calls, device, 2.0)


def time_rivals(case: Case, device: torch.device) -> tuple[Samples, dict[str, int]]:
    """Times training steps of all rivals, plain and as graph replays, and reads their peak memory."""
    x, dy = case.input(device=device), case.input(grad=False, device=device)
    there = backends_of(case, device)
    calls: dict[str, Callable[[], object]] = {}
    peaks: dict[str, int] = {}
    for name in RIVALS:
        with_tf32 = name.endswith(", TF32")
        if (with_tf32 and case.dtype != torch.float32) or (name.startswith("HanStack") and name not in there):
            continue
        module = MODULES[name.removesuffix(", TF32")](case).to(device)
        plain = step_of(module, x, dy)

        def step(plain: Callable[[], object] = plain, with_tf32: bool = with_tf32) -> None:
            with tf32(with_tf32):
                plain()

        calls[name] = on_backend(there[name], step) if name in there else step
        if device.type == "cuda":
            peaks[name] = peak_bytes(calls[name])
            calls[name + ", graph"] = replayed(calls[name])
    return time_all(calls, device, 4.0), peaks


COPY_ROWS = [
    f"{row}, {way}" for row in ("HanStack", OTHER.format("cuda"), OTHER.format("triton")) for way in DIRECTIONS
]


@pytest.mark.parametrize("what", ["copy", *COPY_ROWS])
@pytest.mark.parametrize("case", COPIES, ids=str)
def test_one_layer_against_a_copy(timed, report, device, case, what):
    case = case if device.type == "cuda" else case.rehearsed()
    samples = timed(f"copy {case}", lambda: time_copies(case, device))
    if what not in samples:
        pytest.skip("a backend that is not here")
    copies = next((DIRECTIONS[way] for way in reversed(DIRECTIONS) if what.endswith(way)), 1.0)
    nbytes = 2 * case.rows * case.features * case.dtype.itemsize
    figures = {"bytes_moved": nbytes * copies, "copies": copies}
    report(f"one layer, {case}", samples[what], kind="copy", rival=what, **figures)


@pytest.mark.parametrize("rival", [name + way for name in RIVALS for way in ("", ", graph")])
@pytest.mark.parametrize("case", [*STACKS, *SMALL], ids=str)
def test_training_step(timed, report, device, case, rival):
    case = case if device.type == "cuda" else case.rehearsed()
    samples, peaks = timed(f"step {case}", lambda: time_rivals(case, device))
    if rival not in samples:
        pytest.skip("not for this type, or not here")
    report(f"training step, {case}", samples[rival], kind="step", rival=rival, peak_bytes=peaks.get(rival))
