"""The examples run, go on where they were interrupted, and train groups as single networks would."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hanops.models import HanNet

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
checkerboard = pytest.importorskip("checkerboard")

from sweep import Recipe, Run, best, mean_and_spread, rate_at, train  # noqa: E402

EXAMPLES = Path(__file__).parent.parent / "examples"
RUNS = [Run(seed, rate) for rate in (0.02, 0.05) for seed in (0, 1)]


def small() -> HanNet:
    return HanNet(2, 10, 5, 2, dense_layers=(2, 5))


def test_board():
    x, label = checkerboard.board(full=False)
    assert x.shape == label.shape == (6561, 2)
    assert torch.equal(label[:, 0], label[:, 1])
    mesh = label[:, 0].view(81, 81)
    assert mesh[:4].sum() == mesh[76:].sum() == mesh[:, :4].sum() == mesh[:, 76:].sum() == 0
    assert mesh[4:10, 10:16].min() == 1
    assert mesh[4:10, 4:10].max() == 0
    assert mesh.sum() == 72 * 72 / 2
    assert x[0].tolist() == [-1, -1]
    assert x[1].tolist() == pytest.approx([-1, -0.975])
    assert checkerboard.board(full=True)[1][:, 0].mean() == pytest.approx(0.5, abs=0.01)


def test_data():
    points = checkerboard.data(RUNS, full=False, noise=0.0, device="cpu")
    assert points.x.shape == (4, 1640, 2)
    assert points.test_x.shape == (4, 4921, 2)
    assert torch.equal(points.x[0], points.x[2])  # of one seed
    assert not torch.equal(points.x[0], points.x[1])
    noisy = checkerboard.data(RUNS, full=False, noise=0.1, device="cpu")
    assert (noisy.target != points.target).float().mean() == pytest.approx(0.1, abs=0.03)
    assert torch.equal(noisy.test_target, points.test_target)


def test_accuracy():
    outputs = torch.tensor([[[0.9, 0.6], [0.4, 0.6], [0.1, -0.2], [float("nan"), 0.0]]])
    targets = torch.tensor([[[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]])
    assert checkerboard.accuracy(outputs, targets).tolist() == [0.5]


def test_rate():
    recipe = Recipe(iterations=100)
    assert [rate_at(recipe, i) for i in (0, 49, 50, 70, 90)] == pytest.approx([1, 1, 0.2, 0.04, 0.008])


def test_groups_train_as_single_runs_do():
    recipe = Recipe(iterations=60, every=20)
    points = checkerboard.data(RUNS, full=False, noise=0.0, device="cpu")
    together = train(small, RUNS, points, recipe, checkerboard.accuracy)
    for group, run in enumerate(RUNS):
        alone = train(
            small, [run], checkerboard.data([run], full=False, noise=0.0, device="cpu"), recipe, checkerboard.accuracy
        )
        for a, b in zip(together.model.single(group).parameters(), alone.model.single(0).parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        assert together.history[-1]["loss"][group] == pytest.approx(alone.history[-1]["loss"][0], rel=1e-3)


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    points = checkerboard.data(RUNS, full=False, noise=0.0, device="cpu")
    checkpoint = tmp_path / "state.pt"
    monkeypatch.setattr("sweep.SAVE_SECONDS", 0.0)
    calls = 0

    def interrupted(outputs, targets):
        nonlocal calls
        calls += 1
        if calls == 7:  # two calls for each evaluation
            raise KeyboardInterrupt
        return checkerboard.accuracy(outputs, targets)

    recipe = Recipe(60, every=10)
    whole = train(small, RUNS, points, recipe, checkerboard.accuracy)
    with pytest.raises(KeyboardInterrupt):
        train(small, RUNS, points, recipe, interrupted, checkpoint)
    assert torch.load(checkpoint)["iteration"] == 30
    resumed = train(small, RUNS, points, recipe, checkerboard.accuracy, checkpoint)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert resumed.history == whole.history
    for other_runs, other in ((RUNS, Recipe(80, every=10)), ([*RUNS[:3], Run(1, 0.1)], recipe)):
        with pytest.raises(ValueError, match="is of another sweep"):
            train(small, other_runs, points, other, checkerboard.accuracy, checkpoint)


def test_a_diverging_run_leaves_the_others_alone():
    runs = [Run(0, 0.05), Run(0, 1e6)]
    points = checkerboard.data(runs, full=False, noise=0.0, device="cpu")
    state = train(small, runs, points, Recipe(40, every=40), checkerboard.accuracy)
    assert math.isfinite(state.history[-1]["loss"][0])
    assert not math.isfinite(state.history[-1]["loss"][1])


def test_figures():
    assert best([{"test": [0.1, 0.9]}, {"test": [0.5, 0.2]}]) == [0.5, 0.9]
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_spread([2.0]) == (2.0, 0.0)


@pytest.mark.parametrize("model", ["hannet", "orth-abs"])
def test_checkerboard(model, tmp_path):
    command = [
        sys.executable,
        str(EXAMPLES / "checkerboard.py"),
        "--model",
        model,
        "--iterations",
        "30",
        "--seeds",
        "2",
    ]
    command += ["--rates", "0.05", "0.1", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    result = json.loads((tmp_path / f"checkerboard-{model}.json").read_text())
    assert [row["rate"] for row in result["rates"]] == [0.05, 0.1]
    rates, each = result["rates"], result["best rate of each seed"]
    assert each["test, best"] == [max(row["test, best"][seed] for row in rates) for seed in range(2)]
    assert each["test, best, mean and spread"][0] == pytest.approx(sum(each["test, best"]) / 2)
    assert (tmp_path / f"checkerboard-{model}.png").stat().st_size > 10_000
