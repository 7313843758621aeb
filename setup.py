"""Builds hanops._C by calling CMake, for the torch that will run it.

HANOPS_NO_NATIVE=1 leaves it out: the package is then pure Python. HANOPS_LABEL=pt2.13cpu stands behind the version.
"""

import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
from pathlib import Path

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:  # it would stumble over pyproject.toml, in words of its own
    raise SystemExit(
        f"hanops: setuptools must be 77 or newer, got {setuptools.__version__}. Upgrade it:"
        f" {sys.executable} -m pip install --upgrade setuptools"
    )

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info

SOURCE = Path(__file__).parent.resolve()
OLDEST_TORCH = re.search(r'"torch>=(\d+\.\d+)"', (SOURCE / "pyproject.toml").read_text())[1]


def find_torch() -> tuple[Path, str]:
    """Returns the folder of this environment's torch, and its version.

    pip hides it from a build of its own, and then installs what was built beside it.
    """
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    users = [site.getusersitepackages()] if sys.base_prefix in site.PREFIXES else []
    folders += [Path(folder) / "torch" for folder in (*site.getsitepackages(), *users)]
    for torch in folders:
        if (torch / "version.py").is_file():
            version = re.search(r"__version__ = '(.+)'", (torch / "version.py").read_text())[1]
            if [int(n) for n in version.split(".")[:2]] < [int(n) for n in OLDEST_TORCH.split(".")]:
                raise SystemExit(f"hanops: torch must be {OLDEST_TORCH} or newer, got {version}. Upgrade it first.")
            return torch, version
    raise SystemExit(
        "hanops: torch was not found in the environment that builds. The native code is built for the torch that will"
        " run it: install torch first, then hanops with `pip install .` or `uv pip install --no-build-isolation .`"
        " (which needs setuptools, pybind11, cmake and ninja). HANOPS_NO_NATIVE=1 installs hanops without native code,"
        " for any torch."
    )


class EarlyMetadata(dist_info):
    """Looks for torch first: else pip would load one, gigabytes of it, before the build finds that there was none."""

    def run(self) -> None:
        if self.distribution.has_ext_modules():
            find_torch()
        super().run()


class FreshBuild(build):
    """Begins with an empty folder: modules that an older build left there would go into the wheel."""

    def run(self) -> None:
        folder = Path(self.build_lib).resolve()
        if SOURCE / "build" in folder.parents:
            shutil.rmtree(folder, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Configures and builds with CMake and Ninja, so that a second build only does what changed.

    What stays in this tree is built in build/cmake, which the tests use; what goes into a wheel, in a folder for each
    Python and torch; `build_ext --build-temp FOLDER` is for all else.
    """

    def finalize_options(self) -> None:
        given = self.build_temp
        super().finalize_options()
        self.build_temp = given or ("build/cmake" if self.inplace else None)

    def build_extension(self, ext: Extension) -> None:
        torch, version = find_torch()
        build = SOURCE / (self.build_temp or f"build/cmake-{sys.implementation.cache_tag}-torch-{version}")
        # The tools beside this Python, of the environment that is active or that pip has made, come first.
        tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        cmake, ninja = (shutil.which(name, path=tools) for name in ("cmake", "ninja"))
        if cmake is None or ninja is None:
            raise SystemExit(
                "hanops: CMake or Ninja was not found. Install cmake and ninja, or set HANOPS_NO_NATIVE=1."
            )
        environment = {**os.environ, "PATH": tools}
        # Ninja is told each time: the one of the last build may have gone with pip's environment.
        options = [f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        options.append(f"-DHANOPS_TORCH_FOLDER={torch}")
        try:
            subprocess.run([cmake, "-S", SOURCE, "-B", build, "-G", "Ninja", *options], check=True, env=environment)
            subprocess.run([cmake, "--build", build], check=True, env=environment)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                "hanops: the native build failed; the reason stands above. It needs a C++20 compiler, and where pip"
                " builds without isolation also cmake, ninja and pybind11 in this environment. HANOPS_NO_NATIVE=1"
                " installs the package without native code, which is slow on CPUs."
            ) from error
        # This Python's module alone: others may stand in the same folders. And a new file, not new bytes in the old
        # one, which a running interpreter may have mapped.
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        shutil.copy2(build / target.name, target)


def version() -> str:
    """Returns the version that hanops tells, with HANOPS_LABEL behind it: what a wheel was built for."""
    found = re.search(r'^__version__ = "(.+)"$', (SOURCE / "hanops/__init__.py").read_text(), re.MULTILINE)
    return found[1] + (f"+{label}" if (label := os.environ.get("HANOPS_LABEL")) else "")


native = os.environ.get("HANOPS_NO_NATIVE", "0") in ("", "0")
setup(
    version=version(),
    ext_modules=[Extension("hanops._C", sources=[])] if native else [],
    cmdclass={"build": FreshBuild, "build_ext": CMakeBuild, "dist_info": EarlyMetadata},
)
