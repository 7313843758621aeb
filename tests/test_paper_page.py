"""The page of the papers' figures: whatever has run, and however it ended, it says so."""

import argparse
import importlib
import json
import math
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
    results_rows,
    results_rows_data,
    results_tables,
    variability,
)
from examples.checkerboard import MODELS
from hanops.metrics import activation_ratio

from . import made_examples
from .made_examples import DEPTHS

ROOT = Path(__file__).parent.parent


def section(text: str, title: str) -> str:
    """Returns a section of the page."""
    return text.partition(f"\n## {title}")[2].partition("\n## ")[0]


def test_the_page_is_of_the_results():
    """docs/results.md is what the JSON files say."""
    assert (ROOT / "docs" / "results.md").read_text() == results.page(paper.RESULTS)


@pytest.mark.parametrize("name", made_examples.VARIANTS)
def test_the_page_of_made_results(name, tmp_path):
    """It is written whatever has run: every section and every command is there, and no number is none."""
    made_examples.variant(tmp_path, name)
    text, found = results.page(tmp_path), results_tables.Results(tmp_path)
    assert not {"nan", "inf", "-inf", "None", "None,"} & set(text.replace("|", " ").split())
    titles = ["How long it takes", "Checkerboard", "Ablation", "Width and depth", "Variability", "Two-frequency sines"]
    titles += ["Mutual approximation", "Regression", "Digits", "Robustness", "Images", "A head", "Not run"]
    assert all(section(text, title) for title in titles)
    for stem in found.files:
        assert stem == "ablation-hannet" or found.peek(stem)["command"] in text


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


def test_depths_of_full_and_reduced_runs_in_one_page(tmp_path):
    """The rules for the start have a table for each list of depths, and rows say what they are of."""
    for kind, depths in (
        ("fc-abs", [2, 5, 10, 45]),
        ("fc-relu", DEPTHS[:2]),
        ("hannet", DEPTHS),
    ):
        made_examples.over_depth(tmp_path, kind, depths)
    text = section(results.page(tmp_path), "Variability")
    heads = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if "| start" in line]
    assert heads == [["network", "start", "5", "15"], ["network", "start", "2", "5", "10", "45"]]
    assert text.count("| short run: 4 of 8 depths ") == 4 + 4  # at random: no matter how many rates
    assert text.count("; short run: 3 of 4 rates, 4 of 8 depths\n") == 2  # trained: a line for each kind
    assert text.count("4 of 8 depths") == 4 + 4 + 2
    assert text.count("2 of 8 depths") == 2 + 1
    losses = [line for line in text.splitlines() if line.count("not run") and line.startswith("| ")]
    assert [line.split()[1] for line in losses] == ["2", "10", "15", "27", "35", "45"]  # depths that not all have


def test_errors_on_the_training_points(tmp_path):
    """Of the optimizer that tests better, beside the paper's in the table, and below the row where ours is worse."""
    errors = {"approximation": ([0.002, 0.004], 0.0005), "approximation-sgd": ([0.004, 0.002], 0.0001)}
    for stem, (tested, learnt) in errors.items():
        made_examples.change(tmp_path, stem)
        file = tmp_path / "full" / f"{stem}.json"
        made = json.loads(file.read_text())
        for row in made["results"]:
            row |= {"RMSE": tested, "RMSE, training, mean and spread": [learnt, 0.0]}
        made["results"][0]["RMSE"] = [None, 0.002] if stem.endswith("sgd") else [0.002, 0.002]
        file.write_text(json.dumps(made))
    found = results_tables.Results(tmp_path)
    assert results_rows.on_training_points(found, 2, "FC-1 by FC-1") == [0.0005, 0.0]
    row = next(row for row in results_rows.approximation(found) if row.what == "2 inputs, FC-1 by FC-1")
    assert (row.verdict, row.note) == ("outside, worse", "on the training points 0.00050 ± 0.00000")
    assert not any(row.note for row in results_rows.approximation(found) if not row.verdict.startswith("outside"))
    text = section(results.page(tmp_path), "Mutual approximation")
    assert f"| {0.0005 / 0.00033:.2f} " in text
    assert "- On the training points ours are 0.10 to 1.52 times the paper's, " in text
    assert results_functions.near([0.5, 2.0, 1.6], "test") == (
        "- On the test points ours are 0.50 to 2.00 times the paper's, 1.17 in the geometric mean; "
        "2 of 3 are at most 1.6 times."
    )
    assert "0.50 to - times the paper's, - in the geometric mean; 1 of 2" in results_functions.near([0.5, math.inf], "")


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


def test_all_plots_are_shown_and_small():
    """Each result has its plot beside it, and each plot is on the page."""
    text = (ROOT / "docs" / "results.md").read_text()
    plots = sorted(paper.RESULTS.glob("*/*.png"))
    assert plots
    for plot in plots:
        assert f"(../{plot.relative_to(ROOT)})" in text
        assert plot.stat().st_size <= 100_000
    experiments = {experiment.stem: experiment for experiment in paper.EXPERIMENTS}
    for file in paper.RESULTS.glob("*/*.json"):
        experiment = experiments[file.stem]
        if experiment.shared:
            assert any((paper.RESULTS / kind / f"{experiment.shared}.png").exists() for kind in ("full", "reduced"))
        else:
            assert file.with_suffix(".png").exists() == experiment.has_plot


@pytest.mark.parametrize("stem", list(paper_figures.CHECKERBOARD))
def test_activation_ratios(stem):
    """The count of the page is that of the network, and within a unit of the last digit of the paper's but for one."""
    ratio = 100 * activation_ratio(MODELS[stem](), torch.zeros(2))
    parameters, printed = (float(figure.replace(",", "")) for figure in paper_figures.CHECKERBOARD[stem][2:4])
    assert ratio == pytest.approx(100 * results_rows.activations(stem) / parameters)
    assert (ratio == pytest.approx(printed, abs=0.015)) == (stem != "fcnet2")
