"""The tutorial's blocks run and print what stands below them. As a program: writes their outputs anew."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

TUTORIAL = Path(__file__).parent.parent / "docs" / "tutorial.md"
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", flags=re.DOTALL)


def written(text: str) -> str:
    """Returns the document with the output of each of its blocks below it."""
    names: dict[str, Any] = {}

    def run(block: re.Match[str]) -> str:
        out = io.StringIO()
        with redirect_stdout(out):
            exec(compile(block[1], str(TUTORIAL), "exec"), names)
        shown = f"\n```text\n{out.getvalue()}```\n" if out.getvalue() else ""
        return f"```python\n{block[1]}```\n{shown}"

    return BLOCK.sub(run, text)


def masked(text: str) -> str:
    """Returns the text without what differs between machines: figures with a decimal point, and the threads."""
    return re.sub(r"\d+\.\d+[\w.+]*|\d+ threads", "#", text)


def test_tutorial():
    text = TUTORIAL.read_text()
    assert masked(written(text)) == masked(text)


if __name__ == "__main__":
    TUTORIAL.write_text(written(TUTORIAL.read_text()))
