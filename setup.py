"""Builds hanops._C by calling CMake. HANOPS_NO_NATIVE=1 leaves it out: the package is then pure Python."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


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
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
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
        target.mkdir(parents=True, exist_ok=True)
        for library in build.glob("_C*"):
            if library.suffix in (".so", ".pyd"):
                # A new file, not new bytes in the old one: a running interpreter may have that one mapped.
                (target / library.name).unlink(missing_ok=True)
                shutil.copy2(library, target / library.name)


native = os.environ.get("HANOPS_NO_NATIVE", "0") in ("", "0")
setup(
    ext_modules=[Extension("hanops._C", sources=[])] if native else [],
    cmdclass={"build_ext": CMakeBuild},
)
