"""Learns a checkerboard from a quarter of its points: HanNet, dense networks, and the papers' ablations."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from sweep import Data, Recipe, Run, best, mean_and_spread, parser, train, write
from torch import Tensor

from hanops.models import FCNet, HanNet, Network, orthogonality_penalty

RATES = (0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0)
POINTS = 81  # of each axis


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


def board(full: bool) -> tuple[Tensor, Tensor]:
    """Returns the 6,561 points of [-1, 1]^2 and their labels, (6561, 2) each, a label in both columns.

    The authors' board has 12 x 12 blocks of 6 x 6 points inside a margin of label 0; `full` stretches 8 x 8 blocks over
    the whole square, which is much harder.
    """
    i, j = torch.meshgrid(torch.arange(POINTS), torch.arange(POINTS), indexing="ij")
    if full:
        label = (i * 8 // POINTS + j * 8 // POINTS) % 2
    else:
        inside = (i >= 4) & (i < 76) & (j >= 4) & (j < 76)
        label = torch.where(inside, ((i - 4) // 6 + (j - 4) // 6) % 2, 0)
    x = torch.stack([i, j], -1).flatten(0, 1) / ((POINTS - 1) / 2) - 1
    return x, label.flatten().float().unsqueeze(1).expand(-1, 2)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the share of rows whose outputs all round to their targets, for each group."""
    return (outputs.round() == targets.round()).all(-1).double().mean(-1)


def data(runs: list[Run], full: bool, noise: float, device: str) -> Data:
    """Returns a quarter of the points for each run to train on, `noise` of their labels flipped, the rest to test."""
    x, label = board(full)
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


def summary(runs: list[Run], history: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns, in percent, each rate's scores over the seeds, and for each seed the rate that is best for it.

    The papers take the best rate of each run, by the test accuracy, which is looked at every 100 iterations.
    """
    columns = {"test, best": best(history), "test, last": history[-1]["test"], "train, last": history[-1]["train"]}
    seeds = list(dict.fromkeys(run.seed for run in runs))
    rows: list[dict[str, Any]] = []
    for rate in dict.fromkeys(run.rate for run in runs):
        own = [index for index, run in enumerate(runs) if run.rate == rate]
        rows.append({"rate": rate, **{name: [100 * column[i] for i in own] for name, column in columns.items()}})
    chosen = [max(rows, key=lambda row: row["test, best"][place]) for place in range(len(seeds))]
    each: dict[str, Any] = {"rate": [row["rate"] for row in chosen]}
    for name in columns:
        each[name] = [row[name][place] for place, row in enumerate(chosen)]
        each[f"{name}, mean and spread"] = mean_and_spread(each[name])
    return {"rates": rows, "best rate of each seed": each}


def plot(path: Path, model: Network, group: int, run: Data, history: list[dict[str, Any]], title: str) -> None:
    """Draws what a network has learnt over the square, and its scores over the training."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    axis = torch.linspace(-1, 1, 241)
    mesh = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).flatten(0, 1).to(run.x.device)
    with torch.no_grad():
        values = model.single(group)(mesh)[:, 0].reshape(241, 241).cpu()
    left.imshow(values.t(), origin="lower", extent=(-1, 1, -1, 1), cmap="gray", vmin=-0.2, vmax=1.2)
    left.set(title="output, first column", xlabel="$x_1$", ylabel="$x_2$")
    for name, style in (("train", ":"), ("test", "-")):
        points = [(entry["iteration"], 100 * entry[name][group]) for entry in history]
        right.plot(*zip(*points, strict=True), style, color="#0b6e4f", label=name)
    right.set(title="accuracy", xlabel="iteration", ylabel="%", ylim=(40, 101))
    right.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Runs the sweep of one model."""
    options = parser(__doc__, 40_000, RATES)
    options.add_argument("--model", choices=list(MODELS), default="hannet", help="which network")
    options.add_argument("--noise", type=float, default=0.0, help="part of the training labels that are flipped")
    options.add_argument("--full", action="store_true", help="an 8 x 8 board over the whole square, much harder")
    options.add_argument("--penalty", type=float, default=0.001, help="weight of |W'W - I|^2 for the orth models")
    arguments: argparse.Namespace = options.parse_args()
    runs = [Run(seed, rate) for rate in arguments.rates for seed in range(arguments.seeds)]
    make = MODELS[arguments.model]
    penalty = None
    if arguments.model.startswith("orth"):
        penalty = lambda model: arguments.penalty * orthogonality_penalty(model)  # noqa: E731
    points = data(runs, arguments.full, arguments.noise, arguments.device)
    name = f"checkerboard-{arguments.model}{'-full' if arguments.full else ''}"
    name += f"-noise{arguments.noise:g}" if arguments.noise else ""
    arguments.out.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.out / f"{name}.pt"
    if arguments.fresh:
        checkpoint.unlink(missing_ok=True)
    recipe = Recipe(arguments.iterations, penalty=penalty)
    state = train(make, runs, points, recipe, accuracy, checkpoint)
    found = summary(runs, state.history)
    settings = {key: value for key, value in vars(arguments).items() if key not in ("out", "fresh")}
    parameters = sum(p.numel() for p in make().parameters())
    result = {"settings": settings, "parameters": parameters, "seconds": state.seconds, "networks": len(runs), **found}
    write(arguments.out / f"{name}.json", result)
    each = found["best rate of each seed"]
    mean, spread = each["test, best, mean and spread"]
    last, _ = each["test, last, mean and spread"]
    line = f"{arguments.model}, {parameters:,} parameters, {arguments.seeds} seeds: "
    line += f"{mean:.2f} ± {spread:.2f} % test accuracy"
    line += f" (at the last iteration {last:.2f})"
    print(f"{line}; {len(runs)} networks in {state.seconds:.0f} s")
    group = next(index for index, run in enumerate(runs) if run.rate == each["rate"][0])
    plot(arguments.out / f"{name}.png", state.model, group, points, state.history, line)


if __name__ == "__main__":
    main()
