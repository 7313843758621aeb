"""Learns the sum of a slow and a fast wave from a quarter of a mesh: HanNet against a dense network of its shape.

The target is sin(pi x1) sin(pi x2) + sin(8 pi x1) sin(8 pi x2) / 2 on [-1, 1]^2. The paper's text does not print its
frequencies; these are ours. Each network has a JSON file and a plot of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib import pyplot
from torch import Tensor

from hanops.models import FCNet, HanNet, Network

from .checkerboard import POINTS, RATES, mesh
from .experiment import COLOURS, TITLES, checkpoint, parser, save_plot, settings, spread, summary, write
from .options import natural, positive, run_program, whole
from .sweep import Data, Recipe, Run, State, root_mean_squared_error, train

FREQUENCIES, AMPLITUDES = (1.0, 8.0), (1.0, 0.5)


KINDS: dict[str, Callable[[int, int], Network]] = {
    "hannet": lambda width, depth: HanNet(2, width, depth, 1, dense_layers=sorted({2, depth})),
    "fcnet": lambda width, depth: FCNet(2, width, depth, 1),
}


def target(x: Tensor) -> Tensor:
    """Returns the waves' sum, (n, 1), at points (n, 2)."""
    waves = [a * (math.pi * f * x).sin().prod(-1) for f, a in zip(FREQUENCIES, AMPLITUDES, strict=True)]
    return torch.stack(waves).sum(0).unsqueeze(-1)


def data(runs: list[Run], device: str) -> Data:
    """Returns a quarter of the mesh for each run to train on, and the rest to test."""
    x = mesh()
    orders = [torch.randperm(len(x), generator=torch.Generator().manual_seed(run.seed)) for run in runs]
    known, rest = (
        torch.stack(part) for part in zip(*((o[: len(x) // 4], o[len(x) // 4 :]) for o in orders), strict=True)
    )
    y = target(x)
    return Data(*(t.to(device) for t in (x[known], y[known], x[rest], y[rest])))


def plot(path: Path, name: str, network: Network, history: list[tuple[int, float]]) -> None:
    """Draws the target, what the network of seed 0 made of it, and its test error over the training."""
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    x, ticks = mesh(), [-1, -0.5, 0, 0.5, 1]
    with torch.no_grad():
        learnt = network(x)
    for ax, (title, values) in zip(axes, (("target", target(x)), (f"{name}, seed 0", learnt)), strict=False):
        image = values.view(POINTS, POINTS).t().numpy()
        ax.imshow(image, origin="lower", extent=(-1, 1, -1, 1), cmap="gray", vmin=-1.5, vmax=1.5)
        ax.set(title=title, xlabel="$x_1$", ylabel="$x_2$", xticks=ticks, yticks=ticks)
    iterations, errors = zip(*history, strict=True)
    axes[-1].plot([iteration / 1000 for iteration in iterations], errors, color=COLOURS[0])
    axes[-1].set(title=f"test RMSE, {errors[-1]:.3g} at the last", xlabel="thousands of iterations", yscale="log")
    save_plot(figure, path)


def main() -> None:
    """Runs the sweep of both networks."""
    options = parser(__doc__, 80_000)
    options.add_argument("--rates", type=positive, nargs="+", default=list(RATES), help="initial learning rates")
    options.add_argument("--width", type=natural, default=200, help="of the hidden layers")
    options.add_argument("--depth", type=whole(2), default=20, help="number of hidden layers")
    options.add_argument("--models", nargs="+", choices=list(KINDS), default=list(KINDS), help="which networks")
    arguments = options.parse_args()
    width, depth = arguments.width, arguments.depth
    runs = [Run(seed, rate) for rate in arguments.rates for seed in range(arguments.seeds)]
    points = data(runs, arguments.device)
    for model in arguments.models:
        make = lambda m=model: KINDS[m](width, depth)  # noqa: E731
        recipe = Recipe(arguments.iterations)
        place = checkpoint(arguments, f"sines-{model}")
        state: State = train(make, runs, points, recipe, root_mean_squared_error, place, lower=True)
        found = summary(runs, state.history, lower=True)
        parameters = sum(p.numel() for p in make().parameters())
        result = {"parameters": parameters, "networks": len(runs), "seconds": state.seconds, **found}
        each = found["best setting of each seed"]
        error = spread(each["test, best, mean and spread"], ".3g")
        print(f"{TITLES[model]}, {parameters:,} parameters, {arguments.seeds} seeds: test RMSE {error}")
        write(arguments.out / f"sines-{model}.json", {"settings": settings(arguments), **result})
        group = arguments.rates.index(each["rate"][0]) * arguments.seeds  # of seed 0
        history = [(entry["iteration"], entry["test"][group]) for entry in state.history]
        plot(arguments.out / f"sines-{model}.png", TITLES[model], state.model.single(group).cpu(), history)


if __name__ == "__main__":
    run_program(main)
