"""Builds hanops against a CUDA torch of its own, where no GPU is, and tests what needs none: make cuda-check.

Everything is under build/cuda-check: an environment a version of torch (5 GB), a build folder and the built package.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from .sanitize import on_package

ROOT = Path(__file__).resolve().parent.parent
# setuptools: torch 2.11 wants an old one; NumPy: the interpreter of Triton 3.6 takes arrays of one element for numbers.
OF_TORCH = ("torch", "triton", "setuptools", "numpy")
PACKAGES = ["setuptools>=77", "numpy<2.4", "cmake", "ninja", "pybind11"]
PACKAGES += ["expecttest", "hypothesis", "pytest", "pytest-benchmark", "pytest-xdist"]
OWN = ["tests/test_cuda_build.py", "tests/test_build.py::test_library_of_another_torch"]
OPS = ["tests/test_ops.py", "tests/test_han_stack.py", "tests/test_han_stack_backward.py"]
OPS += ["tests/test_han_stack_conventions.py", "tests/test_derivatives.py"]
STEPS = ("environment", "build", "test")


class Check:
    """One version of torch, in folders of its own, on one of the machine's Pythons."""

    def __init__(self, torch: str, python: str) -> None:
        folder = ROOT / "build" / "cuda-check"
        self.torch, self.interpreter = torch, python
        self.environment = folder / f"torch-{torch}"
        self.build_folder, self.package = folder / f"build-{torch}", folder / f"package-{torch}"
        self.python = self.environment / "bin" / "python"

    def run(self, *command: str | Path, **variables: str) -> None:
        tools = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": tools, **variables}, check=True)

    def make_environment(self) -> None:
        """Installs torch and what builds and tests need, as in constraints.txt but for what follows from torch."""
        if not self.python.exists():
            self.run(self.interpreter, "-m", "venv", self.environment)
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        constraints = self.environment / "constraints.txt"
        others = [line for line in lines if line.partition("==")[0] not in OF_TORCH]
        constraints.write_text("\n".join([*others, f"torch=={self.torch}", ""]))
        pip = (self.python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "-c", constraints)
        self.run(*pip, f"torch=={self.torch}", *PACKAGES)

    def build(self, ship: str | None) -> None:
        """Builds the package; a second call compiles what changed. A copy of the module, stripped, goes to `ship`."""
        folders = ("--build-lib", self.package)
        build = ("build_py", *folders, "build_ext", *folders, "--build-temp", self.build_folder)
        architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0")
        self.run(self.python, "setup.py", "--quiet", *build, TORCH_CUDA_ARCH_LIST=architectures)
        (module,) = (self.package / "hanops").glob("_C.*.so")
        print(f"{module.relative_to(ROOT)}: {module.stat().st_size / 1e6:.1f} MB", flush=True)
        if ship:
            stripped = ROOT / ship / module.name
            stripped.parent.mkdir(parents=True, exist_ok=True)
            stripped.unlink(missing_ok=True)
            self.run("strip", "-o", stripped, module)
            print(f"{stripped}: {stripped.stat().st_size / 1e6:.1f} MB", flush=True)

    def test(self, workers: str) -> None:
        # Not this folder's hanops, in the tests' processes either: pytest's own program, and Pythons with a safe path.
        pytest = (self.python.parent / "pytest", "-q", "-p", "no:cacheprovider", "-n", workers)
        arrays = "ignore:Conversion of an array with ndim:DeprecationWarning"
        package = {**on_package(self.package), "PYTHONSAFEPATH": "1", "HANOPS_CUDA_CHECK": "1"}
        self.run(*pytest, "-W", arrays, *OWN, *OPS, **package)


def folder_size(folder: Path) -> str:
    return subprocess.run(["du", "-sh", folder], capture_output=True, text=True, check=True).stdout.split()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", default="2.11.0", help="a version whose wheel has CUDA, of nvcc's major version")
    parser.add_argument("--cuda-python", default=sys.executable, help="which Python the environment is made with")
    parser.add_argument("--only", choices=STEPS, help="one step, where those before it were done")
    parser.add_argument("--ship", help="a folder for the module, stripped, to be carried to a machine with a GPU")
    parser.add_argument("--workers", default="auto", help="processes of the tests; auto: one for each core")
    arguments = parser.parse_args()
    check = Check(arguments.torch, arguments.cuda_python)
    if shutil.which("nvcc") is None:
        raise SystemExit("cuda-check: nvcc is not on the path: the CUDA kernels cannot be built")
    for step in STEPS:
        if arguments.only in (None, step):
            start = time.monotonic()
            print(f"==> {step}, torch {check.torch}", flush=True)
            if step == "environment":
                check.make_environment()
            elif step == "build":
                check.build(arguments.ship)
            else:
                check.test(arguments.workers)
            print(f"==> {step}: {time.monotonic() - start:.0f} s", flush=True)
    print(f"{check.environment.relative_to(ROOT)}: {folder_size(check.environment)}")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"cuda-check: this failed: {' '.join(map(str, error.cmd))}") from error
