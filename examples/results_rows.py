"""A row for each figure of both papers on functions of a few variables: the board, sines, approximation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from . import paper_figures as paper
from .experiment import TITLES, spread
from .paper_table import ablation_stem
from .results_judge import AGAIN, Row, claim, counted, measured, missing, pictured, swept
from .results_tables import DRAWN, FULL, TRAINED, Results, averaged, numbers, setting, undertrained
from .variability import TITLES as KINDS

FOUND = 99  # test accuracy in % of a network that has learnt the board
HIGH = 95  # of one that found the board under noise
WIDE = 0.5  # of the shapes of a map
SHAPES = FULL["heatmap"]["widths"] * FULL["heatmap"]["depths"]  # of the papers' maps
ENOUGH_SHAPES = 0.2  # of these
NEAR_0 = 0.01  # of a training loss on the board
PAIRED = ("approximation", "approximation-sgd")  # the better of both counts


def activations(stem: str) -> int:
    """Returns how many activations a network of the board has: width times hidden layers."""
    depth, width = map(int, paper.CHECKERBOARD[stem][1].split(" x "))
    return depth * width


def checkerboard(results: Results) -> list[Row]:
    """Tables and pictures of the board."""
    rows = []
    for stem, (name, _, _, ratio, *figures) in paper.CHECKERBOARD.items():
        file = f"checkerboard-{stem}"
        found = results.peek(file)
        for part, key, figure in zip(("test", "training"), ("test, best", "train, last"), figures, strict=True):
            where, what = "checkerboard, accuracy %", f"{name}, {part}"
            if found is None:
                rows.append(missing(where, what, figure, file))
            else:
                alone = part == "test" and stem == "hannet"
                rows.append(swept(where, what, figure, found, key, FOUND if alone else None, name=alone))
        ours = activations(stem)
        share = 100 * ours / int(paper.CHECKERBOARD[stem][2].replace(",", ""))
        why = f"{ours:,} activations; a misprint most likely"
        rows.append(counted("checkerboard, AR %", name, ratio, share, why))
    for stem in ("hannet", "fcnet1"):
        rows.append(pictured(results, "checkerboard, plots (v1, figure 5)", TITLES[stem], f"checkerboard-{stem}"))
    return rows


def noise(results: Results) -> list[Row]:
    """The board with flipped labels: the paper has one run of two networks, pictured."""
    rows = []
    where = "10 % flipped labels, %"
    for stem, (name, best, there, last, trained) in paper.NOISE.items():
        file = f"checkerboard-{stem}-noise0.1"
        found = results.peek(file)
        named = [(f"{name}, test", best, "test, best"), (f"{name}, test at the end", last, "test, last")]
        named.append((f"{name}, training at the end", trained, "train, last"))
        named.append((f"{name}, training at its best test", there, "train, at best test"))
        for what, figure, key in named:
            if figure is not None and found is None:
                rows.append(missing(where, what, figure, file))
            elif figure is not None and found is not None:
                rows.append(swept(where, what, figure, found, key, HIGH if key == "test, best" else None))
        rows.append(pictured(results, "10 % flipped labels, plots (v1, figure 5)", name, file))
    return rows


def ablation(results: Results) -> list[Row]:
    """Both ablations."""
    rows = []
    for model, (name, *both) in paper.ABLATION.items():
        file = ablation_stem(model)
        found = results.peek(file)
        for version, figure in zip(("v1", "later"), both, strict=True):
            where = f"ablation, {version}, test %"
            if figure is None:
                continue
            if found is None:
                rows.append(missing(where, name, figure, file))
                continue
            row = swept(where, name, figure, found, "test, best", name=model == "hannet")
            rows.append(replace(row, verdict=row.verdict + AGAIN) if model == "hannet" else row)
    return rows


def maps(results: Results) -> list[Row]:
    """The heat maps, and the claim of few parameters."""
    rows = []
    where = "heat map, test %"
    for model, said in (("hannet", "above 99 over a wide range"), ("fcnet", "about 85")):
        found = results.peek(f"heatmap-{model}")
        if found is None:
            rows.append(missing(where, TITLES[model], said, f"heatmap-{model}"))
            continue
        means = [statistics.fmean(numbers(cell["test, best"])) for cell in found["cells"]]
        high, median = sum(mean >= FOUND for mean in means), statistics.median(means)
        ours = f"{high} of {len(means)} shapes from {FOUND}, median {median:.1f}, best {max(means):.2f}"
        agrees = high >= WIDE * len(means) if model == "hannet" else abs(median - 85) <= 2
        short = undertrained(found) or len(means) < ENOUGH_SHAPES * SHAPES
        count = f"{seeds(found)} a shape"
        rows.append(claim(where, TITLES[model], said, ours, agrees, setting(found), count, short))
    return [*rows, few(results, where)]


def few(results: Results, where: str) -> Row:
    """Returns the row of the claim of few parameters: at the best shape half of the seeds find the board."""
    found, said = results.peek("heatmap-hannet-about400"), "about 400 parameters can be enough"
    if found is None:
        return missing(where, "HanNet", said, "heatmap-hannet-about400")
    cell = max(found["cells"], key=lambda cell: (from_99(cell), max(numbers(cell["test, best"]))))
    count = len(cell["test, best"])
    shape = f"{cell['depth']} x {cell['width']}, {cell['parameters']} parameters"
    ours = f"{shape}: {from_99(cell)} of {count} seeds from {FOUND}, best {max(numbers(cell['test, best'])):.2f}"
    agrees, seeds_of = 2 * from_99(cell) >= count, f"{count} a shape"
    return claim(where, "HanNet", said, ours, agrees, setting(found), seeds_of, undertrained(found))


def from_99(cell: dict[str, Any]) -> int:
    """Returns how many seeds of a shape have learnt the board."""
    return sum(value >= FOUND for value in numbers(cell["test, best"]))


def seeds(found: dict[str, Any]) -> str:
    """Returns how many seeds a JSON has."""
    return str(found["settings"]["seeds"])


Depths = dict[int, dict[str, Any]]  # of a network over depth, by the number of hidden layers


def varied(at: Depths, depth: int) -> float:
    """Returns the variability at a depth, no number where the JSON has none."""
    value = at[depth]["variability, geometric mean"]
    return math.nan if value is None else float(value)


def collapses(at: Depths, peak: float) -> bool:
    """Whether the variability is next to 0 from 27 hidden layers on."""
    return all(varied(at, depth) < 0.001 * peak for depth in at if depth >= 27)


def rises_and_declines(at: Depths, peak: float) -> bool:
    """Whether it does, and less than half of the networks have collapsed at the end."""
    first, last = min(at), max(at)
    return max(varied(at, first), varied(at, last)) < peak and at[last]["collapsed to a constant, %"] < 50


def stays_high(at: Depths, peak: float) -> bool:
    """Whether the variability is above a tenth of its largest from there on."""
    top = next(depth for depth in at if varied(at, depth) == peak)
    return all(varied(at, depth) > 0.1 * peak for depth in at if depth >= top)


# kind: what v1 says of its variability, to which depth, and whether ours does
VARIABILITIES: dict[str, tuple[str, int, Callable[[Depths, float], bool]]] = {
    "fc-relu": ("0 from 27 hidden layers on", 27, collapses),
    "fc-abs": ("rises, declines, no full collapse by 45", 45, rises_and_declines),
    "hannet": ("high to 45 hidden layers", 45, stays_high),
}
# kind: what v1 says of its training loss, past which depth, and whether it comes near 0 there
LOSSES = {"fc-relu": ("not near 0 past 20", 20, False), "fc-abs": ("near 0 past 30", 30, True)}


def depth(results: Results) -> list[Row]:
    """What v1 says of variability and loss over depth."""
    rows = []
    for kind, (said, least, holds) in VARIABILITIES.items():
        found = results.peek(f"variability-{kind}")
        where = "over depth, v1: variability"
        if found is None:
            rows.append(missing(where, KINDS[kind], said, f"variability-{kind}"))
            continue
        at = {row["depth"]: row for row in found["before training"]}
        known = [varied(at, depth) for depth in at]
        ours, agrees = ", ".join(f"{depth}: {varied(at, depth):.0e}" for depth in at), None
        if max(at) < least:
            ours = f"no depth from {least} on"
        elif any(map(math.isnan, known)):
            ours = "a variability is no number"
        else:
            agrees = holds(at, max(known))
        count = f"{found['settings']['networks']:,}"
        rows.append(claim(where, KINDS[kind], said, ours, agrees, setting(found, TRAINED), count))
    return [*rows, *(loss_row(results, kind) for kind in LOSSES)]


def loss_row(results: Results, kind: str) -> Row:
    """Returns the row of a kind's training loss: near 0 where the best seed of a depth is."""
    said, past, near = LOSSES[kind]
    where, found = "over depth, v1: training loss", results.peek(f"variability-{kind}")
    if found is None:
        return missing(where, KINDS[kind], said, f"variability-{kind}")
    least = {row["depth"]: min(numbers(row["loss"], lower=True)) for row in found["learnt"] if row["depth"] > past}
    if not least:
        return claim(where, KINDS[kind], said, f"no depth past {past}", None, setting(found, DRAWN), seeds(found))
    ours = ", ".join(f"{depth}: {f'{loss:.1g}' if loss < math.inf else 'diverged'}" for depth, loss in least.items())
    reached = any(loss < NEAR_0 for loss in least.values())
    agrees, run = reached == near, setting(found, DRAWN)
    return claim(where, KINDS[kind], said, f"best seed {ours}", agrees, run, seeds(found), undertrained(found))


def sines(results: Results) -> list[Row]:
    """The sum of two waves: every seed of HanNet is to be better than all of the dense network, trained alike."""
    where, what, said = "two-frequency sines", "test RMSE", "HanNet clearly better than FCNet"
    found = {model: results.peek(f"sines-{model}") for model in ("hannet", "fcnet")}
    for model, result in found.items():
        if result is None:
            return [missing(where, what, said, f"sines-{model}")]
    han, dense = (result for result in found.values() if result is not None)
    same = all(han["settings"][key] == dense["settings"][key] for key in ("seeds", "iterations", "width", "depth"))
    run = setting(han) if setting(han) == setting(dense) else f"HanNet {setting(han)}; FCNet {setting(dense)}"
    if not same:
        return [claim(where, what, said, "the two were not trained alike", None, run)]
    errors = [result["best setting of each seed"]["test, best"] for result in (han, dense)]
    ours = ", ".join(
        f"{name} {averaged(own, '.2g', lower=True)}" for name, own in zip(("HanNet", "FCNet"), errors, strict=True)
    )
    better = max(numbers(errors[0], lower=True)) < min(numbers(errors[1], lower=True))
    return [claim(where, what, said, ours, better, run, seeds(han), undertrained(han))]


def by_each_optimizer(results: Results, inputs: int, pair: str) -> list[dict[str, Any]]:
    """Returns what Adam and SGD found for a pair, as far as they have run."""
    files = filter(None, map(results.peek, PAIRED))
    return [row for found in files for row in found["results"] if (row["inputs"], row["pair"]) == (inputs, pair)]


def fitted(results: Results, inputs: int, pair: str) -> tuple[list[float], float] | None:
    """Returns the RMSE of each seed by the better of Adam and SGD, and the mean deviation of what was fitted.

    Where the two have not as many seeds, those that both have.
    """
    rows = by_each_optimizer(results, inputs, pair)
    if not rows:
        return None
    count = min(len(row["RMSE"]) for row in rows)
    values = [min(seed) for seed in zip(*(numbers(row["RMSE"][:count], lower=True) for row in rows), strict=True)]
    return values, statistics.fmean(rows[0]["deviation of the teacher"][:count])


def on_training_points(results: Results, inputs: int, pair: str) -> Sequence[float | None]:
    """Returns mean and deviation of a pair's RMSE on the training points, by the optimizer that tests better."""
    rows = by_each_optimizer(results, inputs, pair)
    better = min(rows, key=lambda row: statistics.fmean(numbers(row["RMSE"], lower=True)))
    learnt: Sequence[float | None] = better["RMSE, training, mean and spread"]
    return learnt


def optimizers(results: Results) -> str:
    """Returns how full the runs of both optimizers are, and which of them has not run."""
    files = dict(zip(("Adam", "SGD"), map(results.peek, PAIRED), strict=True))
    runs = {name: setting(found) for name, found in files.items() if found is not None}
    told = [f"{name} {run}" for name, run in runs.items()] if len(set(runs.values())) > 1 else [*runs.values()][:1]
    lacking = [f"{name} not run" for name in files if name not in runs]
    if not lacking:
        return "; ".join(told)
    short = [lacking[0], *(run.removeprefix("short run: ") for run in told if run != "full")]
    return f"short run: {'; '.join(short)}"


def approximation(results: Results) -> list[Row]:
    """Mutual approximation."""
    rows = []
    for inputs, pairs in paper.APPROXIMATION.items():
        for pair, figure in pairs.items():
            where, what = "approximation, RMSE", f"{inputs} inputs, {pair}"
            ours = fitted(results, inputs, pair)
            if ours is None:
                rows.append(missing(where, what, figure, PAIRED[0]))
                continue
            row = measured(where, what, figure, ours[0], optimizers(results), ".5f", lower=True)
            learnt = f"on the training points {spread(on_training_points(results, inputs, pair), '.5f')}"
            rows.append(replace(row, note=learnt) if row.verdict.startswith("outside") else row)
    return rows + [other_width(results, width) for width in (30, 40, 60, 70, 80, 90, 100)]


def other_width(results: Results, width: int) -> Row:
    """Returns the row of another width, a plot: students of Han layers are to be off at most twice as far as dense."""
    stem = f"approximation-width{width}"
    found = results.peek(stem)
    where, what, said = "approximation, other widths", f"width {width}", "Han-3 students much as FC-1's (plot only)"
    if found is None:
        return missing(where, what, said, stem)
    means = {
        (row["inputs"], row["pair"]): statistics.fmean(numbers(row["RMSE"], lower=True)) for row in found["results"]
    }
    ratios = [
        mean / means[inputs, f"{pair.split(' by ')[0]} by FC-1"]
        for (inputs, pair), mean in means.items()
        if pair.endswith("by Han-3")
    ]
    if not all(map(math.isfinite, means.values())):
        return claim(where, what, said, "a seed diverged", False, setting(found), seeds(found), undertrained(found))
    shown = f"RMSE of Han-3 over FC-1: {min(ratios):.2f} to {max(ratios):.2f}"
    return claim(where, what, said, shown, max(ratios) < 2, setting(found), seeds(found), undertrained(found))
