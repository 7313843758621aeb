"""Learns the sum of a slow and a fast wave from a quarter of a mesh: HanNet against a dense network of its shape.

The target is sin(pi x1) sin(pi x2) + sin(8 pi x1) sin(8 pi x2) / 2 on [-1, 1]^2. The paper's text does not print its
frequencies; these are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot
from torch import Tensor

from hanops.models import FCNet, HanNet, Network

from .checkerboard import POINTS, RATES, mesh
from .experiment import COLOURS, checkpoint, parser, settings, summary, write
from .options import natural, positive, run_program, whole
from .sweep import Data, Recipe, Run, State, root_mean_squared_error, train

FREQUENCIES, AMPLITUDES = (1.0, 8.0), (1.0, 0.5)


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


def plot(path: Path, pictures: dict[str, tuple[Network, float]], histories: dict[str, list[tuple[int, float]]]) -> None:
    """Draws the target, what each network made of it, and the test errors over the training."""
    figure, axes = pyplot.subplots(1, 2 + len(pictures), figsize=(4 * (2 + len(pictures)), 3.6), layout="constrained")
    x = mesh()
    shown = {"target": target(x)}
    with torch.no_grad():
        for name, (network, error) in pictures.items():
            shown[f"{name}, test RMSE {error:.3g}"] = network(x)
    for ax, (name, values) in zip(axes, shown.items(), strict=False):
        ax.imshow(
            values.view(POINTS, POINTS).t().numpy(),
            origin="lower",
            extent=(-1, 1, -1, 1),
            cmap="gray",
            vmin=-1.5,
            vmax=1.5,
        )
        ax.set(title=name, xlabel="$x_1$", ylabel="$x_2$")
    for colour, (name, points) in zip(COLOURS, histories.items(), strict=False):
        axes[-1].plot(*zip(*points, strict=True), color=colour, label=name)
    axes[-1].set(title="test RMSE", xlabel="iteration", yscale="log")
    axes[-1].legend()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main() -> None:
    """Runs the sweep of both networks."""
    options = parser(__doc__, 80_000)
    options.add_argument("--rates", type=positive, nargs="+", default=list(RATES), help="initial learning rates")
    options.add_argument("--width", type=natural, default=200, help="of the hidden layers")
    options.add_argument("--depth", type=whole(2), default=20, help="number of hidden layers")
    arguments = options.parse_args()
    width, depth = arguments.width, arguments.depth
    makers: dict[str, Callable[[], Network]] = {
        "hannet": lambda: HanNet(2, width, depth, 1, dense_layers=sorted({2, depth})),
        "fcnet": lambda: FCNet(2, width, depth, 1),
    }
    runs = [Run(seed, rate) for rate in arguments.rates for seed in range(arguments.seeds)]
    points = data(runs, arguments.device)
    results: dict[str, Any] = {}
    pictures, histories = {}, {}
    for model, make in makers.items():
        recipe = Recipe(arguments.iterations)
        place = checkpoint(arguments, f"sines-{model}")
        state: State = train(make, runs, points, recipe, root_mean_squared_error, place, lower=True)
        found = summary(runs, state.history, lower=True)
        parameters = sum(p.numel() for p in make().parameters())
        results[model] = {"parameters": parameters, "networks": len(runs), "seconds": state.seconds, **found}
        each = found["best setting of each seed"]
        mean, spread = each["test, best, mean and spread"]
        print(f"{model}, {parameters:,} parameters, {arguments.seeds} seeds: test RMSE {mean:.4g} ± {spread:.2g}")
        group = arguments.rates.index(each["rate"][0]) * arguments.seeds  # of seed 0
        pictures[model] = (state.model.single(group).cpu(), state.history[-1]["test"][group])
        histories[model] = [(entry["iteration"], entry["test"][group]) for entry in state.history]
    write(arguments.out / "sines.json", {"settings": settings(arguments), "models": results})
    plot(arguments.out / "sines.png", pictures, histories)


if __name__ == "__main__":
    run_program(main)
