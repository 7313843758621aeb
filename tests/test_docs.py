"""The documentation is whole: generated parts are up to date, links lead somewhere, blocks run, the site builds."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

import hanops
from docs.tools import __main__ as tools
from docs.tools import api, excerpts

REPOSITORY = Path(__file__).parent.parent
GUIDE, SCALING = REPOSITORY / "docs" / "guide.md", REPOSITORY / "docs" / "scaling.md"


def test_generated_parts():
    """`make docs` would change nothing. How a quoted source is broken into lines does not count."""
    for path, text in tools.written().items():
        as_said = excerpts.plain if path in excerpts.PAGES else str
        assert as_said(path.read_text()) == as_said(text), f"{path.relative_to(REPOSITORY)} is old: make docs"


def test_reference_is_complete():
    named = {path for page in api.PAGES for path in api.names(page)}
    wanted = {f"hanops.{name}" for name in hanops.__all__ if name not in ("models", "metrics")}
    wanted |= {f"hanops.models.{name}" for name in hanops.models.__all__}
    wanted |= {f"hanops.distributed.{name}" for name in hanops.distributed.__all__}
    wanted |= {f"hanops.peft.{name}" for name in hanops.peft.__all__}
    assert wanted <= named


def test_guide(capsys):
    """The guide's blocks run, and `convert` prints the table that stands below its block."""
    text = GUIDE.read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, str(GUIDE), "exec"), names)
    (shown,) = re.findall(r"```text\n(.*?)```", text, flags=re.DOTALL)
    assert shown in capsys.readouterr().out
    x = names["torch"].rand(7, 2)
    names["torch"].testing.assert_close(names["program"].module()(x), names["model"](x))


def run_scaling() -> None:
    """The page's program, in each of its processes."""
    blocks = re.findall(r"```python\n(.*?)```", SCALING.read_text(), flags=re.DOTALL)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # RowwiseParallel returns a view
        exec(compile("\n".join(blocks), str(SCALING), "exec"), {})


def test_scaling(pools):
    """The blocks of the page on many devices run in 4 processes."""
    pools[4](run_scaling)


PAGES = [*sorted((REPOSITORY / "docs").rglob("*.md")), *sorted(REPOSITORY.glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    """Links lead to files of the repository, and to headings of theirs, as on GitHub."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for path, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if not re.match(r"\w+:", path):
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), path
            assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths(page):
    """Files of the repository that a page names are there, but for what a verb makes."""
    named = set(re.findall(r"(?:tests|csrc|hanops|benchmarks|examples|docs)/[\w/.-]*\w(?![<*{])", page.read_text()))
    missing = {path for path in named - {"benchmarks/report/index.html"} if not (REPOSITORY / path).exists()}
    assert page.name == "CHANGELOG.md" or not missing


def test_site(tmp_path):
    """MkDocs builds the site without a warning: pages, links, anchors and docstrings."""
    pytest.importorskip("mkdocs")
    status, warnings = tools.build(tmp_path)
    assert status == 0, warnings
    page = (tmp_path / "api" / "layers.html").read_text()
    assert "hanops.HanStack" in page
    assert "final_abs" in page
