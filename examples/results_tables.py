"""What the sections of docs/results.md share: the experiments' JSON files, tables, settings and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .options import RefusedError

ALL_RATES = 10  # of the papers' sweeps on the board


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
        self.folder = folder
        self.files = {
            file.stem: file for kind in ("reduced", "full") for file in sorted((folder / kind).glob("*.json"))
        }
        self.used: list[str] = []

    def peek(self, stem: str) -> dict[str, Any] | None:
        """Returns the result of a stem, or None where there is none."""
        return read(self.files[stem]) if stem in self.files else None

    def get(self, stem: str) -> dict[str, Any] | None:
        """Returns the result of a stem, or None where there is none; its command goes below the table."""
        found = self.peek(stem)
        if found is not None:
            kind = "full" if self.files[stem].parent.name == "full" else "reduced"
            seconds = found.get("seconds")
            self.used.append(f"- `{found['command']}` ({kind}{f', {seconds:,.0f} s' if seconds else ''})")
        return found

    def each(self, start: str, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Returns the results of the stems {start}-{name} that there are, by their names."""
        return {name: found for name in names if (found := self.get(f"{start}-{name}")) is not None}

    def commands(self) -> str:
        """Returns the commands of what was read since the last call."""
        lines, self.used = list(dict.fromkeys(self.used)), []
        return "\n".join(lines) + "\n"

    def pictures(self, stems: Iterable[str], title: str, columns: int = 1) -> str:
        """Returns the plots that are there, as seen from docs/: one below the other, or in a table of columns."""
        found = []
        for stem in stems:
            file = next((f for k in ("full", "reduced") if (f := self.folder / k / f"{stem}.png").exists()), None)
            if file is not None:
                found.append(f"![{title}, {stem}](../examples/results/{file.parent.name}/{file.name})")
        if columns == 1 or len(found) < columns:
            return "\n".join(found)
        cells = found + [""] * (-len(found) % columns)
        rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join(["|  " * columns + "|", "|--" * columns + "|", *lines])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown, its columns aligned."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]) + "\n"


def seeds_and_rates(result: dict[str, Any]) -> str:
    """Returns how many runs a sweep had."""
    sweep = result["settings of the sweep"]
    return f"{len(sweep[0]['test, best'])} x {len(sweep)}"


def setting(found: dict[str, Any], **wanted: int) -> str:
    """Returns in what a run is short of the papers' settings, such as 'short run: 60 of 300 epochs', or 'full'.

    Args:
        found: of a JSON file.
        wanted: the papers' settings, by the names of the options; of lists, such as `rates`, how many there are.
    """
    own = found["settings"]
    lists = {key: value for key, value in wanted.items() if isinstance(own[key], list)}
    numbers = {key: value for key, value in wanted.items() if key not in lists and own[key] < value}
    width = [f"width {own['width']} of {numbers.pop('width')}"] if "width" in numbers else []
    short = width + [f"{own[key]:,} of {value:,} {key}" for key, value in numbers.items()]
    few = [f"{len(own[key])} of {value} {key}" for key, value in lists.items() if len(own[key]) < value]
    return "; ".join([f"short run: {', '.join(short)}" if short else "full", *few])


def significant(pair: Sequence[float | None]) -> str:
    """Returns a small mean and its deviation, with two significant digits and one; of a seed that diverged it tells."""
    mean, deviation = pair
    if mean is None:
        return "a seed diverged"
    return f"{mean:.2g}" if deviation is None else f"{mean:.2g} ± {deviation:.1g}"
