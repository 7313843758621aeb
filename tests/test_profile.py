"""The command line: `profile` and its figures, `info`, and what both say of wrong arguments. Nothing on speed."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

import hanops
from hanops.__main__ import main
from hanops.backends.native import native
from hanops.profiling import ceilings, profile
from hanops.profiling.case import ProfileCase
from hanops.profiling.report import KernelFigures, Profile
from hanops.profiling.residence import Residence, resident_warps

KERNELS = ["forward", "forward with bits", "backward"]
SIZES = ["--features", "40", "--depth", "3", "--batch", "10", "--device", "cpu", "--seconds", "0"]


@pytest.fixture(autouse=True)
def small_and_short(monkeypatch):
    monkeypatch.setattr(ceilings, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(ceilings, "_TURN", 1e-4)
    monkeypatch.setattr(ceilings, "_WARM", 0)


def table(printed: str) -> tuple[list[str], list[str]]:
    """Returns the two lines of the table's head, and the lines of its rows."""
    lines = printed.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("kernel"))
    return lines[start - 1 : start + 1], lines[start + 1 : start + 4]


def figures(capsys, *arguments: str) -> dict:
    assert main(["profile", *SIZES, "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_table(capsys):
    assert main(["profile", *SIZES]) == 0
    printed = capsys.readouterr().out
    head, rows = table(printed)
    units = "".join(head[1].split()).replace("ms", "us")
    assert units == "kernelusususMBGB/slayers/scopy,%instructions,%binds"
    assert [row.split("  ")[0] for row in rows] == KERNELS
    assert f"{torch.get_num_threads()} thread" in printed
    if native is not None:
        assert native.build_info()["instruction_set"] in printed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("groups", [None, 2])
def test_the_figures_have_one_meaning(capsys, dtype, groups):
    found = figures(capsys, "--dtype", dtype, *([] if groups is None else ["--groups", str(groups)]))
    assert found["case"] == {
        "features": 40, "depth": 3, "batch": 10, "groups": groups, "dtype": dtype, "device": "cpu",
    }  # fmt: skip
    assert [row["kernel"] for row in found["rows"]] == KERNELS
    rows_of_x = 10 * (groups or 1)
    planes = 3 + (8 if dtype == "bfloat16" else 0)  # of bits: one for each layer, and the byte that training keeps
    values, signs = rows_of_x * 40 * getattr(torch, dtype).itemsize, rows_of_x * planes * 5
    moved = dict(zip(KERNELS, [2 * values, 2 * values + signs, 3 * values + signs], strict=True))
    for row in found["rows"]:
        low, high = row["seconds_quartiles"]
        assert 0 < row["seconds_fastest"] <= low <= row["seconds"] <= high
        assert row["bytes_moved"] == moved[row["kernel"]]
        assert row["bytes_per_s"] == pytest.approx(row["bytes_moved"] / row["seconds"])
        assert row["element_layers_per_s"] == pytest.approx(rows_of_x * 40 * 3 / row["seconds"])
        shares = {"copy": row["share_of_copy"], "instructions": row["share_of_instructions"]}
        if native is not None:
            assert row["binds"] == max(shares, key=shares.__getitem__)


def test_shares_are_those_of_the_ceilings():
    """By hand: 100 bytes in 2 s, against copies of 100 and 25 bytes/s, in turns."""
    case = ProfileCase(features=5, layers=2, rows=10)
    samples = {"forward": [2.0, 2.0, 2.0], "copy": [100.0, 25.0, 100.0], "instructions": [400.0] * 3}
    row = profile._row("forward", case, 100, samples, None)
    assert row.share_of_copy == 0.5
    assert row.share_of_instructions == 4 * 100 / (2 * 400)
    assert row.bytes_per_s == 50
    assert replace(case, groups=3).element_layers == 300
    del samples["instructions"]
    row = profile._row("forward", case, 100, samples, None)
    assert (row.share_of_instructions, row.binds) == (None, None)


@pytest.mark.parametrize("ran", ["triton", "cuda"])
def test_the_table_of_a_gpu(ran):
    taken = Residence(registers=237, warps=8, most_warps=64, tile="4 rows, 1024 columns")
    row = KernelFigures("forward", 2e-3, 1e-3, (1e-3, 3e-3), 10**9, 5e11, 1e12, 1.25, 0.5, "copy", taken)
    case = ProfileCase(1024, 16, 65536, device=torch.device("cuda"))
    printed = str(Profile(case, ran, "a GPU", 4e11, None, (row,)))
    head, rows = table(printed)
    cells = rows[0].split()
    assert cells[:4] == ["forward", "2.00", "1.00", "1.00"]
    assert cells[4:12] == ["-", "3.00", "1000.000", "500.00", "1000.00", "125.0", "50.0", "copy"]
    assert "stay in a cache" in printed
    assert "registers" in head[0]
    assert cells[12:] == ["237", "8", "of", "64"]
    assert "forward: 4 rows, 1024 columns" in printed


def test_resident_warps():
    """As NVIDIA's occupancy calculator has them, for 64 warps of at most 2048 threads."""
    for registers, warps, resident in [(255, 1, 8), (255, 8, 8), (168, 4, 12), (128, 4, 16), (32, 8, 64), (16, 1, 32)]:
        assert resident_warps(registers, warps, 64) == resident


def test_ncu_prints_and_runs_nothing(capsys, monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError

    for name in ("profile", "trace", "check"):
        monkeypatch.setattr(profile, name, never)
    sizes = ["--features", "64", "--depth", "20", "--batch", "100", "--groups", "3", "--dtype", "bfloat16"]
    assert main(["profile", *sizes, "--ncu"]) == 0
    program, python = (line for line in capsys.readouterr().out.splitlines() if not line.startswith("#"))
    assert program.startswith("ncu ")
    assert "build/cmake/han_stack_profile --features 64 --depth 20 --dtype bfloat16 --groups 3 --rows 100" in program
    assert python.startswith("ncu ")
    own = python.split("python -m hanops ")[1].split()
    assert own[:9] == ["profile", "--features", "64", "--depth", "20", "--dtype", "bfloat16", "--groups", "3"]
    assert own[-6:] == ["--device", "cuda", "--backend", "triton", "--seconds", "0"]


def test_trace(capsys, tmp_path):
    file = tmp_path / "trace.json"
    figures(capsys, "--trace", str(file))
    names = [event.get("name", "") for event in json.loads(file.read_text())["traceEvents"]]
    assert names.count("forward") == names.count("backward") == 5
    assert any("hanops::han_stack_backward" in name for name in names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--features", "0"], "argument --features: must be a whole number from 1, got '0'"),
        (["--depth", "1.5"], "argument --depth: must be a whole number from 1, got '1.5'"),
        (["--batch", "-3"], "argument --batch: must be a whole number from 1, got '-3'"),
        (["--groups", "many"], "argument --groups: must be a whole number from 1, got 'many'"),
        (["--seconds", "-1"], "argument --seconds: must be a number of seconds from 0, got '-1'"),
        (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8' (choose from "),
        (["--backend", "fast"], "argument --backend: invalid choice: 'fast' (choose from "),
        (["--trace", "/no/such/place"], "argument --trace: must be a file to write, got '/no/such/place': No such"),
        (["--ncu", "--json"], "argument --json: not allowed with argument --ncu"),
        (["--ncu", "--trace", "t"], "argument --trace: not allowed with argument --ncu"),
    ],
)
def test_errors_of_arguments(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit:
        main(["profile", *SIZES, *arguments])
    assert exit.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert not printed.out


def test_a_backend_or_a_gpu_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, message in [
        (["--backend", "cuda"], r"backend must be one that runs here \(auto, .*torch\), got 'cuda': "),
        (["--device", "cuda"], "device must be 'cpu' where torch sees no GPU, got 'cuda'"),
    ]:
        if "--backend" in arguments and hanops.backends.obstacle("cuda", torch.device("cpu")) is None:
            continue  # another test has loaded the emulator
        with pytest.raises(SystemExit) as exit:
            main(["profile", *SIZES, *arguments])
        assert exit.value.code == 2
        assert re.search(message, capsys.readouterr().err)


def test_profile_runs_the_backend_that_was_asked_for(capsys):
    assert figures(capsys, "--backend", "torch")["backend"] == "torch"
    assert hanops.explain(torch.ones(1, 1), torch.ones(1, 1)).reason != "it was asked for"


@pytest.mark.parametrize(
    ("ran", "simulator"), [("triton", "Triton's interpreter"), ("cuda", "the CUDA emulator"), ("cpu", None)]
)
def test_times_of_a_simulator_are_not_shown(ran, simulator):
    row = KernelFigures("forward", 2e-3, 1e-3, (1e-3, 3e-3), 10**9, 5e11, 1e12, 1.25, 0.5, "copy")
    found = Profile(ProfileCase(4, 2, 3), ran, "a CPU", 4e11, 1e12, (row,))
    printed = str(found)
    assert found.figures()["simulator"] == simulator
    assert ("share of" in printed) == (simulator is None)
    if simulator:
        assert printed.endswith(f"{simulator} ran: its times say nothing of a GPU, and are not shown")
        assert "2.00" not in printed


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_interpreter_says_so(capsys):
    assert main(["profile", *SIZES, "--backend", "triton"]) == 0
    assert "Triton's interpreter ran: its times say nothing" in capsys.readouterr().out


def test_without_native_code(capsys, monkeypatch):
    for module in (ceilings, profile):
        monkeypatch.setattr(module, "native", None)
    assert main(["profile", *SIZES, "--backend", "torch"]) == 0
    printed = capsys.readouterr().out
    assert "instructions unknown" in printed
    assert all(row.split()[-2:] == ["-", "-"] for row in table(printed)[1])
    found = figures(capsys, "--backend", "torch")
    assert found["multiply_adds_per_s"] is None
    assert all(row["binds"] is None for row in found["rows"])


def test_info(capsys):
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["hanops"], found["torch"]) == (hanops.__version__, torch.__version__)
    assert found["threads"] == torch.get_num_threads()
    assert (found["triton"] is None) == (find_spec("triton") is None)
    cpu = found["devices"][0]
    assert {cpu["backend"], *cpu["others"]} == {"cuda", "triton", "cpu", "torch"}
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert f"python {found['python']}" in printed
    assert f"threads {found['threads']}" in printed


def test_info_where_the_backend_that_was_asked_for_does_not_run(capsys, monkeypatch):
    choice = hanops.backends.choice
    monkeypatch.setattr(choice, "_has_cuda", lambda device_type: False)
    monkeypatch.setattr(choice, "_chosen", choice._Choice("cuda"))
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "backend 'cuda' was asked for, but" in printed
    assert "not torch: another one was asked for" in printed


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_what_is_compiled_for_a_gpu():
    """With no GPU, in a process of its own, where Triton compiles: the tiles' registers, and the ceiling's kernel."""
    script = """
import json
from types import SimpleNamespace
import torch, triton, triton.language as tl
from triton.compiler import ASTSource
from hanops.profiling.case import ProfileCase
from hanops.profiling import multiply_adds, residence
from hanops.profiling.ahead_of_time import TARGETS
gpu = SimpleNamespace(major=9, minor=0, warp_size=32, max_threads_per_multi_processor=2048)
torch.cuda.get_device_properties = lambda device: gpu
found = {name: vars(taken) for name, taken in residence.triton_residences(ProfileCase(62, 2, 5)).items()}
names = multiply_adds.multiply_add.arg_names
block = 32 * multiply_adds.WARPS * multiply_adds.CHAINS
constants = {"accumulate": tl.float32, "block": block, "steps": multiply_adds.STEPS}
source = ASTSource(
    fn=multiply_adds.multiply_add,
    signature={"p_out": "*fp32", "iterations": "i32", **dict.fromkeys(constants, "constexpr")},
    constexprs={(names.index(name),): value for name, value in constants.items()},
)
compiled = triton.compile(source, target=TARGETS["sm_90"], options={"num_warps": multiply_adds.WARPS})
print(json.dumps([found, compiled.asm["ptx"].count("fma.rn.f32") == multiply_adds.CHAINS * multiply_adds.STEPS]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    residences, is_all_multiply_adds = json.loads(done.stdout)
    assert list(residences) == KERNELS
    assert all(0 < r["registers"] <= 255 and 0 < r["warps"] <= r["most_warps"] == 64 for r in residences.values())
    assert is_all_multiply_adds
