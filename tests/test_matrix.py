"""make matrix: rows are independent, those that passed are not run again, and the page's table is of what there is."""

import json
import subprocess
import sys

import pytest

from . import matrix

NATIVE = {"cuda_architectures": ["9.0"]}
TESTS = {"tests": 20, "failures": 0, "errors": 0, "skipped": 3}
TOLD = {"python": "3.12.1", "torch": "2.11.0+cu130", "backend": "cpu", "native": NATIVE, "tests": TESTS, "failed": None}


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(matrix, "FOLDER", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- matrix: begin -->\nold\n<!-- matrix: end -->\nafter\n")
    monkeypatch.setattr(matrix, "PAGE", page)
    return tmp_path


def run(monkeypatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["matrix", *options])
    return matrix.main()


@pytest.mark.parametrize(
    ("other", "cells"),
    [
        ({}, "3.12.1 | 2.11.0+cu130 | CPU and CUDA kernels | `cpu` | 17 passed, 3 skipped"),
        ({"native": {}}, "3.12.1 | 2.11.0+cu130 | CPU kernels | `cpu` | 17 passed, 3 skipped"),
        ({"native": None, "backend": "torch"}, "3.12.1 | 2.11.0+cu130 | none | `torch` | 17 passed, 3 skipped"),
        (
            {"failed": "test", "tests": {**TESTS, "failures": 2, "errors": 1}},
            "3.12.1 | 2.11.0+cu130 | CPU and CUDA kernels | `cpu` | 14 passed, 3 skipped, 3 failed",
        ),
        ({"failed": "compile", "tests": None}, "3.12 | 2.11.0 | compile failed | |"),
    ],
)
def test_lines_of_the_table(other, cells):
    told = {name: value for name, value in {**TOLD, **other}.items() if (name, value) != ("tests", None)}
    assert matrix.line(matrix.Row("2.11.0", "3.12"), told) == f"| {cells} |"


class Trial:
    """Stands in for a row that takes minutes: it fails on one Python, is not there on another, and counts its runs."""

    runs: list[str]

    def __init__(self, row: matrix.Row, workers: str) -> None:
        if row.python == "3.13":
            raise LookupError("there is no Python 3.13 here")
        self.row = row

    def run(self) -> bool:
        self.runs.append(self.row.name)
        failed = "test" if self.row.python == "3.10" else None
        self.row.result.write_text(json.dumps({**TOLD, "sources": matrix.sources(), "failed": failed}))
        return failed is None


def test_rows_that_passed_are_not_run_again(folder, monkeypatch):
    rows = [matrix.Row("2.11.0", "3.10"), matrix.Row("2.11.0", "3.12"), matrix.Row("2.14.1", "3.13")]
    monkeypatch.setattr(matrix, "ROWS", rows)
    monkeypatch.setattr(matrix, "Trial", Trial)
    Trial.runs = []
    assert run(monkeypatch) == 1
    assert Trial.runs == [row.name for row in rows[:2]]
    assert run(monkeypatch, "--rows", rows[1].name) == 0
    assert Trial.runs == [row.name for row in rows[:2]]
    monkeypatch.setattr(matrix, "sources", lambda: "other")
    assert run(monkeypatch, "--rows", rows[1].name) == 0
    assert Trial.runs[2:] == [rows[1].name]
    text = matrix.PAGE.read_text()
    assert text.startswith("before\n<!-- matrix: begin -->\n| Python |")
    assert text.endswith("|\n<!-- matrix: end -->\nafter\n")
    assert text.count("17 passed") == 2


def test_an_unknown_row_is_refused(folder, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--rows", "1.0-python-2.7")
    assert "rows are 2.11.0-python-3.10" in capsys.readouterr().err


def test_interpreters(monkeypatch, tmp_path):
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LookupError, match=rf"no Python {version} here"):
        matrix.interpreter(version)
    bin = tmp_path / "versions" / f"{version}.9" / "bin"
    bin.mkdir(parents=True)
    (bin / f"python{version}").symlink_to(sys.executable)
    found = matrix.interpreter(version)
    told = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    assert told.startswith(f"Python {version}")
