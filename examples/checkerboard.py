"""Learns a checkerboard from a quarter of its points: HanNet, dense networks, and the papers' ablations."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot
from torch import Tensor

from hanops.models import FCNet, HanNet, Network, orthogonality_penalty

from .experiment import COLOURS, TITLES, checkpoint, parser, save_plot, settings, spread, summary, write
from .options import amount, fraction, positive, run_program
from .sweep import Data, Recipe, Run, State, train

RATES = (0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0)
POINTS = 81  # of each axis
INSIDE = 72  # of each axis, in the board inside its margin


def _han(activation: str) -> Callable[[], Network]:
    return lambda: HanNet(2, 30, 20, 2, dense_layers=(2, 20), activation=activation)


MODELS: dict[str, Callable[[], Network]] = {
    "hannet": _han("abs"),
    "fcnet1": lambda: FCNet(2, 100, 6, 2),
    "fcnet2": lambda: FCNet(2, 100, 10, 2),
    "fcnet3": lambda: FCNet(2, 300, 6, 2),
    "han-relu": _han("relu"),
    "han-maxmin": _han("maxmin"),
    "han-groupsort": _han("groupsort"),
    "dense-abs": lambda: FCNet(2, 30, 20, 2, activation="abs"),
    "dense-relu": lambda: FCNet(2, 30, 20, 2),
    "orth-abs": lambda: FCNet(2, 30, 20, 2, activation="abs"),
    "orth-relu": lambda: FCNet(2, 30, 20, 2),
}


def mesh(points: int = POINTS) -> Tensor:
    """Returns the points of a square mesh over [-1, 1]^2, (points^2, 2)."""
    axis = torch.linspace(-1, 1, points)
    return torch.cartesian_prod(axis, axis)


def board(full: bool, blocks: int = 12) -> tuple[Tensor, Tensor]:
    """Returns the 6,561 points of [-1, 1]^2 and their labels, (6561, 2) each, a label in both columns.

    The authors' board is inside a margin of label 0 and has 12 x 12 blocks of 6 x 6 points, or where they measure
    variability 8 x 8 of 9 x 9; `full` stretches 8 x 8 blocks over the whole square, which is much harder.
    """
    i, j = torch.meshgrid(torch.arange(POINTS), torch.arange(POINTS), indexing="ij")
    if full:
        label = (i * 8 // POINTS + j * 8 // POINTS) % 2
    else:
        inside = (i >= 4) & (i < 4 + INSIDE) & (j >= 4) & (j < 4 + INSIDE)
        side = INSIDE // blocks
        label = torch.where(inside, ((i - 4) // side + (j - 4) // side) % 2, 0)
    return mesh(), label.flatten().float().unsqueeze(1).expand(-1, 2)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the share of rows, in percent, whose mean output is on their label's side of 0.5, for each group."""
    said = outputs.mean(-1)
    return 100 * torch.where(targets.mean(-1) > 0.5, said > 0.5, said < 0.5).double().mean(-1)


def data(runs: list[Run], full: bool, noise: float, device: str, blocks: int = 12) -> Data:
    """Returns a quarter of the points for each run to train on, `noise` of their labels flipped, the rest to test.

    Each seed has a split of its own; the authors' files hold one for all.
    """
    x, label = board(full, blocks)
    parts: list[list[Tensor]] = [[], [], [], []]
    for run in runs:
        generator = torch.Generator().manual_seed(run.seed)
        order = torch.randperm(len(x), generator=generator)
        known, rest = order[: len(x) // 4], order[len(x) // 4 :]
        flipped = torch.rand(len(known), 1, generator=generator) < noise
        for part, rows in zip(
            parts, (x[known], torch.where(flipped, 1 - label[known], label[known]), x[rest], label[rest]), strict=True
        ):
            part.append(rows)
    return Data(*(torch.stack(part).to(device) for part in parts))


def plot(path: Path, model: Network, group: int, run: Data, history: list[dict[str, Any]], title: str) -> None:
    """Draws what a network has learnt over the square, and its scores over the training."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    with torch.no_grad():
        values = model.single(group)(mesh(241).to(run.x.device)).mean(-1).reshape(241, 241).cpu()
    left.imshow(values.t().numpy(), origin="lower", extent=(-1, 1, -1, 1), cmap="gray", vmin=-0.2, vmax=1.2)
    ticks = [-1, -0.5, 0, 0.5, 1]
    left.set(title="mean of the two outputs", xlabel="$x_1$", ylabel="$x_2$", xticks=ticks, yticks=ticks)
    for name, style in (("train", ":"), ("test", "-")):
        points = [(entry["iteration"] / 1000, entry[name][group]) for entry in history]
        right.plot(*zip(*points, strict=True), style, color=COLOURS[0], label=name)
    right.set(title="accuracy", xlabel="thousands of iterations", ylabel="%", ylim=(40, 101))
    right.legend()
    figure.suptitle(textwrap.fill(title, 90))
    save_plot(figure, path)


@dataclass(frozen=True)
class Orthogonality:
    """What draws dense weights to orthogonal ones."""

    weight: float

    def __call__(self, model: Network) -> Tensor:
        """Returns the penalty of each group."""
        return self.weight * orthogonality_penalty(model)


def board_options(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the options of all programs that learn the board."""
    options = parser(description, 40_000)
    options.add_argument("--rates", type=positive, nargs="+", default=list(RATES), help="initial learning rates")
    options.add_argument("--noise", type=fraction, default=0.0, help="part of the training labels that are flipped")
    options.add_argument("--full", action="store_true", help="an 8 x 8 board over the whole square, much harder")
    options.add_argument("--penalty", type=amount, default=0.001, help="weight of |W'W - I|^2 for the orth models")
    return options


def learn(
    name: str, make: Callable[[], Network], arguments: argparse.Namespace, orthogonal: bool = False
) -> tuple[State, Data, dict[str, Any]]:
    """Trains a network for each seed and rate.

    Args:
        name: of the checkpoint, in arguments.out.
        make: makes a network.
        arguments: those of `board_options`.
        orthogonal: whether dense weights are drawn to orthogonal ones, by arguments.penalty.

    Returns:
        The trained state, the data, and the figures for the JSON.
    """
    runs = [Run(seed, rate) for rate in arguments.rates for seed in range(arguments.seeds)]
    points = data(runs, arguments.full, arguments.noise, arguments.device)
    recipe = Recipe(arguments.iterations, penalty=Orthogonality(arguments.penalty) if orthogonal else None)
    state = train(make, runs, points, recipe, accuracy, checkpoint(arguments, name))
    parameters = sum(p.numel() for p in make().parameters())
    figures = {"parameters": parameters, "networks": len(runs), "seconds": state.seconds}
    return state, points, figures | summary(runs, state.history)


def told(name: str, result: dict[str, Any]) -> str:
    """Returns a result in one line."""
    each = result["best setting of each seed"]
    last, _ = each["test, last, mean and spread"]
    figures = spread(each["test, best, mean and spread"])
    line = f"{name}, {result['parameters']:,} parameters, {len(each['rate'])} seeds: {figures} % test accuracy"
    return f"{line} (at the last iteration {last:.2f}); {result['networks']} networks, {result['seconds']:.0f} s"


def main() -> None:
    """Runs the sweep of one model."""
    options = board_options(__doc__)
    options.add_argument("--model", choices=list(MODELS), default="hannet", help="which network")
    arguments = options.parse_args()
    name = f"checkerboard-{arguments.model}{'-full' if arguments.full else ''}"
    name += f"-noise{arguments.noise:g}" if arguments.noise else ""
    orthogonal = arguments.model.startswith("orth")
    state, points, result = learn(name, MODELS[arguments.model], arguments, orthogonal)
    write(arguments.out / f"{name}.json", {"settings": settings(arguments), **result})
    title = TITLES.get(arguments.model, arguments.model)
    print(told(title, result))
    rate = result["best setting of each seed"]["rate"][0]
    group = arguments.rates.index(rate) * arguments.seeds  # of seed 0
    line = f"{title}, {result['parameters']:,} parameters, seed 0 at the rate {rate:g}"
    line += f", {100 * arguments.noise:g} % of the labels flipped" if arguments.noise else ""
    line += f": {state.history[-1]['test'][group]:.2f} % of the test at the last iteration"
    plot(arguments.out / f"{name}.png", state.model, group, points, state.history, line)


if __name__ == "__main__":
    run_program(main)
