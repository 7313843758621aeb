"""Learns tables of numbers: HanNet and two dense networks, trained on a part of the rows and tested on the rest."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from matplotlib import pyplot
from sklearn.datasets import load_diabetes
from torch import Tensor

from hanops.metrics import activation_ratio
from hanops.models import FCNet, HanNet, Network

from .experiment import COLOURS, TITLES, best, checkpoint, mean_and_spread, parser, save_plot, settings, spread, write
from .options import RefusedError, fraction, natural, positive, run_program
from .paper_figures import REGRESSION
from .sweep import Data, Recipe, Run, State, root_mean_squared_error, train

BATCH = 100
MODELS: dict[str, Callable[[int], Network]] = {
    "hannet": lambda features: HanNet(features, 200, 20, 1),
    "fcnet1": lambda features: FCNet(features, 50, 5, 1),
    "fcnet2": lambda features: FCNet(features, 200, 5, 1),
}
NOTE = (
    "DIR has one CSV file for each table: no header, numbers only, the last column the target. Without it the table is "
    "scikit-learn's diabetes, which needs no download. Errors are in the unit of the target, which is not rescaled: "
    "RMSE^2 / (1 - R2) of the paper is the variance of the last column as its five tables have it. A single row far "
    "outside of the training rows can rule the test error; with --whole such a row has less weight, and errors on "
    "Skillcraft are the paper's at the best evaluation."
)


def numbers(line: str, wanted: int | None) -> list[float]:
    """Returns the numbers of a line of CSV, none of an empty one; ValueError where they are not as many as wanted."""
    written = line.partition("#")[0].strip()
    cells = [float(cell) for cell in written.split(",")] if written else []
    if cells and (len(cells) < 2 if wanted is None else len(cells) != wanted):
        raise ValueError(f"a line must have {wanted or 'two or more'} numbers, got {len(cells)}")
    if not all(map(math.isfinite, cells)):
        raise ValueError("a number must be finite")
    return cells


def rows_of(file: Path) -> Tensor:
    """Returns the table of a CSV file, (rows, columns) in float64.

    Raises:
        RefusedError: where a line is not of as many finite numbers as the first, two or more; it names file and line.
    """
    rows: list[list[float]] = []
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError as error:
        raise RefusedError(f"{file}: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        try:
            cells = numbers(line, len(rows[0]) if rows else None)
        except ValueError as error:
            raise RefusedError(f"{file}, line {number}: {error}") from error
        rows += [cells] if cells else []
    if not rows:
        raise RefusedError(f"{file}: a table must have rows of numbers, got none")
    return torch.tensor(rows, dtype=torch.float64)


def read(folder: Path | None, name: str | None) -> dict[str, Tensor]:
    """Returns tables by name, (rows, columns) in float64, the target in the last column.

    Args:
        folder: of CSV files; None for scikit-learn's own.
        name: of the only table wanted; None for all, sorted.

    Raises:
        RefusedError: where there is no such table, or one is not of finite numbers, or its target does not vary.
    """
    tables: dict[str, Tensor] = {}
    if folder is not None:
        files = {file.stem: file for file in sorted(folder.glob("*.csv"))}
        tables = {stem: rows_of(file) for stem, file in files.items() if name in (None, stem)}
    elif name in (None, "diabetes"):
        x, y = load_diabetes(return_X_y=True, scaled=False)
        tables["diabetes"] = torch.cat([torch.from_numpy(x), torch.from_numpy(y).unsqueeze(1)], 1)
    if not tables:
        there = "diabetes, of scikit-learn" if folder is None else f"{', '.join(files) or 'none'}, in {folder}"
        raise RefusedError(f"argument --table: there is no table {name or ''}; there is {there}")
    for stem, table in tables.items():
        if (table[:, -1] == table[0, -1]).all():
            raise RefusedError(f"{stem}: the target, the last column, must vary, got {table[0, -1]:g} in all rows")
    return tables


def data(table: Tensor, part: float, seeds: int, whole: bool, device: str) -> Data:
    """Returns a random part of the rows for each seed to train on, the rest to test; features are standardised.

    Columns that are constant in the whole table are dropped. One that is constant in the training rows of a seed is 0.

    Args:
        table: (rows, columns) in float64, the target in the last column.
        part: of the rows that trains.
        seeds: number of splits.
        whole: whether mean and deviation are those of all rows, not of the training rows.
        device: of the result.

    Raises:
        RefusedError: where the part leaves no row to train or none to test.
    """
    x, y = table[:, :-1], table[:, -1:]
    x = x[:, (x != x[0]).any(0)]
    count = int(part * len(table))  # as the authors' code does
    if not 1 < count < len(table):
        raise RefusedError(f"argument --part: must leave rows to train and to test, got {part} of {len(table)} rows")
    parts: list[list[Tensor]] = [[], [], [], []]
    for seed in range(seeds):
        order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
        known, rest = order[:count], order[count:]
        base = x if whole else x[known]
        scaled = (x - base.mean(0)) * torch.where((base != base[0]).any(0), 1 / base.std(0), 0)
        for rows, values in zip(parts, (scaled[known], y[known], scaled[rest], y[rest]), strict=True):
            rows.append(values.float())
    return Data(*(torch.stack(rows).to(device) for rows in parts))


def figures(state: State, points: Data) -> dict[str, Any]:
    """Returns RMSE and R2 of each seed, at the end and at the best evaluation, with mean and spread."""
    last = state.history[-1]
    errors = {"test RMSE, last": last["test"], "test RMSE, best": best(state.history, lower=True)}
    variance = points.test_target.double().var((1, 2), correction=0)
    found: dict[str, Any] = {"train RMSE, last": last["train"]}
    for name, values in errors.items():
        found[name] = values
        found[name.replace("RMSE", "R2")] = (1 - torch.tensor(values).double().square() / variance.cpu()).tolist()
    return found | {f"{name}, mean and spread": mean_and_spread(values) for name, values in found.items()}


def learn(name: str, points: Data, arguments: argparse.Namespace, model: str) -> tuple[State, dict[str, Any]]:
    """Trains a model on a table, one network for each seed; returns the trained state and its figures."""
    rows, features = points.x.shape[1:]
    batch = min(BATCH, rows)
    epoch = rows // batch  # steps
    recipe = Recipe(
        arguments.epochs * epoch, batch, epochs=True, optimizer="adam", milestones=(), every=arguments.every * epoch
    )
    state = train(
        lambda: MODELS[model](features),
        [Run(seed, arguments.rate) for seed in range(arguments.seeds)],
        points,
        recipe,
        root_mean_squared_error,
        checkpoint(arguments, f"{name}-{model}"),
        lower=True,
    )
    single = MODELS[model](features)
    return state, {
        "parameters": sum(p.numel() for p in single.parameters()),
        "activation ratio": activation_ratio(single, torch.zeros(features)),
        "seconds": state.seconds,
        **figures(state, points),
    }


def told(model: str, result: dict[str, Any]) -> str:
    """Returns the result of a model in one line."""
    last, least = (spread(result[f"test RMSE, {when}, mean and spread"], ".3f") for when in ("last", "best"))
    r2 = spread(result["test R2, best, mean and spread"], ".3f")
    line = f"{TITLES[model]}, {result['parameters']:,} parameters: test RMSE at best {least}, R2 {r2}"
    return f"{line} (at the last epoch {last}); {result['seconds']:.0f} s"


def plot(path: Path, histories: dict[str, list[dict[str, Any]]], title: str, epoch: int, width: float) -> None:
    """Draws the test error of each model over the training: the mean of the seeds, and their range as a band.

    As in version 1 of the paper the error is normalised: divided by `width`, the range of the target.
    """
    figure, axes = pyplot.subplots(figsize=(7, 4.4), layout="constrained")
    for colour, (model, history) in zip(COLOURS, histories.items(), strict=False):
        epochs = [entry["iteration"] / epoch for entry in history]
        scores = torch.tensor([entry["test"] for entry in history]) / width  # (evaluations, seeds)
        axes.plot(epochs, scores.mean(1), color=colour, label=TITLES[model])
        axes.fill_between(epochs, scores.min(1).values, scores.max(1).values, color=colour, alpha=0.2, linewidth=0)
    axes.set(title=title, xlabel="epoch", ylabel="test RMSE / range of the target", yscale="log")
    axes.legend()
    save_plot(figure, path)


def main() -> None:
    """Trains the models on the tables."""
    options = parser(f"{__doc__}\n\n{NOTE}")
    options.add_argument("--data", type=Path, metavar="DIR", help="folder of tables")
    options.add_argument("--table", help="a single table, the name of its file without .csv")
    options.add_argument("--part", type=fraction, default=0.8, help="part of the rows that trains")
    options.add_argument("--whole", action="store_true", help="standardise by all rows, not by the training rows")
    options.add_argument("--model", nargs="+", choices=list(MODELS), default=list(MODELS), help="which networks")
    options.add_argument("--epochs", type=natural, default=300, help="times that each training row is seen")
    options.add_argument("--every", type=natural, default=5, help="epochs between two evaluations")
    options.add_argument("--rate", type=positive, default=0.001, help="learning rate")
    arguments = options.parse_args()
    tables = read(arguments.data, arguments.table)
    prepared = {  # all of them, so that what is refused is refused before the first trains
        stem: data(table, arguments.part, arguments.seeds, arguments.whole, arguments.device)
        for stem, table in tables.items()
    }
    for stem, table in tables.items():
        name = f"regression-{stem}-{arguments.part:g}{'-whole' if arguments.whole else ''}"
        points = prepared[stem]
        rows, features = points.x.shape[1:]
        result: dict[str, Any] = {
            "settings": settings(arguments) | {"table": stem, "source": "a file" if arguments.data else "scikit-learn"},
            "rows": {"train": rows, "test": points.test_x.shape[1]},
            "features": features,
            "deviation of the target": table[:, -1].std().item(),
            "models": {},
        }
        print(f"{stem}: {len(table):,} rows, {rows:,} of them train, {features} features")
        known = f"{name}-{crc32(table.numpy().tobytes()):08x}"  # a table that has changed is trained anew
        histories = {}
        for model in arguments.model:
            state, result["models"][model] = learn(known, points, arguments, model)
            histories[model] = state.history
            print(told(model, result["models"][model]))
        write(arguments.out / f"{name}.json", result)
        title = REGRESSION[stem][0] if stem in REGRESSION else stem
        title += f", {rows:,} of {len(table):,} rows train, {arguments.seeds} seeds"
        width = (table[:, -1].max() - table[:, -1].min()).item()
        plot(arguments.out / f"{name}.png", histories, title, rows // min(BATCH, rows), width)


if __name__ == "__main__":
    run_program(main)
