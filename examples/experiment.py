"""What all examples share: their options, the scores over seeds and learning rates, and the JSON that they write."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

import hanops
from hanops.profiling.files import write_text

from .checkpoints import Checkpoint
from .options import device, natural

if TYPE_CHECKING:
    from .sweep import Run

matplotlib.use("agg")

TITLES = {"hannet": "HanNet", "fcnet": "FCNet", "fcnet1": "FCNet1", "fcnet2": "FCNet2", "fcnet3": "FCNet3"}
OF_THE_CALL = ("--fresh", "--renew", "--no-plot")  # options on which no result depends
PLOT_BYTES = 100_000
COLOURS = ("#0b6e4f", "#c8553d", "#3d5a80", "#e0a458", "#6a4c93", "#7a7a7a")


def parser(description: str | None, iterations: int | None = None) -> argparse.ArgumentParser:
    """Returns a parser with the options that all examples have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--seeds", type=natural, default=5, help="runs of each setting, seeds 0, 1, ...")
    if iterations is not None:
        options.add_argument("--iterations", type=natural, default=iterations, help="steps of training")
    options.add_argument("--device", type=device, default="cpu", help="where to train: cpu or cuda")
    options.add_argument("--out", type=Path, default=Path("runs"), help="folder of the JSON, the plot and checkpoints")
    options.add_argument("--fresh", action="store_true", help="start anew where an interrupted run left a checkpoint")
    options.add_argument("--renew", action="store_true", help="start anew where a checkpoint is of other settings")
    return options


def plot_option(options: argparse.ArgumentParser) -> None:
    """Adds the option of programs whose results share a plot."""
    options.add_argument("--no-plot", action="store_true", help="leave the plot to who has all results, `make paper`")


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and the sample standard deviation, which is no number for a single value."""
    t = torch.tensor(values, dtype=torch.float64)
    return t.mean().item(), t.std().item() if len(values) > 1 else math.nan


def spread(pair: Sequence[float | None] | None, style: str = ".2f") -> str:
    """Returns a mean ± its deviation, or the mean alone where it has none, or a dash where it is no number.

    Args:
        pair: as of `mean_and_spread`, or as a JSON file has it, with None for what is no finite number.
        style: how both are written.
    """
    mean, deviation = pair or (None, None)
    if mean is None or not math.isfinite(mean):
        return "-"
    if deviation is None or not math.isfinite(deviation):
        return f"{mean:{style}}"
    return f"{mean:{style}} ± {deviation:{style}}"


def save_plot(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG, whole or not at all, and closes it; with as few colours as 100 KB ask for."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=90)
    pyplot.close(figure)
    picture = Image.open(drawn).convert("RGB")
    for colours in (256, 64, 16):
        packed = io.BytesIO()
        picture.quantize(colours, dither=Image.Dither.NONE).save(packed, format="PNG", optimize=True)
        if packed.tell() <= PLOT_BYTES:
            break
    whole = path.with_name(f"{path.name}.{os.getpid()}.part")  # other programs may write the same plot
    whole.write_bytes(packed.getvalue())
    whole.replace(path)


def best(history: list[dict[str, Any]], key: str = "test", lower: bool = False) -> list[float]:
    """Returns the best score of each run over all evaluations: the highest, or the lowest. NaN is the worst."""
    pick, worst = (min, math.inf) if lower else (max, -math.inf)
    scores = zip(*(entry[key] for entry in history), strict=True)
    return [pick(worst if math.isnan(score) else score for score in run) for run in scores]


def at_best(history: list[dict[str, Any]], key: str, lower: bool = False) -> list[float]:
    """Returns the score `key` of each run at the first evaluation with its best test score, or at the end without."""
    found = []
    for run, score in enumerate(best(history, lower=lower)):
        entry = next((entry for entry in history if entry["test"][run] == score), history[-1])
        found.append(entry[key][run])
    return found


def summary(runs: Sequence[Run], history: list[dict[str, Any]], lower: bool = False) -> dict[str, Any]:
    """Returns the scores of each setting over the seeds, and for each seed those of the setting that is best for it.

    A setting is a learning rate and a weight decay. As in the papers the best is that of the best test score, which is
    looked at all along the training.

    Args:
        runs, history: of a sweep.
        lower: whether a lower score is the better one.
    """
    columns = {
        "test, best": best(history, lower=lower),
        "test, last": history[-1]["test"],
        "train, last": history[-1]["train"],
        "train, at best test": at_best(history, "train", lower),
    }
    seeds = list(dict.fromkeys(run.seed for run in runs))
    rows: list[dict[str, Any]] = []
    for rate, decay in dict.fromkeys((run.rate, run.decay) for run in runs):
        own = [index for index, run in enumerate(runs) if (run.rate, run.decay) == (rate, decay)]
        scores = {name: [column[i] for i in own] for name, column in columns.items()}
        rows.append({"rate": rate, "decay": decay, **scores})
    pick = min if lower else max
    chosen = [pick(rows, key=lambda row: row["test, best"][place]) for place in range(len(seeds))]
    each: dict[str, Any] = {"rate": [row["rate"] for row in chosen], "decay": [row["decay"] for row in chosen]}
    for name in columns:
        each[name] = [row[name][place] for place, row in enumerate(chosen)]
        each[f"{name}, mean and spread"] = mean_and_spread(each[name])
    return {"settings of the sweep": rows, "best setting of each seed": each}


def command(program: str, words: Sequence[str]) -> str:
    """Returns a command as it is written down: without its output folder, and with DIR for folders of data."""
    kept = [f"python -m examples.{program}"]
    rest = iter(words)
    for word in rest:
        if word == "--out":
            next(rest)
        elif word == "--data":
            next(rest)
            kept.append("--data DIR")
        elif word not in OF_THE_CALL:
            kept.append(word)
    return " ".join(kept)


def finite(value: Any) -> Any:
    """Returns a result with None for each number that is infinite or none: JSON has no such numbers."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def written(out: Path, stem: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns what the JSON files {stem}-{name}.json of a folder say, for each name that has one."""
    files = {name: out / f"{stem}-{name}.json" for name in names}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def trained_less(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Returns what the label of each result in a plot says where another one trained for more: ', 100 iterations'."""
    iterations = {name: result["settings"]["iterations"] for name, result in results.items()}
    most = max(iterations.values())
    return {name: f", {n:,} iterations" if n < most else "" for name, n in iterations.items()}


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes a result, whole or not at all, with the command and the versions that made it."""
    made = {
        "command": command(Path(sys.argv[0]).stem, sys.argv[1:]),
        "versions": {"hanops": hanops.__version__, "torch": torch.__version__},
        "threads": torch.get_num_threads(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(finite({**made, **result}), indent=1, allow_nan=False) + "\n")


def checkpoint(arguments: argparse.Namespace, name: str) -> Checkpoint:
    """Returns the file from which an interrupted training goes on; it is removed where that is to start afresh."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    path: Path = arguments.out / f"{name}.pt"
    if arguments.fresh:
        path.unlink(missing_ok=True)
    return Checkpoint(path, arguments.renew)


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the options that a result depends on."""
    left_out = ("out", "fresh", "renew", "no_plot", "data")
    return {key: value for key, value in vars(arguments).items() if key not in left_out}
