"""The papers' experiments: programs take the commands and run."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from examples import heatmap, paper, sines, variability
from examples.checkerboard import MODELS, mesh
from hanops.models import FCNet


def run(monkeypatch: pytest.MonkeyPatch, program: str, *words: object) -> None:
    """Runs an example in this process."""
    monkeypatch.setattr(sys, "argv", [f"examples/{program}.py", *map(str, words)])
    importlib.import_module(f"examples.{program}").main()


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


def test_speed(tmp_path, monkeypatch):
    """The eager and the fused network are the same one: after the same batches they score alike."""
    run(monkeypatch, "speed", "--seeds", 1, "--iterations", 100, "--out", tmp_path)
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["networks"] == 50
    assert found["processor"].startswith(f"{torch.get_num_threads()} threads with ")
    assert found["eager"]["test, last"] == pytest.approx(found["hanops"]["test, last"], abs=0.5)
    assert found["grouped"]["test, last"] == pytest.approx(found["hanops"]["test, last"], abs=0.5)
    assert found["times faster, one network"] == pytest.approx(
        found["eager"]["seconds"][0] / found["hanops"]["seconds"][0]
    )
