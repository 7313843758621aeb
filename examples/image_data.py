"""The images of `images.py`: CIFAR and STL-10 from their published files, a made set, and their random changes."""

from __future__ import annotations

import functools
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from .options import RefusedError

Bytes = NDArray[numpy.uint8]

GREY = (128, 128, 128)
KINDS = ("disc", "square", "triangle", "cross", "ring")  # of the made set's shapes
FILES = {
    "cifar10": ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"),
    "cifar100": ("train", "test"),
    "stl10": ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"),
}


@dataclass
class Images:
    """A data set: images (n, side, side, 3) of bytes, and their classes (n,).

    cutout: side of the square that is blanked in training; for the published sets as in DeVries and Taylor, Improved
        Regularization of Convolutional Neural Networks with Cutout, arXiv 1708.04552.
    """

    name: str
    x: Bytes
    y: Tensor
    test_x: Bytes
    test_y: Tensor
    classes: int
    cutout: int

    @property
    def side(self) -> int:
        """Returns the images' height and width in pixels."""
        return self.x.shape[1]

    def checksum(self) -> str:
        """Returns a checksum of all images and classes."""
        parts = (self.x, self.y.numpy(), self.test_x, self.test_y.numpy())
        return f"{functools.reduce(lambda value, part: crc32(part.tobytes(), value), parts, 0):08x}"


def load(folder: Path) -> Images:
    """Returns the data set whose published files are in a folder.

    Args:
        folder: with the files of CIFAR-10 or CIFAR-100 ('python version'), or of STL-10 ('binary'), unpacked.

    Raises:
        RefusedError: where the folder has not all files of one of them, or the files of more than one.
    """
    found = [name for name, files in FILES.items() if all((folder / file).is_file() for file in files)]
    if len(found) != 1:
        wanted = "; ".join(f"{name}: {', '.join(files)}" for name, files in FILES.items())
        raise RefusedError(f"data must be a folder with the files of one set, got {found} in {folder}; wanted {wanted}")
    name = found[0]
    files = [folder / file for file in FILES[name]]
    if name == "stl10":
        x, test_x = (_stl10_images(file) for file in files[::2])
        y, test_y = (torch.from_numpy(numpy.fromfile(file, numpy.uint8)).long() - 1 for file in files[1::2])
        return Images(name, x, y, test_x, test_y, classes=10, cutout=32)
    batches = [_cifar_batch(file) for file in files]
    x = numpy.concatenate([images for images, _ in batches[:-1]])
    y = torch.cat([labels for _, labels in batches[:-1]])
    classes, cutout = (10, 16) if name == "cifar10" else (100, 8)
    return Images(name, x, y, *batches[-1], classes=classes, cutout=cutout)


def _stl10_images(file: Path) -> Bytes:
    columns = numpy.fromfile(file, numpy.uint8).reshape(-1, 3, 96, 96)  # [n, channel, column, row]
    return columns.transpose(0, 3, 2, 1).copy()


def _cifar_batch(file: Path) -> tuple[Bytes, Tensor]:
    with file.open("rb") as stream:
        batch = _CifarUnpickler(stream, encoding="bytes").load()
    labels = batch[b"fine_labels"] if b"fine_labels" in batch else batch[b"labels"]
    images: Bytes = batch[b"data"].reshape(-1, 3, 32, 32)
    return images.transpose(0, 2, 3, 1).copy(), torch.tensor(labels)


PICKLED: dict[tuple[str, str], Any] = {  # all that the files of CIFAR name
    ("numpy.core.multiarray", "_reconstruct"): numpy.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): numpy.ndarray,
    ("numpy", "dtype"): numpy.dtype,
}


class _CifarUnpickler(pickle.Unpickler):
    """Makes NumPy arrays, numbers, strings and their containers, and refuses all else: a pickle could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns what a name in the file stands for; UnpicklingError where CIFAR's files have no such name."""
        if (module, name) not in PICKLED:
            raise pickle.UnpicklingError(
                f"data must be CIFAR's own files, with NumPy arrays alone, got {module}.{name}"
            )
        return PICKLED[module, name]


def made(n: int) -> Images:
    """Returns n images of 32 x 32 pixels to train on and a third as many to test, the same in every call.

    An image shows two shapes of one kind under noise, one above the other, one of a warm and one of a cool colour. The
    10 classes are the 5 kinds, and which colour is on top: that a network tells from places far apart.
    """
    images, labels = [], []
    noise = numpy.random.default_rng(0)
    for index in range(n + n // 3):
        rng = random.Random(f"made {index}")
        kind, warm_on_top = rng.randrange(len(KINDS)), rng.randrange(2)
        image = Image.new("RGB", (32, 32), tuple(rng.randrange(90, 166) for _ in range(3)))
        high, middle, low = rng.randrange(180, 240), rng.randrange(60, 150), rng.randrange(20, 60)
        warm, cool = (high, middle, low), (low, middle, high)
        top, bottom = (warm, cool) if warm_on_top else (cool, warm)
        _draw(image, KINDS[kind], rng.randrange(6, 26), rng.randrange(6, 11), rng.randrange(4, 7), top)
        _draw(image, KINDS[kind], rng.randrange(6, 26), rng.randrange(21, 26), rng.randrange(4, 7), bottom)
        noisy = numpy.asarray(image) + noise.normal(0, 30, (32, 32, 3))
        images.append(noisy.clip(0, 255).astype(numpy.uint8))
        labels.append(kind + len(KINDS) * warm_on_top)
    x, y = numpy.stack(images), torch.tensor(labels)
    return Images("made", x[:n], y[:n], x[n:], y[n:], classes=2 * len(KINDS), cutout=8)


def _draw(image: Image.Image, kind: str, x: int, y: int, radius: int, colour: tuple[int, int, int]) -> None:
    draw = ImageDraw.Draw(image)
    box = (x - radius, y - radius, x + radius, y + radius)
    if kind == "disc":
        draw.ellipse(box, fill=colour)
    elif kind == "ring":
        draw.ellipse(box, outline=colour, width=2)
    elif kind == "square":
        draw.rectangle(box, fill=colour)
    elif kind == "triangle":
        draw.regular_polygon((x, y, radius + 1), 3, fill=colour)
    else:
        draw.line((x - radius, y, x + radius, y), fill=colour, width=3)
        draw.line((x, y - radius, x, y + radius), fill=colour, width=3)


def _affine(
    image: Image.Image, a: float = 1, b: float = 0, c: float = 0, d: float = 0, e: float = 1, f: float = 0
) -> Image.Image:
    """Returns the image whose pixel (x, y) is that at (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), fillcolor=GREY)


# Of an image and a strength from -1 to 1. Those that have no direction take the strength's size.
RANDAUGMENT: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, _: image,
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "rotate": lambda image, m: image.rotate(30 * m, fillcolor=GREY),
    "shear x": lambda image, m: _affine(image, b=0.3 * m, c=-0.3 * m * image.height / 2),
    "shear y": lambda image, m: _affine(image, d=0.3 * m, f=-0.3 * m * image.width / 2),
    "translate x": lambda image, m: _affine(image, c=150 / 331 * m * image.width),
    "translate y": lambda image, m: _affine(image, f=150 / 331 * m * image.height),
    "brightness": lambda image, m: ImageEnhance.Brightness(image).enhance(1 + 0.9 * m),
    "color": lambda image, m: ImageEnhance.Color(image).enhance(1 + 0.9 * m),
    "contrast": lambda image, m: ImageEnhance.Contrast(image).enhance(1 + 0.9 * m),
    "sharpness": lambda image, m: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * m),
    "posterize": lambda image, m: ImageOps.posterize(image, 8 - round(4 * abs(m))),
    "solarize": lambda image, m: ImageOps.solarize(image, round(255 * (1 - abs(m)))),
}


def flip(image: Image.Image, rng: random.Random) -> Image.Image:
    """Returns the image, or with probability 1/2 its mirror image, left for right."""
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


def randaugment(image: Image.Image, rng: random.Random, changes: int = 2, strength: float = 9 / 30) -> Image.Image:
    """Returns the image after some random changes of one strength, each in a random direction.

    Source: Cubuk et al., RandAugment, arXiv 1909.13719; the strengths are torchvision's, magnitude 9 on a scale of 30.
    """
    for name in rng.choices(list(RANDAUGMENT), k=changes):
        image = RANDAUGMENT[name](image, rng.choice((-strength, strength)))
    return image


def cutout(image: Bytes, rng: random.Random, side: int) -> Bytes:
    """Returns the image with a grey square around a random pixel, which may reach over the border.

    Source: DeVries and Taylor, arXiv 1708.04552.
    """
    height, width, _ = image.shape
    top, left = rng.randrange(height) - side // 2, rng.randrange(width) - side // 2
    image = image.copy()
    image[max(top, 0) : top + side, max(left, 0) : left + side] = GREY
    return image


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Training images as one epoch shows them. An item is a batch: bytes (n, side, side, 3) and classes (n,).

    What is random comes from the seed, the epoch and the place of an image in the set: neither the order nor the number
    of workers changes it.
    """

    def __init__(self, images: Images, seed: int, epoch: int) -> None:
        self.images, self.seed, self.epoch = images, seed, epoch

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(numpy.stack([self._image(row) for row in rows.tolist()])), self.images.y[rows]

    def _image(self, row: int) -> Bytes:
        rng = random.Random(f"{self.seed} {self.epoch} {row}")
        image = randaugment(flip(Image.fromarray(self.images.x[row]), rng), rng)
        return cutout(numpy.asarray(image), rng, self.images.cutout)
