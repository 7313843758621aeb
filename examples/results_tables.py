"""What the sections of docs/results.md share: the experiments' JSON files, tables, and numbers with their spread."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .options import RefusedError


def read(file: Path) -> dict[str, Any]:
    """Returns what the JSON file of an experiment says.

    Raises:
        RefusedError: where that is not what an example writes.
    """
    try:
        found = json.loads(file.read_text())
    except ValueError as error:  # of UTF-8 too
        raise RefusedError(f"{file} is no JSON ({error}): remove it, and its experiment is run again") from error
    if not isinstance(found, dict) or "command" not in found:
        raise RefusedError(f"{file} is of no example: remove it, and its experiment is run again")
    return found


class Results:
    """The JSON files of the experiments: those of full runs before those of reduced ones."""

    def __init__(self, folder: Path) -> None:
        self.files = {
            file.stem: file for kind in ("reduced", "full") for file in sorted((folder / kind).glob("*.json"))
        }
        self.used: list[str] = []

    def get(self, stem: str) -> dict[str, Any] | None:
        """Returns the result of a stem, or None where there is none; its command goes below the table."""
        if stem not in self.files:
            return None
        found = read(self.files[stem])
        kind = "full" if self.files[stem].parent.name == "full" else "reduced"
        seconds = found.get("seconds")
        self.used.append(f"- `{found['command']}` ({kind}{f', {seconds:,.0f} s' if seconds else ''})")
        return found

    def commands(self) -> str:
        """Returns the commands of what was read since the last call."""
        lines, self.used = list(dict.fromkeys(self.used)), []
        return "\n".join(lines) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown, its columns aligned."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]) + "\n"


def spread(pair: Sequence[float | None] | None, digits: int = 2) -> str:
    """Returns a mean and its spread, or a dash. A JSON file has None for what is no finite number."""
    if pair is None or pair[0] is None:
        return "-"
    return f"{pair[0]:.{digits}f} ± {math.nan if pair[1] is None else pair[1]:.{digits}f}"


def significant(pair: Sequence[float | None]) -> str:
    """Returns a small mean and its spread with two significant digits of the mean."""
    if pair[0] is None or pair[1] is None or not math.isfinite(pair[0]):
        return "a seed diverged"
    return f"{pair[0]:.2g} ± {pair[1]:.1g}"


def seeds_and_rates(result: dict[str, Any]) -> str:
    """Returns how many runs a sweep had."""
    sweep = result["settings of the sweep"]
    return f"{len(sweep[0]['test, best'])} x {len(sweep)}"


def picture(results: Results, stem: str, title: str) -> str:
    """Returns a plot of an experiment, as seen from docs/, or nothing where there is none."""
    file = results.files[stem].with_suffix(".png") if stem in results.files else None
    return f"![{title}](../examples/results/{file.parent.name}/{file.name})" if file and file.exists() else ""
