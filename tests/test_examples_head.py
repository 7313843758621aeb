"""The example of frozen features reads them, and its networks are the paper's."""

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from hanops.models import HanHead

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
head = pytest.importorskip("examples.head")

ROOT = Path(__file__).parent.parent


def test_head_is_the_papers():
    """The network of the example that can be grouped computes what HanHead does."""
    theirs, ours = HanHead(), head.network("han", 2048, 10)
    assert len(theirs.state_dict()) == len(ours.state_dict())
    values = theirs.state_dict().values()  # dense, Han layers, classifier: u before b, weight before bias in both
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    x = torch.randn(5, 2048)
    torch.testing.assert_close(ours(x), theirs(x))


def test_linear():
    models = [head.Linear(6, 3) for _ in range(2)]
    grouped = head.Linear.grouped(models)
    x = torch.randn(2, 5, 6)
    for group, model in enumerate(models):
        torch.testing.assert_close(grouped(x)[group], model(x[group]))
        torch.testing.assert_close(model(x[group]), x[group] @ model.out.weight.T + model.out.bias)
        assert torch.equal(grouped.single(group).out.weight, model.out.weight)


def test_class_error():
    logits = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [2.0, 1.0]]])
    assert head.class_error(logits, torch.tensor([[1, 1, 0, 0]])).tolist() == [50]


def test_features(tmp_path):
    file = tmp_path / "features.npz"
    x, y = numpy.ones((4, 7)), numpy.arange(4)
    numpy.savez(file, x=x, y=y, test_x=x[:2], test_y=y[:2])
    shapes = [list(part.shape) for part in head.load(file)]
    assert shapes == [[4, 7], [4], [2, 7], [2]]
    numpy.savez(file, x=x, y=y)
    with pytest.raises(ValueError, match=r"lacks \['test_x', 'test_y'\]"):
        head.load(file)
    numpy.savez(file, x=x, y=y, test_x=x[:2], test_y=y)
    with pytest.raises(ValueError, match=r"got \{'x': \[4, 7\], 'y': \[4\], 'test_x': \[2, 7\], 'test_y': \[4\]\}"):
        head.load(file)


def test_head(tmp_path):
    file = tmp_path / "small.npz"
    x, y = numpy.random.default_rng(0).normal(size=(60, 8)).astype(numpy.float32), numpy.arange(60) % 3
    numpy.savez(file, x=x[:40], y=y[:40], test_x=x[40:], test_y=y[40:])
    words = ["--iterations", "20", "--batch", "16", "--seeds", "2", "--data", str(file), "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "examples.head", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "head-small.json").read_text())
    assert result["rows"] == {"train": 40, "test": 20, "features": 8}
    for model, parameters in (("han", 9 * 30 + 3 * 60 + 31 * 3), ("linear", 9 * 3)):
        assert f"{head.HEADS[model]}, {parameters} parameters" in done.stdout
        each = result[model]["best setting of each seed"]
        assert len(each["test, best"]) == 2
        assert all(best <= last for best, last in zip(each["test, best"], each["test, last"], strict=True))
    assert (tmp_path / "head-small.png").stat().st_size > 5_000


def test_made_features():
    pytest.importorskip("sklearn")
    x, y, test_x, test_y = head.made()
    assert (x.shape, test_x.shape) == ((1347, 2048), (450, 2048))
    assert (y.unique().tolist(), len(test_y)) == (list(range(10)), 450)
    assert torch.cat((x, test_x)).square().mean().item() == pytest.approx(1 / 64, rel=1e-5)
    assert x.min() == 0
