"""Fits random networks by others: students of two kinds learn what teachers of two kinds say of random points."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot
from torch import Tensor

from hanops.models import FCNet, HanNet, Network
from hanops.models.layers import start_orthogonal, weights

from .experiment import (
    COLOURS,
    checkpoint,
    mean_and_spread,
    parser,
    plot_option,
    save_plot,
    settings,
    spread,
    summary,
    write,
)
from .options import amount, natural, positive, run_program
from .sweep import Data, Recipe, Run, root_mean_squared_error, train

RATES, DECAYS = (0.0001, 0.001, 0.01, 0.1), (0.0, 0.001)
TRAIN, TEST = 2_000, 10_000  # points
BATCH, WIDTH = 100, 50
OPTIMIZERS = {"adam": "Adam", "sgd": "SGD"}
KINDS = ("FC-1", "Han-3")
PAIRS = [(teacher, student) for teacher in KINDS for student in KINDS]
PAPER = {  # RMSE of arXiv 2106.04088, inputs by pairs
    2: (0.00033, 0.00049, 0.00107, 0.00079),
    3: (0.00086, 0.00078, 0.00251, 0.00237),
    4: (0.00184, 0.00192, 0.00478, 0.00494),
}
TEACHERS = 1_000_000  # added to a seed for that of its teacher and points
NOTE = (
    "'A by B' is a teacher A that a student B fits: FC-1 has one dense hidden layer between its dense ends, with ReLU, "
    "Han-3 has three Han layers there. As in the paper all dense layers start orthogonal. Each seed has a teacher and "
    "points of its own, and the best rate and weight decay is taken for each seed."
)


def network(kind: str, inputs: int, width: int) -> Network:
    """Returns a random network from `inputs` to 1 with dense layers at both ends, all dense weights orthogonal."""
    if kind == "Han-3":
        return HanNet(inputs, width, 4, 1)
    model = FCNet(inputs, width, 2, 1)
    for weight in weights(model):
        start_orthogonal(weight)
    return model


def points(kind: str, inputs: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns random points of [-1, 1]^inputs and what the teacher of a seed says of them, (12000, 1)."""
    torch.manual_seed(TEACHERS + seed)
    x = 2 * torch.rand(TRAIN + TEST, inputs) - 1
    with torch.no_grad():
        return x, network(kind, inputs, width)(x)


def data(runs: list[Run], kind: str, inputs: int, width: int, device: str) -> Data:
    """Returns the points of each run's teacher, 2,000 to train and 10,000 to test."""
    known = {seed: points(kind, inputs, width, seed) for seed in dict.fromkeys(run.seed for run in runs)}
    x, y = (torch.stack([known[run.seed][part] for run in runs]).to(device) for part in (0, 1))
    return Data(x[:, :TRAIN], y[:, :TRAIN], x[:, TRAIN:], y[:, TRAIN:])


def learn(name: str, teacher: str, student: str, inputs: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Fits the teachers of all seeds at each rate and decay; returns the figures of the pair."""
    seeds = range(arguments.seeds)
    runs = [Run(seed, rate, decay) for rate in arguments.rates for decay in arguments.decays for seed in seeds]
    taught = data(runs, teacher, inputs, arguments.width, arguments.device)
    epoch = TRAIN // BATCH  # steps
    recipe = Recipe(
        arguments.epochs * epoch,
        BATCH,
        epochs=True,
        optimizer=arguments.optimizer,
        milestones=(0.6, 0.9),
        every=arguments.every * epoch,
    )
    file = f"{name}-{inputs}-{teacher}-by-{student}".lower()
    state = train(
        lambda: network(student, inputs, arguments.width),
        runs,
        taught,
        recipe,
        root_mean_squared_error,
        checkpoint(arguments, file),
        lower=True,
    )
    found = summary(runs, state.history, lower=True)
    each = found["best setting of each seed"]
    return {
        "inputs": inputs,
        "pair": f"{teacher} by {student}",
        "parameters": sum(p.numel() for p in network(student, inputs, arguments.width).parameters()),
        "deviation of the teacher": taught.test_target[: arguments.seeds].double().std((1, 2)).tolist(),
        "rate": each["rate"],
        "decay": each["decay"],
        "RMSE": each["test, best"],
        "RMSE, mean and spread": mean_and_spread(each["test, best"]),
        "RMSE, last, mean and spread": mean_and_spread(each["test, last"]),
        "RMSE, training, mean and spread": mean_and_spread(each["train, last"]),
        "RMSE of each setting": [
            {"rate": row["rate"], "decay": row["decay"], "mean and spread": mean_and_spread(row["test, best"])}
            for row in found["settings of the sweep"]
        ],
        "networks": len(runs),
        "seconds": state.seconds,
    }


def told(result: dict[str, Any]) -> str:
    """Returns the result of a pair in one line."""
    error = spread(result["RMSE, mean and spread"], ".5f")
    line = f"{result['inputs']} inputs, {result['pair']}: RMSE {error}, teacher's deviation "
    deviation, _ = mean_and_spread(result["deviation of the teacher"])
    return f"{line}{deviation:.3g}; {result['networks']} networks, {result['seconds']:.0f} s"


def plot(path: Path, results: list[dict[str, Any]], title: str) -> None:
    """Draws a point for each pair, in groups by the number of inputs, and the paper's figure where it has one."""
    figure, axes = pyplot.subplots(figsize=(9, 4.4), layout="constrained")
    inputs = list(dict.fromkeys(result["inputs"] for result in results))
    for place, (colour, pair) in enumerate(zip(COLOURS, PAIRS, strict=False)):
        offset = 0.2 * (place - 1.5)
        rows = [result for result in results if result["pair"] == " by ".join(pair)]
        where = [inputs.index(row["inputs"]) + offset for row in rows]
        mean, deviation = zip(*(row["RMSE, mean and spread"] for row in rows), strict=True)
        axes.errorbar(where, mean, yerr=deviation, fmt="o", color=colour, label=" by ".join(pair), capsize=3)
        for x, row in zip(where, rows, strict=True):
            if row["inputs"] in PAPER:
                axes.plot(x + 0.07, PAPER[row["inputs"]][place], "kD", markersize=4)
    axes.plot([], [], "kD", markersize=4, label="the paper, width 50")
    axes.set(title=title, yscale="log", ylabel="test RMSE", xticks=range(len(inputs)))
    axes.set_xticklabels([f"{n} inputs" for n in inputs])
    figure.legend(title="teacher by student", loc="outside right upper")
    save_plot(figure, path)


def plot_widths(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """Draws the error of each pair over the width of the networks, of the results by their width."""
    by_width = sorted((int(width), found) for width, found in results.items())
    inputs = list(dict.fromkeys(row["inputs"] for _, found in by_width for row in found["results"]))
    figure, panels = pyplot.subplots(
        1, len(inputs), figsize=(13, 4.2), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, n in zip(panels[0], inputs, strict=True):
        for place, (colour, pair) in enumerate(zip(COLOURS, PAIRS, strict=False)):
            points = [
                (width + 1.2 * (place - 1.5), *row["RMSE, mean and spread"], one_setting(found))
                for width, found in by_width
                for row in found["results"]
                if (row["inputs"], row["pair"]) == (n, " by ".join(pair))
                and row["RMSE, mean and spread"][0] is not None
            ]
            axes.plot([point[0] for point in points], [point[1] for point in points], color=colour)
            for x, mean, deviation, hollow in points:
                inside = "white" if hollow else colour
                axes.errorbar(x, mean, yerr=deviation, fmt="o", color=colour, mfc=inside, markersize=5, capsize=2)
            if n in PAPER:
                axes.plot(WIDTH + 1.2 * (place - 1.5), PAPER[n][place], "kD", markersize=4)
        axes.set(title=f"{n} inputs", xlabel="width", yscale="log", xticks=[width for width, _ in by_width])
    first = panels[0][0]
    first.set_ylabel("test RMSE")
    for colour, pair in zip(COLOURS, PAIRS, strict=False):
        first.plot([], [], "o-", color=colour, label=" by ".join(pair))
    first.plot([], [], "kD", markersize=4, label="the paper")
    if any(one_setting(found) for _, found in by_width):
        first.plot([], [], "ko", mfc="white", label="one rate and decay")
    figure.legend(title="teacher by student", loc="outside right upper")
    save_plot(figure, path)


def one_setting(result: dict[str, Any]) -> bool:
    """Tells whether a result has one rate and one decay, so that no seed had a choice."""
    return len(result["settings"]["rates"]) * len(result["settings"]["decays"]) == 1


def main() -> None:
    """Fits all pairs for each number of inputs."""
    options = parser(f"{__doc__}\n\n{NOTE}")
    options.add_argument("--inputs", type=natural, nargs="+", default=[2, 3, 4], help="dimensions of the points")
    options.add_argument("--width", type=natural, default=WIDTH, help="width of all networks")
    options.add_argument("--epochs", type=natural, default=1000, help="times that each training point is seen")
    options.add_argument("--every", type=natural, default=25, help="epochs between two evaluations")
    options.add_argument("--optimizer", choices=list(OPTIMIZERS), default="adam", help="sgd has momentum 0.9")
    options.add_argument("--rates", type=positive, nargs="+", default=list(RATES), help="initial learning rates")
    options.add_argument("--decays", type=amount, nargs="+", default=list(DECAYS), help="weight decays")
    plot_option(options)
    arguments = options.parse_args()
    name = "approximation" + ("-sgd" if arguments.optimizer == "sgd" else "")
    name += f"-width{arguments.width}" if arguments.width != WIDTH else ""
    results = []
    for inputs in arguments.inputs:
        for teacher, student in PAIRS:
            results.append(learn(name, teacher, student, inputs, arguments))
            print(told(results[-1]))
    write(arguments.out / f"{name}.json", {"settings": settings(arguments), "results": results})
    title = f"random networks of width {arguments.width}, fitted by others"
    title += f"; {OPTIMIZERS[arguments.optimizer]}, {arguments.seeds} seeds"
    if not arguments.no_plot:
        plot(arguments.out / f"{name}.png", results, title)


if __name__ == "__main__":
    run_program(main)
