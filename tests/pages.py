"""The parts of pages that programs write, between marks with a name."""

from __future__ import annotations

import re


def part(name: str, lines: list[str], text: str) -> str:
    """Puts lines between the marks of a name."""
    body = "\n".join(lines)
    return re.sub(rf"(?s)(<!-- {name}: begin -->\n).*(<!-- {name}: end -->)", rf"\1{body}\n\2", text)
