"""Builds hanops._C by calling CMake, for the torch that will run it.

HANOPS_NO_NATIVE=1 leaves it out: the package is then pure Python.
"""

import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:  # it would stumble over pyproject.toml, in words of its own
    raise SystemExit(
        f"hanops: setuptools must be 77 or newer, got {setuptools.__version__}. Upgrade it:"
        f" {sys.executable} -m pip install --upgrade setuptools"
    )

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


def site_of_torch() -> str | None:
    """Returns the site-packages of this interpreter's environment where torch is there but hidden, else None.

    pip hides them from a build of its own, and then installs what was built beside them.
    """
    if importlib.util.find_spec("torch"):
        return None
    for folder in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()):
        if (Path(folder) / "torch").is_dir():
            return folder
    raise SystemExit(
        "hanops: torch was not found in the environment that builds. The native code is built for the torch that will"
        " run it: install torch first, then hanops with `pip install --no-build-isolation .` (or `uv pip install"
        " --no-build-isolation .`). HANOPS_NO_NATIVE=1 installs the package without native code, for any torch."
    )


class CMakeBuild(build_ext):
    """Configures and builds with CMake and Ninja, in build/cmake, so that a second build only does what changed.

    `build_ext --build-temp FOLDER` builds there instead: for another Python, or another torch.
    """

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_temp = "build/cmake"

    def build_extension(self, ext: Extension) -> None:
        source = Path(__file__).parent.resolve()
        build = source / self.build_temp
        cmake = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        if cmake is None:
            raise SystemExit("hanops: CMake was not found. Install cmake and ninja, or set HANOPS_NO_NATIVE=1.")
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        hidden = site_of_torch()
        if hidden:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), hidden]))
        try:
            subprocess.run(
                [cmake, "-S", source, "-B", build, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"],
                check=True,
                env=environment,
            )
            subprocess.run([cmake, "--build", build], check=True, env=environment)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                "hanops: the native build failed; the reason stands above. It needs a C++20 compiler, and cmake, ninja,"
                " pybind11 and torch in this environment (pip install --no-build-isolation). HANOPS_NO_NATIVE=1"
                " installs the package without native code, which is slow."
            ) from error
        # This Python's module alone: others may stand in the same folders. And a new file, not new bytes in the old
        # one, which a running interpreter may have mapped.
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        shutil.copy2(build / target.name, target)


def version() -> str:
    """Returns the version that hanops tells, with HANOPS_LABEL behind it: what a wheel was built for, "pt2.13cpu"."""
    found = re.search(r'^__version__ = "(.+)"$', Path("hanops/__init__.py").read_text(), re.MULTILINE)
    return found[1] + (f"+{label}" if (label := os.environ.get("HANOPS_LABEL")) else "")


native = os.environ.get("HANOPS_NO_NATIVE", "0") in ("", "0")
setup(
    version=version(),
    ext_modules=[Extension("hanops._C", sources=[])] if native else [],
    cmdclass={"build_ext": CMakeBuild},
)
