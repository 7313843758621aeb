"""The kernels in guarded memory: what is read or written outside of a tensor or of a kernel's scratch faults."""

import signal
import subprocess
import sys

import pytest

from . import emulation, guarded

pytestmark = pytest.mark.skipif(not emulation.available(), reason="the native code was not built here")
INSTRUCTION_SETS = guarded.instruction_sets() if emulation.available() else []


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_every_tile_edge(instruction_set):
    """Every pair of a width, a number of rows, a storage, a combination of needs and more is in some case."""
    status, said = guarded.run_child("pairwise", instruction_set)
    assert status == 0, said
    assert said.startswith(instruction_set)


# Where a byte is written, relative to a block of 999 bytes, whether the block is freed before, and how that ends.
FAULTS = {
    "a byte behind": (999, False, "SIGSEGV"),
    "a vector behind": (999 + 63, False, "SIGSEGV"),
    "a byte before": (-1, False, "SIGABRT"),
    "after free": (0, True, "SIGSEGV"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_guards_see_a_fault(name):
    offset, freed, end = FAULTS[name]
    script = (
        "import ctypes\n"
        "libc, p = ctypes.CDLL(None), ctypes.c_void_p()\n"
        "assert libc.posix_memalign(ctypes.byref(p), ctypes.c_size_t(64), ctypes.c_size_t(999)) == 0\n"
        "ctypes.memset(p.value, 0, 999)\n"
        f"{'libc.free(p)' if freed else ''}\n"
        f"ctypes.memset(p.value + {offset}, 0, 1)\n"
        "libc.free(p)\n"
    )
    emulation.build("guarded_memory")
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=guarded.environment("DEFAULT"), capture_output=True, text=True)
    assert done.returncode == -signal.Signals[end], done.stderr
    assert end == "SIGSEGV" or "something wrote before a block" in done.stderr
