"""An environment with one version of torch on one Python, and hanops built for it, in folders of their own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .sanitize import on_package

ROOT = Path(__file__).resolve().parent.parent
# setuptools: torch 2.11 wants an old one; NumPy: the interpreter of Triton 3.6 takes arrays of one element for numbers.
OF_TORCH = ("torch", "triton", "setuptools", "numpy")
PACKAGES = ["setuptools>=77", "numpy<2.4", "cmake", "ninja", "pybind11"]
PACKAGES += ["expecttest", "hypothesis", "pytest", "pytest-benchmark", "pytest-xdist"]


class TorchBuild:
    """One version of torch on one of the machine's Pythons. `folder` may hold more of them, by their names."""

    def __init__(self, folder: Path, name: str, torch: str, python: str | Path) -> None:
        self.folder, self.name, self.torch, self.interpreter = folder, name, torch, python
        self.environment = folder / f"torch-{name}"
        self.build_folder, self.package = folder / f"build-{name}", folder / f"package-{name}"
        self.python = self.environment / "bin" / "python"

    def run(self, *command: str | Path, **variables: str) -> None:
        tools = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": tools, **variables}, check=True)

    def make_environment(self) -> None:
        """Installs torch and what builds and tests need, as in constraints.txt but for what follows from torch."""
        if not self.python.exists():
            self.run(self.interpreter, "-m", "venv", self.environment)
            self._share_cuda()
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        constraints = self.environment / "constraints.txt"
        others = [line for line in lines if line.partition("==")[0] not in OF_TORCH]
        constraints.write_text("\n".join([*others, f"torch=={self.torch}", ""]))
        pip = (self.python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "-c", constraints)
        self.run(*pip, f"torch=={self.torch}", *PACKAGES)

    def _share_cuda(self) -> None:
        """Links the libraries of CUDA, 3 GB and the same for every Python, from another environment of this torch."""
        (own,) = self.environment.glob("lib/python*/site-packages")
        for path in self.folder.glob(f"torch-{self.torch}*/lib/python*/site-packages/nvidia*"):
            if not (own / path.name).exists():
                (own / path.name).symlink_to(path.resolve())

    def build(self, **variables: str) -> None:
        """Builds the package; a second call compiles what changed."""
        folders = ("--build-lib", self.package)
        build = ("build_py", *folders, "build_ext", *folders, "--build-temp", self.build_folder)
        self.run(self.python, "setup.py", "--quiet", *build, **variables)

    def pytest(self, *options: str, **variables: str) -> None:
        """Runs tests on the package that was built, not on this folder's, in their other processes too."""
        # pytest's own program, and Pythons with a safe path, put no folder of this tree before the package.
        command = (self.python.parent / "pytest", "-q", "-p", "no:cacheprovider")
        arrays = "ignore:Conversion of an array with ndim:DeprecationWarning"
        python = "ignore:Guards may run slower on Python 3.13.0:RuntimeWarning"  # the compiler's own
        package = {**on_package(self.package), "PYTHONSAFEPATH": "1", **variables}
        self.run(*command, "-W", arrays, "-W", python, *options, **package)
