"""JSON files as the papers' experiments write them, of made-up scores: for the tests of docs/results.md."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from examples import paper_figures
from examples.paper_table import EXPERIMENTS, Experiment

Made = dict[str, Any]
VARIANTS = ["reduced", "full", "mixed", "mixed again", "one diverged", "all diverged", "no plots"]
DEPTHS = [5, 15, 27, 35]
RATES = [0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0]
DEFAULTS: dict[str, Made] = {  # of each program's options
    "checkerboard": {"iterations": 40_000, "rates": RATES, "penalty": 0.001},
    "ablation": {"iterations": 40_000, "rates": RATES, "penalty": 0.001},
    "heatmap": {"iterations": 40_000, "rates": RATES, "widths": [20, 30], "depths": [2, 4], "about": None},
    "variability": {
        "iterations": 40_000,
        "rates": [0.01, 0.025, 0.05, 0.1],
        "depths": [2, 5, 10, 15, 20, 27, 35, 45],
        "networks": 3_000,
        "start": "xavier",
    },
    "sines": {"iterations": 80_000, "rates": RATES, "width": 200, "depth": 20},
    "approximation": {"epochs": 1_000, "rates": [0.0001, 0.001, 0.01, 0.1], "decays": [0.0, 0.001]},
    "regression": {"epochs": 300, "every": 5},
    "speed": {"seeds": 2, "iterations": 40_000},
    "digits": {"train": 1_000, "epochs": 100, "depths": [2, 5, 10, 20]},
    "robustness": {"epochs": 100, "decays": [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1], "images": 1_000},
    "images": {"epochs": 600, "channels": 512},
    "head": {"iterations": 20_000, "rates": [0.25]},
}


def number(word: str) -> Any:
    """Returns the number that a word is, or the word."""
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def settings(program: str, words: str) -> Made:
    """Returns the settings of a command: the program's, with what the words say."""
    found = {"seeds": 5, **DEFAULTS[program]}
    key = ""
    for word in words.split():
        if word.startswith("--"):
            key = word[2:].replace("-", "_")
            found[key] = [] if isinstance(found.get(key), list) else True
        else:
            found[key] = [*found[key], number(word)] if isinstance(found[key], list) else number(word)
    return found


def pair(values: Iterable[float | None]) -> list[float | None]:
    """Returns mean and deviation as a JSON has them, None where a value is none."""
    own = list(values)
    if None in own:
        return [None, None]
    return [statistics.fmean(own), statistics.stdev(own) if len(own) > 1 else None]


class Maker:
    """Makes the JSON of an experiment; `lost` is how many of its seeds diverged."""

    def __init__(self, experiment: Experiment, words: str, lost: int) -> None:
        self.experiment, self.words, self.lost = experiment, words, lost
        self.settings = settings(experiment.program, words)
        self.seeds = self.settings["seeds"]

    def scores(self, level: float, step: float, diverged: float | None = None) -> list[float | None]:
        """Returns the scores of the seeds, evenly spread; those that diverged are first."""
        return [diverged if seed < self.lost else level + step * seed for seed in range(self.seeds)]

    def sweep(self, level: float, step: float, diverged: float | None) -> Made:
        """Returns the two parts of a sweep: its settings, the last the best, and the best of each seed."""
        rows = [
            {
                "rate": rate,
                "decay": 0.0,
                **{
                    key: self.scores(level * (1 + place / 100), step, diverged)
                    for key in ("test, best", "test, last", "train, last", "train, at best test")
                },
            }
            for place, rate in enumerate(self.settings.get("rates", [0.1]))
        ]
        each = {key: value for key, value in rows[0].items() if isinstance(value, list)}
        means = {f"{key}, mean and spread": pair(values) for key, values in each.items()}
        best = {**each, **means, "rate": [rows[0]["rate"]] * self.seeds}
        return {"settings of the sweep": rows, "best setting of each seed": best}

    def checkerboard(self) -> Made:
        return {"parameters": 3032, "networks": 50, "seconds": 1.5, **self.sweep(90.0, 0.3, 0.0)}

    ablation = checkerboard

    def heatmap(self) -> Made:
        own = self.settings
        shapes = [(depth, width) for depth in own["depths"] for width in own["widths"]]
        shapes = [(5, width) for width in own["widths"]] if own["about"] else shapes
        cells = []
        for depth, width in shapes:
            scores = self.scores(98.0, 0.3, 0.0)
            cells.append({"depth": depth, "width": width, "parameters": 400, "test, best": scores})
            cells[-1]["test, best, mean and spread"] = pair(scores)
        return {"cells": cells, "seconds": 10.0}

    def variability(self) -> Made:
        depths, shape = self.settings["depths"], {"width": 12, "parameters": 3200}
        varied = {depth: 10.0 ** (3 - abs(depth - 15) / 5) for depth in depths}
        before = [
            {"depth": depth, **shape, "variability, geometric mean": varied[depth], "collapsed to a constant, %": 5.0}
            for depth in depths
        ]
        learnt = [{"depth": depth, **shape, "loss": self.scores(0.001 * depth, 0.001)} for depth in depths]
        for row in learnt:
            row["loss, mean and spread"] = pair(row["loss"])
        starts = [] if self.experiment.stem.endswith("hannet") else ["xavier", "orthogonal", "torch", "kaiming"]
        tried = {start: list(varied.values()) for start in starts}
        return {"before training": before, "learnt": learnt, "variability of each start": tried}

    def sines(self) -> Made:
        level = 0.01 if self.experiment.stem.endswith("hannet") else 0.1
        return {"parameters": 9_000, "networks": 10, "seconds": 2.0, **self.sweep(level, 0.001, None)}

    def approximation(self) -> Made:
        rows = []
        for inputs, pairs in paper_figures.APPROXIMATION.items():
            for name, figure in pairs.items():
                errors = self.scores(float(figure), 1e-5)
                each = [
                    {"rate": rate, "decay": decay, "mean and spread": pair(errors)}
                    for rate in self.settings["rates"]
                    for decay in self.settings["decays"]
                ]
                told = {"RMSE": errors, "RMSE, mean and spread": pair(errors), "RMSE of each setting": each}
                told["RMSE, training, mean and spread"] = pair([error and error / 2 for error in errors])
                rows.append({"inputs": inputs, "pair": name, "deviation of the teacher": [0.2] * self.seeds, **told})
        return {"results": rows}

    def regression(self) -> Made:
        models = {}
        for model in paper_figures.REGRESSION_MODELS:
            models[model] = {"parameters": 11_601, "activation ratio": 0.3448}
            for when in ("best", "last"):
                for kind in ("RMSE", "R2"):
                    scores = self.scores(0.3, 0.01)
                    models[model][f"test {kind}, {when}"] = scores
                    models[model][f"test {kind}, {when}, mean and spread"] = pair(scores)
        return {"models": models}

    def speed(self) -> Made:
        each = {"seconds": [10.0] * self.seeds, "seconds, mean and spread": pair([10.0] * self.seeds)}
        times = {"times faster, one network": 4.0, "times faster, all networks": 40.0, "processor": "2 threads"}
        return {"networks": 50, "eager": each, "hanops": each, "grouped": {"seconds": 50.0}, **times}

    def digits(self) -> Made:
        networks = {}
        for name, depth in (("hannet-2", 2), ("hannet-20", 20), ("fcnet", 1)):
            scores = self.scores(90.0, 0.5, 9.8)
            networks[name] = {"depth": depth, "parameters": 900, "test, best": scores, "test, last": scores}
        return {"data": "scikit-learn's digits", "width": 64, "test images": 797, "networks": networks}

    def robustness(self) -> Made:
        attacks = ("clean", "linf 0.1", "l2 1", "cw 1", "cw 3", "cw 5")
        scores = self.scores(91.0, 0.5, 9.8)
        figures = {attack: {"each seed": scores, "mean and spread": pair(scores)} for attack in attacks}
        networks = {name: {"decay": 0.01, "accuracy": figures} for name in paper_figures.ROBUSTNESS}
        return {"data": "scikit-learn's digits", "images attacked": 797, "networks": networks}

    def images(self) -> Made:
        _, data, model = self.experiment.stem.split("-", 2)
        told = {"data set": data, "model": model, "parameters": 30_000, "epochs": self.settings["epochs"]}
        return {**told, "top-1 error, best": self.scores(20.0, 0.5), "top-1 error, last": self.scores(21.0, 0.5)}

    def head(self) -> Made:
        heads = {name: {"parameters": 20_490, **self.sweep(2.0, 0.1, None)} for name in ("han", "linear")}
        return {"data set": "made: features", **heads}

    def result(self) -> Made:
        """Returns what the JSON says."""
        made_by = {"command": f"python -m examples.{self.experiment.program} {self.words}".strip(), "threads": 1}
        versions = {"versions": {"hanops": "0.2.0"}}
        return {**made_by, **versions, "settings": self.settings, **getattr(self, self.experiment.program)()}


def write(folder: Path, experiment: Experiment, full: bool, lost: int = 0, plot: bool = True) -> None:
    """Writes the JSON of an experiment, and a plot beside it, where it has such options."""
    words = experiment.full if full else experiment.reduced
    if words is not None:
        out = folder / ("full" if full else "reduced")
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{experiment.stem}.json").write_text(json.dumps(Maker(experiment, words, lost).result()))
        if plot:
            (out / f"{experiment.stem}.png").touch()


def variant(folder: Path, name: str) -> None:
    """Writes the results of all experiments.

    Args:
        folder: of the folders full and reduced.
        name: 'full', 'reduced', 'mixed' (every other one is full), 'mixed again' (the others are), 'one diverged' or
            'all diverged' seeds of full runs, 'no plots'.
    """
    for place, experiment in enumerate(EXPERIMENTS):
        full = {"reduced": False, "mixed": place % 2 == 0, "mixed again": place % 2 == 1}.get(name, True)
        lost = {"one diverged": 1, "all diverged": 10}.get(name, 0)
        write(folder, experiment, full, lost, plot=name != "no plots")


def change(folder: Path, stem: str, **changes: Any) -> Made:
    """Writes the full result of a stem with other entries, and returns it."""
    (experiment,) = (e for e in EXPERIMENTS if e.stem == stem)
    write(folder, experiment, full=True)
    file = folder / "full" / f"{stem}.json"
    made: Made = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(made))
    return made


def over_depth(folder: Path, kind: str, depths: list[int], **changes: object) -> None:
    """Writes the result of a kind of network over depth, of these depths."""
    (experiment,) = (e for e in EXPERIMENTS if e.stem == f"variability-{kind}")
    words = experiment.full + " --depths " + " ".join(map(str, depths))
    change(folder, experiment.stem, **(Maker(experiment, words, 0).result() | changes))
