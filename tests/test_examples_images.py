"""The example of images reads published files, changes images as it says, and goes on where it was interrupted."""

import argparse
import json
import pickle
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy
import pytest
import torch

from hanops.models import mixer_cifar, mixer_stl10, mobilevit_xs, mobilevit_xxs

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
pytest.importorskip("PIL")
images = pytest.importorskip("examples.images")

from examples.checkpoints import Checkpoint  # noqa: E402
from examples.image_data import (  # noqa: E402
    FILES,
    GREY,
    RANDAUGMENT,
    Augmented,
    Image,
    Images,
    cutout,
    flip,
    load,
    made,
    randaugment,
)

ROOT = Path(__file__).parent.parent


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, and NumPy's names of that time: so are the files of CIFAR."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value):
        self.write(
            pickle.SHORT_BINSTRING + bytes([len(value)])
            if len(value) < 256
            else pickle.BINSTRING + struct.pack("<i", len(value))
        )
        self.write(value)
        self.memoize(value)

    def save_global(self, value, name=None):
        if getattr(value, "__name__", "") == "_reconstruct":
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
        else:
            super().save_global(value, name)

    def reducer_override(self, value):
        if isinstance(value, numpy.dtype):
            return numpy.dtype, (b"u1", 0, 1), (3, b"|", None, None, None, -1, -1, 0)
        return NotImplemented

    dispatch[bytes] = save_bytes
    dispatch[type(numpy.empty(0).__reduce__()[0])] = save_global


def cifar(folder: Path, file: str, labels: bytes, images: numpy.ndarray, classes: list[int]) -> None:
    """Writes images (n, 32, 32, 3) as CIFAR's files do: a row of 1,024 reds, 1,024 greens and 1,024 blues each."""
    rows = numpy.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(-1, 3072))
    with (folder / file).open("wb") as stream:
        Python2Pickler(stream, protocol=2).dump({b"batch_label": b"one", labels: classes, b"data": rows})


def pixels(n: int, side: int) -> numpy.ndarray:
    return numpy.random.default_rng(n).integers(0, 256, (n, side, side, 3), dtype=numpy.uint8)


@pytest.mark.parametrize(
    ("name", "key", "classes", "side"), [("cifar10", b"labels", 10, 16), ("cifar100", b"fine_labels", 100, 8)]
)
def test_cifar(name, key, classes, side, tmp_path):
    files = FILES[name]
    batches = [pixels(2 + index, 32) for index in range(len(files))]
    for file, batch in zip(files, batches, strict=True):
        cifar(tmp_path, file, key, batch, [classes - 1 - row for row in range(len(batch))])
    data = load(tmp_path)
    assert (data.name, data.classes, data.cutout, data.side) == (name, classes, side, 32)
    numpy.testing.assert_array_equal(data.x, numpy.concatenate(batches[:-1]))
    numpy.testing.assert_array_equal(data.test_x, batches[-1])
    assert data.y[:2].tolist() == [classes - 1, classes - 2]
    assert data.test_y.tolist() == [classes - 1 - row for row in range(len(batches[-1]))]


def test_stl10(tmp_path):
    train, test = pixels(3, 96), pixels(2, 96)
    for part, batch, classes in (("train", train, [1, 10, 5]), ("test", test, [2, 3])):
        batch.transpose(0, 3, 2, 1).tofile(tmp_path / f"{part}_X.bin")  # column after column of each channel
        numpy.array(classes, numpy.uint8).tofile(tmp_path / f"{part}_y.bin")
    data = load(tmp_path)
    assert (data.name, data.side) == ("stl10", 96)
    numpy.testing.assert_array_equal(data.x, train)
    numpy.testing.assert_array_equal(data.test_x, test)
    assert (data.y.tolist(), data.test_y.tolist()) == ([0, 9, 4], [1, 2])


def test_other_files(tmp_path):
    with pytest.raises(ValueError, match="files of one set, got \\[\\]"):
        load(tmp_path)
    for file in FILES["cifar100"]:
        (tmp_path / file).write_bytes(pickle.dumps({b"data": Path("x")}))  # stands for what could run code
    with pytest.raises(pickle.UnpicklingError, match="NumPy arrays alone, got pathlib"):
        load(tmp_path)


def test_made():
    data = made(90)
    assert data.x.shape == (90, 32, 32, 3)
    assert len(data.test_x) == len(data.test_y) == 30
    assert sorted(set(data.y.tolist())) == list(range(10))
    numpy.testing.assert_array_equal(data.x, made(90).x)
    red, blue = (data.x[:, :16, :, channel].astype(float).mean((1, 2)) for channel in (0, 2))
    red -= data.x[:, 16:, :, 0].mean((1, 2))
    blue -= data.x[:, 16:, :, 2].mean((1, 2))
    warm_on_top = data.y.numpy() >= 5
    assert (red - blue)[warm_on_top].mean() > 10  # the upper half is redder
    assert (red - blue)[~warm_on_top].mean() < -10


def gradient() -> Image.Image:
    """Returns an image that is darker at its left and at its top, and of which no two pixels are the same."""
    x = numpy.arange(32, dtype=numpy.uint8)
    red, green = numpy.broadcast_to(60 + 4 * x, (32, 32)), numpy.broadcast_to(40 + 4 * x[:, None], (32, 32))
    return Image.fromarray(numpy.stack([red, green, red // 2], -1))


@pytest.mark.parametrize("name", RANDAUGMENT)
@pytest.mark.parametrize("strength", [-0.3, 0.3, 1.0])
def test_each_change(name, strength):
    image = Image.fromarray(pixels(1, 32)[0] % 216 + 20)
    changed = RANDAUGMENT[name](image, strength)
    assert (changed.size, changed.mode) == (image.size, image.mode)
    assert (numpy.asarray(changed) == numpy.asarray(image)).all() == (name == "identity")


def test_what_changes_do():
    image = numpy.asarray(gradient())

    def change(name: str, strength: float) -> numpy.ndarray:
        return numpy.asarray(RANDAUGMENT[name](Image.fromarray(image), strength)).astype(int)

    moved = 150 / 331 * 0.3 * 32  # 4.35 pixels to the left: the nearest is taken
    numpy.testing.assert_array_equal(change("translate x", 0.3)[:, :27], image[:, 4:31])
    assert (change("translate x", 0.3)[:, 32 - round(moved) :] == GREY).all()
    numpy.testing.assert_array_equal(change("translate y", -0.3)[5:], image[1:28])
    numpy.testing.assert_array_equal(change("posterize", 0.5), image & 0b11111100)
    numpy.testing.assert_array_equal(change("solarize", 0.5), numpy.where(image < 128, image, 255 - image))
    numpy.testing.assert_allclose(change("brightness", -0.5), 0.55 * image, atol=1)
    sheared = change("shear x", 1.0)
    assert (sheared[-1, :6] != GREY).any()  # rows go to the side by their distance from the middle
    assert (sheared[-1, -3:] == GREY).all()
    assert (sheared[0, :3] == GREY).all()
    numpy.testing.assert_array_equal(sheared[16, :30], image[16, :30])


def test_flip():
    image = gradient()
    flipped = [numpy.asarray(flip(image, random.Random(seed))) for seed in range(200)]
    mirrored = [numpy.array_equal(each, numpy.asarray(image)[:, ::-1]) for each in flipped]
    assert all(
        other or numpy.array_equal(each, numpy.asarray(image)) for other, each in zip(mirrored, flipped, strict=True)
    )
    assert 70 < sum(mirrored) < 130


def test_cutout():
    image = pixels(1, 32)[0]
    sizes = set()
    for seed in range(200):
        blank = (cutout(image, random.Random(seed), 8) == GREY).all(-1) & (image != GREY).any(-1)
        rows, columns = blank.any(1).sum(), blank.any(0).sum()
        assert blank.sum() == rows * columns  # one rectangle
        sizes |= {rows, columns}
    assert sizes == {4, 5, 6, 7, 8}  # fewer at the border
    assert (image != GREY).any(-1).all()  # the image itself is left as it was


def test_randaugment():
    image = gradient()
    seen = [numpy.asarray(randaugment(image, random.Random(seed))) for seed in range(20)]
    assert all(each.shape == (32, 32, 3) and each.dtype == numpy.uint8 for each in seen)
    assert len({each.tobytes() for each in seen}) > 10
    again = randaugment(image, random.Random(3))
    numpy.testing.assert_array_equal(seen[3], numpy.asarray(again))


def test_augmented():
    """A change depends on seed, epoch and image alone, not on the batch."""
    data = made(30)
    x, y = Augmented(data, seed=1, epoch=2)[torch.tensor([5, 7, 29])]
    assert (x.shape, x.dtype) == ((3, 32, 32, 3), torch.uint8)
    assert torch.equal(y, data.y[[5, 7, 29]])
    assert torch.equal(x[1:2], Augmented(data, seed=1, epoch=2)[torch.tensor([7])][0])
    for seed, epoch in ((1, 3), (2, 2)):
        assert not torch.equal(x, Augmented(data, seed, epoch)[torch.tensor([5, 7, 29])][0])


def options(data: Images, model: str, **others) -> argparse.Namespace:
    chosen = {"epochs": None, "batch": None, "size": None, "channels": 512, "rate": 0.001, "decay": 0.1}
    fixed = {"device": "cpu", "workers": 0, "amp": False, "seeds": 1}
    arguments = argparse.Namespace(model=model, **(chosen | fixed | others))
    images.choose(arguments, data)
    return arguments


def blank(name: str, side: int, classes: int) -> Images:
    x, y = numpy.zeros((300, side, side, 3), numpy.uint8), torch.zeros(300, dtype=torch.int64)
    return Images(name, x, y, x, y, classes, 16)


def test_the_papers_settings():
    small, large, shapes = blank("cifar100", 32, 100), blank("stl10", 96, 10), blank("made", 32, 10)
    found = {
        (data.name, model): (arguments.epochs, arguments.batch, arguments.size)
        for data in (small, large, shapes)
        for model in ("mlp2-han16", "xs")
        for arguments in (options(data, model),)
    }
    assert found == {
        ("cifar100", "mlp2-han16"): (600, 256, 32),
        ("cifar100", "xs"): (300, 128, 256),
        ("stl10", "mlp2-han16"): (600, 64, 96),
        ("stl10", "xs"): (300, 64, 256),
        ("made", "mlp2-han16"): (600, 256, 32),
        ("made", "xs"): (300, 128, 32),
    }
    with pytest.raises(ValueError, match="--batch: must be at most 300, the number of images, got 301"):
        options(small, "stem", batch=301)


def test_models():
    """The table's networks are those of hanops.models."""
    small, large = blank("cifar100", 32, 100), blank("stl10", 96, 10)
    with torch.device("meta"):
        for data, build in ((small, mixer_cifar), (large, mixer_stl10)):
            for model, blocks in images.MIXERS.items():
                network = images.make(options(data, model), data)
                assert repr(network) == repr(build(data.classes, *blocks))
        for model, build, han in (
            ("xxs", mobilevit_xxs, False),
            ("xxs-han", mobilevit_xxs, True),
            ("xs", mobilevit_xs, False),
            ("xs-han", mobilevit_xs, True),
        ):
            network = images.make(options(small, model), small)
            assert repr(network) == repr(build(100, han, stem_stride=2))


def test_input():
    data = made(60)
    x = torch.from_numpy(data.x)
    y = images.Input(data, 32)(x)
    assert y.shape == (60, 3, 32, 32)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.std((0, 2, 3), correction=0), torch.ones(3), rtol=0, atol=1e-5)
    assert images.Input(data, 64)(x).shape == (60, 3, 64, 64)


@pytest.mark.parametrize(("model", "amp"), [("mlp1-han16", True), ("xxs-han", False)])
def test_an_interrupted_training_goes_on(model, amp, tmp_path, monkeypatch):
    data = made(60)
    arguments = options(data, model, epochs=4, batch=30, channels=16, amp=amp)
    whole = images.train(3, arguments, data, Checkpoint(tmp_path / "whole.pt"))
    assert [len(entry) for entry in whole.history] == [2] * 4
    test_error, calls = images.test_error, 0

    def interrupted(*arguments):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return test_error(*arguments)

    path = tmp_path / "part.pt"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(images, "test_error", interrupted)
        images.train(3, arguments, data, Checkpoint(path))
    assert len(torch.load(path)["history"]) == 2
    resumed = images.train(3, arguments, data, Checkpoint(path))
    assert resumed.history == whole.history
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(0.001 * 0.2)  # the fourth of 4 epochs
    finished = images.train(3, arguments, data, Checkpoint(path))
    assert (finished.history, finished.seconds) == (whole.history, resumed.seconds)
    with pytest.raises(ValueError, match="is of another training"):
        images.train(4, arguments, data, Checkpoint(path))
    data.y[0] = (data.y[0] + 1) % 10
    with pytest.raises(ValueError, match="is of another training, with other data"):
        images.train(3, arguments, data, Checkpoint(path))


def test_images(tmp_path):
    words = ["--model", "han16", "--channels", "16", "--made", "120", "--epochs", "2", "--batch", "60", "--seeds", "2"]
    command = [sys.executable, "-m", "examples.images", *words, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Han(16), ")  # as the page names it
    assert "made images, 2 seeds" in done.stdout
    result = json.loads((tmp_path / "images-made-han16.json").read_text())
    assert result["parameters"] == 16 * 4 * (64 + 16) + parameters_of_the_stem(16)
    assert result["images"] == {"train": 120, "test": 40, "side": 32, "classes": 10}
    assert result["epochs"] == result["settings"]["epochs"] == 2
    for key in ("best", "last"):
        errors = result[f"top-1 error, {key}"]
        assert len(errors) == 2
        assert result[f"top-1 error, {key}, mean and spread"][0] == pytest.approx(sum(errors) / 2)
    assert result["command"] == "python -m examples.images " + " ".join(words)
    assert (tmp_path / "images-made-han16.png").stat().st_size > 10_000


def parameters_of_the_stem(channels: int) -> int:
    """Returns the number of parameters of a Mixer with 10 classes and no blocks."""
    return sum(p.numel() for p in images.Mixer(10, channels=channels).parameters())
