"""The judgements of docs/results.md: a row for each figure of the papers, and whether ours agrees."""

import json
from pathlib import Path

import pytest

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from examples import (
    paper_figures,
    results,
    results_judge,
    results_tables,
    results_verdicts,
    variability,
)

from . import made_examples
from .made_examples import DEPTHS

# Counted in the papers' text: how many figures each table and plot has.
FIGURES = {
    "checkerboard, accuracy %": 8,
    "checkerboard, AR %": 4,
    "checkerboard, plots (v1, figure 5)": 2,
    "10 % flipped labels, %": 6,
    "10 % flipped labels, plots (v1, figure 5)": 2,
    "ablation, v1, test %": 4,
    "ablation, later, test %": 7,
    "heat map, test %": 3,
    "over depth, v1: variability": 3,
    "over depth, v1: training loss": 2,
    "two-frequency sines": 1,
    "approximation, RMSE": 12,
    "approximation, other widths": 7,
    "regression, RMSE, 80 % train": 15,
    "regression, R2, 80 % train": 15,
    "regression, plots (v1, figure 6)": 5,
    "regression, RMSE, 20 % train": 15,
    "regression, R2, 20 % train": 15,
    "regression, AR %": 2,
    "MNIST, accuracy over depth": 1,
    "MNIST, accuracy % under attack": 40,
    "mixers, error %": 21,
    "MobileViT, error %": 12,
    "ImageNet-64, error %": 10,
    "head on LaNet's features, error %": 2,
    "parameters of networks": 26,
}


def rows_of(folder: Path, where: str = "") -> list[results_judge.Row]:
    """Returns the rows of a folder's results, those whose table starts with `where`."""
    return [row for row in results_verdicts.all_rows(results_tables.Results(folder)) if row.where.startswith(where)]


def test_every_figure_has_a_row(tmp_path):
    """Also where nothing has run: as many figures as the papers print, and each says why it has none."""
    rows = rows_of(tmp_path)
    counted = {where: sum(row.figures for row in rows if row.where == where) for where in {row.where for row in rows}}
    assert counted == FIGURES
    assert len({(row.where, row.what, row.paper) for row in rows}) == len(rows)
    compared = ("parameters", "checkerboard, AR")  # of networks that are not trained
    assert all(row.verdict.startswith("not run: ") for row in rows if not row.where.startswith(compared))
    assert all(row.paper for row in rows)
    assert results.page(tmp_path).count(paper_figures.V1) == 2


@pytest.mark.parametrize("name", made_examples.VARIANTS)
def test_every_row_has_one_verdict(name, tmp_path):
    """Whatever has run, and it says how far."""
    made_examples.variant(tmp_path, name)
    rows = rows_of(tmp_path)
    assert sum(results_verdicts.counts(rows)[1:]) == results_verdicts.counts(rows)[0] == sum(FIGURES.values())
    assert all(row.run or row.verdict.startswith(("not run", "equal", "disagrees")) for row in rows)
    if name == "reduced":
        full = {row.where for row in rows if row.run == "full"}
        assert full == {"over depth, v1: variability"}  # random networks, which do not train
    if name == "all diverged":
        kinds = {results_verdicts.kind(row) for row in rows if row.where.startswith(("approximation", "regression, R"))}
        assert kinds == {"outside, worse", "disagrees", "not run"} or kinds == {"outside, worse", "disagrees"}


def test_verdicts():
    def judge(figure, values):
        return results_judge.judged(figure, values, lower=False)

    values = [98.0, 99.0, 100.0, 99.0]  # 99 ± 0.82
    assert judge("99.8", values) == "within 2 s.e."
    assert judge("100.5", values) == "within the spread"
    assert judge("102.0", values) == "outside, worse"
    assert judge("96.0", values) == "outside, better"
    assert judge("96.0 ± 2.0", values) == "within the spread"
    assert results_judge.judged("0.1", [0.5, 0.5], lower=True) == "outside, worse"
    assert results_judge.measured("a", "b", "1.0", [1.0], "full").ours == "1.00"
    assert results_judge.measured("a", "b", "1.0", [1.0], "full").verdict == "one run"


def test_a_figure_is_known_to_its_last_digit():
    values = [99.995] * 9 + [100.0]
    assert results_judge.judged("100.0", values, lower=False) == "within 2 s.e."
    assert results_judge.judged("100.00", values, lower=False) == "within 2 s.e."
    assert results_judge.judged("100.000", values, lower=False) == "outside, worse"
    assert results_judge.printed("453,002") == (453_002, 0, 0.5)
    assert results_judge.printed("about 90")[0] == 90
    assert results_judge.printed("85.27 ± 0.35") == (85.27, 0.35, pytest.approx(0.005))
    assert results_judge.measured("a", "b", "96.5", [1.0, 2.0], "full").paper == "96.5"


@pytest.mark.parametrize("lower", [False, True])
def test_a_seed_that_diverged_is_the_worst(lower):
    row = results_judge.measured("a", "b", "1.0", [1.0, None, 1.2], "full", lower=lower)
    assert (row.ours, row.verdict, row.n) == ("1 of 3 seeds diverged", "outside, worse", "3")
    assert row.median == ("1.20" if lower else "1.00")
    assert results_judge.measured("a", "b", "1.0", [None, None], "full", lower=lower).median == "-"


def test_counted_figures():
    def verdict(figure, ours):
        return results_judge.counted("a", "b", figure, ours, "a misprint").verdict

    assert verdict("1.18", 1.1764) == "equal"
    assert verdict("1.17", 1.1764) == "equal but for the last digit"
    assert verdict("1.96", 1.09) == "disagrees: a misprint"
    assert verdict("51,002", 51_002) == "equal"
    assert verdict("51,003", 51_002) == "disagrees: a misprint"


def test_parameters_are_counted(tmp_path):
    """Without a result; all are the paper's but for its misprint."""
    rows = rows_of(tmp_path, "parameters")
    assert [row.what for row in rows if row.verdict != "equal"] == ["ImageNet-64, MLP(8), millions"]


@pytest.mark.parametrize("name", ["reduced", "full"])
def test_the_counts_of_verdicts(name, tmp_path):
    """The summary's columns have all verdicts, and its last row their sums."""
    made_examples.variant(tmp_path, name)
    lines = results_verdicts.verdicts(results_tables.Results(tmp_path)).splitlines()
    counts = {
        cells[0].strip(): [int(cell) if cell.strip() else 0 for cell in cells[1:]]
        for line in lines[: lines.index(next(line for line in lines if line.startswith("| all"))) + 1]
        if line.startswith("| ") and (cells := line.strip("|").split("|"))[1].strip().isdigit()
    }
    assert {where: total for where, (total, *_) in counts.items()} == FIGURES | {"all": sum(FIGURES.values())}
    assert all(total == sum(each) for total, *each in counts.values())
    (head,) = (line for line in lines if line.startswith("| table or plot"))
    columns = [cell.strip() for cell in head.strip("|").split("|")][2:]
    assert set(columns) < set(results_verdicts.COLUMNS)  # a column without a count is left out
    assert counts["checkerboard, plots (v1, figure 5)"][1 + columns.index("shown")] == 2
    assert counts["ablation, v1, test %"][1 + columns.index("repeat")] == 1


def test_a_plot_that_is_missing(tmp_path):
    """A result is not a plot; neither is one of the reduced run, or an older one that shows another thing."""
    made_examples.variant(tmp_path, "full")
    (board,) = rows_of(tmp_path, "checkerboard, plots")[:1]
    assert (board.verdict, board.run) == ("shown", "full")
    (tmp_path / "full" / "checkerboard-hannet.png").unlink()
    (tmp_path / "reduced").mkdir()
    (tmp_path / "reduced" / "checkerboard-hannet.png").touch()
    assert rows_of(tmp_path, "checkerboard, plots")[0].verdict == "not run: the plot is missing"
    assert "checkerboard-hannet.png" not in results.page(tmp_path)
    made_examples.change(tmp_path, "regression-elevators-0.8-whole", versions={"hanops": "0.1.0"})
    plots = {row.what: row.verdict for row in rows_of(tmp_path, "regression, plots")}
    assert plots["Elevators"] == "not run: a plot of hanops 0.1.0"
    assert plots["Skillcraft"] == "shown"


def test_a_run_that_trained_less_is_not_judged_by_what_a_plot_says(tmp_path):
    """It shows its figure; what does not depend on training is judged, and so is a run of few seeds or rates."""
    made_examples.variant(tmp_path, "reduced")
    verdicts = {(row.where, row.what): row.verdict for row in rows_of(tmp_path) if row.ours}
    assert verdicts["two-frequency sines", "test RMSE"] == results_judge.TOO_SHORT
    assert verdicts["over depth, v1: training loss", "FC-ReLU"] == results_judge.TOO_SHORT
    assert verdicts["heat map, test %", "HanNet"] == results_judge.TOO_SHORT
    assert verdicts["over depth, v1: variability", "FC-ReLU"] in ("agrees", "disagrees")
    made = made_examples.change(tmp_path, "sines-hannet")
    for less, short in (({"seeds": 3}, False), ({"iterations": 8_000}, True), ({"width": 100}, True)):
        for model in ("hannet", "fcnet"):
            made_examples.change(tmp_path, f"sines-{model}", settings=made["settings"] | less)
        assert (rows_of(tmp_path, "two-frequency")[0].verdict == results_judge.TOO_SHORT) == short


def test_the_board_is_judged_at_one_rate_too(tmp_path):
    made_examples.variant(tmp_path, "full")
    assert all(row.single for row in rows_of(tmp_path, "checkerboard, accuracy"))


def test_the_board_s_run_is_counted_once(tmp_path):
    """The ablation's HanNet is that of the board, and a seed far from the others is named."""
    made = made_examples.change(tmp_path, "checkerboard-hannet")
    each = made["best setting of each seed"]
    each["test, best"] = [99.9, 98.6, 100.0, 99.9, 99.9, 89.0, 99.5, 99.9, 100.0, 100.0]
    made_examples.change(tmp_path, "checkerboard-hannet", **{"best setting of each seed": each})
    (board,) = (row for row in rows_of(tmp_path, "checkerboard") if row.what == "HanNet, test")
    assert board.note == "8 of 10 seeds above 99; seed 5 89.00, without it 99.74 ± 0.46, within 2 s.e."
    assert f"\n\n- HanNet, test: {board.note}\n" in results.page(tmp_path)
    assert results_judge.outlier("99.5", [99.0, 99.1, 99.2, 99.3, 99.4, 99.5, 99.6, 99.7]) == ""
    for row in rows_of(tmp_path, "ablation"):
        if row.what == "reflection, abs (Han)":
            assert row.ours == board.ours
            assert row.note.startswith("seed 5 89.00, without it 99.74 ± 0.46, within ")
            assert results_verdicts.kind(row) == results_judge.AGAIN
        else:
            assert row.verdict == "not run: part 1"
    (tmp_path / "full" / "ablation-hannet.json").write_text('{"command": "another sweep"}')  # which nobody reads
    assert "another sweep" not in results.page(tmp_path)


def test_a_claim_needs_its_depths(tmp_path):
    for kind in variability.KINDS:
        made_examples.over_depth(tmp_path, kind, DEPTHS)
    found = {(row.where, row.what): row for row in rows_of(tmp_path, "over depth")}
    where = "over depth, v1: variability"
    assert found[where, "FC-ABS"].verdict == "not run: no depth from 45 on"
    assert found[where, "HanNet"].verdict == "not run: no depth from 45 on"
    assert found[where, "FC-ReLU"].verdict == "disagrees"  # 10 ** (3 - 12 / 5) is more than a thousandth of 1000
    assert "4 of 8 depths" in found[where, "FC-ABS"].run
    for kind in variability.KINDS:
        made_examples.over_depth(tmp_path, kind, [5, 15, 20])
    found = {(row.where, row.what): row for row in rows_of(tmp_path, "over depth")}
    assert found["over depth, v1: training loss", "FC-ReLU"].verdict == "not run: no depth past 20"
    assert found["over depth, v1: training loss", "FC-ABS"].verdict == "not run: no depth past 30"
    assert found[where, "FC-ReLU"].verdict == "not run: no depth from 27 on"


def test_claims_over_depth(tmp_path):
    """Variability rises to 15 layers and falls; the losses of seeds that diverged count as the worst."""
    learnt = [{"depth": d, "width": 9, "parameters": 1, "loss": [None, 0.005 if d == 35 else 0.4]} for d in DEPTHS]
    before = [
        {"depth": d, "width": 9, "parameters": 1, "variability, geometric mean": v, "collapsed to a constant, %": 0.0}
        for d, v in ((5, 10.0), (15, 100.0), (45, 20.0))
    ]
    for kind in variability.KINDS:
        made_examples.over_depth(tmp_path, kind, [5, 15, 45], **{"learnt": learnt, "before training": before})
    verdicts = [row.verdict for row in rows_of(tmp_path, "over depth")]
    assert verdicts == ["disagrees", "agrees", "agrees", "disagrees", "agrees"]
    before[1]["variability, geometric mean"] = 1e6
    learnt[-1]["loss"] = [None, None]
    for kind in variability.KINDS:
        made_examples.over_depth(tmp_path, kind, [5, 15, 45], **{"learnt": learnt, "before training": before})
    rows = rows_of(tmp_path, "over depth")
    assert [row.verdict for row in rows] == ["agrees", "agrees", "disagrees", "agrees", "disagrees"]
    assert rows[-1].ours == "best seed 35: diverged"
    before[1]["variability, geometric mean"] = None
    made_examples.over_depth(tmp_path, "hannet", [5, 15, 45], **{"learnt": learnt, "before training": before})
    assert rows_of(tmp_path, "over depth")[2].verdict == "not run: a variability is no number"


def test_waves_are_compared_where_both_were_trained_alike(tmp_path):
    made_examples.change(tmp_path, "sines-hannet")
    dense = made_examples.change(tmp_path, "sines-fcnet")
    (row,) = rows_of(tmp_path, "two-frequency")
    assert row.verdict == "agrees"
    short = dense["settings"] | {"width": 100, "iterations": 8_000}
    made_examples.change(tmp_path, "sines-fcnet", settings=short)
    (row,) = rows_of(tmp_path, "two-frequency")
    assert row.verdict == "not run: the two were not trained alike"
    assert "FCNet short run: " in row.run
    best = dense["best setting of each seed"]
    best["test, best"] = [None] * 5
    made_examples.change(tmp_path, "sines-fcnet", **{"best setting of each seed": best})
    (row,) = rows_of(tmp_path, "two-frequency")
    assert (row.verdict, "FCNet 5 of 5 seeds diverged" in row.ours) == ("agrees", True)
    made_examples.change(tmp_path, "sines-hannet", **{"best setting of each seed": best})
    assert rows_of(tmp_path, "two-frequency")[0].verdict == "disagrees"


def test_few_parameters_are_enough_for_half_of_the_seeds(tmp_path):
    cells = [
        {"depth": 3, "width": 9, "parameters": 401, "test, best": [100.0] + [90.0] * 9},
        {"depth": 4, "width": 8, "parameters": 404, "test, best": [99.5] * 4 + [80.0] * 6},
    ]
    made_examples.change(tmp_path, "heatmap-hannet-about400", cells=cells)
    *_, row = rows_of(tmp_path, "heat map")
    assert row.ours == "4 x 8, 404 parameters: 4 of 10 seeds from 99, best 99.50"
    assert row.verdict == "disagrees"
    cells[1]["test, best"] = [99.5] * 5 + [80.0] * 5
    made_examples.change(tmp_path, "heatmap-hannet-about400", cells=cells)
    assert rows_of(tmp_path, "heat map")[-1].verdict == "agrees"


def test_images_that_are_not_included_are_judged_where_they_have_run(tmp_path):
    """Rows read the JSON of MNIST, CIFAR-10 and LaNet's features; those of stand-ins stay without a verdict."""
    for stem in ("digits", "robustness"):
        made_examples.change(tmp_path, stem)
    assert {row.verdict for row in rows_of(tmp_path, "MNIST")} == {results_judge.NO_DATA}
    text = results.page(tmp_path)
    assert "scikit-learn's digits stand in (`make paper DATA=DIR`): digits, robustness" in text
    for stem in ("digits", "robustness"):
        made_examples.change(tmp_path, stem, data="MNIST")
    depth, *attacked = rows_of(tmp_path, "MNIST")
    assert depth.verdict == "agrees"
    verdicts = {row.what: row.verdict for row in attacked}
    assert len(verdicts) == 40
    assert verdicts["HanNet, clean"] == "within 2 s.e."
    assert verdicts["HanNet, CW, c = 5"] == "outside, better"
    assert verdicts["HanNet, PGD, one norm, radius 1"] == "not run: the text at hand has no radii"
    assert "stand in" not in results.page(tmp_path)
    made_examples.change(tmp_path, "images-cifar10-stem")
    found = {row.what: row.verdict for row in rows_of(tmp_path, "mixers")}
    assert found["stem alone, CIFAR-10"] == "outside, worse"
    assert found["stem alone, STL-10"] == results_judge.NO_DATA
    head = made_examples.change(tmp_path, "head-digits")
    assert {row.verdict for row in rows_of(tmp_path, "head")} == {results_judge.NO_DATA}
    (tmp_path / "full" / "head-lanet.json").write_text(json.dumps(head))
    assert {row.verdict for row in rows_of(tmp_path, "head")} == {"outside, worse"}
