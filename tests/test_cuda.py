"""What only the CUDA backend has: its tiles and launches, its emulator, what nvcc and ptxas make of it."""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import hanops
from hanops.profiling import machine_code, resources

from . import emulation
from .accuracy import check, problem, stack

ROOT = Path(__file__).parent.parent

WIDTHS = [30, 64, 100, 200, 512, 1000, 2000, 4096, 8000]
emulated = pytest.mark.skipif(not emulation.available(), reason="the native code was not built here")
has_nvcc = shutil.which("nvcc") is not None
needs_nvcc = pytest.mark.skipif(not has_nvcc, reason="nvcc is not on the path: the CUDA kernels are not compiled here")


@pytest.fixture
def emulator(device):
    if device.type != "cpu":
        pytest.skip("the emulator is for machines without a GPU")
    library = emulation.load()
    with hanops.use_backend("cuda"):
        yield library
    library.set_sms(1)
    library.set_device(0)


def plan(
    library: ctypes.CDLL,
    rows: int,
    features: int,
    layers: int,
    *,
    backward: bool,
    wide: bool = False,
    inner: int = 0,
) -> str:
    text = ctypes.create_string_buffer(1000)
    sizes = ctypes.c_longlong(rows), features, layers, int(backward), int(wide), inner
    library.describe_plan(*sizes, text, len(text))
    return text.value.decode()


# ---- tiles: of many rows, of one row where there are few, streaming for what neither holds


@emulated
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("features", WIDTHS)
@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
def test_tiles_of_many_rows(emulator, features, storage, layers):
    """Enough rows to fill the emulator's one SM with tiles, and more than one round for their thread groups."""
    rows = {30: 1100, 64: 600, 100: 400, 200: 300}.get(features, 150 if features <= 1000 else 21)
    for backward in (False, True):
        told = plan(emulator, rows, features, layers, backward=backward)
        assert re.match(r"(2|4|8|16) rows, ", told), told
    check(stack, problem(rows, features, layers, storage))


@emulated
@pytest.mark.parametrize("features", WIDTHS)
def test_a_backward_of_few_layers_has_more_warps(emulator, features):
    """From 256 columns on a lane has half as many elements, which leaves room for twice the warps."""
    shapes = []
    for layers in (2, 9):
        rows, chunks, vector = re.match(
            r"(\d+) rows, (\d+) x (\d+) ", plan(emulator, 1000, features, layers, backward=True)
        ).groups()
        shapes.append(int(rows) * int(chunks) * int(vector))
    assert shapes == [32 if 128 < features <= 4096 else 64, 64]


@emulated
@pytest.mark.parametrize("features", [1, 30, 64, 100, 200, 512, 1000, 2000, 4096])
@pytest.mark.parametrize("storage", [torch.float32, torch.float64, torch.float16])
def test_tiles_of_one_row(emulator, features, storage):
    """With many SMs a few rows are spread over tiles of one row."""
    emulator.set_sms(1000)
    for backward in (False, True):
        told = plan(emulator, 9, features, 3, backward=backward, wide=storage == torch.float64)
        assert told.startswith("1 row, 8 x 1 columns a lane"), told
    check(stack, problem(9, features, 3, storage))


@emulated
def test_what_is_streamed(emulator):
    for backward in (False, True):
        assert "streamed" not in plan(emulator, 9, 8192, 3, backward=backward)
        assert plan(emulator, 9, 8193, 3, backward=backward).startswith("rows streamed")
        assert plan(emulator, 9, 4097, 3, backward=backward, wide=True).startswith("rows streamed")


@emulated
@pytest.mark.parametrize("sms", [1, 7])
def test_groups_and_partial_sums(emulator, sms):
    """Several partial sums of each group, more thread groups than tiles, rounds in which one has no rows."""
    emulator.set_sms(sms)
    for groups, rows, features in ((3, 70, 200), (2, 33, 1000), (5, 200, 30)):
        check(stack, problem(rows, features, 4, torch.float32, groups=groups))


@emulated
@pytest.mark.parametrize(
    ("sms", "rows", "features", "storage", "sums"),
    [
        (132, 100, 30, torch.float32, 16),  # of the warps of the one block
        (132, 17, 30, torch.float32, 16),  # the last ones have no row
        (132, 300, 60, torch.bfloat16, 76),
        (132, 200, 100, torch.float32, 100),
        (1, 2100, 30, torch.float64, 32),  # more than a fold
    ],
)
def test_warps_add_up_their_rows(emulator, sms, rows, features, storage, sums):
    """Where a warp holds several narrow rows, it leaves one partial sum of them."""
    emulator.set_sms(sms)
    told = plan(emulator, rows, features, 3, backward=True, wide=storage == torch.float64)
    assert re.fullmatch(rf"1 row, .*, {sums} partial sums", told), told
    check(stack, problem(rows, features, 3, storage))


@emulated
@pytest.mark.parametrize(
    ("rows", "features", "layers"), [(1300, 200, 30), (25, 4096, 8), (1300, 200, 2), (280, 1000, 2)]
)
def test_partial_sums_in_blocks(emulator, rows, features, layers):
    """The first layers' sums are in the block's memory, the others' are not; 1300 and 280 rows are more than a fold."""
    p = problem(rows, features, layers, torch.float32)
    assert re.match(r"(4|8|16) rows, ", plan(emulator, rows, features, layers, backward=True))
    check(stack, p)


@emulated
@pytest.mark.parametrize(("rows", "features", "layers", "launches"), [(100, 30, 20, 1), (1, 1, 1, 1), (32, 200, 9, 1)])
def test_small_stacks_take_one_launch_each_way(emulator, rows, features, layers, launches):
    emulator.set_sms(132)
    x, u = torch.randn(rows, features, requires_grad=True), torch.randn(layers, features, requires_grad=True)
    before = emulator.launches()
    y = stack(x, u, None, True)
    between = emulator.launches()
    y.sum().backward()
    assert (between - before, emulator.launches() - between) == (launches, launches)


@emulated
@pytest.mark.parametrize("device_number", [0, 1])
@pytest.mark.parametrize(
    ("rows", "features", "forward", "backward"), [(5000, 32, 2, 4), (40, 1000, 2, 3), (9, 8200, 2, 4)]
)
def test_later_kernels_of_a_call_are_launched_early(emulator, device_number, rows, features, forward, backward):
    """They wait, or the emulator fails. Device 1 runs code of before sm_90, which cannot."""
    emulator.set_device(device_number)
    p = problem(rows, features, 30, torch.float32)

    def run_and_count(run) -> tuple[int, int]:
        before = emulator.launches(), emulator.early_launches()
        run()
        return emulator.launches() - before[0], emulator.early_launches() - before[1]

    inputs = p.inputs()
    y = []
    assert run_and_count(lambda: y.append(stack(*inputs, True))) == (forward, (forward - 1) * (device_number == 0))
    assert run_and_count(lambda: y[0].backward(p.dy)) == (backward, (backward - 1) * (device_number == 0))


@emulated
def test_same_bits_in_every_run(emulator):
    emulator.set_sms(5)
    p = problem(300, 200, 4, torch.float32)
    first, second = p.run(stack), p.run(stack)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@emulated
def test_a_row_does_not_depend_on_its_place(emulator):
    p = problem(333, 100, 4, torch.float32)
    y = stack(p.x, p.u, p.b, True)
    assert torch.equal(stack(p.x.flip(0), p.u, p.b, True).flip(0), y)


@emulated
def test_strides_beyond_32_bits(emulator):
    torch.use_deterministic_algorithms(False)  # poisoning 4 GiB takes longer than the test
    x = torch.empty(2**31 + 2048, dtype=torch.bfloat16).as_strided((2, 1000), (2**31, 1)).copy_(torch.randn(2, 1000))
    u = torch.randn(2, 1000)
    assert torch.equal(stack(x, u, None, True), stack(x.contiguous(), u, None, True))


# ---- the emulator finds what a GPU would not tell


BROKEN = {  # what HANOPS_BROKEN of the kernels' sources puts in, and what is found
    "removed barrier": "race on shared memory: read after write",
    "load off by one": "outside of",
    "store off by one": "access outside of a buffer",
    "divergent barrier": "divergent barrier: threads wait at different ones",
    "divergent shuffle": "divergent warp",
    "misaligned load": "misaligned",
    "unordered halves": "race on shared memory: write after read",
    "early read": "reads what another writes before it waits",
}


@emulated
@pytest.mark.parametrize("name", [None, *BROKEN])
def test_broken_kernels_are_caught(name):
    emulation.build("broken_profile")
    sizes = ["--features", "2047", "--rows", "20", "--depth", "3", "--dtype", "float32", "--once", "yes"]
    environment = {**os.environ, "HANOPS_BREAK": name or ""}
    done = subprocess.run([emulation.BUILD / "broken_profile", *sizes], capture_output=True, text=True, env=environment)
    if name is None:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 1, done.stdout
    assert "CUDA emulator: " in done.stderr
    assert BROKEN[name] in done.stderr


@emulated
def test_every_fault_is_tested():
    text = "".join(file.read_text() for file in (ROOT / "csrc" / "cuda").glob("*.cuh"))
    assert sorted(re.findall(r'HANOPS_BROKEN\(\s*"(.*?)"\s*\)', text)) == sorted(BROKEN)


@emulated
def test_profile_program_runs():
    emulation.build("emulated_profile")
    program = emulation.BUILD / "emulated_profile"
    for dtype, rest in (
        ("float32", "yes"),
        ("bfloat16", "no"),
        ("bfloat16", "yes"),
        ("float16", "yes"),
        ("float64", "no"),
    ):
        sizes = ["--features", "100", "--rows", "40", "--depth", "2", "--groups", "2", "--dtype", dtype, "--rest", rest]
        done = subprocess.run([program, *sizes, "--repeats", "1"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(re.findall(r"(?:inference|forward|backward) +[\d.]+ us", done.stdout)) == 3
        assert done.stdout.count("warps resident") == 3


@emulated
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--dtype int8", "--dtype must be float64, float32, bfloat16 or float16, got int8"),
        ("--direction up", "--direction must be forward, inference, backward or all, got up"),
        ("--features 0", "--features must be a whole number from 1, got 0"),
        ("--rows 1e3", "--rows must be a whole number from 1, got 1e3"),
        ("--depth 99999999999999999999", "--depth must be a whole number from 1, got 99999999999999999999"),
        ("--inner -1", "--inner must be a whole number from 0, got -1"),
        ("--rows 10 --inner 3", "--inner must divide --rows"),
        ("--once true", "--once must be yes or no, got true"),
        ("--case 8,1,2", "--case must be D,N,L,T, D,N,L,T,W or D,N,L,T,W,I, got 8,1,2"),
        ("--case 8,1,2x,float32", "--case must be a whole number from 1, got 2x"),
        ("--case 8,1,2,float32 --rows 3", "--case says all of a case, so --rows has no place beside it"),
        ("--repeats", "--repeats needs a value"),
        ("--width 3", "unknown option --width"),
    ],
)
def test_profile_program_refuses(options, message):
    emulation.build("emulated_profile")
    done = subprocess.run([emulation.BUILD / "emulated_profile", *options.split()], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"han_stack_profile: {message}" in done.stderr
    assert "usage: " in done.stderr
    assert done.stdout == ""


@emulated
def test_device_code_is_free_of_torch():
    """Only han_stack.cpp, which makes calls of tensors, and its header know of torch."""
    files = [file for file in (ROOT / "csrc" / "cuda").iterdir() if file.suffix in (".h", ".cpp", ".cu", ".cuh")]
    files.append(ROOT / "csrc" / "signs.h")
    includes = {file.name: re.findall(r'#\s*include\s*["<](.*?)[">]', file.read_text()) for file in files}
    of_torch = {name for name, found in includes.items() if any(re.match("ATen|c10|torch", path) for path in found)}
    assert of_torch == {"han_stack.cpp", "han_stack.h"}
    known = {"han_stack.h", "../checks.h"}
    assert not any(known & set(found) for name, found in includes.items() if name != "han_stack.cpp")


# ---- compiled without a GPU


def kernels_in_the_tables() -> int:
    """Counts three and two kernels for each tile that many rows of some width take, and of two types all others."""
    library = emulation.load()
    widths = [2**exponent for exponent in range(14)]
    tiles = {
        (way, plan(library, 10**6, width, layers, backward=way).partition(" lanes")[0])
        for way in (False, True)
        for width in widths
        for layers in (2, 9)
    }
    of_a_tile = {
        False: 3,
        True: 2,
    }  # forward: without and with bits, without absolute values; backward: without, with du
    others, parameters = 2, 5  # one row, streaming
    axis = 2  # tiles of two positions a lane and of one
    rows = sum(of_a_tile[way] for way, _ in tiles) + 2 * others * sum(of_a_tile.values()) + 2 * parameters
    return rows + axis * sum(of_a_tile.values())


@needs_nvcc
@emulated
def test_every_tile_compiles_for_sm_90_without_a_spill():
    emulation.build("kernels_sm_90")
    kernels = [k for file in (emulation.BUILD / "cuda" / "sm_90").glob("*.txt") for k in resources.read_report(file)]
    assert len(kernels) == kernels_in_the_tables()
    assert all(k.registers > 0 for k in kernels)
    spilling = {k.kernel for k in kernels if k.stack or k.spill_stores or k.spill_loads}
    assert spilling <= set(machine_code.ONCE_A_TILE)  # test_machine_code.py looks at where


@needs_nvcc
@emulated
def test_launches_compile_against_the_cuda_headers():
    """Torch's side of the launches, and the stand-alone program, where no GPU is."""
    emulation.build("cuda_glue", "han_stack_profile")
    done = subprocess.run([emulation.BUILD / "han_stack_profile", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--features" in done.stdout


# ---- on a GPU


@pytest.fixture
def gpu(backend, device):
    if device.type != "cuda" or backend == "torch":
        pytest.skip("needs a GPU: --device cuda")
    return device


def test_in_a_cuda_graph(gpu):
    p = problem(64, 200, 5, torch.float32, device=gpu)
    inputs = p.inputs()  # leaves: what made another tensor would be differentiated on the default stream
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        wanted = torch.autograd.grad(stack(*inputs, True), inputs, p.dy)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = torch.autograd.grad(stack(*inputs, True), inputs, p.dy)
    for t in got:
        t.detach().fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    for a, c in zip(got, wanted, strict=True):
        assert torch.equal(a, c)


def test_on_another_stream(gpu):
    p = problem(4096, 1024, 8, torch.float32, device=gpu)
    wanted = stack(p.x, p.u, p.b, True)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = p.x * 0
        torch.cuda._sleep(10_000_000)
        x.copy_(p.x)
        got = stack(x, p.u, p.b, True)
    stream.synchronize()
    assert torch.equal(got, wanted)


def test_on_another_device_than_the_current(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    p = problem(100, 200, 3, torch.float32, device="cuda:1")
    with torch.cuda.device(0):
        check(stack, p)
        assert torch.cuda.current_device() == 0


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_no_synchronisation(gpu):
    p = problem(64, 200, 5, torch.float32, device=gpu)
    inputs = p.inputs()
    try:
        torch.cuda.set_sync_debug_mode("error")
        torch.autograd.grad(stack(*inputs, True), inputs, p.dy)
    finally:
        torch.cuda.set_sync_debug_mode("default")
