"""Follows networks of a fixed size into depth: how much they vary before training, and what they can still learn.

A network of a given number of parameters becomes narrower as it becomes deeper. Before training, variability is the
metric of the papers' first version, averaged over random starts; a network whose variability is 0 has collapsed to a
constant. Dense layers start here as torch.nn.Linear does: the text at hand does not say how the papers' do, and with
a Kaiming start, whose weights are larger, dense networks of ReLU collapse later. Then the networks learn an 8 x 8
checkerboard over the whole square (dense ones from a Kaiming start), and their lowest loss is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot
from torch import nn

from hanops.metrics import variability
from hanops.models import FCNet, HanNet, Network

from .checkerboard import POINTS, data, mesh
from .experiment import COLOURS, best, checkpoint, mean_and_spread, parser, settings, write
from .options import natural, positive, run_program
from .sweep import Recipe, Run, mean_squared_error, train

COLLAPSED = 1e-9  # a variability below this is rounding in float64
STARTS = 100  # random networks of each depth

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


def start_as_torch_does(model: Network) -> Network:
    """Draws the weights and biases of a dense network as torch.nn.Linear does, and returns it."""
    for module in model.modules():
        if isinstance(model, FCNet) and isinstance(module, nn.Linear):
            module.reset_parameters()
    return model


@torch.no_grad()
def before_training(kind: str, depth: int, parameters: int) -> dict[str, Any]:
    """Returns the variability of random networks of a depth, on the mesh of the checkerboard."""
    width = width_for(kind, depth, parameters)
    singles = []
    for seed in range(STARTS):
        torch.manual_seed(seed)
        singles.append(start_as_torch_does(KINDS[kind](width, depth)).double())
    model = type(singles[0]).grouped(singles)
    values = model(mesh().double().expand(STARTS, -1, -1))[..., 0].view(STARTS, POINTS, POINTS)
    found = variability(values, 2 / (POINTS - 1))
    logs = found.clamp_min(1e-300).log10().tolist()
    return {
        "depth": depth,
        "width": width,
        "parameters": size(singles[0]),
        "variability, mean": found.mean().item(),
        "variability, median": found.median().item(),
        "log10 variability, mean and spread": mean_and_spread(logs),
        "collapsed to a constant, %": 100 * (found < COLLAPSED).double().mean().item(),
    }


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
    arguments = options.parse_args()
    runs = [Run(seed, rate) for rate in arguments.rates for seed in range(arguments.seeds)]
    points = data(runs, full=True, noise=0.0, device=arguments.device)
    starts: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    learnt: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for kind, make in KINDS.items():
        for depth in arguments.depths:
            count = arguments.han_parameters if kind == "hannet" else arguments.dense_parameters
            starts[kind].append(before_training(kind, depth, count))
        for depth in arguments.depths:
            width = width_for(kind, depth, arguments.parameters)
            place = checkpoint(arguments, f"variability-{kind}-{depth}")
            new = lambda m=make, w=width, d=depth: m(w, d)  # noqa: E731
            state = train(new, runs, points, Recipe(arguments.iterations), mean_squared_error, place, lower=True)
            losses = best(state.history, "train", lower=True)
            each = [min(losses[seed :: arguments.seeds]) for seed in range(arguments.seeds)]  # the best rate of a seed
            row = {"depth": depth, "width": width, "parameters": size(make(width, depth)), "seconds": state.seconds}
            learnt[kind].append({**row, "loss": each, "loss, mean and spread": mean_and_spread(each)})
            print(f"{kind}, {depth} hidden layers of {width}: lowest training loss {mean_and_spread(each)[0]:.2g}")
    result = {"settings": settings(arguments), "starts": STARTS, "before training": starts, "learnt": learnt}
    write(arguments.out / "variability.json", result)
    plot(arguments.out / "variability.png", starts, learnt)


def plot(path: Path, starts: dict[str, list[dict[str, Any]]], learnt: dict[str, list[dict[str, Any]]]) -> None:
    """Draws the variability before training, the part that collapsed, and the losses, over depth."""
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for kind, colour in zip(starts, COLOURS, strict=False):
        depths = [row["depth"] for row in starts[kind]]
        axes[0].plot(depths, [max(row["variability, mean"], 1e-12) for row in starts[kind]], "o-", c=colour, label=kind)
        axes[1].plot(depths, [row["collapsed to a constant, %"] for row in starts[kind]], "o-", c=colour, label=kind)
        axes[2].plot(depths, [row["loss, mean and spread"][0] for row in learnt[kind]], "o-", c=colour, label=kind)
    axes[0].set(title="variability before training", xlabel="hidden layers", yscale="log")
    axes[1].set(title="collapsed to a constant, % of random networks", xlabel="hidden layers", ylim=(-3, 103))
    axes[2].set(title="lowest training loss, 8 x 8 board", xlabel="hidden layers", yscale="log")
    axes[0].legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    run_program(main)
