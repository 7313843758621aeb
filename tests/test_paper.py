"""The papers' experiments: programs take the commands and run, and the page says what the results do."""

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
    heatmap,
    paper,
    paper_figures,
    results,
    results_tables,
    results_verdicts,
    sines,
    variability,
)
from examples.checkerboard import MODELS, mesh
from hanops.metrics import activation_ratio
from hanops.models import FCNet

ROOT = Path(__file__).parent.parent


def run(monkeypatch: pytest.MonkeyPatch, program: str, *words: object) -> None:
    """Runs an example in this process."""
    monkeypatch.setattr(sys, "argv", [f"examples/{program}.py", *map(str, words)])
    importlib.import_module(f"examples.{program}").main()


def test_the_page_is_of_the_results():
    """docs/results.md is what the JSON files say."""
    assert (ROOT / "docs" / "results.md").read_text() == results.page(paper.RESULTS)


@pytest.mark.parametrize(
    "file", sorted(paper.RESULTS.glob("*/*.json")), ids=lambda file: f"{file.parent.name}-{file.stem}"
)
def test_a_result_is_of_its_command(file):
    """A committed result was made by the command that `make paper` would run now."""
    (experiment,) = (e for e in paper.EXPERIMENTS if e.stem == file.stem)
    folders = dict.fromkeys(paper.data_folders(None), Path("somewhere"))
    told = json.loads(file.read_text())["command"]
    wanted = paper.command(experiment.program, experiment.words(file.parent.name == "full", folders))
    assert told.replace(" --data DIR", "") == wanted.replace(" --data DIR", "")


def test_full_results_come_first(tmp_path):
    for kind in ("reduced", "full"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "x.json").write_text(json.dumps({"command": kind, "seconds": 1.5}))
    found = results.Results(tmp_path)
    assert found.get("x")["command"] == "full"
    assert found.commands() == "- `full` (full, 2 s)\n"
    assert found.commands() == "\n"
    assert found.get("y") is None


def test_ablation(tmp_path, monkeypatch):
    """Each network has a file of its own, also those whose activation sorts."""
    words = ["--seeds", 2, "--rates", 0.05, "--iterations", 10, "--out", tmp_path]
    run(monkeypatch, "ablation", *words, "--models", "hannet", "orth-abs")
    run(monkeypatch, "ablation", *words, "--models", "han-groupsort")
    for model, parameters in (("hannet", 3032), ("orth-abs", 17822), ("han-groupsort", 3032)):
        assert json.loads((tmp_path / f"ablation-{model}.json").read_text())["parameters"] == parameters
    assert (tmp_path / "ablation.png").exists()


@pytest.mark.parametrize(("model", "size"), [("han-maxmin", 2), ("han-groupsort", 5)])
def test_sorting_activations(model, size):
    """They sort runs of 2 and 5 features, and a gradient goes to the place that its value came from."""
    net = MODELS[model]()
    activation = net.hidden[-1]
    x = torch.randn(3, 7, 30, requires_grad=True)
    y = activation(x)
    plain = [sorted(run) for row in x.detach().flatten(0, 1).tolist() for run in zip(*[iter(row)] * size, strict=True)]
    assert y.flatten().tolist() == [value for run in plain for value in run]
    weight = torch.randn(3, 7, 30)
    (gradient,) = torch.autograd.grad((weight * y).sum(), x)
    order = x.detach().unflatten(-1, (-1, size)).argsort(-1)
    assert torch.equal(gradient.unflatten(-1, (-1, size)).gather(-1, order).flatten(-2), weight)


def test_heatmap(tmp_path, monkeypatch):
    words = ["--seeds", 2, "--rates", 0.05, "--iterations", 5, "--out", tmp_path]
    run(monkeypatch, "heatmap", *words, "--widths", 20, 30, "--depths", 2, 4)
    han, dense = (json.loads((tmp_path / f"heatmap-{model}.json").read_text())["cells"] for model in heatmap.MODELS)
    assert [(c["depth"], c["width"]) for c in han] == [(2, 20), (2, 30), (4, 20), (4, 30)]
    assert dense[3]["parameters"] == sum(p.numel() for p in FCNet(2, 30, 4, 2).parameters())
    assert (tmp_path / "heatmap.png").exists()
    run(monkeypatch, "heatmap", *words, "--models", "hannet", "--about", 400, "--widths", 8)
    (cell,) = json.loads((tmp_path / "heatmap-hannet-about400.json").read_text())["cells"]
    assert abs(cell["parameters"] - 400) <= 8  # a Han layer of width 8 has 16 parameters


def test_sines(tmp_path, monkeypatch):
    x = mesh()
    assert x.shape == (6561, 2)
    torch.testing.assert_close(
        sines.target(torch.tensor([[0.5, 0.5], [0.0625, 0.0625]])), torch.tensor([[1.0], [0.5381]]), rtol=0, atol=1e-3
    )
    run(
        monkeypatch,
        "sines",
        "--width",
        20,
        "--depth",
        3,
        "--seeds",
        2,
        "--rates",
        0.01,
        "--iterations",
        20,
        "--out",
        tmp_path,
    )
    found = {model: json.loads((tmp_path / f"sines-{model}.json").read_text()) for model in sines.KINDS}
    assert found["fcnet"]["parameters"] == 60 + 2 * 420 + 21
    assert len(found["hannet"]["best setting of each seed"]["test, best"]) == 2
    assert (tmp_path / "sines-hannet.png").exists()


@pytest.mark.parametrize("kind", list(variability.KINDS))
def test_width_for(kind):
    """No other width brings the parameters closer."""
    width = variability.width_for(kind, 12, 3200)
    off = [abs(variability.size(variability.KINDS[kind](w, 12)) - 3200) for w in range(2, 2 * width)]
    assert off[width - 2] == min(off)


def test_collapse():
    """With torch's start a deep dense network of ReLU has collapsed to a constant; other networks have not."""
    deep = variability.before_training("fc-relu", 30, 4000, 20, "torch")
    assert deep["collapsed to a constant, %"] > 90
    assert deep["variability, geometric mean"] < 10 * variability.COLLAPSED
    for kind, depth, count, start in (("hannet", 30, 800, "torch"), ("fc-relu", 3, 4000, "torch")):
        other = variability.before_training(kind, depth, count, 20, start)
        assert other["collapsed to a constant, %"] == 0
        assert other["variability, geometric mean"] > 1


def test_geometric_mean(monkeypatch):
    """It is of all networks, those of each chunk too, and what has collapsed counts as the cut."""
    monkeypatch.setattr(variability, "AT_A_TIME", 2)
    found = iter([torch.tensor([1e2, 1e4]), torch.tensor([0.0])])
    monkeypatch.setattr(variability, "variability", lambda values, step: next(found))
    row = variability.before_training("fc-abs", 2, 100, 3, "xavier")
    assert row["variability, geometric mean"] == pytest.approx(10 ** ((2 + 4 - 9) / 3))
    assert row["collapsed to a constant, %"] == pytest.approx(100 / 3)


@pytest.mark.parametrize("start", list(variability.STARTS))
def test_starts(start):
    """The weights of a dense layer of width n deviate by 1/sqrt(n), or by 1/sqrt(3 n) with torch's start."""
    model = variability.at_random("fc-abs", 60, 4, 0, start)
    weight = model.hidden[2].weight
    assert weight.dtype == torch.float64
    assert weight.std().item() * 60**0.5 == pytest.approx(3**-0.5 if start == "torch" else 1, rel=0.05)
    identity = (weight @ weight.t() - torch.eye(60)).norm().item()
    assert (identity < 1e-4) == (start == "orthogonal")


def test_variability(tmp_path, monkeypatch):
    words = ["--seeds", 2, "--rates", 0.01, 0.02, "--iterations", 5, "--depths", 2, 4, "--networks", 3]
    run(monkeypatch, "variability", *words, "--out", tmp_path)
    found = {kind: json.loads((tmp_path / f"variability-{kind}.json").read_text()) for kind in variability.KINDS}
    assert [row["depth"] for row in found["hannet"]["before training"]] == [2, 4]
    tried = found["fc-abs"]["variability of each start"]
    assert list(tried) == list(variability.STARTS)
    assert tried["xavier"] == [row["variability, geometric mean"] for row in found["fc-abs"]["before training"]]
    assert all(abs(row["parameters"] - 3200) < 120 for row in found["fc-relu"]["learnt"])
    assert (tmp_path / "variability.png").exists()


def test_every_figure_has_a_row(tmp_path):
    """Also where nothing has run: as many rows as the papers print figures, and each says why it has none."""
    rows = results_verdicts.all_rows(results_tables.Results(tmp_path))
    names = [row.what for row in rows]
    board = paper_figures.CHECKERBOARD
    ablations = sum(figure is not None for _, *both in paper_figures.ABLATION.values() for figure in both)
    pairs = sum(len(pairs) for pairs in paper_figures.APPROXIMATION.values())
    tables = sum(len(parts) * 3 * 2 for _, parts, _ in paper_figures.REGRESSION.values())  # networks, RMSE and R2
    images = sum(map(len, (paper_figures.MIXERS, paper_figures.MOBILEVITS, paper_figures.IMAGENET)))
    printed = 3 * len(board) + len(paper_figures.NOISE) + ablations + pairs + tables
    printed += len(paper_figures.REGRESSION_RATIOS) + len(paper_figures.ROBUSTNESS) + images + 1
    plots = 2 + 3 + 5 + 1 + 2 + len(paper_figures.REGRESSION) + 1  # learnt, maps, depth, waves, widths, curves, MNIST
    assert len(rows) == printed + plots
    assert len({(row.where, row.what, row.paper) for row in rows}) == len(rows)
    for group in (board, paper_figures.NOISE, paper_figures.ABLATION, paper_figures.REGRESSION):
        assert all(any(name.startswith(entry[0]) for name in names) for entry in group.values())
    assert all(row.verdict.startswith("not run: ") for row in rows if "parameters" not in row.where)
    assert all(row.paper for row in rows)


def test_verdicts():
    def judge(figure, values, own=None):
        return results_verdicts.judged(figure, own, values, lower=False)

    values = [98.0, 99.0, 100.0, 99.0]  # 99 ± 0.82
    assert judge(99.8, values) == "within 2 s.e."
    assert judge(100.5, values) == "within the spread"
    assert judge(102.0, values) == "outside, worse"
    assert judge(96.0, values) == "outside, better"
    assert judge(96.0, values, own=2.0) == "within the spread"
    assert results_verdicts.judged(0.1, None, [0.5, 0.5], lower=True) == "outside, worse"
    row = results_verdicts.measured("a", "b", (1.0, None), [1.0, None], "full")
    assert (row.ours, row.verdict) == ("a seed diverged", "outside, worse")
    assert results_verdicts.measured("a", "b", (1.0, None), [1.0], "full").ours == "1.00"


def test_the_counts_of_verdicts():
    """Every row is counted once: the summary's columns have all verdicts."""
    lines = results_verdicts.verdicts(results_tables.Results(paper.RESULTS)).splitlines()
    rows = results_verdicts.all_rows(results_tables.Results(paper.RESULTS))
    counts = {
        cells[0].strip(): [int(cell) if cell.strip() else 0 for cell in cells[1:]]
        for line in lines[: lines.index(next(line for line in lines if line.startswith("| all"))) + 1]
        if line.startswith("| ") and (cells := line.strip("|").split("|"))[1].strip().isdigit()
    }
    assert counts["all"][0] == len(rows) == sum(counts["all"][1:])
    assert set(counts) - {"all"} == {row.where for row in rows}
    assert all(total == sum(each) for total, *each in counts.values())


def test_the_better_of_two_optimizers(tmp_path):
    """Of each seed, and the deviation is that of all teachers."""
    (tmp_path / "full").mkdir()
    for stem, errors in (("approximation", [0.1, 0.4]), ("approximation-sgd", [0.2, 0.3])):
        row = {"inputs": 2, "pair": "FC-1 by FC-1", "RMSE": errors, "deviation of the teacher": [1.0, 3.0]}
        (tmp_path / "full" / f"{stem}.json").write_text(json.dumps({"command": stem, "results": [row]}))
    found = results_tables.Results(tmp_path)
    assert results_verdicts.fitted(found, 2, "FC-1 by FC-1") == ([0.1, 0.3], 2.0)
    assert results_verdicts.fitted(found, 3, "FC-1 by FC-1") is None


def test_the_list_of_what_is_not_run(tmp_path):
    """It has every experiment of the table."""
    text = results.not_run(results_tables.Results(tmp_path))
    assert all(experiment.stem in text for experiment in paper.EXPERIMENTS)
    assert all(name in text for name, *_ in paper_figures.IMAGENET.values())


def test_a_short_run_says_so():
    found = {"settings": {"iterations": 20_000, "epochs": 300, "rates": [0.1, 0.2]}}
    assert results_tables.setting(found, epochs=300) == "full"
    assert results_tables.setting(found, iterations=40_000) == "short run: 20,000 of 40,000 iterations"
    assert results_tables.setting(found, epochs=300, rates=10) == "full; 2 of 10 rates"
    found["settings"]["width"] = 50
    text = "short run: width 50 of 200, 20,000 of 40,000 iterations; 2 of 10 rates"
    assert results_tables.setting(found, iterations=40_000, width=200, rates=10) == text


def test_all_plots_are_shown_and_small():
    text = (ROOT / "docs" / "results.md").read_text()
    plots = sorted(paper.RESULTS.glob("*/*.png"))
    assert plots
    for plot in plots:
        assert f"(../{plot.relative_to(ROOT)})" in text
        assert plot.stat().st_size <= 100_000


@pytest.mark.parametrize("stem", list(paper_figures.CHECKERBOARD))
def test_activation_ratios(stem):
    """The count of the page is that of the network, and within a unit of the last digit of the paper's but for one."""
    ratio = 100 * activation_ratio(MODELS[stem](), torch.zeros(2))
    parameters, printed = paper_figures.CHECKERBOARD[stem][2:4]
    assert ratio == pytest.approx(100 * results_verdicts.activations(stem) / parameters)
    assert (ratio == pytest.approx(printed, abs=0.015)) == (stem != "fcnet2")


def test_speed(tmp_path, monkeypatch):
    """The eager and the fused network are the same one: after the same batches they score alike."""
    run(monkeypatch, "speed", "--seeds", 1, "--iterations", 100, "--out", tmp_path)
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["networks"] == 50
    assert found["eager"]["test, last"] == pytest.approx(found["hanops"]["test, last"], abs=0.5)
    assert found["grouped"]["test, last"] == pytest.approx(found["hanops"]["test, last"], abs=0.5)
    assert found["times faster, one network"] == pytest.approx(
        found["eager"]["seconds"][0] / found["hanops"]["seconds"][0]
    )
