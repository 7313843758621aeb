"""Classifies frozen features of images with a thin Han head, and with a linear classifier as its rival.

Without --data these are 2,048 random features of scikit-learn's digits. The learning rate falls as on the checkerboard:
the paper does not say how it does here.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy
import torch
from matplotlib import pyplot
from torch import Tensor

from hanops.models import HanNet, Network

from .checkpoints import Checkpoint
from .experiment import COLOURS, checkpoint, parser, save_plot, settings, spread, summary, write
from .options import RefusedError, amount, natural, positive, run_program
from .sweep import Data, Recipe, Run, cross_entropy, train

FEATURES = 2048  # of the made ones


class Linear(Network):
    """A dense layer from the features to the classes, single or many trained as one."""

    def __init__(self, in_features: int, out_features: int, groups: int | None = None) -> None:
        super().__init__([], (in_features, in_features, 0, out_features), groups, None, None)

    def _like(self, groups: int | None) -> Linear:
        return Linear(self.sizes[0], self.sizes[3], groups)


HEADS = {"han": "Han head", "linear": "linear"}


def network(name: str, features: int, classes: int) -> Network:
    """Returns a new classifier. The Han head is `hanops.models.HanHead` as a network that can be grouped."""
    return HanNet(features, 30, 4, classes) if name == "han" else Linear(features, classes)


def class_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the share of rows, in percent, whose largest logit is that of another class, for each group."""
    return 100 * (logits.argmax(-1) != targets).double().mean(1)


def load(file: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the features and classes of training and test.

    Args:
        file: .npz of the arrays x (n, features) and y (n,), and of the same to test, test_x and test_y.

    Raises:
        RefusedError: for missing arrays, or shapes that do not go together.
    """
    with numpy.load(file) as arrays:
        missing = {"x", "y", "test_x", "test_y"} - set(arrays)
        if missing:
            raise RefusedError(f"data must have the arrays x, y, test_x and test_y, {file} lacks {sorted(missing)}")
        x, test_x = (torch.from_numpy(arrays[key]).float() for key in ("x", "test_x"))
        y, test_y = (torch.from_numpy(arrays[key]).long() for key in ("y", "test_y"))
    shapes = {"x": x.shape, "y": y.shape, "test_x": test_x.shape, "test_y": test_y.shape}
    if x.dim() != 2 or x.shape[1:] != test_x.shape[1:] or y.shape != x.shape[:1] or test_y.shape != test_x.shape[:1]:
        found = {key: list(shape) for key, shape in shapes.items()}
        raise RefusedError(
            f"data must be features (n, length) and classes (n,), both for training and test, got {found}"
        )
    return x, y, test_x, test_y


def made() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the digits as ReLU of random projections, three quarters to train; the features' mean square is 1/64."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.from_numpy(digits.data).float()
    x = (pixels @ torch.randn(pixels.shape[1], FEATURES, generator=generator)).relu()
    x /= 8 * x.square().mean().sqrt()
    y = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(x), generator=generator)
    known, rest = order[: len(x) * 3 // 4], order[len(x) * 3 // 4 :]
    return x[known], y[known], x[rest], y[rest]


def learn(
    name: str, features: tuple[Tensor, ...], file: Checkpoint, arguments: argparse.Namespace
) -> tuple[dict[str, Any], list[Any]]:
    """Trains a classifier for each seed and rate.

    Args:
        name: of the classifier, han or linear.
        features: as of `load`.
        file: the checkpoint.
        arguments: of the program.

    Returns:
        The figures for the JSON, and the history of the sweep.
    """
    x, y, _, test_y = features
    classes = int(torch.cat((y, test_y)).max()) + 1
    runs = [Run(seed, rate, arguments.decay) for rate in arguments.rates for seed in range(arguments.seeds)]
    data = Data(*(t.to(arguments.device).expand(len(runs), *t.shape) for t in features))
    every = max(1, arguments.iterations // 40)
    recipe = Recipe(arguments.iterations, arguments.batch, epochs=True, every=every, loss=cross_entropy)

    def make() -> Network:
        return network(name, x.shape[1], classes)

    state = train(make, runs, data, recipe, class_error, file, lower=True)
    parameters = sum(p.numel() for p in make().parameters())
    figures = {"parameters": parameters, "networks": len(runs), "seconds": state.seconds}
    return figures | summary(runs, state.history, lower=True), state.history


def plot(path: Path, histories: dict[str, list[Any]], title: str) -> None:
    """Draws the test error of all networks over the training."""
    figure, axes = pyplot.subplots(figsize=(7, 4.4), layout="constrained")
    for colour, (name, history) in zip(COLOURS, histories.items(), strict=False):
        iterations = [entry["iteration"] for entry in history]
        for index, errors in enumerate(zip(*(entry["test"] for entry in history), strict=True)):
            axes.plot(iterations, errors, ".-", color=colour, linewidth=1, label=None if index else HEADS[name])
    axes.set(title=title, xlabel="iteration", ylabel="top-1 error of the test, %")
    axes.set_ylim(bottom=0)
    axes.legend()
    save_plot(figure, path)


def main() -> None:
    """Trains the Han head and the linear classifier."""
    options = parser(__doc__, 20_000)
    options.add_argument("--data", type=Path, help="file .npz with the arrays x, y, test_x and test_y")
    options.add_argument("--rates", type=positive, nargs="+", default=[0.25], help="initial learning rates")
    options.add_argument("--batch", type=natural, default=1024, help="rows of a step")
    options.add_argument("--decay", type=amount, default=1e-4, help="weight decay")
    arguments = options.parse_args()
    features = load(arguments.data) if arguments.data else made()
    name = f"head-{arguments.data.stem if arguments.data else 'digits'}"
    result: dict[str, Any] = {
        "settings": settings(arguments),
        "data set": arguments.data.name if arguments.data else f"made: {FEATURES} random features of the digits",
        "rows": {"train": len(features[0]), "test": len(features[2]), "features": features[0].shape[1]},
    }
    histories, lines = {}, []
    for model in ("han", "linear"):
        result[model], histories[model] = learn(model, features, checkpoint(arguments, f"{name}-{model}"), arguments)
        each = result[model]["best setting of each seed"]
        error = spread(each["test, best, mean and spread"])
        lines.append(f"{HEADS[model]}, {result[model]['parameters']:,} parameters: {error} % top-1 error")
        print(f"{lines[-1]} (at the last iteration {each['test, last, mean and spread'][0]:.2f})")
    write(arguments.out / f"{name}.json", result)
    plot(arguments.out / f"{name}.png", histories, "\n".join([result["data set"], *lines]))


if __name__ == "__main__":
    run_program(main)
