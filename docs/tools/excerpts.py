"""Keeps what pages quote from the sources as it is there: functions, and tables of files with their first lines.

`<!-- code: FILE FUNCTION -->` stands above a block of code, `<!-- files: FOLDER [PATTERN ...] -->` above a table.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "docs" / "kernels.md", REPOSITORY / "CONTRIBUTING.md"]
CODE = re.compile(r"(<!-- code: (\S+) (\w+) -->\n\n)```\w+\n.*?```\n", flags=re.DOTALL)
FILES = re.compile(r"(<!-- files: (\S+)((?: \S+)*) -->\n\n)(?:\|.*\n)*")


def closing(text: str, at: int) -> int:
    """Returns the place behind the bracket that closes the one at `at`."""
    opened, closed = text[at], {"(": ")", "{": "}"}[text[at]]
    depth = 0
    for place in range(at, len(text)):
        depth += (text[place] == opened) - (text[place] == closed)
        if depth == 0:
            return place + 1
    raise ValueError(f"no {closed} for the {opened} at {at}")


def function(file: Path, name: str) -> str:
    """Returns the definition of a C++ function, with its comment."""
    text = file.read_text()
    for match in re.finditer(rf"\b{name}\(", text):
        behind = closing(text, match.end() - 1)
        body = re.compile(r"\s*(?:const\s*)?\{").match(text, behind)
        if body is None or text[: match.start()].endswith(("return ", ".", "= ")):
            continue
        begin = text.rfind("\n\n", 0, match.start()) + 2
        opening = max(text.rfind(f"{mark}\n", begin, match.start()) + 2 for mark in "{:}")  # of a class, say
        begin = opening if opening > 1 and text.rfind("template", begin, match.start()) < opening else begin
        found = textwrap.dedent(text[begin : closing(text, body.end() - 1)]) + "\n"
        return re.sub(r'\s*\+\s*HANOPS_BROKEN\(\s*"[^"]*"\s*\)', "", found)  # the faults that a test compiles in
    raise ValueError(f"{file.relative_to(REPOSITORY)} must define {name}")


def escaped(text: str) -> str:
    """Returns Markdown that shows a text, but for code in backticks, also in a table."""
    return re.sub(r"(`[^`]*`)|([|<_*])", lambda m: m[1] or ("&lt;" if m[2] == "<" else f"\\{m[2]}"), text)


def why(file: Path) -> str:
    """Returns the first sentence of a file: why it exists."""
    lines = file.read_text().splitlines()
    head = [line for line in lines if not line.startswith("#!")][:4]
    text = re.sub(r'^("""|// ?|# ?)', "", head[0])
    for line in head[1:]:
        if not line.startswith("//") or text.endswith("."):
            break
        text += " " + line.removeprefix("// ")
    return escaped(text.removesuffix('"""').strip())


def table(page: Path, folder: str, patterns: list[str]) -> str:
    """Returns the files of a folder as a table, each with the first sentence that it begins with."""
    found = sorted({file for pattern in patterns or ["*"] for file in (REPOSITORY / folder).glob(pattern)})
    up = "../" if page.parent.name == "docs" else ""
    rows = [f"| [{file.name}]({up}{folder}/{file.name}) | {why(file)} |" for file in found if file.is_file()]
    return "\n".join(["| file | why it exists |", "|---|---|", *rows]) + "\n"


def written(page: Path) -> str:
    """Returns a page with its quotations as the sources have them."""
    text = CODE.sub(lambda m: f"{m[1]}```cuda\n{function(REPOSITORY / m[2], m[3])}```\n", page.read_text())
    return FILES.sub(lambda m: m[1] + table(page, m[2], m[3].split()), text)


def plain(text: str) -> str:
    """Returns a text without what a formatter may change: white space, and where comments are broken."""
    return re.sub(r"\s|//", "", text)
