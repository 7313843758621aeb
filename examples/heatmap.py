"""Maps the test accuracy on the checkerboard over width and depth, of HanNets and of dense networks.

Each kind of network has a JSON file of its own; the plot has those that are there. With `--about 400` each width has
the depth alone that brings the parameters closest to 400: the papers say that so few can be enough.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot

from hanops.models import FCNet, HanNet, Network

from .checkerboard import board_options, learn, told
from .experiment import TITLES, plot_option, save_plot, settings, write, written
from .options import natural, run_program, whole

WIDTHS = tuple(range(20, 101, 10))
DEPTHS = (2, 4, 6, 8, 10, 15, 20, 25, 30)


def hannet(width: int, depth: int) -> Network:
    """Returns a HanNet whose second and last hidden layers are dense, as in the paper's checkerboard network."""
    return HanNet(2, width, depth, 2, dense_layers=sorted({2, depth}))


def fcnet(width: int, depth: int) -> Network:
    """Returns a dense network."""
    return FCNet(2, width, depth, 2)


MODELS: dict[str, Callable[[int, int], Network]] = {"hannet": hannet, "fcnet": fcnet}


def depth_for(model: str, width: int, parameters: int) -> int:
    """Returns the number of hidden layers at which a network of a width comes closest to a number of parameters."""

    def off(depth: int) -> int:
        return abs(sum(p.numel() for p in MODELS[model](width, depth).parameters()) - parameters)

    return min(range(2, 60), key=off)


def plot(path: Path, maps: dict[str, dict[str, Any]]) -> None:
    """Draws a map for each kind of network."""
    figure, axes = pyplot.subplots(1, len(maps), figsize=(1.5 + 4.2 * len(maps), 3.8), layout="constrained")
    for ax, (model, found) in zip([axes] if len(maps) == 1 else axes, maps.items(), strict=True):
        widths, depths = found["settings"]["widths"], found["settings"]["depths"]
        means = [cell["test, best, mean and spread"][0] for cell in found["cells"]]
        values = torch.tensor(means).view(len(depths), len(widths))
        image = ax.imshow(values.numpy(), origin="lower", cmap="viridis", vmin=60, vmax=100, aspect="auto")
        for i, j in torch.cartesian_prod(torch.arange(len(depths)), torch.arange(len(widths))).tolist():
            colour = "white" if values[i, j] < 85 else "black"
            ax.text(j, i, f"{values[i, j]:.0f}", ha="center", va="center", fontsize=8, color=colour)
        ax.set(title=f"{TITLES[model]}, test accuracy in %", xlabel="width", ylabel="hidden layers")
        ax.set_xticks(range(len(widths)), widths)
        ax.set_yticks(range(len(depths)), depths)
    figure.colorbar(image, ax=axes)
    save_plot(figure, path)


def main() -> None:
    """Runs the sweep of each width and depth in turn."""
    options = board_options(__doc__)
    options.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="which networks")
    options.add_argument("--widths", type=natural, nargs="+", default=list(WIDTHS), help="of the hidden layers")
    options.add_argument("--depths", type=whole(2), nargs="+", default=list(DEPTHS), help="numbers of hidden layers")
    options.add_argument("--about", type=natural, help="parameters of the networks; depths are those that match")
    plot_option(options)
    arguments = options.parse_args()
    for model in arguments.models:
        shapes = [(depth, width) for depth in arguments.depths for width in arguments.widths]
        stem = f"heatmap-{model}"
        if arguments.about:
            shapes = [(depth_for(model, width, arguments.about), width) for width in arguments.widths]
            stem += f"-about{arguments.about}"
        cells: list[dict[str, Any]] = []
        for depth, width in shapes:
            name = f"{stem}-{depth}x{width}"
            result = learn(name, lambda m=model, w=width, d=depth: MODELS[m](w, d), arguments)[2]  # type: ignore[misc]
            print(told(f"{TITLES[model]} {depth}x{width}", result))
            kept = {key: result[key] for key in ("parameters", "networks", "seconds")}
            each = result["best setting of each seed"]
            kept |= {key: each[key] for key in ("rate", "test, best", "test, best, mean and spread")}
            cells.append({"depth": depth, "width": width, **kept})
        seconds = sum(cell["seconds"] for cell in cells)
        write(arguments.out / f"{stem}.json", {"settings": settings(arguments), "seconds": seconds, "cells": cells})
    if not (arguments.about or arguments.no_plot):
        plot(arguments.out / "heatmap.png", written(arguments.out, "heatmap", list(MODELS)))


if __name__ == "__main__":
    run_program(main)
