"""The two calls on a machine with a GPU, `make gpu-first` and `make gpu-second`: what runs, in what order, how long.

Nothing here imports torch: the first times are on disk before it would be loaded. What was compiled beforehand lies in
build/gpu (`make gpu-ship`); what is not there, or does not run here, is built in the background.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import signal
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import prepare
from .nvidia import metric_names, read_ncu, read_sanitizer
from .parts import Call, Part, Reading, longest
from .prepare import GPU, ROOT

TOTAL = {"first": 360.0, "second": 240.0}
SLOWER = 3  # limits of a rehearsal, on two cores
PYTHON = sys.executable

# d, N, L, type: N * d is 2^26 at L = 1, 2^25 else.
TIMED = [
    *((d, 2**26 // d, 1, t) for d in (1024, 4096, 256) for t in ("bfloat16", "float32")),
    *((d, 2**25 // d, 16, t) for d in (1024, 4096, 256) for t in ("bfloat16", "float32")),
    *((1024, 2**25 // 1024, 64, t) for t in ("bfloat16", "float32")),
]
# Tiles of many rows, of one and of several warps, on up to 148 SMs; tiles of one row; streamed rows.
CHECKED = [
    *((d, 2_500_000 // d, 2, t) for d in (1024, 30, 256, 4096) for t in ("bfloat16", "float32")),
    *((1000, 100, 2, "bfloat16"), (4096, 9, 2, "float32"), (9000, 10, 2, "bfloat16"), (16384, 10, 2, "float32")),
]
COUNTED = {  # by ncu: the kernel, and the case
    "forward with bits, d=1024, L=16": ("forward", 1024, 32768, 16, "bfloat16", "forward"),
    "forward, d=1024, L=1": ("forward", 1024, 65536, 1, "bfloat16", "inference"),
    "backward, d=1024, L=16": ("backward", 1024, 32768, 16, "bfloat16", "backward"),
    "backward, d=4096, L=16": ("backward", 4096, 8192, 16, "bfloat16", "backward"),
}
COMPARED = [case for case in TIMED if case[3] == "bfloat16" or case[0] == 1024]
TINY = [(100, 12, 2, "bfloat16"), (64, 7, 1, "float32")]


def words(cases: Sequence[Sequence[Any]]) -> list[str]:
    """Returns options of the profile program."""
    return [word for case in cases for word in ("--case", ",".join(map(str, case)))]


def read_profile(file: Path) -> Reading:
    """Returns a line for each case that the profile program measured, with its times in copies of x."""
    found = json.loads(file.read_text())
    lines = [f"{found['device']}: {found['multiply_adds_per_s'] * 1e-12:.1f} T multiply-adds/s; times in copies of x"]
    for case in found["cases"]:
        copy, *kernels = case["kernels"]
        median = {kernel["kernel"]: statistics.median(kernel["seconds"]) for kernel in case["kernels"]}
        rate = copy["bytes"] / median["copy"] * 1e-9
        times = ", ".join(
            f"{k['kernel']} {median[k['kernel']] * 1e6:.1f} us = "
            f"{statistics.median(a / b for a, b in zip(k['seconds'], copy['seconds'], strict=True)):.2f}"
            for k in kernels
        )
        lines.append(f"d={case['features']} L={case['depth']} {case['dtype']}: {rate:.0f} GB/s; {times}")
    return Reading(lines, str(file.name))


def read_tests(output: str) -> Reading:
    """Returns the failures, the first of them, and the last line of pytest."""
    lines = [line for line in output.splitlines() if line.strip()]
    bad = [line for line in lines if line.startswith(("FAILED", "ERROR "))]
    more = [f"and {len(bad) - 15} more, in the log"] if len(bad) > 15 else []
    return Reading([*bad[:15], *more, *lines[-1:]], {"failed": bad})


def read_benchmarks(output: str) -> Reading:
    """Returns the tables that end a run, without their padding, and pytest's last line."""
    lines = [re.sub(" +", " ", line) for line in output.splitlines() if line.strip() and not line.startswith("|--")]
    start = max((i for i, line in enumerate(lines) if line.startswith("=") and " hanops " in line), default=len(lines))
    bad = [line for line in lines if line.startswith(("FAILED", "ERROR "))]
    return Reading([*bad[:3], *lines[start + 1 : -1][:24], *lines[-1:]], {"failed": bad})


def read_clocks(output: str) -> Reading:
    """Returns the range of each figure that nvidia-smi sampled, and the samples."""
    rows = [[cell.strip() for cell in line.split(",")] for line in output.splitlines() if line.count(",") > 3]
    if len(rows) < 2:
        return Reading(["no samples"])
    names, samples = rows[0], rows[1:]
    lines = []
    for name, values in list(zip(names, zip(*samples, strict=True), strict=True))[1:]:
        numbers = [float(v) for v in values if v.replace(".", "", 1).isdigit()]
        lines.append(
            f"{name}: {min(numbers):g} to {max(numbers):g}" if numbers else f"{name}: {', '.join(set(values))}"
        )
    return Reading(lines, {"names": names, "samples": samples})


def read_facts(output: str) -> Reading:
    lines = [line for line in output.splitlines() if re.match(r"\w+: ", line)]
    return Reading(lines, dict(line.split(": ", 1) for line in lines))


def pytest_of(*arguments: str, device: str) -> tuple[str, ...]:
    return (PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--device", device, *arguments)


def benchmarks(groups: str, seconds: int, out: Path, *more: str, rehearse: bool) -> tuple[str, ...]:
    chosen = ["benchmarks/bench_han_stack.py", "--benchmark-only", "--benchmark-columns=median,iqr,rounds"]
    chosen += ["--groups", groups, "--results", str(out), "--seconds", str(5 if rehearse else seconds), *more]
    rivals = "HanStack and forward" if rehearse else "not compiled"
    chosen += ["-k", rivals, *(["--rehearse"] if rehearse else [])]
    return pytest_of(*chosen, device="cpu" if rehearse else "cuda")


def tests(*which: str, device: str) -> tuple[str, ...]:
    workers = ["-n", "16", "--dist", "worksteal"] if device == "cuda" else []
    return pytest_of(*which, *workers, "--continue-on-collection-errors", "--tb=short", "--durations=10", device=device)


def counted(kernel: str, case: Sequence[Any]) -> tuple[str, ...]:
    """Returns the command that counts in the first launch of a kernel: from cold caches, at the clocks as they are."""
    ncu = ["ncu", "--csv", "--print-units", "base", "--clock-control", "none", "--metrics", ",".join(metric_names())]
    ncu += ["--kernel-name", f"regex:^{kernel}", "--launch-count", "1"]
    return (*ncu, str(prepare.PROGRAM), "--once", "yes", *words([case]))


def shared_parts(call: str, rehearse: bool) -> list[Part]:
    """Returns what both calls begin with: facts, what was or is to be compiled, the clocks of the whole call."""
    query = "timestamp,pstate,clocks.sm,clocks.mem,power.draw,temperature.gpu"
    smi = ("stdbuf", "-oL", "nvidia-smi", f"--query-gpu={query}", "--format=csv,nounits", "--loop-ms=1000")
    make = (PYTHON, "-m", "benchmarks.prepare", *(["--rehearse"] if rehearse else []))
    return [
        Part(
            "clocks and power, each second", smi, 0, ("nvidia-smi", "stdbuf"), read_clocks, optional=True, service=True
        ),
        Part("native code", make, TOTAL[call] - 60, background=True),
        Part("versions", (PYTHON, "-m", "benchmarks.facts"), 40, read=read_facts, background=True),
    ]


def first(out: Path, rehearse: bool) -> list[Part]:
    """Returns the parts of the first call: what tells most comes first."""
    program, device = str(prepare.PROGRAM), "cpu" if rehearse else "cuda"
    cases, repeats = (TINY, "3") if rehearse else (TIMED, "40")
    samples = out / "gpu-first-profile.json"
    timed = (program, *words(cases), "--repeats", repeats, "--json", str(samples))
    once = (program, "--once", "yes", *words(CHECKED))
    sanitizer = ("compute-sanitizer", "--error-exitcode", "9", "--print-limit", "20", "--tool")
    checked: dict[str, Any] = {"read": read_sanitizer, "optional": True, "beside": True}
    checked["needs"] = ("compute-sanitizer", "program")
    many_rows = ("tests/test_many_rows.py", "-k", "test_forward and cuda and 64-bfloat16" if rehearse else "cuda")
    few = ("tests/test_han_stack_backward.py", "-k", "training and cuda")
    rest = ("tests", "--ignore=tests/test_many_rows.py", "-k", "cuda and not triton")
    return [
        *shared_parts("first", rehearse),
        Part("times of the kernels", timed, 55, ("program",), lambda _: read_profile(samples)),
        Part("tiles of many rows", tests(*many_rows, device=device), 45, ("native",), read_tests),
        Part("memcheck", (*sanitizer, "memcheck", *once), 50, **checked),
        Part("tests of CUDA", tests(*(few if rehearse else rest), device=device), 110, ("native",), read_tests),
        Part("racecheck", (*sanitizer, "racecheck", *once), 60, **checked),
        *(
            Part(f"ncu: {name}", counted(kernel, case), 11, ("ncu", "program"), read_ncu, optional=True)
            for name, (kernel, *case) in COUNTED.items()
        ),
        Part(
            "one layer, kernels",
            benchmarks("one layer,kernels", 75, out, rehearse=rehearse),
            92,
            ("native",),
            read_benchmarks,
        ),
    ]


def second(out: Path, rehearse: bool, programs: list[str]) -> list[Part]:
    """Returns the parts of the second call."""
    cases, repeats = (TINY[:1], "2") if rehearse else (COMPARED, "20")
    compare = (PYTHON, "-m", "benchmarks.compare_programs", *programs, "--json", str(out / "gpu-second-a-b.json"))
    kind = ("tests/test_han_stack_backward.py", "-k", "training and triton") if rehearse else ("tests", "-k", "triton")
    quiet = ("-W", "ignore:hanops was built without native code")
    groups = "small networks,width,depth"
    return [
        *shared_parts("second", rehearse),
        Part(
            "two builds, A and B",
            (*compare, *words(cases), "--turns", "2", "--repeats", repeats),
            45,
            ("program", "programs"),
            optional=True,
        ),
        Part("tests of Triton", tests(*kind, *quiet, device="cpu" if rehearse else "cuda"), 115, (), read_tests),
        Part(groups, benchmarks(groups, 58, out, "--resume", rehearse=rehearse), 75, ("native",), read_benchmarks),
    ]


def resources(given: argparse.Namespace, call: str, programs: list[str]) -> Call:
    """Returns a call that knows what is there, what is being made and what is not there."""

    def lack(need: str) -> str | None:
        if need == "programs":
            missing = [path for path in programs if not Path(path).exists()]
            return f"{missing[0]} is not there" if missing else None if len(programs) == 2 else "no second build"
        if need in ("native", "program"):
            being_made = any(running.part.name == "native code" for running in made.alive)
            return prepare.lack(need, being_made)
        if given.rehearse:
            return f"{need} needs a GPU"
        return None if shutil.which(need) else f"{need} is not installed"

    made = Call(f"gpu-{call}", given.out, TOTAL[call] * (SLOWER if given.rehearse else 1), lack)
    made.environment["TRITON_INTERPRET"] = "1" if given.rehearse else "0"
    made.environment["OMP_NUM_THREADS"] = "1" if given.rehearse else "4"
    made.environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    made.environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # the tests are in many processes already
    made.results |= {"commit": prepare.commit(), "sources": prepare.sources()}
    return made


def run(given: argparse.Namespace, call: str) -> bool:
    """Runs one call, and tells whether nothing failed."""
    prepare.READY.mkdir(parents=True, exist_ok=True)
    for file in prepare.READY.iterdir():
        file.unlink()
    given.out = given.out.resolve()
    program = str(prepare.PROGRAM)
    builds = [str(file) for name in ("profile-a", "profile-b") if (file := GPU / name).exists()]
    programs = given.programs or ([program] * 2 if given.rehearse else [*builds, program][:2])
    parts = first(given.out, given.rehearse) if call == "first" else second(given.out, given.rehearse, programs)
    if given.rehearse:
        print(f"On 16 cores and a GPU the parts of gpu-{call} may take {longest(parts):.0f} s of {TOTAL[call]:.0f} s:")
        for part in parts:
            print(f"  {part.name}: {part.limit:.0f} s" + (", in the background" if part.background else ""))
        parts = [dataclasses.replace(part, limit=SLOWER * part.limit) for part in parts]
    made = resources(given, call, programs)
    fine = made.run(parts)
    files = ", ".join(sorted(file.name for file in given.out.iterdir()))
    print(f"\n{made.summary()}\n\n{given.out}: {files}", flush=True)
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calls", nargs="+", choices=list(TOTAL), metavar="first|second")
    parser.add_argument("--out", type=Path, help="a folder for the results (benchmarks/results)")
    devices = "cpu: a rehearsal, every part tiny, in emulator and interpreter; its results go to build/rehearsal"
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=devices)
    programs = "two builds of the profile program to compare"
    parser.add_argument("--programs", type=str.split, default=[], metavar="'A B'", help=programs)
    given = parser.parse_args()
    if len(given.programs) not in (0, 2):
        parser.error(f"argument --programs: want two, got {' '.join(given.programs)!r}")
    given.rehearse = given.device == "cpu"
    given.out = given.out or ROOT / ("build/rehearsal" if given.rehearse else "benchmarks/results")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return 0 if all([run(given, call) for call in given.calls]) else 1


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
