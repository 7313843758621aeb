"""Follows networks of a fixed size into depth: how much they vary before training, and what they can still learn.

A network of a given number of parameters becomes narrower as it becomes deeper. Before training, variability is the
metric of the papers' first version, its geometric mean over random starts; a network whose variability is below 1e-9
has collapsed to a constant, and counts as 1e-9 in the mean. Then the networks learn the authors' board of 8 x 8 blocks
inside its margin (dense ones from a Kaiming start), and their lowest training loss is kept. Each kind of network has a
JSON file of its own; the plot has all that are there.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot
from torch import Tensor, nn
from tqdm import tqdm

from hanops.metrics import variability
from hanops.models import FCNet, HanNet, Network
from hanops.models.layers import start_orthogonal, weights

from .checkerboard import POINTS, data, mesh
from .experiment import (
    COLOURS,
    best,
    checkpoint,
    mean_and_spread,
    parser,
    plot_option,
    save_plot,
    settings,
    spread,
    trained_less,
    write,
    written,
)
from .options import natural, positive, run_program
from .sweep import Data, Recipe, Run, mean_squared_error, train

COLLAPSED = 1e-9  # a variability below this is rounding in float64
TRIED = 100  # random networks of each rule for the start
AT_A_TIME = 50  # random networks
TITLES = {"fc-relu": "FC-ReLU", "fc-abs": "FC-ABS", "hannet": "HanNet"}

KINDS: dict[str, Callable[[int, int], Network]] = {
    "fc-relu": lambda width, depth: FCNet(2, width, depth, 2),
    "fc-abs": lambda width, depth: FCNet(2, width, depth, 2, activation="abs"),
    "hannet": lambda width, depth: HanNet(2, width, depth, 2),
}


def size(model: Network) -> int:
    """Returns the number of parameters."""
    return sum(p.numel() for p in model.parameters())


def width_for(kind: str, depth: int, parameters: int) -> int:
    """Returns the width at which a network of this depth comes closest to a number of parameters."""
    width = 2
    while size(KINDS[kind](width + 1, depth)) <= parameters:
        width += 1
    low, high = (size(KINDS[kind](w, depth)) for w in (width, width + 1))
    return width + (high - parameters < parameters - low)


STARTS: dict[str, Callable[[Tensor], object]] = {
    "xavier": nn.init.xavier_normal_,
    "orthogonal": start_orthogonal,
    "torch": lambda weight: nn.init.uniform_(weight, -(weight.shape[-1] ** -0.5), weight.shape[-1] ** -0.5),
    "kaiming": lambda weight: None,  # as FCNet does
}


@torch.no_grad()
def at_random(kind: str, width: int, depth: int, seed: int, start: str) -> Network:
    """Returns the network of a seed in float64; weights of dense networks start as `start` says."""
    torch.manual_seed(seed)
    model = KINDS[kind](width, depth)
    if kind != "hannet":
        for weight in weights(model):
            STARTS[start](weight)
    return model.double()


@torch.no_grad()
def before_training(kind: str, depth: int, parameters: int, networks: int, start: str) -> dict[str, Any]:
    """Returns the variability of random networks of a depth, on the mesh of the checkerboard."""
    width = width_for(kind, depth, parameters)
    parts = []
    for first in range(0, networks, AT_A_TIME):
        seeds = range(first, min(first + AT_A_TIME, networks))
        singles = [at_random(kind, width, depth, seed, start) for seed in seeds]
        model = type(singles[0]).grouped(singles)
        values = model(mesh().double().expand(len(seeds), -1, -1))[..., 0].view(len(seeds), POINTS, POINTS)
        parts.append(variability(values, 2 / (POINTS - 1)))
    found = torch.cat(parts)
    logs = found.clamp_min(COLLAPSED).log10()
    return {
        "depth": depth,
        "width": width,
        "parameters": size(singles[0]),
        "variability, geometric mean": 10 ** logs.mean().item(),
        "variability, median": found.median().item(),
        "log10 variability, mean and spread": mean_and_spread(logs.tolist()),
        "collapsed to a constant, %": 100 * (found < COLLAPSED).double().mean().item(),
    }


def learnt(kind: str, depth: int, points: Data, runs: list[Run], arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains networks of a depth and returns the lowest training loss of each seed, at the best rate."""
    make, width = KINDS[kind], width_for(kind, depth, arguments.parameters)
    place = checkpoint(arguments, f"variability-{kind}-{depth}")
    recipe = Recipe(arguments.iterations)
    state = train(lambda: make(width, depth), runs, points, recipe, mean_squared_error, place, lower=True)
    losses = best(state.history, "train", lower=True)
    each = [min(losses[seed :: arguments.seeds]) for seed in range(arguments.seeds)]
    row = {"depth": depth, "width": width, "parameters": size(make(width, depth)), "seconds": state.seconds}
    return {**row, "loss": each, "loss, mean and spread": mean_and_spread(each)}


def main() -> None:
    """Measures and trains networks of all depths."""
    options = parser(__doc__, 40_000)
    options.add_argument("--rates", type=positive, nargs="+", default=[0.01, 0.025, 0.05, 0.1], help="learning rates")
    options.add_argument(
        "--depths", type=natural, nargs="+", default=[2, 5, 10, 15, 20, 27, 35, 45], help="hidden layers"
    )
    options.add_argument("--parameters", type=natural, default=3200, help="of the networks that learn")
    options.add_argument("--dense-parameters", type=natural, default=4000, help="of dense networks before training")
    options.add_argument("--han-parameters", type=natural, default=800, help="of HanNets before training")
    options.add_argument("--networks", type=natural, default=3000, help="random networks of each depth")
    start = "of dense weights before training; our text of the papers does not say which was theirs"
    options.add_argument("--start", choices=list(STARTS), default="xavier", help=start)
    options.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="which networks")
    plot_option(options)
    arguments = options.parse_args()
    runs = [Run(seed, rate) for rate in arguments.rates for seed in range(arguments.seeds)]
    points = data(runs, full=False, noise=0.0, device=arguments.device, blocks=8)
    for kind in arguments.kinds:
        count = arguments.han_parameters if kind == "hannet" else arguments.dense_parameters
        starts, rows = [], []
        for depth in tqdm(arguments.depths, unit="depth"):
            starts.append(before_training(kind, depth, count, arguments.networks, arguments.start))
        few = min(TRIED, arguments.networks)
        tried = {
            start: [
                before_training(kind, d, count, few, start)["variability, geometric mean"] for d in arguments.depths
            ]
            for start in ([] if kind == "hannet" else STARTS)
        }
        for depth in arguments.depths:
            rows.append(learnt(kind, depth, points, runs, arguments))
            shape, loss = f"{depth} hidden layers of {rows[-1]['width']}", rows[-1]["loss, mean and spread"]
            print(f"{TITLES[kind]}, {shape}: lowest training loss {spread(loss, '.2g')}")
        result = {
            "settings": settings(arguments),
            "before training": starts,
            "learnt": rows,
            "variability of each start": tried,
        }
        write(arguments.out / f"variability-{kind}.json", result)
    if not arguments.no_plot:
        plot(arguments.out / "variability.png", written(arguments.out, "variability", list(KINDS)))


def plot(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """Draws the variability before training, the part that collapsed, and the losses, over depth."""
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    less = trained_less(results)
    for kind, colour in zip(KINDS, COLOURS, strict=False):
        if kind not in results:
            continue
        starts, rows = results[kind]["before training"], results[kind]["learnt"]
        options: dict[str, Any] = {"color": colour, "label": TITLES[kind] + less[kind], "marker": "o"}
        depths = [row["depth"] for row in starts]
        axes[0].plot(depths, [row["variability, geometric mean"] for row in starts], **options)
        axes[1].plot(depths, [row["collapsed to a constant, %"] for row in starts], **options)
        losses = [[math.inf if loss is None else loss for loss in row["loss"]] for row in rows]  # None: it diverged
        axes[2].plot(depths, list(map(statistics.median, losses)), **options)
    axes[0].set(title="variability before training, geometric mean", xlabel="hidden layers", yscale="log")
    axes[1].set(title="collapsed to a constant, % of random networks", xlabel="hidden layers", ylim=(-3, 103))
    axes[2].set(title="lowest training loss, 8 x 8 board, median", xlabel="hidden layers", yscale="log")
    axes[0].legend()
    save_plot(figure, path)


if __name__ == "__main__":
    run_program(main)
