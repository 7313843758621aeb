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

from .torch_builds import ROOT, TorchBuild

OWN = ["tests/test_cuda_build.py", "tests/test_build.py::test_library_of_another_torch"]
OPS = ["tests/test_ops.py", "tests/test_han_stack.py", "tests/test_han_stack_backward.py"]
OPS += ["tests/test_han_stack_conventions.py", "tests/test_derivatives.py"]
STEPS = ("environment", "build", "test")


class Check(TorchBuild):
    """The build for one version of torch, with its CUDA kernels."""

    def __init__(self, torch: str, python: str) -> None:
        super().__init__(ROOT / "build" / "cuda-check", torch, torch, python)

    def build_and_ship(self, ship: str | None) -> None:
        """Builds the package. A copy of the module, stripped, goes to `ship`."""
        self.build(TORCH_CUDA_ARCH_LIST=os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0"))
        (module,) = (self.package / "hanops").glob("_C.*.so")
        print(f"{module.relative_to(ROOT)}: {module.stat().st_size / 1e6:.1f} MB", flush=True)
        if ship:
            stripped = ROOT / ship / module.name
            stripped.parent.mkdir(parents=True, exist_ok=True)
            stripped.unlink(missing_ok=True)
            self.run("strip", "-o", stripped, module)
            print(f"{stripped}: {stripped.stat().st_size / 1e6:.1f} MB", flush=True)


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
                check.build_and_ship(arguments.ship)
            else:
                check.pytest("-n", arguments.workers, *OWN, *OPS, HANOPS_CUDA_CHECK="1")
            print(f"==> {step}: {time.monotonic() - start:.0f} s", flush=True)
    print(f"{check.environment.relative_to(ROOT)}: {folder_size(check.environment)}")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"cuda-check: this failed: {' '.join(map(str, error.cmd))}") from error
