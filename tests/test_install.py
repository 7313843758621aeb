"""Installing hanops: which torch setup.py finds or refuses, what a wheel holds, and what is where nothing was before.

The environments are real; their torch, CMake and Ninja are of a few lines. `make wheel` does the same with real ones.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import distribution, distributions
from pathlib import Path

import pytest
import setuptools

import hanops
from hanops.__main__ import _wheel
from hanops.backends.native import SUPPORTED

ROOT = Path(__file__).parent.parent
MODULE = f"_C{EXTENSION_SUFFIXES[0]}"
CMAKE = """#!/bin/sh
echo "$0 $*" >> "$LOG"
test "$1" = --build || exit 0
mkdir -p "$2"
echo "for $2" > "$2/{module}"
"""
HIDES = "import sys\nsys.path[:] = [path for path in sys.path if not path.startswith(sys.prefix)]\n"
needs_pip = pytest.mark.skipif(not any(distributions(name="pip")), reason="needs pip")


class Environment:
    """An environment without packages, a clone in a folder `hanops`, and setuptools where pip would put it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "cmake.log"
        venv.EnvBuilder(symlinks=True).create(folder / "environment")
        self.python = folder / "environment" / "bin" / "python"
        (self.packages,) = (folder / "environment").glob("lib/python*/site-packages")
        self.clone = folder / "hanops"
        self.clone.mkdir()
        for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, self.clone)
        (self.clone / "csrc").mkdir()
        (self.clone / "csrc" / "ops.cpp").touch()
        shutil.copytree(ROOT / "hanops", self.clone / "hanops", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        self.overlay = folder / "overlay"
        self.overlay.mkdir()
        for name in ("setuptools", "_distutils_hack", f"setuptools-{setuptools.__version__}.dist-info"):
            (self.overlay / name).symlink_to(Path(setuptools.__file__).parents[1] / name)
        for name, text in (("cmake", CMAKE.format(module=MODULE)), ("ninja", "#!/bin/sh\n")):
            tool = self.python.parent / name
            tool.write_text(text)
            tool.chmod(0o755)

    def add_torch(self, version: str) -> None:
        (self.packages / "torch").mkdir()
        (self.packages / "torch" / "__init__.py").touch()
        (self.packages / "torch" / "version.py").write_text(f"__version__ = '{version}'\ncuda = None\n")
        information = self.packages / f"torch-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        (information / "INSTALLER").write_text("pip\n")

    def run(self, *command: str | Path, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HANOPS_", "PYTHON", "PIP_"))}
        environment = {**kept, "PYTHONPATH": str(self.overlay), "LOG": str(self.log), "LC_ALL": "C", **variables}
        return subprocess.run(command, cwd=cwd or self.clone, env=environment, capture_output=True, text=True)

    def setup(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        done = self.run(self.python, "setup.py", "--quiet", *words, **variables)
        done.stderr = re.sub(
            r"warning: no .* found.*\n", "", done.stderr
        )  # what MANIFEST.in names and no clone here has
        return done

    def pip(self, *words: str, **variables: str) -> str:
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "--disable-pip-version-check", *words]
        done = self.run(*command, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def hide(self) -> None:
        """Does what pip does in a build of its own."""
        (self.overlay / "sitecustomize.py").write_text(HIDES)

    def files(self) -> set[str]:
        return {str(path.relative_to(self.packages)) for path in self.packages.rglob("*")}


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path)


# ---- torch


@pytest.mark.parametrize("command", [["dist_info"], ["bdist_wheel"], ["build_ext", "--inplace"]], ids=" ".join)
def test_without_torch_nothing_is_built(environment, command):
    """From the first step on, which is before pip loads what hanops depends on."""
    done = environment.setup(*command)
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("hanops: torch was not found in the environment that builds. The native code is built for")
    assert "install torch first, then hanops with `pip install .` or `uv pip install --no-build-isolation .`" in line
    assert not environment.log.exists()
    assert environment.setup(*command[:1], HANOPS_NO_NATIVE="1").returncode == 0


@pytest.mark.parametrize("hidden", [False, True])
def test_torch_of_this_environment_is_built_for(environment, hidden):
    """Also where pip hides it, from CMake's Python too."""
    environment.add_torch("2.13.0+cpu")
    if hidden:
        environment.hide()
        assert environment.run(environment.python, "-c", "import torch").returncode == 1
    for command in ("dist_info", "bdist_wheel"):
        done = environment.setup(command)
        assert done.returncode == 0, done.stderr
    tools, folder = environment.python.parent, environment.clone / "build"
    folder /= f"cmake-{sys.implementation.cache_tag}-torch-2.13.0+cpu"
    options = f"-DPython_EXECUTABLE={environment.python} -DCMAKE_MAKE_PROGRAM={tools}/ninja"
    assert environment.log.read_text().splitlines() == [  # not the system's CMake and Ninja
        f"{tools}/cmake -S {environment.clone} -B {folder} -G Ninja {options}"
        f" -DHANOPS_TORCH_FOLDER={environment.packages}/torch",
        f"{tools}/cmake --build {folder}",
    ]


def test_torch_that_is_too_old(environment):
    environment.add_torch("2.10.1+cu128")
    done = environment.setup("dist_info")
    assert done.returncode != 0
    assert done.stderr == f"hanops: torch must be {SUPPORTED[0]} or newer, got 2.10.1+cu128. Upgrade it first.\n"


def test_what_a_clone_keeps_is_built_where_the_tests_look(environment):
    environment.add_torch("2.14.1")
    assert environment.setup("build_ext", "--inplace").returncode == 0
    folder = environment.clone / "build" / "cmake"
    assert (environment.clone / "hanops" / MODULE).read_text() == f"for {folder}\n"


def test_setuptools_that_is_too_old(environment):
    (environment.overlay / "setuptools").unlink()
    (environment.overlay / "setuptools.py").write_text("__version__ = '68.1.2'\n")
    done = environment.setup("--version")
    assert done.returncode != 0
    assert done.stderr.startswith("hanops: setuptools must be 77 or newer, got 68.1.2. Upgrade it: ")
    assert done.stderr.count("\n") == 1


@needs_pip
def test_torch_is_left_as_it_is(environment):
    """There is no index: pip would fail if it wanted another torch."""
    environment.add_torch("2.14.1+cu130")
    told = environment.pip("install", "--dry-run", "--no-index", "--no-build-isolation", ".")
    assert re.findall("^Would install (.*)", told, re.MULTILINE) == [f"hanops-{hanops.__version__}"]


# ---- wheels


def test_members_of_a_wheel(environment):
    """This Python's module, and no other file than those of the package as it is now."""
    environment.add_torch("2.13.0+cpu")
    (environment.clone / "hanops" / "_C.cpython-399-x86_64-linux-gnu.so").touch()
    (environment.clone / "hanops" / MODULE).write_text("of another build")
    made = {"HANOPS_LABEL": "pt2.13cpu"}
    assert environment.setup("bdist_wheel", **made).returncode == 0
    (built,) = environment.clone.glob("build/lib*/hanops")
    (built / "of_an_older_build.py").touch()
    assert environment.setup("bdist_wheel", **made).returncode == 0
    assert environment.setup("bdist_wheel", HANOPS_NO_NATIVE="1").returncode == 0
    native, pure = sorted((environment.clone / "dist").glob("*.whl"), key=lambda wheel: "none-any" in wheel.name)
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert re.fullmatch(rf"hanops-{hanops.__version__}\+pt2\.13cpu-{tag}-{tag}-linux_\w+\.whl", native.name)
    assert pure.name == f"hanops-{hanops.__version__}-py3-none-any.whl"
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "hanops").rglob("*.py*") if path.suffix != ".pyc"}
    for wheel, more in ((native, {f"hanops/{MODULE}"}), (pure, set())):
        members = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        assert members == sources | {"hanops/py.typed"} | more
    assert zipfile.ZipFile(native).read(f"hanops/{MODULE}").startswith(b"for ")


@needs_pip
@pytest.mark.parametrize("way", [["."], ["--editable", "."]], ids=["copied", "editable"])
@pytest.mark.parametrize("native", [False, True])
def test_what_is_installed_is_the_package_and_goes_again(environment, way, native):
    """Also from the folder above the clone, whose name is the package's."""
    environment.add_torch("2.13.0+cpu")
    before = environment.files()
    variables = {} if native else {"HANOPS_NO_NATIVE": "1"}
    environment.pip("install", "--no-index", "--no-build-isolation", *way, **variables)
    package = (environment.clone if way[0] == "--editable" else environment.packages) / "hanops"
    assert (package / MODULE).exists() == native
    find = "import importlib.util; print(importlib.util.find_spec('hanops').origin)"
    for cwd in (environment.folder, environment.packages.parent):
        found = environment.run(environment.python, "-c", find, cwd=cwd, PYTHONPATH="").stdout
        assert found == f"{package / '__init__.py'}\n"
    environment.pip("uninstall", "--yes", "hanops")
    assert environment.files() == before


# ---- versions


def test_one_version():
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == hanops.__version__
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == hanops.__version__


def test_label_of_a_version(environment):
    for label, version in (("pt2.13cpu", f"{hanops.__version__}+pt2.13cpu"), ("", hanops.__version__)):
        assert environment.setup("--version", HANOPS_LABEL=label).stdout == f"{version}\n"


def test_one_range_of_torch():
    oldest, newest = SUPPORTED
    project = (ROOT / "pyproject.toml").read_text()
    assert re.findall(r'"torch[<>=].*"', project) == [f'"torch>={oldest}"']  # no upper limit
    for page in ("README.md", "docs/index.md"):
        for found in re.findall(r"torch (2\.\d+) to (2\.\d+)", (ROOT / page).read_text()):
            assert found == (oldest, newest), page
    assert f"torch {oldest} to {newest}" in (ROOT / "docs" / "index.md").read_text()


def test_wheel_that_info_tells(monkeypatch):
    """Of the package that runs: another one of that name, or an editable install, is none."""

    class Installed:
        version = "0.2.0+pt2.13cpu"
        folder = Path(hanops.__file__).parent.parent

        def locate_file(self, path: str) -> Path:
            return self.folder / path

        def read_text(self, name: str) -> str | None:
            return "Wheel-Version: 1.0\nTag: cp311-cp311-manylinux_2_34_x86_64\n" if name == "WHEEL" else None

    monkeypatch.setattr("hanops.__main__.distribution", lambda name: Installed())
    assert _wheel() == "0.2.0+pt2.13cpu cp311-cp311-manylinux_2_34_x86_64"
    monkeypatch.setattr(Installed, "folder", Path("/elsewhere"))
    assert _wheel() is None
    monkeypatch.setattr("hanops.__main__.distribution", distribution)
    monkeypatch.setattr("hanops.__file__", "/nowhere/hanops/__init__.py")
    assert _wheel() is None
