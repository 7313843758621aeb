"""Teachers and students of the mutual approximation: their sizes, their points, and a tiny run that goes on."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
approximation = pytest.importorskip("examples.approximation")

from examples.experiment import best  # noqa: E402
from examples.sweep import Recipe, Run, root_mean_squared_error, train  # noqa: E402
from hanops import HanStack  # noqa: E402

ROOT = Path(__file__).parent.parent


def test_networks():
    """FC-1 has one square dense layer, Han-3 three Han layers."""
    dense, han = (approximation.network(kind, 4, 50) for kind in approximation.KINDS)
    assert sum(p.numel() for p in dense.parameters()) == (4 * 50 + 50) + (50 * 50 + 50) + (50 + 1)
    assert sum(p.numel() for p in han.parameters()) == (4 * 50 + 50) + 3 * (50 + 50) + (50 + 1)
    assert [m.depth for m in han.modules() if isinstance(m, HanStack)] == [3]


@pytest.mark.parametrize("teacher", approximation.KINDS)
def test_data(teacher):
    runs = [Run(seed, rate) for rate in (0.1, 0.2) for seed in (0, 1)]
    found = approximation.data(runs, teacher, 3, 20, "cpu")
    assert found.x.shape == (4, 2000, 3)
    assert found.test_target.shape == (4, 10000, 1)
    assert torch.equal(found.x[0], found.x[2])  # of one seed
    assert not torch.equal(found.x[0], found.x[1])
    assert -1 <= found.test_x.min() < -0.99
    assert 0.99 < found.test_x.max() <= 1
    torch.testing.assert_close(found.test_x.mean((0, 1)), torch.zeros(3), atol=0.03, rtol=0)
    x, y = approximation.points(teacher, 3, 20, 1)
    torch.manual_seed(1)
    student = approximation.network(teacher, 3, 20)
    assert torch.equal(y[:2000], found.target[1])
    assert not torch.allclose(student(x), y)  # another network than the teacher


@pytest.mark.parametrize("kind", approximation.KINDS)
def test_start(kind):
    """All dense weights are orthogonal, those of students as those of teachers."""
    torch.manual_seed(0)
    dense = [m.weight for m in approximation.network(kind, 4, 50).modules() if isinstance(m, torch.nn.Linear)]
    assert len(dense) == (3 if kind == "FC-1" else 2)
    for weight in dense:
        short = weight if weight.shape[0] <= weight.shape[1] else weight.t()
        torch.testing.assert_close(short @ short.t(), torch.eye(len(short)), atol=1e-5, rtol=0)


def test_a_diverged_network_is_never_the_best():
    runs = [Run(0, rate) for rate in (1e9, 0.01)]
    taught = approximation.data(runs, "FC-1", 2, 10, "cpu")
    make = lambda: approximation.network("FC-1", 2, 10)  # noqa: E731
    state = train(make, runs, taught, Recipe(40, every=20), root_mean_squared_error, lower=True)
    assert best(state.history, lower=True)[0] == math.inf
    assert approximation.summary(runs, state.history, lower=True)["best setting of each seed"]["rate"] == [0.01]


def test_approximation(tmp_path, monkeypatch):
    options = ["--epochs", "2", "--every", "1", "--seeds", "2", "--width", "8", "--rates", "0.01", "0.1"]
    options += ["--decays", "0", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "examples.approximation", *options, "--inputs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("RMSE") == 4
    first = json.loads((tmp_path / "approximation-width8.json").read_text())["results"]
    monkeypatch.setattr("sys.argv", ["approximation.py", *options, "--inputs", "2", "5"])
    approximation.main()
    results = json.loads((tmp_path / "approximation-width8.json").read_text())["results"]
    assert results[:4] == first  # not trained again: even the seconds
    assert [row["pair"] for row in results[4:]] == [
        "FC-1 by FC-1",
        "FC-1 by Han-3",
        "Han-3 by FC-1",
        "Han-3 by Han-3",
    ]
    for row in results:
        _, targets = approximation.points(row["pair"].split(" by ")[0], row["inputs"], 8, 1)
        assert row["deviation of the teacher"][1] == pytest.approx(targets[2000:].std().item(), rel=1e-3)
        assert row["RMSE, mean and spread"][0] == pytest.approx(sum(row["RMSE"]) / 2)
        assert row["networks"] == 4
        assert len(row["RMSE of each setting"]) == 2
    assert (tmp_path / "approximation-width8.png").stat().st_size > 5_000


def test_plot_over_width(tmp_path, monkeypatch):
    """Widths come in their order; a pair that diverged has no point, one seed no bar, and one setting a hollow mark."""
    figures = []
    monkeypatch.setattr(approximation, "save_plot", lambda figure, path: figures.append(figure))

    def result(rates, *errors):
        cells = [
            {"inputs": n, "pair": " by ".join(pair), "RMSE, mean and spread": error}
            for n in (2, 4)
            for pair, error in zip(approximation.PAIRS, errors, strict=True)
        ]
        return {"settings": {"rates": rates, "decays": [0]}, "results": cells}

    sure, single, diverged = [0.02, 0.01], [0.03, None], [None, None]
    wide, narrow = result([0.1], sure, sure, single, diverged), result([0.1, 0.01], sure, sure, sure, sure)
    approximation.plot_widths(tmp_path / "plot.png", {"100": wide, "30": narrow})
    panels = figures[0].axes
    assert [panel.get_title() for panel in panels] == ["2 inputs", "4 inputs"]
    for panel in panels:
        assert panel.get_xticks().tolist() == [30, 100]
        curves = [[*line.get_ydata()] for line in panel.lines if line.get_linestyle() == "-" and len(line.get_ydata())]
        assert curves == [[0.02, 0.02], [0.02, 0.02], [0.02, 0.03], [0.02]]
        marks = [bar.lines[0].get_markerfacecolor() for bar in panel.containers]
        assert [mark == "white" for mark in marks] == [False, True, False, True, False, True, False]
    assert "one rate and decay" in [text.get_text() for text in figures[0].legends[0].get_texts()]
