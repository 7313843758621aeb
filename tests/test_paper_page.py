"""The page of the papers' figures: a row for each, judged as it should be, whatever has run and however it ended."""

import argparse
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from examples import (
    approximation,
    paper,
    paper_figures,
    results,
    results_functions,
    results_judge,
    results_rows,
    results_rows_data,
    results_tables,
    results_verdicts,
    variability,
)
from examples.checkerboard import MODELS
from hanops.metrics import activation_ratio

from . import made_examples

ROOT = Path(__file__).parent.parent
VARIANTS = ["reduced", "full", "mixed", "mixed again", "one diverged", "all diverged", "no plots"]
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


def section(text: str, title: str) -> str:
    """Returns a section of the page."""
    return text.partition(f"\n## {title}")[2].partition("\n## ")[0]


def test_the_page_is_of_the_results():
    """docs/results.md is what the JSON files say."""
    assert (ROOT / "docs" / "results.md").read_text() == results.page(paper.RESULTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_page_of_made_results(name, tmp_path):
    """It is written whatever has run: every figure has one verdict, every command is there, and no number is none."""
    made_examples.variant(tmp_path, name)
    text, found = results.page(tmp_path), results_tables.Results(tmp_path)
    assert not {"nan", "inf", "-inf", "None", "None,"} & set(text.replace("|", " ").split())
    titles = ["How long it takes", "Checkerboard", "Ablation", "Width and depth", "Variability", "Two-frequency sines"]
    titles += ["Mutual approximation", "Regression", "Digits", "Robustness", "Images", "A head", "Not run"]
    assert all(section(text, title) for title in titles)
    for stem in found.files:
        assert stem == "ablation-hannet" or found.peek(stem)["command"] in text
    rows = rows_of(tmp_path)
    assert sum(results_verdicts.counts(rows)[1:]) == results_verdicts.counts(rows)[0] == sum(FIGURES.values())
    assert all(row.run or row.verdict.startswith(("not run", "equal", "disagrees")) for row in rows)
    if name == "reduced":
        assert not [row for row in rows if row.run == "full"]
    if name == "all diverged":
        kinds = {results_verdicts.kind(row) for row in rows if row.where.startswith(("approximation", "regression, R"))}
        assert kinds == {"outside, worse", "disagrees", "not run"} or kinds == {"outside, worse", "disagrees"}


@pytest.mark.parametrize("experiment", paper.EXPERIMENTS, ids=lambda experiment: experiment.stem)
def test_the_made_settings_are_those_of_the_programs(experiment, monkeypatch):
    """What a full run has is the programs' own, and the made results have their options."""
    if experiment.program == "robustness":
        pytest.importorskip("foolbox")

    class ParsedError(Exception):
        pass

    def parse(parser: argparse.ArgumentParser) -> None:
        raise ParsedError(vars(real(parser, words.split())), vars(real(parser, [])))

    real = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    words = (experiment.full or "").replace("--data somewhere", "")
    monkeypatch.setattr(sys, "argv", [experiment.program])
    with pytest.raises(ParsedError) as parsed:
        importlib.import_module(f"examples.{experiment.program}").main()
    given, usual = parsed.value.args
    full = results_tables.FULL[experiment.program]
    for key, value in full.items():
        own = usual[key]
        if key not in ("seeds", "every") and own is not None:
            assert (len(own) if isinstance(own, list) else own) == value, key
    made = made_examples.settings(experiment.program, words)
    assert all(made[key] == given[key] for key in {"seeds", "rates"} & set(given))


def test_full_results_come_first(tmp_path):
    for kind in ("reduced", "full"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "x.json").write_text(json.dumps({"command": kind, "seconds": 1.5, "threads": 2}))
    found = results.Results(tmp_path)
    assert found.get("x")["command"] == "full"
    assert found.commands() == "- `full` (full, 2 s on 2 threads)\n"
    assert found.commands() == "\n"
    assert found.get("y") is None


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


def test_one_rate_for_all_seeds():
    rows = [{"rate": 0.1, "test, best": [99.0, 0.0]}, {"rate": 0.5, "test, best": [90.0, 92.0]}]
    assert results_tables.one_setting({"settings of the sweep": rows}) == "91.00 ± 1.41 at 0.5"
    rows[0]["test, best"] = [0.1, None]
    assert results_tables.one_setting({"settings of the sweep": rows}, lower=True) == "91.00 ± 1.41 at 0.5"
    rows[1]["test, best"] = [None, None]
    assert "2 of 2 seeds diverged" in results_tables.one_setting({"settings of the sweep": rows[1:]}, lower=True)


def test_both_choices_of_the_rate_are_printed(tmp_path):
    made_examples.variant(tmp_path, "full")
    text = results.page(tmp_path)
    for title in ("Checkerboard", "Ablation", "Two-frequency sines"):
        assert "| at one rate" in section(text, title)
    assert " at Adam, 0.0001, 0 " in section(text, "Mutual approximation")
    assert all(row.single for row in rows_of(tmp_path, "checkerboard, accuracy"))


def test_networks_that_are_not_run_are_listed(tmp_path):
    """In the tables of labels that are flipped and of the ablation, as in that of the board."""
    text = results.page(tmp_path)
    names = [name for name, *_ in paper_figures.ABLATION.values()]
    lines = section(text, "Ablation").splitlines()
    assert all(any(line.startswith(f"| {name} ") and "not run" in line for line in lines) for name in names)
    noisy = section(text, "Checkerboard").partition("flipped")[2].splitlines()
    assert sum("not run" in line for line in noisy) == len(paper_figures.NOISE)


def test_flipped_labels_are_told_by_the_scores(tmp_path):
    made_examples.change(tmp_path, "checkerboard-hannet-noise0.1")
    text = section(results.page(tmp_path), "Checkerboard")
    assert "| 90.0 to 92.7 | 0 of 10 " in text
    assert "heaps" not in text


DEPTHS = [5, 15, 27, 35]


def over_depth(folder: Path, kind: str, depths: list[int], **changes: object) -> None:
    """Writes the result of a kind of network over depth, of these depths."""
    (experiment,) = (e for e in paper.EXPERIMENTS if e.stem == f"variability-{kind}")
    words = experiment.full + " --depths " + " ".join(map(str, depths))
    made = made_examples.Maker(experiment, words, 0).result() | changes
    (folder / "full").mkdir(exist_ok=True)
    (folder / "full" / f"variability-{kind}.json").write_text(json.dumps(made))


def test_a_claim_needs_its_depths(tmp_path):
    for kind in variability.KINDS:
        over_depth(tmp_path, kind, DEPTHS)
    found = {(row.where, row.what): row for row in rows_of(tmp_path, "over depth")}
    where = "over depth, v1: variability"
    assert found[where, "FC-ABS"].verdict == "not run: no depth from 45 on"
    assert found[where, "HanNet"].verdict == "not run: no depth from 45 on"
    assert found[where, "FC-ReLU"].verdict == "disagrees"  # 10 ** (3 - 12 / 5) is more than a thousandth of 1000
    assert "4 of 8 depths" in found[where, "FC-ABS"].run
    for kind in variability.KINDS:
        over_depth(tmp_path, kind, [5, 15, 20])
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
        over_depth(tmp_path, kind, [5, 15, 45], **{"learnt": learnt, "before training": before})
    verdicts = [row.verdict for row in rows_of(tmp_path, "over depth")]
    assert verdicts == ["disagrees", "agrees", "agrees", "disagrees", "agrees"]
    before[1]["variability, geometric mean"] = 1e6
    learnt[-1]["loss"] = [None, None]
    for kind in variability.KINDS:
        over_depth(tmp_path, kind, [5, 15, 45], **{"learnt": learnt, "before training": before})
    rows = rows_of(tmp_path, "over depth")
    assert [row.verdict for row in rows] == ["agrees", "agrees", "disagrees", "agrees", "disagrees"]
    assert rows[-1].ours == "best seed 35: diverged"
    before[1]["variability, geometric mean"] = None
    over_depth(tmp_path, "hannet", [5, 15, 45], **{"learnt": learnt, "before training": before})
    assert rows_of(tmp_path, "over depth")[2].verdict == "not run: a variability is no number"


def test_depths_of_full_and_reduced_runs_in_one_page(tmp_path):
    """The rules for the start have a table for each list of depths, and rows say what they are of."""
    for kind, depths in (("fc-abs", [2, 5, 10, 45]), ("fc-relu", DEPTHS[:2]), ("hannet", DEPTHS)):
        over_depth(tmp_path, kind, depths)
    text = section(results.page(tmp_path), "Variability")
    heads = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if "| start" in line]
    assert heads == [["network", "start", "5", "15"], ["network", "start", "2", "5", "10", "45"]]
    assert text.count("4 of 8 depths") == 2 * (4 + 4)
    assert text.count("| short run: 4 of 8 depths ") == 4 + 4  # at random: no matter how many rates
    assert text.count("| short run: 3 of 4 rates, 4 of 8 depths ") == 4 + 4
    assert text.count("2 of 8 depths") == 2 * 2


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


def test_the_better_of_two_optimizers(tmp_path, monkeypatch):
    """Of each seed that both have, and the deviation is that of all teachers; the row says what has run."""
    (tmp_path / "full").mkdir()
    for stem, errors in (("approximation", [0.1, 0.4, None]), ("approximation-sgd", [0.2, 0.3])):
        row = {"inputs": 2, "pair": "FC-1 by FC-1", "RMSE": errors, "deviation of the teacher": [1.0, 3.0, 8.0]}
        made = {"command": f"python -m examples.{stem}", "settings": {"seeds": len(errors)}, "results": [row]}
        (tmp_path / "full" / f"{stem}.json").write_text(json.dumps(made))
    found = results_tables.Results(tmp_path)
    assert results_rows.fitted(found, 2, "FC-1 by FC-1") == ([0.1, 0.3], 2.0)
    assert results_rows.fitted(found, 3, "FC-1 by FC-1") is None
    runs = "Adam short run: 3 of 10 seeds; SGD short run: 2 of 10 seeds"
    assert results_rows.optimizers(found) == runs
    (tmp_path / "full" / "approximation-sgd.json").unlink()
    found = results_tables.Results(tmp_path)
    assert results_rows.fitted(found, 2, "FC-1 by FC-1")[0] == [0.1, 0.4, float("inf")]
    assert results_rows.optimizers(found) == "short run: SGD not run; 3 of 10 seeds"
    monkeypatch.setattr(results_rows, "setting", lambda _: "full")
    assert results_rows.optimizers(found) == "short run: SGD not run"


def test_no_table_of_widths_that_are_not_run(tmp_path):
    made_examples.change(tmp_path, "approximation")
    assert "The paper has plots for the widths" not in results.page(tmp_path)
    made_examples.change(tmp_path, "approximation-width30")
    assert "The paper has plots for the widths" in results.page(tmp_path)


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


def test_a_stand_in_that_has_not_run_is_not_said_to_stand_in(tmp_path):
    made_examples.change(tmp_path, "digits")
    text = section(results.page(tmp_path), "Not run")
    assert text.count("robustness") == 1
    assert "stand in (`make paper DATA=DIR`): digits." in text


def test_a_weight_decay_that_leaves_too_little_is_named():
    clean = {"accuracy": {"clean": {"mean and spread": [89.9, 1.0]}}, "decay": 0.01}
    assert results.decay(clean, 90.0) == "0.01 (none leaves 90 %)"
    clean["accuracy"]["clean"]["mean and spread"][0] = 90.0
    assert results.decay(clean, 90.0) == "0.01"


def test_the_list_of_what_is_not_run(tmp_path):
    """It has every experiment of the table."""
    text = results.not_run(results_tables.Results(tmp_path))
    assert all(experiment.stem in text for experiment in paper.EXPERIMENTS)
    assert all(name in text for name, *_ in paper_figures.IMAGENET.values())


def setting(program: str, **settings: object) -> str:
    return results_tables.setting({"command": f"python -m examples.{program}", "settings": settings})


def test_a_short_run_says_so():
    """Of everything that is less than the full setting."""
    board = {"seeds": 10, "iterations": 40_000, "rates": [0.1] * 10}
    assert setting("checkerboard", **board) == "full"
    assert setting("checkerboard", **board | {"seeds": 5}) == "short run: 5 of 10 seeds"
    assert setting("checkerboard", **board | {"rates": [0.1] * 4}) == "short run: 4 of 10 rates"
    assert setting("ablation", **board | {"iterations": 20_000}) == "short run: 20,000 of 40,000 iterations"
    few = board | {"seeds": 3, "rates": [0.01, 0.05], "widths": [20] * 5, "depths": [2] * 4}
    text = "short run: 3 of 10 seeds, 2 of 10 rates, 5 of 9 widths, 4 of 9 depths"
    assert setting("heatmap", **few) == text
    assert setting("heatmap", **few | {"about": 400}) == "short run: 3 of 10 seeds, 2 of 10 rates"
    assert setting("regression", seeds=10, epochs=300, every=1) == "full"
    text = "short run: 60 of 300 epochs, tested every 5 epochs"
    assert setting("regression", seeds=10, epochs=60, every=5) == text
    assert setting("approximation", seeds=10, epochs=1_000, rates=[0.01], decays=[0]) == (
        "short run: 1 of 4 rates, 1 of 2 decays"
    )
    assert setting("sines", seeds=10, rates=RATES, iterations=80_000, width=100) == "short run: width 100 of 200"
    few = {"seeds": 10, "iterations": 40_000, "rates": [0.1] * 4, "depths": [1] * 8, "networks": 100}
    assert setting("variability", **few) == "short run: 100 of 3,000 networks"
    found = {"command": "python -m examples.images", "settings": {"seeds": 10, "epochs": 300}}
    assert results_tables.setting(found) == "short run: 300 of 600 epochs"
    assert results_tables.setting(found | {"model": "xs-han"}) == "full"


RATES = made_examples.RATES


def test_every_table_of_ours_says_how_full_its_runs_are(tmp_path):
    made_examples.variant(tmp_path, "reduced")
    text = results.page(tmp_path)
    for title in ("Checkerboard", "Ablation", "Variability", "Two-frequency sines", "Regression", "Digits", "Images"):
        assert "| run" in section(text, title)
        assert "short run" in section(text, title)
    for title in ("A head", "Robustness", "Mutual approximation", "Width and depth"):
        assert "short run" in section(text, title)
    assert "Short run: 1 of 5 seeds, 20,000 of 40,000 iterations" in section(text, "How long it takes")


def test_names_and_figures_are_those_of_the_programs():
    robustness = pytest.importorskip("examples.robustness", exc_type=ImportError)
    assert {model: name for model, (name, _) in paper_figures.ROBUSTNESS.items()} == robustness.TITLES
    assert results.CLEAN == robustness.CLEAN
    assert set(results.ATTACKS) == set(robustness.KINDS)
    assert results_rows.KINDS is variability.TITLES
    assert float(paper_figures.APPROXIMATION[4]["Han-3 by Han-3"]) == approximation.PAPER[4][3]
    assert paper_figures.APPROXIMATION[2]["FC-1 by Han-3"] == "0.00049"
    assert set(results_functions.PAIRED) <= {experiment.stem for experiment in paper.EXPERIMENTS}
    assert list(results_rows_data.MIXERS) == list(paper_figures.MIXERS)


DRAW_ONE = ("ablation", "heatmap", "variability")  # programs that draw one plot of all their networks


def test_all_plots_are_shown_and_small():
    """Each result has its plot beside it, and each plot is on the page."""
    text = (ROOT / "docs" / "results.md").read_text()
    plots = sorted(paper.RESULTS.glob("*/*.png"))
    assert plots
    for plot in plots:
        assert f"(../{plot.relative_to(ROOT)})" in text
        assert plot.stat().st_size <= 100_000
    for file in paper.RESULTS.glob("*/*.json"):
        program = json.loads(file.read_text())["command"].split()[2].partition(".")[2]
        if program in DRAW_ONE and "about" not in file.stem:
            assert any((paper.RESULTS / kind / f"{program}.png").exists() for kind in ("full", "reduced"))
        elif program not in ("speed", "heatmap"):
            assert file.with_suffix(".png").exists()


@pytest.mark.parametrize("stem", list(paper_figures.CHECKERBOARD))
def test_activation_ratios(stem):
    """The count of the page is that of the network, and within a unit of the last digit of the paper's but for one."""
    ratio = 100 * activation_ratio(MODELS[stem](), torch.zeros(2))
    parameters, printed = (float(figure.replace(",", "")) for figure in paper_figures.CHECKERBOARD[stem][2:4])
    assert ratio == pytest.approx(100 * results_rows.activations(stem) / parameters)
    assert (ratio == pytest.approx(printed, abs=0.015)) == (stem != "fcnet2")
