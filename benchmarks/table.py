"""Tables as text for a terminal, as Markdown and as HTML: numbers to the right, uncertain ones marked."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

# Of tables without colour; in HTML such numbers are grey.
IN_PARENTHESES = "In parentheses: ratios whose noise is over 20 %."
GREY = "Grey: ratios whose noise is over 20 %."


class Noisy(str):
    """A number that is too uncertain to be read as the others."""

    __slots__ = ()


@dataclass(frozen=True)
class Column:
    """A column's name, and the name over it and its neighbours of the same; text is set to the left."""

    name: str
    over: str = ""
    is_text: bool = False


@dataclass(frozen=True)
class Table:
    """Cells below columns; false where it has no rows.

    about: what holds for all rows. blocks: the column whose changes begin a block of rows.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    about: str = ""
    blocks: str = ""

    def __bool__(self) -> bool:
        return bool(self.rows)

    def __str__(self) -> str:
        """The table in Markdown's form, its text as it is: for a terminal."""
        return "\n".join(part for part in (self.about, self._lines(str), self._legend(IN_PARENTHESES)) if part)

    def markdown(self) -> str:
        """Returns the table as Markdown that shows its text."""
        parts = (escaped(self.about), self._lines(escaped), self._legend(IN_PARENTHESES))
        return "\n\n".join(part for part in parts if part)

    def html(self) -> str:
        """Returns the table as HTML that shows its text."""
        firsts = [a != b.over for a, b in zip(["", *(c.over for c in self.columns)], self.columns, strict=False)]

        def row(cells: Sequence[str], begins_block: bool) -> str:
            made = (_cell("td", *cell) for cell in zip(cells, self.columns, firsts, strict=True))
            return f"<tr{' class=block' if begins_block else ''}>{''.join(made)}</tr>"

        body = "".join(row(cells, begins) for cells, begins in zip(self.rows, self._begins(), strict=True))
        caption = f"<caption>{html.escape(self.about)}</caption>" if self.about else ""
        legend = f"<p class=legend>{self._legend(GREY)}</p>" if self._legend(GREY) else ""
        table = f"<table>{caption}<thead>{self._html_header(firsts)}</thead><tbody>{body}</tbody></table>"
        return f"<div class=wide>{table}</div>{legend}"

    def _html_header(self, firsts: Sequence[bool]) -> str:
        """Names of the columns, below those that stand over several."""
        names = [_cell("th", column.name, column, first) for column, first in zip(self.columns, firsts, strict=True)]
        if not any(column.over for column in self.columns):
            return f"<tr>{''.join(names)}</tr>"
        upper, lower = "", ""
        for over, group in groupby(zip(self.columns, names, strict=True), key=lambda pair: pair[0].over):
            cells = [name for _, name in group]
            if over:
                upper += f'<th colspan={len(cells)} class="over">{html.escape(over)}</th>'
                lower += "".join(cells)
            else:
                upper += "".join(cell.replace("<th", "<th rowspan=2", 1) for cell in cells)
        return f"<tr>{upper}</tr><tr>{lower}</tr>"

    def _begins(self) -> list[bool]:
        """Whether each row begins a block; the first does not."""
        places = [i for i, column in enumerate(self.columns) if column.name == self.blocks]
        blocks = [[row[i] for i in places] for row in self.rows]
        return [a != b for a, b in zip([*blocks[:1], *blocks], blocks, strict=False)]

    def _legend(self, text: str) -> str:
        return text if any(isinstance(cell, Noisy) for row in self.rows for cell in row) else ""

    def _header(self) -> list[str]:
        """Names of the columns in one line: that over several stands on the first of them."""
        header, before = [], ""
        for column in self.columns:
            header.append(column.over if column.over not in ("", before) else column.name)
            before = column.over
        return header

    def _lines(self, text: Callable[[str], str]) -> str:
        rows = [[text(f"({cell})" if isinstance(cell, Noisy) else cell) for cell in row] for row in self.rows]
        header = [text(name) for name in self._header()]
        widths = [max(3, *(len(row[i]) for row in [header, *rows])) for i in range(len(header))]

        def line(row: Sequence[str]) -> str:
            cells = zip(row, widths, self.columns, strict=True)
            return f"| {' | '.join(c.ljust(w) if column.is_text else c.rjust(w) for c, w, column in cells)} |"

        rules = zip(widths, self.columns, strict=True)
        rule = "|".join("-" * (w + 2) if column.is_text else f"{'-' * (w + 1)}:" for w, column in rules)
        return "\n".join([line(header), f"|{rule}|", *map(line, rows)])


def _cell(tag: str, text: str, column: Column, is_first: bool) -> str:
    classes = {"text": column.is_text, "noisy": isinstance(text, Noisy), "first": is_first}
    names = " ".join(name for name, holds in classes.items() if holds)
    return f"<{tag}{f' class={names!r}' if names else ''}>{html.escape(text)}</{tag}>"


def filled(columns: Sequence[Column], rows: Sequence[Sequence[str]], about: str = "", blocks: str = "") -> Table:
    """Returns a table without the columns that are empty in all rows."""
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    return Table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows], about, blocks)


def escaped(text: str) -> str:
    """Returns Markdown of one line that shows a text, whatever a results file has in it."""
    return re.sub(r"([\\`*_\[\]<>|&!#~])", r"\\\1", " ".join(text.split()))


# ---- numbers


def digits(value: float, most: int = 2) -> int:
    """Returns how many decimals leave three digits of a value, at most `most`."""
    return min(most, max(0, 2 - math.floor(math.log10(value)))) if value > 0 else most


def seconds(value: float) -> str:
    """Returns a time with its unit, in three digits."""
    scale, unit = next(((s, u) for s, u in ((1.0, "s"), (1e-3, "ms")) if value >= s), (1e-6, "µs"))
    return f"{value / scale:.{digits(value / scale)}f} {unit}"


def size(value: float) -> str:
    """Returns bytes with their unit, in three digits."""
    scale, unit = next(((s, u) for s, u in ((1e9, "GB"), (1e6, "MB")) if value >= s), (1e3, "kB"))
    return f"{value / scale:.{digits(value / scale)}f} {unit}"


def percent(share: float | None) -> str:
    """Returns a share, and nothing where it is not known."""
    return "" if share is None or math.isnan(share) else f"{share:.0%}"


def count(value: float) -> str:
    """Returns a whole number with commas."""
    return f"{value:,.0f}"
