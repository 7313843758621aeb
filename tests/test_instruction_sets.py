"""The CPU kernels' objects, one for each instruction set: nothing of one may be taken for another's."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from hanops.backends.native import native

from . import emulation

COMPILER = shutil.which("c++")
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")


@pytest.fixture(scope="module")
def objects() -> dict[str, list[Path]]:
    """The objects of the CPU kernels' units, by instruction set."""
    if not emulation.available():
        pytest.skip("the package was not built in this folder")
    assert native is not None
    names = native.build_info()["instruction_sets"]
    emulation.build(*(f"kernels_{name}" for name in names))
    return {name: sorted(emulation.BUILD.glob(f"CMakeFiles/kernels_{name}.dir/csrc/cpu/*.o")) for name in names}


def symbols(files: Iterable[Path], *kinds: str) -> list[str]:
    """Returns the names that objects define, as the source writes them."""
    command = ["nm", "-C", "--defined-only", *kinds, *files]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = (line.split(" ", 2) for line in told.stdout.splitlines())
    return [line[2] for line in lines if len(line) == 3]  # the others name files


def shared_names(files: Iterable[Path], instruction_set: str) -> list[str]:
    """Returns the names the linker may find in two sets' objects: those without their instruction set.

    It would keep one copy, perhaps with instructions that the machine lacks.
    """
    return [name for name in symbols(files, "--extern-only") if f"::{instruction_set}::" not in name]


@needs_nm
def test_no_code_under_a_name_that_instruction_sets_share(objects):
    for instruction_set, files in objects.items():
        assert f"hanops::cpu::{instruction_set}::kTable" in symbols(files, "--extern-only")
        assert shared_names(files, instruction_set) == []


@needs_nm
def test_passes_are_one_function(objects):
    """A lambda that is called, not inlined, keeps its vectors in memory: one without HANOPS_LAMBDA."""
    for files in objects.values():
        passes = [name for name in symbols(files) if re.search(r"(Tile|Lanes)<.*>::pass<", name)]
        assert passes
        assert [name for name in passes if "lambda" in name] == []


@needs_nm
@pytest.mark.skipif(COMPILER is None, reason="needs a compiler")
def test_what_is_left_behind_is_found(tmp_path):
    """A function of the standard library, and a lambda that is called: of a build that inlines nothing."""
    source, file = tmp_path / "kernels.cpp", tmp_path / "kernels.o"
    source.write_text("""
#include <vector>
namespace hanops::cpu::AVX2 {
template <int R>
struct ForwardTile {
  template <bool kSave>
  void pass(std::vector<float>& rows) {
    const auto add = [&](auto row) { rows.push_back(row); };
    for (int r = 0; r < R; ++r) add(float(r));
  }
};
extern const int kTable = 1;
void forward(std::vector<float>& rows) { ForwardTile<4>().pass<true>(rows); }
}
""")
    assert COMPILER is not None
    subprocess.run([COMPILER, "-std=c++20", "-O0", "-c", source, "-o", file], check=True)
    assert any("std::vector<float, std::allocator<float> >::push_back" in name for name in shared_names([file], "AVX2"))
    assert any("pass<true>" in name and "lambda" in name for name in symbols([file]))
