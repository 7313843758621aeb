"""Times the kernels of one stack against two ceilings of the machine that are measured in the same run."""

from __future__ import annotations

import os
import shlex
import statistics
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import hanops
from hanops import backends
from hanops.native import native
from hanops.reference import arithmetic_dtype
from hanops.timing import in_turns, seconds_of, seconds_on_gpu, timer

COPY_BYTES = 256 << 20  # of the tensor whose copy is the ceiling of bytes: more than a cache holds
# Instructions of an element and layer that no kernel can do without, each taking the issue slot of a multiply-add.
FLOORS = {
    "cpu": {"forward": 4, "forward with bits": 5, "backward": 10},
    "cuda": {"forward": 3, "forward with bits": 4, "backward": 12},
}
_TURN, _WARM = 2e-3, 20e-3  # seconds of calls that make one sample, and that come before the first
_CPU = torch.device("cpu")
_REGISTERS, _BLOCKS = 64 << 10, 32  # of a multiprocessor: 32-bit registers, and the most programs it holds


@dataclass(frozen=True)
class Case:
    """What is measured: a stack of `depth` layers on x of shape (batch, features), or (groups, batch, features)."""

    features: int
    depth: int
    batch: int
    groups: int | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = _CPU

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of x."""
        return (*([] if self.groups is None else [self.groups]), self.batch, self.features)

    @property
    def storage(self) -> str:
        """The dtype's name."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def element_layers(self) -> int:
        """Elements of x times layers."""
        return (self.groups or 1) * self.batch * self.features * self.depth

    @property
    def bytes_held(self) -> int:
        """Bytes of x, y, their gradients, the parameters and theirs: the least that a measurement holds."""
        groups, size = self.groups or 1, self.dtype.itemsize
        return 4 * groups * self.features * (self.batch + self.depth) * size

    def stack(self) -> hanops.HanStack:
        """Returns a new stack of these sizes."""
        return hanops.HanStack(self.features, self.depth, groups=self.groups, device=self.device, dtype=self.dtype)

    def rows(self) -> Tensor:
        """Returns normal numbers of the shape of x."""
        return torch.randn(self.shape, device=self.device, dtype=self.dtype)


@dataclass(frozen=True)
class Residence:
    """What a kernel's tile takes of a multiprocessor: registers of a thread, resident warps, the most it could hold."""

    registers: int
    warps: int
    most_warps: int
    tile: str = ""  # its rows, columns and lanes, in words


@dataclass(frozen=True)
class Row:
    """Figures of one kernel.

    seconds, seconds_fastest, seconds_quartiles: the median of the samples, the least, and their middle half.
    bytes_moved: forward x and y, with bits the signs too, backward y, dy, dx and the signs; parameters do not count.
    bytes_per_s, element_layers_per_s: by the median time.
    share_of_copy, share_of_instructions: of the two ceilings, 1 being all of it; medians of each round's share.
    binds: 'copy' or 'instructions', the larger share of the two.
    residence: None on the CPU, and where it is not known.
    """

    kernel: str
    seconds: float
    seconds_fastest: float
    seconds_quartiles: tuple[float, float]
    bytes_moved: int
    bytes_per_s: float
    element_layers_per_s: float
    share_of_copy: float
    share_of_instructions: float | None
    binds: str | None
    residence: Residence | None = None


@dataclass(frozen=True)
class Profile:
    """A case, the backend that ran it, the two ceilings (medians, per second) and a row for each kernel.

    where: the GPU's name, or the CPU's instruction set, threads and load average.
    multiply_adds_per_s: of elements, in the type of the arithmetic; None where nothing can measure it.
    """

    case: Case
    backend: str
    where: str
    copy_bytes_per_s: float
    multiply_adds_per_s: float | None
    rows: tuple[Row, ...]

    @property
    def simulator(self) -> str | None:
        """What ran a GPU's kernels on the CPU, or None."""
        on_cpu = {"triton": "Triton's interpreter", "cuda": "the CUDA emulator"}
        return on_cpu.get(self.backend) if self.case.device.type == "cpu" else None

    def figures(self) -> dict[str, Any]:
        """Returns everything as what JSON can hold; the units are in the names, and SI."""
        case = {**asdict(self.case), "dtype": self.case.storage, "device": str(self.case.device)}
        versions = {"hanops": hanops.__version__, "torch": torch.__version__}
        return {**versions, **asdict(self), "case": case, "simulator": self.simulator}

    def __str__(self) -> str:
        case = self.case
        rate = self.multiply_adds_per_s
        arithmetic = str(arithmetic_dtype(case.dtype)).removeprefix("torch.")
        instructions = "unknown" if rate is None else f"{rate * 1e-9:.1f} G {arithmetic} multiply-adds/s"
        lines = [
            f"hanops {hanops.__version__}, torch {torch.__version__}, backend {self.backend}, {self.where}",
            f"x {list(case.shape)} of {case.storage}, depth {case.depth}",
        ]
        if self.simulator is not None:
            return "\n".join([*lines, f"{self.simulator} ran: its times say nothing of a GPU, and are not shown"])
        lines += [
            f"ceilings, measured in the same turns: copy {self.copy_bytes_per_s * 1e-9:.1f} GB/s, "
            f"instructions {instructions}",
            "",
            *_aligned(self._columns()),
        ]
        if max(row.share_of_copy for row in self.rows) > 1:
            lines += ["", "A share of the copy above 100 %: the tensors stay in a cache, which the copy leaves."]
        if tiles := [f"{row.kernel}: {row.residence.tile}" for row in self.rows if row.residence]:
            lines += ["", *tiles]
        return "\n".join(lines)

    def _columns(self) -> list[list[str]]:
        """The table: each column has two lines of head and a cell for each row."""
        scale, unit = (1e6, "us") if min(row.seconds for row in self.rows) < 1e-3 else (1e3, "ms")

        def column(name: str, unit: str, cell: Callable[[Row], str]) -> list[str]:
            return [name, unit, *map(cell, self.rows)]

        def percent(share: float | None) -> str:
            return "-" if share is None else f"{100 * share:.1f}"

        columns = [
            column("", "kernel", lambda row: row.kernel),
            column("median,", unit, lambda row: f"{row.seconds * scale:.2f}"),
            column("fastest,", unit, lambda row: f"{row.seconds_fastest * scale:.2f}"),
            column("middle half,", unit, lambda row: " - ".join(f"{q * scale:.2f}" for q in row.seconds_quartiles)),
            column("moved,", "MB", lambda row: f"{row.bytes_moved * 1e-6:.3f}"),
            column("rate,", "GB/s", lambda row: f"{row.bytes_per_s * 1e-9:.2f}"),
            column("G element-", "layers/s", lambda row: f"{row.element_layers_per_s * 1e-9:.2f}"),
            column("share of", "copy, %", lambda row: percent(row.share_of_copy)),
            column("share of", "instructions, %", lambda row: percent(row.share_of_instructions)),
            column("", "binds", lambda row: row.binds or "-"),
        ]
        if all(row.residence for row in self.rows):
            taken = {row.kernel: row.residence for row in self.rows if row.residence}
            columns += [
                column("registers", "of a thread", lambda row: str(taken[row.kernel].registers)),
                column(
                    "resident warps",
                    "of a multiprocessor",
                    lambda row: f"{taken[row.kernel].warps} of {taken[row.kernel].most_warps}",
                ),
            ]
        return columns


def _aligned(columns: list[list[str]]) -> list[str]:
    """Returns the lines of a table, the cells of each column padded to one width: words to the left."""
    padded = []
    for column in columns:
        width = max(map(len, column))
        pad = str.ljust if column[1] in ("kernel", "binds") else str.rjust
        padded.append([pad(cell, width) for cell in column])
    return ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]


# ---- samples


def _timer(call: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """Returns what measures the seconds of a call on a device."""
    return timer(call, seconds_on_gpu if device.type == "cuda" else seconds_of, turn=_TURN, seconds=_WARM)


def _copy_rate(device: torch.device) -> Callable[[], float]:
    """Returns what measures the bytes per second, read and written, of a copy of COPY_BYTES."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    seconds = _timer(lambda: target.copy_(source), device)
    return lambda: 2 * source.nbytes / seconds()


def _multiply_add_rate(device: torch.device, arithmetic: torch.dtype) -> Callable[[], float] | None:
    """Returns what measures the element-wise multiply-adds per second of the whole device, or None."""
    if device.type == "cuda":
        if backends.missing("triton"):
            return None
        from hanops.triton.ceiling import multiply_adds

        run, count = multiply_adds(arithmetic, device)
        try:
            seconds = _timer(run, device)
        except Exception as error:  # where Triton finds no C compiler, say: the copy and the kernels are still timed
            warnings.warn(f"the rate of multiply-adds is not measured: {error}", stacklevel=2)
            return None
        return lambda: count / seconds()
    if native is None:
        return None
    module, threads = native, torch.get_num_threads()
    lanes = module.build_info()["float32_lanes"] * 4 // arithmetic.itemsize
    return lambda: threads * lanes * module.fma_vectors_per_second(_TURN)


def ceilings(device: torch.device, seconds: float = 1.0) -> tuple[float, float | None]:
    """Measures the two ceilings of a device, for about `seconds`.

    Returns:
        Bytes per second of a copy, read and written, and float32 multiply-adds of elements per second, or None where
        nothing here can measure them. Medians.
    """
    samplers = {"copy": _copy_rate(device)}
    if rate := _multiply_add_rate(device, torch.float32):
        samplers["instructions"] = rate
    samples = in_turns(samplers, seconds)
    return statistics.median(samples["copy"]), statistics.median(samples["instructions"]) if rate else None


# ---- the tile on a GPU


def resident_warps(registers: int, warps: int, most_warps: int) -> int:
    """Returns how many warps of a kernel a multiprocessor holds at once, by their registers.

    Args:
        registers: of a thread.
        warps: of a program.
        most_warps: that a multiprocessor holds of any kernel.

    The tiles' shared memory, some hundred bytes, never limits them. A quarter of a multiprocessor has a quarter of its
    registers, and gives them to whole warps in units of 256.
    """
    of_a_warp = -(-32 * registers // 256) * 256
    by_registers = 4 * (_REGISTERS // 4 // of_a_warp)
    return min(by_registers // warps, most_warps // warps, _BLOCKS) * warps


def _cuda_residences(case: Case) -> dict[str, Residence]:
    """Asks the CUDA run-time library what the kernels of a case take of its GPU."""
    assert native is not None
    sizes = (case.storage, case.groups or 1, case.batch, case.features, case.depth)
    with torch.cuda.device(case.device):
        taken = {kernel: native.cuda_residence(kernel, *sizes) for kernel in FLOORS["cuda"]}
    return {kernel: Residence(**figures) for kernel, figures in taken.items()}


def _triton_residences(case: Case) -> dict[str, Residence]:
    """Compiles the Triton kernels of a case for its GPU, an NVIDIA one, and reads what they take."""
    from triton.backends.compiler import GPUTarget

    from hanops.triton import compile as ahead_of_time

    device = torch.cuda.get_device_properties(case.device)
    target = GPUTarget("cuda", 10 * device.major + device.minor, device.warp_size)
    most = device.max_threads_per_multi_processor // device.warp_size
    found = {}
    for name, kernel in ahead_of_time.main_kernels(case.storage, case.features).items():
        registers = ahead_of_time.resources(kernel, target).registers
        tile = f"{kernel.tile.rows} rows, {kernel.tile.columns} columns, {kernel.tile.warps} warps"
        found[name] = Residence(registers, resident_warps(registers, kernel.tile.warps, most), most, tile)
    return found


# ---- what the command line calls


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


def profile(case: Case, backend: str = "auto", seconds: float = 2.0) -> Profile:
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
        x, dy, stack, ops = case.rows(), case.rows(), case.stack().requires_grad_(False), torch.ops.hanops
        u, b = stack.u, stack.b
        chosen = hanops.explain(x, u, b).backend
        y, signs = ops.han_stack_forward(x, u, b, True, True)
        calls: dict[str, Callable[[], object]] = {
            "forward": lambda: ops.han_stack_forward(x, u, b, True, False),
            "forward with bits": lambda: ops.han_stack_forward(x, u, b, True, True),
            "backward": lambda: ops.han_stack_backward(dy, y, signs, u, b, True, [True, True, True]),
        }
        samplers = {name: _timer(call, case.device) for name, call in calls.items()}
        samplers["copy"] = _copy_rate(case.device)
        if rate := _multiply_add_rate(case.device, arithmetic_dtype(case.dtype)):
            samplers["instructions"] = rate
        samples = in_turns(samplers, seconds)
    moved = {
        "forward": x.nbytes + y.nbytes,
        "forward with bits": x.nbytes + y.nbytes + signs.nbytes,
        "backward": y.nbytes + dy.nbytes + x.nbytes + signs.nbytes,  # dx is as large as x
    }
    residences: dict[str, Residence] = {}
    if case.device.type == "cuda" and chosen == "cuda":
        residences = _cuda_residences(case)
    elif case.device.type == "cuda" and chosen == "triton" and not torch.version.hip:
        residences = _triton_residences(case)
    return Profile(
        case,
        chosen,
        _where(case.device),
        statistics.median(samples["copy"]),
        statistics.median(samples["instructions"]) if rate else None,
        tuple(_row(name, case, moved[name], samples, residences.get(name)) for name in calls),
    )


def _row(name: str, case: Case, bytes_moved: int, samples: dict[str, list[float]], residence: Residence | None) -> Row:
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
    return Row(
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


def trace(case: Case, file: str, backend: str = "auto", calls: int = 5) -> None:
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
        stack, x, dy = case.stack(), case.rows().requires_grad_(), case.rows()
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


def ncu(case: Case) -> str:
    """Returns the Nsight Compute commands for a case: of the CUDA kernels without Python, and of the Triton kernels."""
    kernels = ["--kernel-name", "regex:^(forward|backward|parameter_gradients)"]
    sizes = ["--features", str(case.features), "--depth", str(case.depth), "--dtype", case.storage]
    groups = [] if case.groups is None else ["--groups", str(case.groups)]
    look = ["ncu", "--set", "full", "--import-source", "yes", *kernels]
    program = ["build/cmake/han_stack_profile", *sizes, *groups, "--rows", str(case.batch), "--repeats", "1"]
    python = ["python", "-m", "hanops", "profile", *sizes, *groups, "--batch", str(case.batch)]
    python += ["--device", "cuda", "--backend", "triton", "--seconds", "0"]
    return "\n".join(
        [
            "# the CUDA kernels, in a program without Python; docs/profiling.md tells how to build it",
            shlex.join([*look, "-o", "han_stack_cuda", *program]),
            "# the Triton kernels",
            shlex.join([*look, "-o", "han_stack_triton", *python]),
        ]
    )
