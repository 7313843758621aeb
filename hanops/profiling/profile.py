"""Times the kernels of one stack against two ceilings of the machine that are measured in the same run."""

from __future__ import annotations

import os
import shlex
import statistics
from collections.abc import Callable

import torch

import hanops
from hanops import backends
from hanops.backends.native import native
from hanops.definition.reference import arithmetic_dtype
from hanops.profiling.case import FLOORS, ProfileCase
from hanops.profiling.ceilings import copy_rate, multiply_add_rate, sampler
from hanops.profiling.report import KernelFigures, Profile
from hanops.profiling.residence import Residence, cuda_residences, triton_residences
from hanops.profiling.timing import in_turns


def check(device: torch.device, backend: str) -> None:
    """Checks that a backend runs on a device.

    Args:
        device: 'cpu' or 'cuda'.
        backend: one of `hanops.backends.BACKENDS`.

    Raises:
        ValueError: where torch sees no GPU, or the backend does not run there.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be 'cpu' where torch sees no GPU, got 'cuda'")
    obstacles = {name: backends.obstacle(name, device) for name in backends.IMPLEMENTATIONS}
    if why := obstacles.get(backend):
        there = ", ".join(["auto", *(name for name in obstacles if obstacles[name] is None)])
        raise ValueError(f"backend must be one that runs here ({there}), got {backend!r}: {why}")


def profile(case: ProfileCase, backend: str = "auto", seconds: float = 2.0) -> Profile:
    """Measures the forward without and with sign bits, the backward, and both ceilings, in turns.

    Args:
        case: the sizes, each at least 1, with the dtype and the device.
        backend: as for `hanops.use_backend`.
        seconds: of measuring, about; at least 3 rounds are made.

    Raises:
        ValueError: for a backend that is unknown or not in this installation.
        RuntimeError: where the backend cannot run on the device.
    """
    with hanops.use_backend(backend):
        x, dy, stack, ops = case.random(), case.random(), case.stack().requires_grad_(False), torch.ops.hanops
        u, b = stack.u, stack.b
        chosen = hanops.explain(x, u, b).backend
        save = 2  # as in training: the signs, and of a 16-bit output its rest
        y, signs = ops.han_stack_forward(x, u, b, True, save)
        calls: dict[str, Callable[[], object]] = {
            "forward": lambda: ops.han_stack_forward(x, u, b, True, 0),
            "forward with bits": lambda: ops.han_stack_forward(x, u, b, True, save),
            "backward": lambda: ops.han_stack_backward(dy, y, signs, u, b, True, [True, True, True]),
        }
        samplers = {name: sampler(call, case.device) for name, call in calls.items()}
        samplers["copy"] = copy_rate(case.device)
        if rate := multiply_add_rate(case.device, arithmetic_dtype(case.dtype)):
            samplers["instructions"] = rate
        samples = in_turns(samplers, seconds)
    moved = {
        "forward": x.nbytes + y.nbytes,
        "forward with bits": x.nbytes + y.nbytes + signs.nbytes,
        "backward": y.nbytes + dy.nbytes + x.nbytes + signs.nbytes,  # dx is as large as x
    }
    residences: dict[str, Residence] = {}
    if case.device.type == "cuda" and chosen == "cuda":
        residences = cuda_residences(case)
    elif case.device.type == "cuda" and chosen == "triton" and not torch.version.hip:
        residences = triton_residences(case)
    return Profile(
        case,
        chosen,
        _where(case.device),
        statistics.median(samples["copy"]),
        statistics.median(samples["instructions"]) if rate else None,
        tuple(_row(name, case, moved[name], samples, residences.get(name)) for name in calls),
    )


def _row(
    name: str, case: ProfileCase, bytes_moved: int, samples: dict[str, list[float]], residence: Residence | None
) -> KernelFigures:
    times = samples[name]

    def share(ceiling: str, work: int) -> float | None:
        """The median share of a ceiling, `work` being bytes or multiply-adds."""
        if ceiling not in samples:
            return None
        return statistics.median(work / (t * rate) for t, rate in zip(times, samples[ceiling], strict=True))

    of_copy = share("copy", bytes_moved)
    of_instructions = share("instructions", FLOORS[case.device.type][name] * case.element_layers)
    assert of_copy is not None
    binds = None
    if of_instructions is not None:
        binds = "copy" if of_copy > of_instructions else "instructions"
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return KernelFigures(
        name,
        median,
        min(times),
        (low, high),
        bytes_moved,
        bytes_moved / median,
        case.element_layers / median,
        of_copy,
        of_instructions,
        binds,
        residence,
    )


def _where(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = native.build_info()["instruction_set"] if native else "no native code"
    threads = torch.get_num_threads()
    load = os.getloadavg()[0]  # other programs' work shows here, and makes short calls of several threads slow
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}, load average {load:.1f}"


def trace(case: ProfileCase, file: str, backend: str = "auto", calls: int = 5) -> None:
    """Writes what torch.profiler sees of a few forward and backward calls of a `HanStack`.

    Args:
        case: the sizes, each at least 1, with the dtype and the device.
        file: in Chrome's format, JSON, for Perfetto or chrome://tracing.
        backend: as for `hanops.use_backend`.
        calls: of each direction, after one that is not in the trace.

    Raises:
        ValueError, RuntimeError: as `profile` does.
        OSError: where the file cannot be written.
    """
    with open(file, "w"):  # the profiler itself does not raise
        pass
    activities = [torch.profiler.ProfilerActivity.CPU]
    if case.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with hanops.use_backend(backend):
        stack, x, dy = case.stack(), case.random().requires_grad_(), case.random()
        stack(x).backward(dy)
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(calls):
                with torch.profiler.record_function("forward"):
                    y = stack(x)
                with torch.profiler.record_function("backward"):
                    y.backward(dy)
            if case.device.type == "cuda":
                torch.cuda.synchronize(case.device)
    profiler.export_chrome_trace(file)


def ncu(case: ProfileCase) -> str:
    """Returns the Nsight Compute commands for a case: of the CUDA kernels without Python, and of the Triton kernels."""
    kernels = ["--kernel-name", "regex:^(forward|backward|parameter_gradients)"]
    sizes = ["--features", str(case.features), "--depth", str(case.layers), "--dtype", case.storage]
    groups = [] if case.groups is None else ["--groups", str(case.groups)]
    look = ["ncu", "--set", "full", "--import-source", "yes", *kernels]
    program = ["build/cmake/han_stack_profile", *sizes, *groups, "--rows", str(case.rows), "--repeats", "1"]
    python = ["python", "-m", "hanops", "profile", *sizes, *groups, "--batch", str(case.rows)]
    python += ["--device", "cuda", "--backend", "triton", "--seconds", "0"]
    return "\n".join(
        [
            "# the CUDA kernels, in a program without Python; docs/profiling.md tells how to build it",
            shlex.join([*look, "-o", "han_stack_cuda", *program]),
            "# the Triton kernels",
            shlex.join([*look, "-o", "han_stack_triton", *python]),
        ]
    )
