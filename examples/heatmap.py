"""Maps the test accuracy on the checkerboard over width and depth, of HanNets and of dense networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot

from hanops.models import FCNet, HanNet, Network

from .checkerboard import board_options, learn, told
from .experiment import settings, write
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


def plot(path: Path, widths: list[int], depths: list[int], cells: dict[str, list[dict[str, Any]]]) -> None:
    """Draws a map for each kind of network."""
    figure, axes = pyplot.subplots(1, len(cells), figsize=(1.5 + 4.2 * len(cells), 3.8), layout="constrained")
    for ax, (model, row) in zip([axes] if len(cells) == 1 else axes, cells.items(), strict=True):
        values = torch.tensor([cell["test, best, mean and spread"][0] for cell in row]).view(len(depths), len(widths))
        image = ax.imshow(values.numpy(), origin="lower", cmap="viridis", vmin=60, vmax=100, aspect="auto")
        for i, j in torch.cartesian_prod(torch.arange(len(depths)), torch.arange(len(widths))).tolist():
            colour = "white" if values[i, j] < 85 else "black"
            ax.text(j, i, f"{values[i, j]:.0f}", ha="center", va="center", fontsize=8, color=colour)
        ax.set(title=f"{model}, test accuracy in %", xlabel="width", ylabel="hidden layers")
        ax.set_xticks(range(len(widths)), widths)
        ax.set_yticks(range(len(depths)), depths)
    figure.colorbar(image, ax=axes)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Runs the sweep of each width and depth in turn."""
    options = board_options(__doc__)
    options.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="which networks")
    options.add_argument("--widths", type=natural, nargs="+", default=list(WIDTHS), help="of the hidden layers")
    options.add_argument("--depths", type=whole(2), nargs="+", default=list(DEPTHS), help="numbers of hidden layers")
    arguments = options.parse_args()
    cells: dict[str, list[dict[str, Any]]] = {model: [] for model in arguments.models}
    for model in arguments.models:
        for depth in arguments.depths:
            for width in arguments.widths:
                name = f"heatmap-{model}-{depth}x{width}"
                result = learn(name, lambda m=model, w=width, d=depth: MODELS[m](w, d), arguments)[2]  # type: ignore[misc]
                print(told(f"{model} {depth}x{width}", result))
                kept = {key: result[key] for key in ("parameters", "networks", "seconds")}
                each = result["best setting of each seed"]
                kept |= {key: each[key] for key in ("rate", "test, best", "test, best, mean and spread")}
                cells[model].append({"depth": depth, "width": width, **kept})
    write(arguments.out / "heatmap.json", {"settings": settings(arguments), "cells": cells})
    plot(arguments.out / "heatmap.png", arguments.widths, arguments.depths, cells)


if __name__ == "__main__":
    run_program(main)
