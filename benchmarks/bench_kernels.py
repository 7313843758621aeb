"""The CPU's kernels on one thread, in cache and from memory, against the processor's rate of multiply-adds."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch

import hanops
from hanops.backends.native import native
from hanops.definition.reference import arithmetic_dtype
from hanops.profiling.case import FLOORS

from .cases import DTYPES, Case
from .interleave import Replay, interleave
from .ratios import Samples

pytestmark = [
    pytest.mark.benchmark(timer=Replay.clock),
    pytest.mark.skipif(native is None, reason="no kernels in this build"),
]

CASES = [Case(256, 256, 64), Case(256, 1024, 64), Case(4096, 256, 16), Case(4096, 1024, 16)]
KERNELS = FLOORS["cpu"]  # vector operations per vector of columns and layer


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    dtype = DTYPES[metafunc.config.getoption("--dtype") or "float32"]
    metafunc.parametrize("case", [replace(case, dtype=dtype) for case in CASES], ids=str)


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
                "ceiling": lambda: rates.append(native.fma_vectors_per_second(0.002)),
                "forward": lambda: ops.han_stack_forward(x, u, b, True, False),
                "forward with bits": lambda: ops.han_stack_forward(x, u, b, True, True),
                "backward": lambda: ops.han_stack_backward(dy, y, signs, u, b, True, [True, True, True]),
            },
            seconds=1.0,
            least=30,
            turn=0,
        )
    finally:
        torch.set_num_threads(before)
    samples["rates"] = rates[-len(samples["forward"]) :]
    return samples


@pytest.mark.parametrize("kernel", KERNELS)
def test_share_of_the_ceiling(timed, report, device, rehearsal, case, kernel):
    if device.type != "cpu" or rehearsal:
        pytest.skip("of the CPU's kernels")
    samples = timed(f"kernels {case}", lambda: time_kernels(case))
    lanes = native.build_info()["float32_lanes"] * 4 // arithmetic_dtype(case.dtype).itemsize
    vectors = case.element_layers / lanes
    shares = [
        KERNELS[kernel] * vectors / (seconds * rate)
        for seconds, rate in zip(samples[kernel], samples["rates"], strict=True)
    ]
    values = case.elements * case.dtype.itemsize
    moved = {"forward": 2 * values, "forward with bits": 2 * values + case.bits, "backward": 3 * values + case.bits}
    median = statistics.median(samples[kernel])
    report(
        f"one thread: {case}",
        samples[kernel],
        kind="share",
        case=str(case),
        kernel=kernel,
        bytes_moved=moved[kernel],
        bytes_per_s=moved[kernel] / median,
        element_layers_per_s=case.element_layers / median,
        share_of_ceiling=statistics.median(shares),
        best_share=KERNELS[kernel] * vectors / (min(samples[kernel]) * max(samples["rates"])),
    )
