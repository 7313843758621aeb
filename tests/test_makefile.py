"""The Makefile: what its verbs pass on is what their programs take, and pages name verbs that there are."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VERBS = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
GIVEN = re.findall(r"\$\(call given,([A-Z_ ]+)\)", (ROOT / "Makefile").read_text())
VARIABLES = {name: "value" for names in ["BASE PART", *GIVEN] for name in names.split()}
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def commands(verb: str, **variables: str) -> list[list[str]]:
    """Returns the words of what a verb would run of this project's programs."""
    command = ["make", "--dry-run", verb, *(f"{name}={value}" for name, value in variables.items())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [
        found.split() for found in re.findall(r"python3? -m ((?:benchmarks|docs|examples|tests)\.[^&\n]*)", done.stdout)
    ]


@needs_make
@pytest.mark.parametrize("verb", VERBS)
def test_programs_take_what_verbs_pass(verb):
    for module, *words in commands(verb, **VARIABLES):
        file = ROOT / module.replace(".", "/")
        program = next(path for path in (file.with_suffix(".py"), file / "__main__.py") if path.exists())
        assert {word for word in words if word.startswith("--") and f'"{word}"' not in program.read_text()} == set()


@needs_make
def test_a_variable_becomes_an_option_of_its_name():
    (fuzz,) = commands("fuzz", CASES="3", BACKEND="cpu")
    assert fuzz == ["tests.fuzz", "--cases", '"3"', "--backend", '"cpu"']


@needs_make
def test_a_comparison_needs_a_base():
    done = subprocess.run(["make", "bench-compare"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "BASE=<rev>" in done.stderr


@needs_make
def test_a_part_needs_its_number():
    (part,) = commands("paper-part", PART="3", DATA="there")
    assert part == ["examples.paper", "--part", "3", "--data", '"there"']
    done = subprocess.run(["make", "paper-part"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "PART=1" in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_verbs_that_there_are(page):
    named = re.findall(r"(?:`|^)make ([a-z]+(?:-[a-z]+)*)", page.read_text(), flags=re.MULTILINE)
    assert set(named) <= set(VERBS)
