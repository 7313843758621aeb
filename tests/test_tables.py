"""Tables: numbers to the right, uncertain ratios grey, every group once."""

import itertools
import re
from typing import Any

import pytest

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

from benchmarks import report, table, tables
from benchmarks.cases import COPY
from benchmarks.ratios import NOISY

from .made_results import results


def test_numbers_are_set_to_the_right():
    columns = [table.Column("case", is_text=True), table.Column("time", "HanStack"), table.Column("ratio", "HanStack")]
    found = table.Table(columns, [["a", "1 s", "1.0"], ["b", "10 s", table.Noisy("12.0")]], "what", "case")
    lines = found.markdown().splitlines()
    assert lines[2:6] == [
        "| case | HanStack |  ratio |",
        "|------|---------:|-------:|",
        "| a    |      1 s |    1.0 |",
        "| b    |     10 s | (12.0) |",
    ]
    page = found.html()
    assert "<th rowspan=2 class='text'>case</th><th colspan=2 class=\"over\">HanStack</th>" in page
    assert "<tr class=block><td class='text'>b</td><td class='first'>10 s</td><td class='noisy'>12.0</td></tr>" in page
    assert page.count("class=block") == 1
    assert "text-align:right" in re.search(r"td,th\{[^}]*\}", report.page_of([]).html())[0]
    assert not table.Table(columns, [])
    assert [column.name for column in table.filled(columns, [["a", "", "1"]]).columns] == ["case", "ratio"]


def a_row(ratio_noise: float, iqr: float, own_iqr: float, **more: float) -> tuple[dict[str, Any], dict[str, Any]]:
    info = {"ratio": 2.0, "ratio_noise": ratio_noise, **more}
    return {"extra_info": info, "stats": {"median": 2.0, "iqr": iqr}}, {
        "extra_info": {},
        "stats": {"median": 1.0, "iqr": own_iqr},
    }


@pytest.mark.parametrize(
    ("row", "is_noisy"),
    [
        (a_row(0.39, 0.1, 0.1, ratio_iqr=0.39), False),
        (a_row(0.41, 0.1, 0.1, ratio_iqr=0.1), True),  # the interval is wide
        (a_row(0.1, 0.1, 0.1, ratio_iqr=0.41), True),  # the rounds differ
        (a_row(0.1, 1.0, 0.5, ratio_iqr=0.1), False),  # both slow down together: the rounds' ratios are known
        (a_row(0.1, 0.2, 0.15), False),  # an older file: sqrt(0.1^2 + 0.15^2) = 0.18
        (a_row(0.1, 0.3, 0.15), True),  # sqrt(0.15^2 + 0.15^2) = 0.21
    ],
)
def test_ratios_of_much_noise_are_grey(row, is_noisy):
    assert NOISY == 0.2
    cell = tables.ratio(*row)
    assert isinstance(cell, table.Noisy) is is_noisy
    found = table.Table([table.Column("ratio")], [[cell]])
    assert ("<td class='noisy'>2.00 ± " in found.html()) is is_noisy
    assert (table.GREY in found.html()) is is_noisy
    assert ("(2.00 ± " in found.markdown()) is (table.IN_PARENTHESES in found.markdown()) is is_noisy
    assert "td.noisy{color:#8c8c8c}" in report.page_of([]).html()


def test_noise_of_copies_is_that_of_the_copy():
    made = results(True)
    for noise, is_noisy in ((0.1, False), (0.3, True)):
        for b in made["benchmarks"]:
            if b["extra_info"]["rival"] == COPY:
                b["stats"]["iqr"] = noise * b["stats"]["median"]
        lines = tables.lines_of(made["benchmarks"], "one layer")
        assert all(line.copy for line in lines)
        found = tables.times(lines)
        place = [column.name for column in found.columns].index("copies of x")
        assert len(found.rows) == 12
        assert all(isinstance(row[place], table.Noisy) is is_noisy for row in found.rows)


def test_summary_has_every_group_once():
    text = tables.summary(results(True)["benchmarks"])
    titles = [line for line in text.splitlines() if line and not line.startswith("|")]
    assert [title for title in titles if title in ("Width", "Depth", "Batch", "One Han layer")] == [
        "Width",
        "Depth",
        "Batch",
        "One Han layer",
    ]
    assert "Depth: memory" in titles
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(a) == len(b) for a, b in itertools.pairwise(lines) if b.startswith("|--"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.234, "1.23 s"), (0.01234, "12.3 ms"), (0.298, "298 ms"), (9.181e-6, "9.18 µs"), (0.0, "0.00 µs")],
)
def test_times_have_three_digits(value, text):
    assert table.seconds(value) == text
