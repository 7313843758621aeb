"""The classification of digits: MNIST's files, the split, the network of Han layers alone, and the program."""

import gzip
import json
import struct
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from hanops.definition.reference import han_stack

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
digits = pytest.importorskip("examples.digits")

ROOT = Path(__file__).parent.parent


def idx(array: torch.Tensor) -> bytes:
    head = struct.pack(f">BBBB{array.dim()}I", 0, 0, 8, array.dim(), *array.shape)
    return head + array.to(torch.uint8).numpy().tobytes()


@pytest.fixture
def folder(tmp_path):
    """A folder as MNIST's, of 300 and 40 images of 3 x 4, the test files packed."""
    generator = torch.Generator().manual_seed(0)
    for part, n in (("train", 300), ("t10k", 40)):
        images = torch.randint(256, (n, 3, 4), generator=generator)
        labels = images[:, 0, 0] // 26
        for stem, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            if part == "train":
                (tmp_path / stem).write_bytes(idx(array))
            else:
                (tmp_path / f"{stem}.gz").write_bytes(gzip.compress(idx(array)))
    return tmp_path


def test_idx(tmp_path):
    array = torch.arange(2 * 300).view(2, 300) % 256
    (tmp_path / "plain").write_bytes(idx(array))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(array)))
    for stem in ("plain", "packed"):
        assert torch.equal(digits.read_idx(tmp_path, stem), array.to(torch.uint8))
    with pytest.raises(ValueError, match=r"must hold the file other or other\.gz"):
        digits.read_idx(tmp_path, "other")
    (tmp_path / "floats").write_bytes(b"\0\0\x0d\1" + bytes(20))
    with pytest.raises(ValueError, match="start with 00 00 08, got 00 00 0d 01"):
        digits.read_idx(tmp_path, "floats")
    (tmp_path / "short").write_bytes(idx(array)[:-1])
    with pytest.raises(ValueError, match=r"must hold 600 bytes of shape \[2, 300\], got 599"):
        digits.read_idx(tmp_path, "short")


def test_load(folder):
    images = digits.load(folder)
    assert images.name == "MNIST"
    assert images.x.shape == (340, 12)
    assert images.width == 12
    assert 0.9 < images.x.max() <= 1
    assert torch.equal(images.label, (images.x[:, 0] * 255).round().long() // 26)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(torch.zeros(299)))
    with pytest.raises(ValueError, match="a label for each image, got 340 images and 339 labels"):
        digits.load(folder)
    own = digits.load(None)
    assert own.x.shape == (1797, 64)
    assert (own.x.min(), own.x.max()) == (0, 1)
    assert own.label.unique().tolist() == list(range(10))


def test_split(folder):
    images = digits.load(folder)
    data = digits.split(images, 256, 3, "cpu")
    assert data.x.shape == (3, 256, 12)
    assert data.target.shape == (3, 256)
    assert data.test_x.shape == (3, 84, 12)
    assert torch.equal(data.x[0], data.x[2])
    every = torch.cat([data.x[0], data.test_x[0]])
    assert torch.equal(torch.cat([data.target[0], data.test_target[0]]), (every[:, 0] * 255).round().long() // 26)
    assert torch.equal(every.sort(0).values, images.x.sort(0).values)
    for known in (255, 340):
        arguments = Namespace(data=folder, train=known, seeds=3, device="cpu")
        with pytest.raises(ValueError, match=f"from 256, a batch, to 339, all images but one, got {known}"):
            digits.prepared(arguments)


def test_network():
    counts = [sum(p.numel() for p in digits.han(784, depth)().parameters()) for depth in (2, 20)]
    assert counts == [2 * 2 * 784 + 7_850, 20 * 2 * 784 + 7_850]
    assert sum(p.numel() for p in digits.dense(784)().parameters()) == 784 * 784 + 784 + 7_850
    singles = [digits.HanClassifier(12, 4) for _ in range(2)]
    x = torch.rand(7, 12)
    together = digits.HanClassifier.grouped(singles)
    assert together.groups == 2
    for group, single in enumerate(singles):
        stack, out = single.hidden[0], single.out
        torch.testing.assert_close(out.weight @ out.weight.T, torch.eye(10))  # rows start orthonormal
        expected = han_stack(x, stack.u, stack.b) @ out.weight.T + out.bias
        for model in (single, together.single(group)):
            torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(together(x.expand(2, 7, 12))[group], expected)


def test_digits(folder, tmp_path, monkeypatch):
    command = [sys.executable, "-m", "examples.digits", "--data", str(folder), "--train", "260", "--out"]
    command += [str(tmp_path), "--seeds", "2", "--epochs", "7", "--depths", "1", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "MNIST: 12 pixels, 260 images train, 80 test" in done.stdout
    result = json.loads((tmp_path / "digits.json").read_text())
    assert "--data DIR" in result["command"]
    assert result["settings"]["train"] == 260
    assert (result["data"], result["width"], result["test images"]) == ("MNIST", 12, 80)
    networks = result["networks"]
    assert list(networks) == ["hannet-1", "hannet-3", "fcnet"]
    assert [network["depth"] for network in networks.values()] == [1, 3, 1]
    assert networks["hannet-3"]["parameters"] == 3 * 24 + 130
    for network in networks.values():
        last, best = network["test, last"], network["test, best"]
        assert len(last) == len(best) == 2
        assert all(low <= high for low, high in zip(last, best, strict=True))
        assert network["test, last, mean and spread"][0] == pytest.approx(sum(last) / 2)
    assert (tmp_path / "digits.png").stat().st_size > 5_000
    assert torch.load(tmp_path / "digits-fcnet-260.pt")["iteration"] == 7  # one batch an epoch
    monkeypatch.setattr(sys, "argv", [digits.__file__, *command[3:]])
    digits.main()
    versions = {"threads": torch.get_num_threads()}
    assert (
        json.loads((tmp_path / "digits.json").read_text()) == result | versions
    )  # finished trainings are not done again
