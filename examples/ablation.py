"""Takes the Han layer apart: reflections or dense layers, orthogonal or not, with four activations, on the board."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot

from .checkerboard import MODELS, board_options, learn, told
from .experiment import COLOURS, settings, write
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
    """Draws the test accuracy of each network."""
    figure, axes = pyplot.subplots(figsize=(7, 3.4), layout="constrained")
    scores = [result["best setting of each seed"]["test, best, mean and spread"] for result in results.values()]
    names = [NAMES[model] for model in results]
    means, spreads = zip(*scores, strict=True)
    colours = [COLOURS[0] if model == "hannet" else COLOURS[5] for model in results]
    axes.barh(names, means, xerr=spreads, color=colours)
    axes.set(xlabel="test accuracy, %", xlim=(50, 101), title="checkerboard, 20 hidden layers of width 30")
    axes.invert_yaxis()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Runs the sweep of each network in turn."""
    options = board_options(__doc__)
    options.add_argument("--models", nargs="+", choices=list(NAMES), default=list(NAMES), help="which networks")
    arguments = options.parse_args()
    results = {}
    for model in arguments.models:
        name = f"ablation-{model}"
        results[model] = learn(name, MODELS[model], arguments, orthogonal=model.startswith("orth"))[2]
        print(told(NAMES[model], results[model]))
    write(arguments.out / "ablation.json", {"settings": settings(arguments), "models": results})
    plot(arguments.out / "ablation.png", results)


if __name__ == "__main__":
    run_program(main)
