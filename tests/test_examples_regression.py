"""The regression reads tables, splits and scales them, has the paper's counts of parameters, and goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hanops.metrics import activation_ratio
from hanops.models import FCNet, HanNet

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
metrics = pytest.importorskip("sklearn.metrics")
regression = pytest.importorskip("examples.regression")

from examples.sweep import Data, Recipe, Run, root_mean_squared_error, train  # noqa: E402

ROOT = Path(__file__).parent.parent


def table(rows: int = 130) -> torch.Tensor:
    """Three columns, the second constant, the third 5 but in the last row, and a target far from 0."""
    x = torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 7 + 3
    x[:, 1] = 2
    x[:-1, 2] = 5
    return torch.cat([x, 20 + x[:, :1] / 2], 1)


@pytest.fixture
def folder(tmp_path):
    for name in ("small", "other"):
        rows = [",".join(map(str, row)) for row in table().tolist()]
        (tmp_path / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.mark.parametrize(("features", "counts"), [(18, (11_601, 11_201, 164_801)), (8, (9_601, 10_701, 162_801))])
def test_parameters(features, counts):
    """Those of the paper for Elevators and Cal Housing."""
    made = [make(features) for make in regression.MODELS.values()]
    assert tuple(sum(p.numel() for p in model.parameters()) for model in made) == counts
    again = (HanNet(features, 200, 20, 1), FCNet(features, 50, 5, 1), FCNet(features, 200, 5, 1))
    assert [repr(model) for model in made] == [repr(model) for model in again]
    assert activation_ratio(made[0], torch.zeros(features)) == pytest.approx(4000 / counts[0])


def test_read(folder):
    tables = regression.read(folder, None)
    assert list(tables) == ["other", "small"]
    torch.testing.assert_close(tables["small"], table())
    assert list(regression.read(folder, "small")) == ["small"]
    assert regression.read(None, None)["diabetes"].shape == (442, 11)
    for place, name in ((folder, "none"), (None, "small"), (folder / "empty", None)):
        with pytest.raises(ValueError, match="--table: there is no table"):
            regression.read(place, name)
    (folder / "holes.csv").write_text("1,2\nnan,3\n")
    with pytest.raises(ValueError, match=r"holes\.csv, line 2: a number must be finite"):
        regression.read(folder, "holes")


def test_data():
    points = regression.data(table(), 0.8, 4, False, "cpu")
    assert points.x.shape == (4, 104, 2)  # without the constant column
    assert points.test_x.shape == (4, 26, 2)
    assert not torch.equal(points.x[0], points.x[1])
    torch.testing.assert_close(points.x[:, :, 0].mean(1), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(points.x[:, :, 0].std(1), torch.ones(4))
    targets = torch.cat([points.target, points.test_target], 1).sort(1).values
    torch.testing.assert_close(targets, table()[:, 3:].float().sort(0).values.expand(4, -1, -1))  # each row once, as is
    rare = torch.tensor([bool((x[:, 1] != 0).any()) for x in points.x])  # seeds that train with the last row
    assert points.test_x[~rare][..., 1].abs().sum() == 0
    assert 0 < rare.sum() < 4
    whole = regression.data(table(), 0.8, 4, True, "cpu")
    features = torch.cat([whole.x, whole.test_x], 1)
    torch.testing.assert_close(features.mean(1), torch.zeros(4, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(features.std(1), torch.ones(4, 2))
    assert torch.equal(whole.target, points.target)
    for part in (0.0, 1.0):
        with pytest.raises(ValueError, match="--part: must leave rows"):
            regression.data(table(), part, 1, False, "cpu")


def test_figures():
    """R2 is scikit-learn's, of the outputs that have the error."""
    x, y = torch.randn(2, 40, 3), 5 + torch.randn(2, 40, 1)
    points = Data(x[:, :30], y[:, :30], x[:, 30:], y[:, 30:])
    make, runs = (lambda: HanNet(3, 8, 3, 1)), [Run(seed, 0.01) for seed in range(2)]
    state = train(make, runs, points, Recipe(6, 10, every=2), root_mean_squared_error, lower=True)
    found = regression.figures(state, points)
    outputs = state.model(points.test_x).detach()
    for seed in range(2):
        known, said = points.test_target[seed].numpy(), outputs[seed].numpy()
        assert found["test R2, last"][seed] == pytest.approx(metrics.r2_score(known, said), abs=1e-4)
        assert found["test RMSE, last"][seed] == pytest.approx(metrics.root_mean_squared_error(known, said), rel=1e-4)
        assert found["test RMSE, best"][seed] == min(entry["test"][seed] for entry in state.history)
    assert found["test R2, best, mean and spread"][0] == pytest.approx(sum(found["test R2, best"]) / 2)


@pytest.mark.parametrize(("stem", "name"), [("calhousing", "Cal Housing"), ("small", "small")])
def test_the_plot_is_called_as_the_paper_has_it(stem, name, folder, monkeypatch):
    titles = []
    monkeypatch.setattr(regression, "plot", lambda path, histories, title, *rest: titles.append(title))
    (folder / f"{stem}.csv").write_text((folder / "small.csv").read_text())
    options = ["--data", folder, "--table", stem, "--model", "fcnet1", "--epochs", 1, "--seeds", 1, "--out", folder]
    monkeypatch.setattr("sys.argv", ["regression.py", *map(str, options)])
    regression.main()
    assert titles == [f"{name}, 104 of 130 rows train, 1 seeds"]


def test_regression(folder, monkeypatch):
    options = ["--data", str(folder), "--epochs", "3", "--every", "2", "--seeds", "2", "--out", str(folder / "out")]
    command = [sys.executable, "-m", "examples.regression", *options, "--model", "hannet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test RMSE") == 2
    first = {name: json.loads((folder / f"out/regression-{name}-0.8.json").read_text()) for name in ("other", "small")}
    assert str(folder) not in json.dumps(first)
    monkeypatch.setattr("sys.argv", ["regression.py", *options, "--table", "small", "--model", "hannet", "fcnet1"])
    regression.main()
    result = json.loads((folder / "out/regression-small-0.8.json").read_text())
    assert list(result["models"]) == ["hannet", "fcnet1"]
    assert result["models"]["hannet"] == first["small"]["models"]["hannet"]  # not trained again: even the seconds
    rows = (folder / "small.csv").read_text().splitlines()
    rows[0] = rows[0].rsplit(",", 1)[0] + ",30"
    (folder / "small.csv").write_text("\n".join(rows))
    regression.main()
    changed = json.loads((folder / "out/regression-small-0.8.json").read_text())
    assert changed["models"]["hannet"] != result["models"]["hannet"]  # another table is trained anew
    assert result["rows"] == {"train": 104, "test": 26}
    assert result["models"]["fcnet1"]["parameters"] == FCNet(2, 50, 5, 1).hidden[0].weight.numel() + 10_301
    assert (folder / "out/regression-small-0.8.png").stat().st_size > 10_000
