"""Tries hanops with each torch and Python that can be had, and writes the table of docs/index.md: make matrix.

A row is an environment, a build, an import in a process of its own, and the core tests: ops, modules, gradients, the
compiler, processes, and the private names of torch. Everything is under build/matrix, with a file of JSON for the
result of each row. Rows that passed with these sources are not run again, so a call that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from .pages import part
from .sanitize import on_package
from .torch_builds import ROOT, TorchBuild

FOLDER = ROOT / "build" / "matrix"
PAGE = ROOT / "docs" / "index.md"
CORE = ["torch_versions", "han_stack", "han_stack_backward", "ops", "modules", "compile_and_export", "sharding"]
CORE += ["distributed"]
# What takes minutes is left out: Triton's interpreter, which `make cuda-check` tries, the code that Inductor
# makes around the ops, and the kernels of other instruction sets than this machine's.
CHOSEN = "not triton and not inductor and not instruction_sets"
# A row's own process: where hanops came from, and one step of training.
IMPORT = """
import json, platform, torch, hanops
from hanops.backends.native import native
stack = hanops.HanStack(8, 3)
stack(torch.randn(5, 8)).sum().backward()
assert stack.u.grad.isfinite().all()
told = {"python": platform.python_version(), "torch": torch.__version__, "file": hanops.__file__}
told["backend"] = hanops.explain(torch.randn(5, 8), stack.u).backend
print(json.dumps({**told, "native": native and native.build_info()}))
"""


@dataclass(frozen=True)
class Row:
    """A version of torch, a minor version of Python, and whether native code is built."""

    torch: str
    python: str
    native: bool = True

    @property
    def name(self) -> str:
        return f"{self.torch}-python-{self.python}{'' if self.native else '-plain'}"

    @property
    def result(self) -> Path:
        return FOLDER / f"{self.name}.json"


ROWS = [
    Row("2.11.0", "3.10"),
    Row("2.11.0", "3.12"),
    Row("2.13.0", "3.11"),
    Row("2.14.1", "3.11"),
    Row("2.14.1", "3.13"),
    Row("2.11.0", "3.10", native=False),
    Row("2.13.0", "3.11", native=False),
    Row("2.14.1", "3.13", native=False),
]


def interpreter(version: str) -> Path:
    """Returns a Python of a minor version, from the path or from pyenv's folder.

    Raises:
        LookupError: where there is none.
    """
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [Path(known) for known in [shutil.which(f"python{version}")] if known]
    for python in (*sorted(versions.glob(f"{version}.*/bin/python{version}"), reverse=True), *found):
        if subprocess.run([python, "-c", "import venv"], capture_output=True).returncode == 0:
            return python
    raise LookupError(f"there is no Python {version} here")


def sources() -> str:
    """Returns a digest of what a row runs: the package, the native code and the core tests."""
    digest = hashlib.sha256()
    suffixes = {".py", ".cpp", ".h", ".cu", ".cuh", ".cmake"}
    files = [file for folder in ("hanops", "csrc") for file in (ROOT / folder).rglob("*") if file.suffix in suffixes]
    tests = [ROOT / "tests" / f"test_{name}.py" for name in CORE]
    for file in sorted([ROOT / "setup.py", ROOT / "CMakeLists.txt", *files, *tests]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


class Trial:
    """What becomes of one row."""

    def __init__(self, row: Row, workers: str) -> None:
        self.row, self.workers = row, workers
        self.build = TorchBuild(FOLDER, f"{row.torch}-python-{row.python}", row.torch, interpreter(row.python))
        if not row.native:
            self.build.package = FOLDER / f"package-{row.name}"
        self.told: dict[str, Any] = {"seconds": {}, "failed": None, "sources": sources(), "date": str(date.today())}

    def environment(self) -> None:
        self.build.make_environment()

    def compile(self) -> None:
        native = {} if self.row.native else {"HANOPS_NO_NATIVE": "1"}
        self.build.build(TORCH_CUDA_ARCH_LIST=os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0"), **native)

    def load(self) -> None:
        done = subprocess.run(
            [self.build.python, "-c", IMPORT],
            env={**os.environ, **on_package(self.build.package), "PYTHONSAFEPATH": "1"},
            capture_output=True,
            text=True,
            cwd=FOLDER,
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        self.told |= json.loads(done.stdout)
        assert Path(self.told["file"]).is_relative_to(self.build.package), self.told
        assert (self.told["native"] is not None) == self.row.native, self.told

    def test(self) -> None:
        tests = [f"tests/test_{name}.py" for name in CORE]
        report = FOLDER / f"{self.row.name}.xml"
        report.unlink(missing_ok=True)
        options = ("-n", self.workers, "-k", CHOSEN, "--durations", "5", f"--junitxml={report}")
        try:
            self.build.pytest(*options, *tests)
        finally:
            counts = re.findall(r'\b(tests|failures|errors|skipped)="(\d+)"', report.read_text()[:2000])
            self.told["tests"] = {name: int(count) for name, count in counts}

    def run(self) -> bool:
        """Runs the row, writes its result, and tells whether all of it passed."""
        for step in (self.environment, self.compile, self.load, self.test):
            start = time.monotonic()
            print(f"==> {self.row.name}: {step.__name__}", flush=True)
            try:
                step()
            except (AssertionError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
                print(f"{self.row.name}: {step.__name__} failed: {error}", flush=True)
                self.told["failed"] = step.__name__
                break
            finally:
                self.told["seconds"][step.__name__] = round(time.monotonic() - start)
        self.row.result.write_text(json.dumps(self.told, indent=1))
        return self.told["failed"] is None


def line(row: Row, told: dict[str, Any]) -> str:
    """Returns a row of the table."""
    if "tests" not in told:
        return f"| {row.python} | {row.torch} | {told['failed']} failed | | |"
    built = told["native"]
    kernels = "CPU and CUDA kernels" if built and "cuda_architectures" in built else "CPU kernels"
    code = kernels if built is not None else "none"
    tests = told["tests"]
    bad = tests["failures"] + tests["errors"]
    passed = tests["tests"] - bad - tests["skipped"]
    counts = f"{passed} passed, {tests['skipped']} skipped" + (f", {bad} failed" if bad else "")
    return f"| {told['python']} | {told['torch']} | {code} | `{told['backend']}` | {counts} |"


def table() -> list[str]:
    """Returns the table of the rows that have a result."""
    results = [(row, json.loads(row.result.read_text())) for row in ROWS if row.result.exists()]
    lines = ["| Python | torch | native code | runs on a CPU by | core tests |", "|---|---|---|---|---|"]
    return [*lines, *(line(row, told) for row, told in results)]


def main() -> int:
    """Runs what is asked for, and writes the table."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=" ".join(names), help=f"which, in one word with blanks: {' '.join(names)}")
    parser.add_argument("--workers", default="auto", help="processes of the tests; auto: one for each core")
    given = parser.parse_args()
    if unknown := set(given.rows.split()) - set(names):
        parser.error(f"rows are {', '.join(names)}, got {', '.join(sorted(unknown))}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    passed = True
    for row in (row for row in ROWS if row.name in given.rows.split()):
        told = json.loads(row.result.read_text()) if row.result.exists() else {}
        if told.get("sources") == sources() and told["failed"] is None:
            print(f"==> {row.name}: passed before with these sources", flush=True)
            continue
        try:
            passed &= Trial(row, given.workers).run()
        except LookupError as error:
            print(f"==> {row.name}: left out: {error}", flush=True)
    lines = table()
    PAGE.write_text(part("matrix", lines, PAGE.read_text()))
    print("\n".join(lines))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
