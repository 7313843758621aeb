"""Builds the native code for a sanitizer, in build/sanitize, and runs tests under it.

    python -m tests.sanitize [ci] [address] [thread]

`ci` is what CI runs: the baseline kernels and the CUDA emulator, at -O1, under AddressSanitizer and
UndefinedBehaviorSanitizer. `address` has every instruction set and more tests, `thread` what threads share under
ThreadSanitizer. Without an argument both of these run.

What is left out, and why: leaks are not looked for, because Python and torch keep what they make until the end. `vptr`
needs type information that torch hides. ThreadSanitizer knows nothing of the barriers of OpenMP's run-time library, so
the kernels' threads are std::threads there (tests/thread_sanitizer, with what is suppressed). Triton's interpreter and
plain torch have no code of ours.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
KERNELS = ["test_han_stack.py", "test_han_stack_backward.py", "test_han_stack_conventions.py", "test_silent_rows.py"]
OPS = ["test_ops.py", "test_ops_arguments.py", "test_ops_results.py", "test_derivatives_of_nothing.py"]
ON_KERNELS = "not triton and not plain_torch and not shards and not processes"


@dataclass(frozen=True)
class Run:
    """A build, and the tests that run on it."""

    sanitizer: str
    tests: list[str]
    chosen: str = ON_KERNELS
    baseline_only: bool = False
    capabilities: tuple[str, ...] = ("default",)
    options: dict[str, str] = field(default_factory=dict)


ADDRESS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
THREAD = {"TSAN_OPTIONS": f"halt_on_error=1:suppressions={ROOT}/tests/thread_sanitizer/suppressions.txt"}
RUNS = {
    "ci": Run(
        "address",
        KERNELS + OPS,
        f"{ON_KERNELS} and not opcheck and not two_to_the_31 and (not cuda or float32 or arguments)",
        baseline_only=True,
        options=ADDRESS,
    ),
    "address": Run(
        "address",
        [*KERNELS, *OPS, "test_cuda.py", "test_modules.py", "test_derivatives.py", "test_mixed_precision.py"],
        # Without tests that compile something else, or fill 4 GiB.
        f"{ON_KERNELS} and not two_to_the_31 and not broken and not compile and not profile_program",
        capabilities=("default", "avx2", "avx512"),
        options=ADDRESS,
    ),
    "thread": Run("thread", ["test_threads.py"], baseline_only=True, options=THREAD),
}


def library(name: str) -> str:
    """Returns the path of a library of the compiler's."""
    compiler = os.environ.get("CXX", "c++")
    done = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return str(Path(done.stdout.strip()).resolve())


def build(run: Run) -> Path:
    """Returns the folder of a build, which has a package `hanops` with its native code."""
    name = f"{run.sanitizer}-baseline" if run.baseline_only else run.sanitizer
    folder = ROOT / "build" / "sanitize" / name
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    cmake = shutil.which("cmake", path=tools)
    assert cmake is not None
    flags = [f"-DHANOPS_SANITIZE={run.sanitizer}", f"-DHANOPS_BASELINE_ONLY={'ON' if run.baseline_only else 'OFF'}"]
    configure = [cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}", *flags]
    targets = ["_C"] if run.sanitizer == "thread" else ["_C", "cuda_emulator"]
    for command in (configure, [cmake, "--build", folder, "--target", *targets]):
        done = subprocess.run(command, env={**os.environ, "PATH": tools}, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{done.stdout}{done.stderr}")
    package = folder / "package" / "hanops"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "hanops", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for module in folder.glob("_C*.so"):
        shutil.copy2(module, package)
    return folder


def environment(run: Run, folder: Path, capability: str) -> dict[str, str]:
    """Returns the environment of the tests: the sanitizer first, and the build's package before any other."""
    runtime = "libtsan.so" if run.sanitizer == "thread" else "libasan.so"
    return {
        **os.environ,
        **run.options,
        "LD_PRELOAD": f"{library(runtime)} {library('libstdc++.so')}",
        **on_package(folder / "package"),
        "HANOPS_TEST_BUILD": str(folder),
        "ATEN_CPU_CAPABILITY": capability,
    }


def on_package(folder: Path) -> dict[str, str]:
    """Returns what makes pytest's processes take the hanops in `folder`, though they put this tree's before it."""
    return {"PYTHONPATH": str(folder), "PYTEST_PLUGINS": "hanops", "HANOPS_TEST_PACKAGE": str(folder)}


def run_tests(run: Run, workers: str) -> bool:
    """Tells whether the tests passed."""
    folder = build(run)
    tests = [str(ROOT / "tests" / name) for name in run.tests]
    script = "import sys; sys.path.pop(0); import pytest; sys.exit(pytest.main())"  # without the current folder
    passed = True
    for capability in run.capabilities:
        print(f"==> {run.sanitizer} sanitizer, instruction set {capability}", flush=True)
        # A report goes past pytest to the terminal: it may be the last that a process says.
        options = ["-q", "--capture=sys", "-p", "no:cacheprovider", "-n", workers]
        command = [sys.executable, "-c", script, *options, "-k", run.chosen, *tests]
        passed &= subprocess.run(command, cwd=ROOT, env=environment(run, folder, capability)).returncode == 0
    return passed


def main() -> int:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="run", help=f"{', '.join(RUNS)} (address and thread)")
    parser.add_argument("--workers", default="auto", help="processes of the tests; auto: one for each core")
    given = parser.parse_args()
    if unknown := set(given.runs) - set(RUNS):
        parser.error(f"runs are {', '.join(RUNS)}, got {', '.join(sorted(unknown))}")
    return 0 if all([run_tests(RUNS[name], given.workers) for name in given.runs or ("address", "thread")]) else 1


if __name__ == "__main__":
    sys.exit(main())
