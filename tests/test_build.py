"""The package as it is built: without native code, for another torch, and what the native module leaves behind."""

import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch

import hanops
from hanops.backends.native import _fits, native

from . import test_compatibility, test_ops_options

PACKAGE = Path(hanops.__file__).parent

SCRIPT = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import hanops
    import hanops.modules
assert [str(w.message) for w in caught if "native" in str(w.message)] == [
    "hanops was built without native code: on a CPU its ops run in plain torch, slowly"
], caught
import sys, torch, pytest
sys.path.append({root!r})  # after the copy of hanops
from tests.accuracy import check, problem
from hanops.backends.native import native
assert native is None
assert hanops.explain(torch.ones(1, 2), torch.ones(1, 2)).backend == "torch"
for dtype in (torch.float64, torch.float32, torch.bfloat16):
    for groups in (None, 3):
        for final_abs in (True, False):
            p = problem(13, 21, 5, dtype, groups=groups, final_abs=final_abs)
            check(torch.ops.hanops.han_stack, p)
p = problem(4, 6, 3, torch.float64)
torch.autograd.gradcheck(torch.ops.hanops.han_stack, p.inputs())
torch.library.opcheck(torch.ops.hanops.han_stack.default, tuple(p.inputs()))
y, signs = torch.ops.hanops.han_stack_forward(p.x, p.u, p.b, True, True)
assert signs.shape == (4, 3, 1)
with pytest.raises(ValueError, match="u must have shape"):
    hanops.han_stack(p.x, p.u[0])
with pytest.raises(ValueError, match="'cpu' is not available"), hanops.use_backend("cpu"):
    pass
with torch.no_grad():
    assert not hanops.HanStack(4, 2)(torch.ones(1, 4)).requires_grad
apart = "plain_torch and not inductor and not data_loader and not shared"
sys.exit(pytest.main([*{rows!r}, "-q", "-p", "no:cacheprovider", "-W", "default", "-k", apart]))
"""


def copy_of_package(folder: Path) -> Path:
    shutil.copytree(PACKAGE, folder / "hanops", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return folder


def run(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    # An editable install answers for whatever module the copy lacks.
    alone = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if '_Editable' not in getattr(f, '__name__', '')]\n"
    )
    return subprocess.run(
        [sys.executable, "-c", alone + script], env=environment, capture_output=True, text=True, cwd=folder
    )


def test_without_native_code(tmp_path):
    rows = [module.__file__ for module in (*test_compatibility.MODULES, test_ops_options)]
    done = run(copy_of_package(tmp_path), SCRIPT.format(root=str(Path(__file__).parent.parent), rows=rows))
    assert done.returncode == 0, done.stdout + done.stderr


INSTALL = "--force-reinstall --no-deps"
REMEDY = f"in the folder of hanops' sources: {sys.executable} -m pip install {INSTALL} .\n"


def import_with_module(folder: Path, code: bytes, remedy: str = REMEDY) -> str:
    module = copy_of_package(folder) / "hanops" / f"_C{EXTENSION_SUFFIXES[0]}"
    module.write_bytes(code)
    done = run(folder, "import hanops")
    assert done.returncode != 0
    assert f"ImportError: hanops: the native library {module} " in done.stderr
    assert done.stderr.endswith(remedy)
    return done.stderr


def test_library_that_does_not_load(tmp_path):
    told = import_with_module(tmp_path, b"\x7fELF of another time")
    assert f"does not load with torch {torch.__version__} with" in told
    assert "it tells not what it was built for" in told


def test_library_in_a_clone(tmp_path):
    """What mends an editable install is another one, in that clone."""
    (tmp_path / "setup.py").touch()
    import_with_module(tmp_path, b"old", f"in {tmp_path}: {sys.executable} -m pip install {INSTALL} -e .\n")


@pytest.mark.skipif(native is None, reason="no native module")
@pytest.mark.parametrize(
    ("field", "other", "named"),
    [
        ("torch", "1.98.7", r"torch 1\.98\.7 *, with CPU kernels"),
        ("cuda", "9.87", r"torch \S+, with CPU kernels and those of CUDA 9\.87"),
    ],
)
def test_library_of_another_torch(tmp_path, field, other, named):
    """It would load, as far as it has the symbols, and crash later: it is told apart before that."""
    code = Path(native.__file__).read_bytes()
    mark = native.build_info()["built_for"]
    found = re.search(rf"{field}=(\S+)", mark)
    assert found
    edited = mark.replace(found[0], f"{field}={other}".ljust(len(found[0])))
    assert len(edited) == len(mark)
    told = import_with_module(tmp_path, code.replace(mark.encode(), edited.encode()))
    assert re.search(rf"was built for {named}.*, but torch {re.escape(torch.__version__)} with", told)


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [
        (("2.13.0+cpu", "none"), ("2.13.0+cpu", "none"), True),
        (("2.13.0+cpu", "none"), ("2.13.1", "none"), True),
        (("2.13.0+cpu", "none"), ("2.13.0+cu130", "13.0"), True),  # Triton has the GPU
        (("2.13.0+cpu", "none"), ("2.14.0+cpu", "none"), False),
        (("2.1.0", "none"), ("2.13.0", "none"), False),
        (("2.13.0+cu130", "13.0"), ("2.13.0+cu132", "13.2"), True),
        (("2.13.0+cu130", "13.0"), ("2.13.0+cu126", "12.6"), False),
        (("2.13.0+cu130", "13.0"), ("2.13.0+cpu", "none"), False),
    ],
)
def test_what_a_library_fits(built, here, fits):
    assert _fits(built, here) == fits


def test_build_info():
    if native is None:
        pytest.skip("no native module")
    info = native.build_info()
    assert info["instruction_set"] in info["instruction_sets"]
    assert info["float32_lanes"] in (4, 8, 16)
    assert native.fma_vectors_per_second(0.01) > 1e6


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
def test_kernels_are_compiled_where_the_path_has_quotes(tmp_path):
    """csrc/cuda/compile.cmake in a small project, with a compiler of a few lines: what it says is kept."""
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    cmake, ninja = (shutil.which(name, path=tools) for name in ("cmake", "ninja"))
    if cmake is None or ninja is None:
        pytest.skip("needs cmake and ninja")
    source = tmp_path / "o'clock & co"
    source.mkdir()
    shutil.copy(PACKAGE.parent / "csrc" / "cuda" / "compile.cmake", source)
    (source / "kernel.cu").touch()
    nvcc = source / "nvcc"
    nvcc.write_text(
        """#!/bin/sh
echo "compiled $*"
test -z "$BROKEN" || exit 3
while [ "$1" != -o ]; do shift; done
touch "$2"
"""
    )
    nvcc.chmod(0o755)
    (source / "CMakeLists.txt").write_text(
        """cmake_minimum_required(VERSION 3.25)
project(kernels LANGUAGES NONE)
set(CMAKE_CUDA_COMPILER "${CMAKE_SOURCE_DIR}/nvcc")
include(compile.cmake)
hanops_compile_kernels(90 kernel.cu "")
"""
    )
    build = source / "build"

    def run(*words: str, broken: str = "") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PATH": tools, "BROKEN": broken}
        return subprocess.run([cmake, *words], env=environment, capture_output=True, text=True)

    assert run("-G", "Ninja", "-S", str(source), "-B", str(build)).returncode == 0
    for broken in ("yes", ""):
        done = run("--build", str(build), "--target", "kernels_sm_90", broken=broken)
        assert (done.returncode != 0, "compiled" in done.stdout, "FAILED" in done.stdout) == (bool(broken),) * 3
        assert (build / "cuda" / "sm_90" / "kernel.txt").read_text().startswith("compiled -O3 -std=c++20 -arch=sm_90")
