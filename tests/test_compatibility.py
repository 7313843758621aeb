"""Writes docs/compatibility.md, `python -m tests.test_compatibility`, and tests that it is up to date."""

from __future__ import annotations

from pathlib import Path

from . import test_compile_and_export, test_derivatives, test_life_of_a_module, test_mixed_precision, test_trace
from .compatibility import BACKENDS, ROWS

PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"
MODULES = [test_compile_and_export, test_trace, test_derivatives, test_mixed_precision, test_life_of_a_module]


def page() -> str:
    """Returns docs/compatibility.md."""
    lines = [
        "# What HanStack works with",
        "",
        "Each row is a test, which `make test` runs for every backend and compares with the float64 reference.",
        "`python -m tests.test_compatibility` writes this page from those tests.",
        "",
        "Without a GPU, `cuda` runs in an emulator and `triton` in its interpreter. The backend is chosen inside the",
        "op, so no graph depends on it. Builds without native code pass the tests of `torch` too.",
        "",
        "[Other packages](clients.md) is about timm, transformers, lightning and others.",
    ]
    for module in (m.__name__ for m in MODULES):
        for group in dict.fromkeys(r.group for r in ROWS if r.module == module):
            lines += ["", f"## {group}", "", f"Tests of `{module.replace('.', '/')}.py`.", ""]
            lines += [f"| feature | {' | '.join(BACKENDS)} | test |", "|---" * 6 + "|"]
            lines += [str(r) for r in ROWS if r.group == group]
    return "\n".join(lines) + "\n"


def test_page():
    """The page is that of these modules, and every test of theirs is a row of it."""
    assert PAGE.read_text() == page()
    tests = {(module.__name__, name) for module in MODULES for name in vars(module) if name.startswith("test_")}
    assert tests == {(r.module, r.test) for r in ROWS}


if __name__ == "__main__":
    PAGE.write_text(page())
