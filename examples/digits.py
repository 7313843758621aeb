"""Classifies handwritten digits: Han layers of the images' width against one dense hidden layer of that width."""

from __future__ import annotations

import argparse
import gzip
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from matplotlib import pyplot
from sklearn.datasets import load_digits
from torch import Tensor

from hanops import HanStack
from hanops.models import FCNet, Network
from hanops.models.layers import start_orthogonal

from .experiment import COLOURS, checkpoint, parser, save_plot, settings, spread, summary, write
from .options import RefusedError, amount, natural, positive, run_program
from .sweep import Data, Recipe, Run, State, class_accuracy, cross_entropy, train

CLASSES = 10
BATCH = 256
EPOCHS_BETWEEN = 5  # two evaluations
SPLIT_SEED = 0  # one split for all networks
IDX_BYTES = 0x08  # the code of unsigned bytes


class HanClassifier(Network):
    """Han layers of the images' width and a dense layer to the classes: 2 parameters a pixel and layer, no dense one.

    Args:
        width: number of pixels.
        depth: number of Han layers.
        groups: as in `hanops.models.HanNet`.
        device, dtype: of the parameters.

    The dense weight starts orthogonal, u as random unit vectors, as in HanNet.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        *,
        groups: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        stack = HanStack(width, depth, groups=groups, device=device, dtype=dtype)
        super().__init__([stack], (width, width, depth, CLASSES), groups, device, dtype)
        if groups is None:
            start_orthogonal(self.out.weight)

    def _like(self, groups: int | None) -> HanClassifier:
        _, width, depth, _ = self.sizes
        weight = self.out.weight
        return HanClassifier(width, depth, groups=groups, device=weight.device, dtype=weight.dtype)


@dataclass
class Images:
    """Images of digits, x (n, pixels) in [0, 1], and the digits, label (n)."""

    name: str
    x: Tensor
    label: Tensor

    @property
    def width(self) -> int:
        """The number of pixels of an image."""
        return self.x.shape[1]


def read_idx(folder: Path, stem: str) -> Tensor:
    """Returns the array of bytes of an idx file, plain or .gz.

    Raises:
        RefusedError: where the folder has neither, or the file is not an idx file of bytes, or is cut short.

    Source: the description of the format on the page of MNIST, yann.lecun.com/exdb/mnist.
    """
    plain, packed = folder / stem, folder / f"{stem}.gz"
    if plain.exists():
        content = plain.read_bytes()
    elif packed.exists():
        try:
            content = gzip.decompress(packed.read_bytes())
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise RefusedError(f"{packed} must be a gzip file, whole: {error}") from error
    else:
        raise RefusedError(f"{folder} must hold the file {stem} or {stem}.gz")
    if len(content) < 4 or content[:3] != bytes([0, 0, IDX_BYTES]):
        raise RefusedError(f"{stem} must be an idx file of bytes and start with 00 00 08, got {content[:4].hex(' ')}")
    start = 4 + 4 * content[3]  # magic number, then the size of each axis
    shape = [int(size) for size in numpy.frombuffer(content[4:start], ">u4")]
    if len(content) != start + math.prod(shape):
        raise RefusedError(f"{stem} must hold {math.prod(shape)} bytes of shape {shape}, got {len(content) - start}")
    return torch.from_numpy(numpy.frombuffer(content, numpy.uint8, offset=start).reshape(shape).copy())


def load(folder: Path | None) -> Images:
    """Returns the 70,000 images of 28 x 28 of MNIST's four files, or scikit-learn's 1,797 of 8 x 8 without a folder."""
    if folder is None:
        pixels, labels = load_digits(return_X_y=True)  # 0 to 16
        return Images("scikit-learn's digits", torch.from_numpy(pixels).float() / 16, torch.from_numpy(labels).long())
    x = torch.cat([read_idx(folder, f"{part}-images-idx3-ubyte").flatten(1) for part in ("train", "t10k")])
    label = torch.cat([read_idx(folder, f"{part}-labels-idx1-ubyte") for part in ("train", "t10k")])
    if len(x) != len(label):
        raise RefusedError(f"{folder} must hold a label for each image, got {len(x)} images and {len(label)} labels")
    return Images("MNIST", x.float() / 255, label.long())


def split(images: Images, known: int, seeds: int, device: str) -> Data:
    """Returns `known` random images to train on, the same for each seed, and the others to test."""
    order = torch.randperm(len(images.x), generator=torch.Generator().manual_seed(SPLIT_SEED))
    parts = [part[rows] for rows in (order[:known], order[known:]) for part in (images.x, images.label)]
    return Data(*(part.to(device).expand(seeds, *part.shape) for part in parts))


def digits_options(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the options of all programs that learn the digits."""
    options = parser(description)
    options.add_argument("--data", type=Path, help="folder of MNIST's four idx files; scikit-learn's digits without it")
    options.add_argument("--train", type=natural, help="images to train on: 10,000 of MNIST, 1,000 of scikit-learn's")
    options.add_argument("--epochs", type=natural, default=100, help="passes over the images")
    options.add_argument("--rate", type=positive, default=0.001, help="of Adam; a fifth of it from half of the way on")
    options.add_argument("--decay", type=amount, default=0.001, help="weight decay")
    return options


def prepared(arguments: argparse.Namespace) -> tuple[Images, Data]:
    """Returns the images and their split; arguments.train is set to its size where the command did not say it.

    Raises:
        RefusedError: where arguments.train leaves no image to test.
    """
    images = load(arguments.data)
    if arguments.train is None:
        arguments.train = 1_000 if arguments.data is None else 10_000
    if not BATCH <= arguments.train < len(images.x):
        wanted = f"must be from {BATCH}, a batch, to {len(images.x) - 1}, all images but one"
        raise RefusedError(f"argument --train: {wanted}, got {arguments.train}")
    return images, split(images, arguments.train, arguments.seeds, arguments.device)


def learn(
    name: str,
    make: Callable[[], Network],
    arguments: argparse.Namespace,
    data: Data,
    objective: Callable[[Network, Tensor, Tensor], Tensor] | None = None,
) -> tuple[State, dict[str, Any]]:
    """Trains a network for each seed.

    Args:
        name: of the checkpoint, in arguments.out.
        make: makes a network.
        arguments: those of `digits_options`.
        data: as `prepared` returns it.
        objective: as in `sweep.Recipe`; the cross entropy without it.

    Returns:
        The trained state, and the figures for the JSON.
    """
    runs = [Run(seed, arguments.rate, arguments.decay) for seed in range(arguments.seeds)]
    batches = arguments.train // BATCH  # of an epoch
    recipe = Recipe(
        arguments.epochs * batches,
        batch=BATCH,
        epochs=True,
        optimizer="adam",
        milestones=(0.5,),
        every=EPOCHS_BETWEEN * batches,
        loss=cross_entropy,
        objective=objective,
    )
    file = checkpoint(arguments, f"{name}-{arguments.train}")
    state = train(make, runs, data, recipe, class_accuracy, file)
    parameters = sum(p.numel() for p in make().parameters())
    scores = summary(runs, state.history)["best setting of each seed"]
    return state, {"parameters": parameters, "seconds": state.seconds} | scores


def plot(path: Path, networks: dict[str, dict[str, Any]], title: str) -> None:
    """Draws the test accuracy at the end against the number of Han layers, and that of the dense network as a line."""
    figure, axes = pyplot.subplots(figsize=(6.4, 4.4), layout="constrained")
    dense, dense_spread = networks["fcnet"]["test, last, mean and spread"]
    han = [result for name, result in networks.items() if name != "fcnet"]
    depths = [result["depth"] for result in han]
    means, spreads = zip(*(result["test, last, mean and spread"] for result in han), strict=True)
    axes.errorbar(depths, means, spreads, marker="o", capsize=3, color=COLOURS[0], label="HanNet")
    label = f"one dense layer, {networks['fcnet']['parameters']:,} parameters"
    axes.axhline(dense, color=COLOURS[1], label=label)
    axes.axhspan(dense - dense_spread, dense + dense_spread, color=COLOURS[1], alpha=0.2, linewidth=0)
    ticks = [f"{result['depth']}\n{result['parameters']:,}" for result in han]
    axes.set_xticks(depths, ticks)
    axes.set(title=title, xlabel="Han layers, and parameters", ylabel="test accuracy, %")
    axes.legend(loc="lower right")
    save_plot(figure, path)


def han(width: int, depth: int) -> Callable[[], Network]:
    """Returns what makes a network of Han layers."""
    return lambda: HanClassifier(width, depth)


def dense(width: int) -> Callable[[], Network]:
    """Returns what makes a network of one dense hidden layer."""
    return lambda: FCNet(width, width, 1, CLASSES)


def main() -> None:
    """Trains all seeds of each depth, and of the dense network."""
    options = digits_options(__doc__)
    options.add_argument("--depths", type=natural, nargs="+", default=[2, 5, 10, 20], help="numbers of Han layers")
    arguments = options.parse_args()
    images, data = prepared(arguments)
    tested = len(images.x) - arguments.train
    print(f"{images.name}: {images.width} pixels, {arguments.train:,} images train, {tested:,} test")
    networks: dict[str, dict[str, Any]] = {}
    makers = {f"hannet-{depth}": (depth, han(images.width, depth)) for depth in arguments.depths}
    for name, (depth, make) in (makers | {"fcnet": (1, dense(images.width))}).items():
        _, result = learn(f"digits-{name}", make, arguments, data)
        networks[name] = {"depth": depth, **result}
        line = f"{name}, {result['parameters']:,} parameters, {arguments.seeds} seeds: "
        line += f"{spread(result['test, last, mean and spread'])} % of the test images right"
        print(f"{line} (at best {result['test, best, mean and spread'][0]:.2f}); {result['seconds']:.0f} s")
    about = {"data": images.name, "width": images.width, "test images": tested, "networks": networks}
    write(arguments.out / "digits.json", {"settings": settings(arguments), **about})
    plot(arguments.out / "digits.png", networks, f"{images.name}, {arguments.train:,} images to train")


if __name__ == "__main__":
    run_program(main)
