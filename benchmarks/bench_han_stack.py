"""HanStack against Linear + ReLU, eager Han layers and torch.compile of them, and against the processor's own limit."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
import torch
from cases import Case
from interleave import Replay, Samples, interleave
from rivals import EagerHanStack, compiled, linear
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import hanops

pytestmark = pytest.mark.benchmark(timer=Replay.clock)


CASES = [Case(4096, 1024, 16, seconds=8.0), Case(1024, 128, 20), Case(100, 30, 20)]
STORAGE = [Case(4096, 1024, 16, torch.bfloat16)]
KERNEL_CASES = [Case(256, 256, 64), Case(256, 1024, 64), Case(4096, 256, 16), Case(4096, 1024, 16)]
RIVALS = ["HanStack", "Linear + ReLU", "compiled eager Han", "eager Han"]
KERNELS = {"forward": 4, "forward with bits": 5, "backward": 10}  # vector operations per vector of columns and layer


def training_step(module: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], None]:
    """Returns a call of the module and its backward, gradients cleared first."""
    inputs = [x, *module.parameters()]

    def step() -> None:
        for t in inputs:
            t.grad = None
        module(x).backward(dy)

    return step


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


def time_rivals(case: Case) -> Samples:
    x, dy = case.input(), case.input(grad=False)
    eager = EagerHanStack(case.features, case.layers, case.dtype)
    modules = {
        "HanStack": hanops.HanStack(case.features, case.layers, dtype=case.dtype),
        "Linear + ReLU": linear(case.features, case.dtype),
        "compiled eager Han": compiled(eager),
        "eager Han": eager,
    }
    return interleave({name: training_step(module, x, dy) for name, module in modules.items()}, case.seconds)


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(timed, report, case, rival):
    samples = timed(f"rivals {case}", lambda: time_rivals(case))
    figures: dict[str, object] = {}
    if rival == "HanStack":
        x = case.input()
        stack = nn.Sequential(*(linear(case.features, case.dtype) for _ in range(case.layers)))
        figures = {
            "case": str(case),
            "element_layers_per_s": 2 * case.element_layers / statistics.median(samples[rival]),
            "saved_bytes": saved_bytes(hanops.HanStack(case.features, case.layers, dtype=case.dtype), x),
            "y_and_bits": x.nbytes + case.bits,
            "saved_bytes_linear_stack": saved_bytes(stack, x),
            "saved_bytes_eager": saved_bytes(EagerHanStack(case.features, case.layers, case.dtype), x),
        }
    report(str(case), samples[rival], kind="rival", rival=rival, **figures)


def time_storage(case: Case) -> Samples:
    steps = {}
    for dtype in (case.dtype, torch.float32):
        same = Case(case.rows, case.features, case.layers, dtype)
        module = hanops.HanStack(case.features, case.layers, dtype=dtype)
        steps[str(dtype).removeprefix("torch.")] = training_step(module, same.input(), same.input(grad=False))
    return interleave(steps, case.seconds)


@pytest.mark.parametrize("storage", ["bfloat16", "float32"])
@pytest.mark.parametrize("case", STORAGE, ids=str)
def test_storage(timed, report, case, storage):
    samples = timed(f"storage {case}", lambda: time_storage(case))
    report(f"storage at {case}", samples[storage], kind="storage", storage=storage)


def time_kernels(case: Case) -> Samples:
    """Times the kernels on one thread, and in the same turns a loop of multiply-adds: the instruction ceiling."""
    x, dy = case.input(grad=False), case.input(grad=False)
    stack = hanops.HanStack(case.features, case.layers, dtype=case.dtype).requires_grad_(False)
    u, b, ops = stack.u, stack.b, torch.ops.hanops
    y, signs = ops.han_stack_forward(x, u, b, True, True)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    rates: list[float] = []
    try:
        samples = interleave(
            {
                "ceiling": lambda: rates.append(hanops.ops.native.fma_vectors_per_second(0.002)),
                "forward": lambda: ops.han_stack_forward(x, u, b, True, False),
                "forward with bits": lambda: ops.han_stack_forward(x, u, b, True, True),
                "backward": lambda: ops.han_stack_backward(dy, y, signs, u, b, True, [True, True, True]),
            },
            seconds=2.0,
            least=30,
            turn=0,
        )
    finally:
        torch.set_num_threads(before)
    samples["rates"] = rates[-len(samples["forward"]) :]
    return samples


@pytest.mark.skipif(hanops.ops.native is None, reason="no kernels in this build")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", KERNEL_CASES, ids=str)
def test_share_of_the_ceiling(timed, report, case, kernel):
    samples = timed(f"kernels {case}", lambda: time_kernels(case))
    vectors = case.element_layers / hanops.ops.native.build_info()["float32_lanes"]
    shares = [
        KERNELS[kernel] * vectors / (seconds * rate)
        for seconds, rate in zip(samples[kernel], samples["rates"], strict=True)
    ]
    item = case.dtype.itemsize
    values = case.rows * case.features * item
    moved = {"forward": 2 * values, "forward with bits": 2 * values + case.bits, "backward": 3 * values + case.bits}
    median = statistics.median(samples[kernel])
    report(
        str(case),
        samples[kernel],
        kind="share",
        kernel=kernel,
        bytes_moved=moved[kernel],
        bytes_per_s=moved[kernel] / median,
        element_layers_per_s=case.element_layers / median,
        share_of_ceiling=statistics.median(shares),
        best_share=KERNELS[kernel] * vectors / (min(samples[kernel]) * max(samples["rates"])),
    )
