"""Takes the Han layer apart: reflections or dense layers, orthogonal or not, with four activations, on the board.

Each network has a JSON file of its own; the plot has all that are there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot

from .checkerboard import MODELS, board_options, learn, told
from .experiment import COLOURS, plot_option, save_plot, settings, trained_less, write, written
from .options import run_program

NAMES = {
    "hannet": "reflection, abs (Han)",
    "han-relu": "reflection, ReLU",
    "han-maxmin": "reflection, MaxMin",
    "han-groupsort": "reflection, GroupSort(5)",
    "dense-abs": "dense, abs",
    "dense-relu": "dense, ReLU",
    "orth-abs": "orthogonal dense, abs",
    "orth-relu": "orthogonal dense, ReLU",
}


def plot(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """Draws the test accuracy of each network: each seed, their mean and deviation."""
    labels = [NAMES[model] + less for model, less in trained_less(results).items()]
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for place, (model, result) in enumerate(results.items()):
        each = result["best setting of each seed"]
        mean, deviation = each["test, best, mean and spread"]
        colour = COLOURS[0] if model == "hannet" else COLOURS[2]
        axes.plot(each["test, best"], [place + 0.25] * len(each["test, best"]), ".", color=COLOURS[5], markersize=3)
        axes.errorbar(mean, place, xerr=deviation, fmt="o", capsize=3, color=colour)
    axes.set_yticks(range(len(results)), labels)
    axes.set(xlabel="test accuracy, %; grey: each seed", title="checkerboard, 20 hidden layers of width 30")
    axes.grid(axis="x", alpha=0.3)
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_xlim(right=101)
    save_plot(figure, path)


def main() -> None:
    """Runs the sweep of each network in turn."""
    options = board_options(__doc__)
    options.add_argument("--models", nargs="+", choices=list(NAMES), default=list(NAMES), help="which networks")
    plot_option(options)
    arguments = options.parse_args()
    for model in arguments.models:
        name = f"ablation-{model}"
        result = learn(name, MODELS[model], arguments, orthogonal=model.startswith("orth"))[2]
        print(told(NAMES[model], result))
        write(arguments.out / f"{name}.json", {"settings": settings(arguments), **result})
    if not arguments.no_plot:
        plot(arguments.out / "ablation.png", written(arguments.out, "ablation", list(NAMES)))


if __name__ == "__main__":
    run_program(main)
