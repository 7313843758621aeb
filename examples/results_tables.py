"""What the sections of docs/results.md share: the experiments' JSON files, tables, settings and pictures."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

from . import paper_figures as paper
from .experiment import mean_and_spread, spread
from .options import RefusedError

SEEDS = 10  # of a full run
BOARD = {"seeds": SEEDS, "iterations": 40_000, "rates": 10}
# By program, what a full run has: the papers' settings, or the program's own where the papers print none. The names are
# those of the options; of a list it is how many there are. `every` is the most epochs between two evaluations.
FULL: dict[str, dict[str, int]] = {
    "checkerboard": BOARD,
    "ablation": BOARD,
    "heatmap": {**BOARD, "widths": 9, "depths": 9},
    "variability": {"seeds": SEEDS, "iterations": 40_000, "rates": 4, "depths": 8, "networks": 3_000},
    "sines": {"seeds": SEEDS, "iterations": 80_000, "rates": 10, "width": 200, "depth": 20},
    "approximation": {"seeds": SEEDS, "epochs": 1_000, "rates": 4, "decays": 2},
    "regression": {"seeds": SEEDS, "epochs": 300, "every": 1},
    "speed": {"seeds": 5, "iterations": 40_000},
    "digits": {"seeds": SEEDS, "epochs": 100},
    "robustness": {
        "seeds": SEEDS,
        "epochs": 100,
        "decays": 6,
        "images": 1_000,
        "pgd_steps": 30,
        "cw_steps": 1_000,
        "depth": 20,
    },
    "images": {"seeds": SEEDS, "epochs": 600, "channels": 512},
    "head": {"seeds": SEEDS, "iterations": 20_000},
}
MOBILE_EPOCHS = 300  # of MobileViT
TRAINED = ("seeds", "iterations", "rates")  # on which networks at random do not depend
DRAWN = ("networks",)  # on which networks that learn do not depend


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
        self.known: dict[str, dict[str, Any]] = {}  # what was read
        self.used: list[str] = []

    def peek(self, stem: str) -> dict[str, Any] | None:
        """Returns the result of a stem, or None where there is none."""
        if stem in self.files and stem not in self.known:
            self.known[stem] = read(self.files[stem])
        return self.known.get(stem)

    def get(self, stem: str) -> dict[str, Any] | None:
        """Returns the result of a stem, or None where there is none; its command goes below the table."""
        found = self.peek(stem)
        if found is not None:
            told = [self.files[stem].parent.name]
            if found.get("seconds"):
                threads = found.get("threads", 1)
                told.append(f"{found['seconds']:,.0f} s on {threads} thread{'s' if threads > 1 else ''}")
            self.used.append(f"- `{found['command']}` ({', '.join(told)})")
        return found

    def plot(self, stem: str) -> Path | None:
        """Returns the plot of a stem, or None where there is none: the one beside its JSON, where it has one."""
        own = [self.files[stem].parent] if stem in self.files else [self.folder / kind for kind in ("full", "reduced")]
        return next((file for folder in own if (file := folder / f"{stem}.png").exists()), None)

    def each(self, start: str, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Returns the results of the stems {start}-{name} that there are, by their names."""
        return {name: found for name in names if (found := self.get(f"{start}-{name}")) is not None}

    def commands(self) -> str:
        """Returns the commands of what was read since the last call."""
        lines, self.used = list(dict.fromkeys(self.used)), []
        return "\n".join(lines) + "\n"

    def pictures(self, stems: Iterable[str], title: str, columns: int = 1) -> str:
        """Returns the plots that are there, as seen from docs/: one below the other, or in a table of columns."""
        files = [file for stem in stems if (file := self.plot(stem)) is not None]
        found = [f"![{title}, {file.stem}](../examples/results/{file.parent.name}/{file.name})" for file in files]
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


def wanted(found: dict[str, Any]) -> dict[str, int]:
    """Returns what the full run has of the experiment that a JSON file is of, as in FULL."""
    program = re.search(r"examples\.(\w+)", found["command"])
    full = dict(FULL.get(program[1], {})) if program else {}
    if found["settings"].get("about"):  # the map's few networks of so many parameters
        full = {key: value for key, value in full.items() if key not in ("widths", "depths")}
    if found.get("model") in paper.MOBILEVITS:
        full["epochs"] = MOBILE_EPOCHS
    return full


def shortfalls(found: dict[str, Any], but: Container[str] = ()) -> dict[str, str]:
    """Returns in what a run is short of the full one, by the names of the options, such as '60 of 300 epochs'.

    Args:
        found: the JSON.
        but: options on which what is told of the run does not depend.
    """
    short = {}
    for key, value in ((key, value) for key, value in wanted(found).items() if key not in but):
        own = found["settings"].get(key)
        own = len(own) if isinstance(own, list) else own
        if own is None or (own <= value if key == "every" else own >= value):
            continue
        if key == "every":
            short[key] = f"tested every {own} epochs"
        elif key in ("width", "depth"):
            short[key] = f"{key} {own} of {value}"
        else:
            short[key] = f"{own:,} of {value:,} {key.replace('_', ' ')}"
    return short


def setting(found: dict[str, Any], but: Container[str] = ()) -> str:
    """Returns in what a run is short of the full one, such as 'short run: 60 of 300 epochs', or 'full'."""
    short = shortfalls(found, but)
    return f"short run: {', '.join(short.values())}" if short else "full"


def undertrained(found: dict[str, Any]) -> bool:
    """Returns whether a run had fewer steps than the full one, or a smaller network."""
    return not {"iterations", "epochs", "width", "depth"}.isdisjoint(shortfalls(found))


def numbers(values: Sequence[float | None], lower: bool = False) -> list[float]:
    """Returns the scores of seeds, those that a JSON file has as None as the worst there is: infinite."""
    worst = math.inf if lower else -math.inf
    return [worst if value is None else value for value in values]


def averaged(values: Sequence[float | None], style: str = ".2f", lower: bool = False) -> str:
    """Returns mean and deviation of the seeds, or how many of them diverged."""
    own = numbers(values, lower)
    lost = sum(not math.isfinite(value) for value in own)
    return f"{lost} of {len(own)} seeds diverged" if lost else spread(mean_and_spread(own), style)


def middle(values: Sequence[float | None], style: str = ".2f", lower: bool = False) -> str:
    """Returns the median of the seeds, a dash where half of them diverged."""
    median = statistics.median(numbers(values, lower))
    return f"{median:{style}}" if math.isfinite(median) else "-"


def one_setting(found: dict[str, Any], key: str = "test, best", style: str = ".2f", lower: bool = False) -> str:
    """Returns the scores of the learning rate that is best for all seeds together, and that rate.

    Args:
        found: of a sweep.
        key: of the scores; the rate is that of the best mean of 'test, best'.
        style: how the scores are written.
        lower: whether a lower score is the better one.
    """
    pick = min if lower else max
    row = pick(found["settings of the sweep"], key=lambda row: statistics.fmean(numbers(row["test, best"], lower)))
    return f"{averaged(row[key], style, lower)} at {row['rate']:g}"


def significant(pair: Sequence[float | None]) -> str:
    """Returns a small mean and its deviation, with two significant digits and one; of a seed that diverged it tells."""
    mean, deviation = pair
    if mean is None:
        return "a seed diverged"
    return f"{mean:.2g}" if deviation is None else f"{mean:.2g} ± {deviation:.1g}"
