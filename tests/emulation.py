"""Builds and loads the CUDA emulator (tests/cuda_emulator), which runs the CUDA kernels on the CPU.

`python -m tests.emulation` builds it and all else that tests would build, on all cores, before they start.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch

import hanops
from hanops.backends.native import native

ROOT = Path(__file__).parent.parent
BUILD = Path(os.environ.get("HANOPS_TEST_BUILD", ROOT / "build" / "cmake"))


@cache
def build(*targets: str) -> None:
    """Builds targets of CMakeLists.txt beside the extension module, in one process at a time: Ninja locks nothing.

    Raises:
        RuntimeError: where the build fails, with its output.
    """
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    cmake = shutil.which("cmake", path=tools)
    assert cmake is not None
    command = [cmake, "--build", str(BUILD), "--target", *targets]
    with (BUILD / "tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(command, env={**os.environ, "PATH": tools}, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")


def available() -> bool:
    """Tells whether the package under test is this folder's or that of BUILD, so that the emulator can be built."""
    here = Path(hanops.__file__).parent.parent in (ROOT, BUILD / "package")
    return here and native is not None and (BUILD / "CMakeCache.txt").exists()


@cache
def load() -> ctypes.CDLL:
    """Returns the emulator, with which backend 'cuda' takes tensors on the CPU."""
    build("cuda_emulator")
    library = BUILD / "libcuda_emulator.so"
    torch.ops.load_library(library)
    emulator = ctypes.CDLL(str(library))
    # named, so that a call with other arguments is an error and no crash
    emulator.describe_plan.argtypes = [ctypes.c_longlong, *[ctypes.c_int] * 5, ctypes.c_char_p, ctypes.c_int]
    return emulator


if __name__ == "__main__":
    try:
        build("for_tests")
    except RuntimeError as error:
        sys.exit(str(error))
