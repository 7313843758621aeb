"""The examples run, go on where they were interrupted, and train groups as single networks would."""

import importlib
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
checkerboard = pytest.importorskip("examples.checkerboard")

from examples import checkpoints  # noqa: E402
from examples.checkpoints import Checkpoint, checksum  # noqa: E402
from examples.experiment import at_best, best, mean_and_spread, save_plot, spread, summary  # noqa: E402
from examples.sweep import Data, Optimizer, Recipe, Run, draw, rate_at, train  # noqa: E402

ROOT = Path(__file__).parent.parent
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


def test_board_of_8_blocks():
    """8 x 8 blocks of 9 x 9 points inside the margin, as a Kronecker product has them."""
    label = checkerboard.board(full=False, blocks=8)[1][:, 0].view(81, 81)
    blocks = torch.kron(torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(4, 4), torch.ones(9, 9))
    assert torch.equal(label[4:76, 4:76], blocks)
    assert label.sum() == blocks.sum()


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
    """As the authors' code counts: the mean of both outputs, cut at 0.5."""
    outputs = torch.tensor([[[0.9, 0.2], [0.4, 0.5], [0.1, -0.2], [math.nan, 0.0], [0.5, 0.5]]])
    targets = torch.tensor([[[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]])
    assert checkerboard.accuracy(outputs, targets).tolist() == [40]


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
    checkpoint = Checkpoint(tmp_path / "state.pt")
    monkeypatch.setattr("examples.sweep.SAVE_SECONDS", 0.0)
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
    assert torch.load(checkpoint.path)["iteration"] == 30
    resumed = train(small, RUNS, points, recipe, checkerboard.accuracy, checkpoint)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert resumed.history == whole.history
    for other_runs, other in ((RUNS, Recipe(80, every=10)), ([*RUNS[:3], Run(1, 0.1)], recipe)):
        with pytest.raises(ValueError, match="is of another sweep"):
            train(small, other_runs, points, other, checkerboard.accuracy, checkpoint)


def test_a_checkpoint_of_other_data(tmp_path, capsys):
    """Flipped labels are other data: the network of the plain board is not taken for theirs."""
    file = Checkpoint(tmp_path / "state.pt")
    recipe = Recipe(20, every=10)
    plain, noisy = (checkerboard.data(RUNS, full=False, noise=noise, device="cpu") for noise in (0.0, 0.1))
    train(small, RUNS, plain, recipe, checkerboard.accuracy, file)
    with pytest.raises(
        ValueError, match=r"is of another sweep, with other data: go on with \{'data': .* start --fresh"
    ):
        train(small, RUNS, noisy, recipe, checkerboard.accuracy, file)
    saved = torch.load(file.path)
    renewed = train(small, RUNS, noisy, recipe, checkerboard.accuracy, Checkpoint(file.path, renew=True))
    assert "is of another sweep, with other data" in capsys.readouterr().out
    assert renewed.history == train(small, RUNS, noisy, recipe, checkerboard.accuracy).history
    assert renewed.history != saved["history"]
    assert train(small, RUNS, noisy, recipe, checkerboard.accuracy, file).seconds == renewed.seconds  # its own is kept
    del saved["settings"]["data"]  # as an older version wrote it
    checkpoints.save(file.path, saved)
    with pytest.raises(ValueError, match=r"is of another sweep, with other data: go on with \{'data': None\}"):
        train(small, RUNS, plain, recipe, checkerboard.accuracy, file)


@pytest.mark.parametrize("words", [["ablation", "--models"], ["heatmap", "--widths", 8, "--depths", 2, "--models"]])
def test_noise_is_not_taken_for_the_plain_board(words, tmp_path, monkeypatch):
    """Their JSON and checkpoints have one name with and without --noise and --full."""
    program, *rest = words
    module = importlib.import_module(f"examples.{program}")
    options = ["--seeds", 1, "--rates", 0.05, "--iterations", 10, "--no-plot", "--out", tmp_path]
    for other in ([], ["--noise", 0.5], ["--full"]):
        monkeypatch.setattr(sys, "argv", [program, *map(str, [*rest, "hannet", *options, *other])])
        if not other:
            module.main()
            continue
        with pytest.raises(ValueError, match="is of another sweep, with other data"):
            module.main()


def test_checksum():
    """A single label tells; rounding does not, nor whether groups share their memory."""
    points = checkerboard.data(RUNS, full=False, noise=0.0, device="cpu")
    target = points.target.clone()
    known = checksum(points.x, target)
    assert checksum(points.x * (1 + 1e-7), target) == known
    for group, row in ((0, 0), (1, 700), (3, 1639)):
        other = target.clone()
        other[group, row, 0] = 1 - other[group, row, 0]
        assert checksum(points.x, other) != known
    assert checksum(points.x, 2 * target) != known
    one, classes = points.x[:1], torch.arange(7).expand(3, 7)
    assert checksum(one.expand(3, *one.shape[1:]))[0].endswith(checksum(one)[0].partition("]")[2])
    assert checksum(classes) != checksum(classes.flip(1))


def test_a_diverging_run_leaves_the_others_alone():
    runs = [Run(0, 0.05), Run(0, 1e6)]
    points = checkerboard.data(runs, full=False, noise=0.0, device="cpu")
    state = train(small, runs, points, Recipe(40, every=40), checkerboard.accuracy)
    assert math.isfinite(state.history[-1]["loss"][0])
    assert not math.isfinite(state.history[-1]["loss"][1])


def test_figures():
    history = [{"test": [0.1, 0.9], "train": [1, 2]}, {"test": [0.5, 0.2], "train": [3, 4]}]
    assert best(history) == [0.5, 0.9]
    assert best(history, lower=True) == [0.1, 0.2]
    assert best([{"test": [math.nan, math.nan]}, {"test": [0.5, math.nan]}], lower=True) == [0.5, math.inf]
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_spread([2.0])[0] == 2.0
    assert math.isnan(mean_and_spread([2.0])[1])
    assert spread(mean_and_spread([1.0, 3.0])) == "2.00 ± 1.41"
    assert spread(mean_and_spread([2.0]), ".3f") == spread((2.0, None), ".3f") == "2.000"
    assert spread((None, None)) == spread((math.inf, 1.0)) == spread(None) == "-"
    found = summary([Run(0, 0.1), Run(0, 0.2)], history)["best setting of each seed"]
    assert found["rate"] == [0.2]
    assert found["test, best"] == [0.9]
    assert found["train, last"] == [4]
    assert found["train, at best test"] == [2]
    diverged = [{"test": [math.nan], "train": [5]}, {"test": [math.nan], "train": [6]}]
    assert at_best(diverged, "train") == at_best(diverged, "train", lower=True) == [6]
    assert summary([Run(0, 0.1), Run(0, 0.1, 0.3)], history, lower=True)["best setting of each seed"]["decay"] == [0]


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_optimizer(name):
    """Each group goes as torch's optimizer does with its rate and decay."""
    runs = [Run(0, 0.1), Run(1, 0.1), Run(0, 0.02, decay=0.1)]
    start = torch.randn(3, 3, 4)
    ours = start.clone().requires_grad_()
    optimizer = Optimizer(Recipe(1, optimizer=name), runs, [ours])
    for _ in range(5):
        (gradient,) = torch.autograd.grad((ours - 1).square().mul(torch.arange(4.0)).sum(), ours)
        optimizer.step([gradient.mT.contiguous().mT], part=0.5)  # of other strides than the parameter
    for group, run in enumerate(runs):
        theirs = start[group].clone().requires_grad_()
        options = {"lr": 0.5 * run.rate, "weight_decay": run.decay}
        other = (
            torch.optim.Adam([theirs], **options)
            if name == "adam"
            else torch.optim.SGD([theirs], momentum=0.9, **options)
        )
        for _ in range(5):
            other.zero_grad()
            (theirs - 1).square().mul(torch.arange(4.0)).sum().backward()
            other.step()
        torch.testing.assert_close(ours[group], theirs)


def test_epochs():
    """Rows come in turns: each once in an epoch, but for what no whole batch is left for."""
    rows = draw(torch.Generator().manual_seed(0), Recipe(9, batch=10, every=6, epochs=True), 35)
    assert rows.shape == (6, 10)
    assert all(rows[epoch : epoch + 3].unique().numel() == 30 for epoch in (0, 3))
    few = Data(*(torch.zeros(4, 9, 2) for _ in range(4)))
    with pytest.raises(ValueError, match="a batch of 10 rows needs as many to train on, got 9"):
        train(small, RUNS, few, Recipe(9, batch=10, epochs=True), checkerboard.accuracy)


def test_batches_without_replacement():
    """No row is twice in a batch, batches do not depend on each other, and each row is as likely as any other."""
    recipe = Recipe(400, batch=30, every=400)
    rows = draw(torch.Generator().manual_seed(0), recipe, 40)
    assert rows.shape == (400, 30)
    assert all(batch.unique().numel() == 30 for batch in rows)
    counts = rows.flatten().bincount(minlength=40) / 400
    torch.testing.assert_close(counts, torch.full((40,), 0.75), atol=0.1, rtol=0)
    assert rows[:, 0].unique().numel() == 40
    few = Data(*(torch.zeros(4, 9, 2) for _ in range(4)))
    with pytest.raises(ValueError, match="a batch of 10 rows needs as many to train on, got 9"):
        train(small, RUNS, few, Recipe(9, batch=10), checkerboard.accuracy)


def test_a_plot_is_small_and_whole(tmp_path):
    """A picture of many greys takes under 100 KB, and no other file is left."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 4.4))
    axes.imshow(torch.rand(241, 241).numpy(), cmap="gray")
    save_plot(figure, tmp_path / "plot.png")
    assert [file.name for file in tmp_path.iterdir()] == ["plot.png"]
    assert 10_000 < (tmp_path / "plot.png").stat().st_size < 100_000
    assert not pyplot.fignum_exists(figure.number)


@pytest.mark.parametrize("model", ["hannet", "orth-abs"])
def test_checkerboard(model, tmp_path):
    command = [
        sys.executable,
        "-m",
        "examples.checkerboard",
        "--model",
        model,
        "--iterations",
        "30",
        "--seeds",
        "2",
    ]
    command += ["--rates", "0.05", "0.1", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    result = json.loads((tmp_path / f"checkerboard-{model}.json").read_text())
    assert [row["rate"] for row in result["settings of the sweep"]] == [0.05, 0.1]
    rates, each = result["settings of the sweep"], result["best setting of each seed"]
    assert each["test, best"] == [max(row["test, best"][seed] for row in rates) for seed in range(2)]
    assert each["test, best, mean and spread"][0] == pytest.approx(sum(each["test, best"]) / 2)
    assert (tmp_path / f"checkerboard-{model}.png").stat().st_size > 10_000
