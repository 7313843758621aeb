"""Sections of docs/results.md on functions of a few variables: the checkerboard, sines, approximation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from . import paper_figures as paper
from .experiment import TITLES, spread
from .paper_table import EXPERIMENTS, WIDE, ablation_stem
from .results_judge import printed
from .results_rows import HIGH, PAIRED, activations, fitted, from_99, on_training_points
from .results_tables import (
    DRAWN,
    TRAINED,
    Results,
    averaged,
    middle,
    numbers,
    one_setting,
    seeds_and_rates,
    setting,
    table,
)
from .variability import TITLES as KINDS

APPROXIMATIONS = sorted(
    (experiment.stem for experiment in EXPERIMENTS if experiment.program == "approximation"),
    key=lambda stem: ("-width" in stem, "sgd" in stem, int(stem.partition("-width")[2] or 0)),
)
NEAR = 1.6  # times the paper's error


def checkerboard(results: Results) -> str:
    """The checkerboard of the main text."""
    rows, stems = [], []
    for stem, (name, shape, parameters, ratio, test, train) in paper.CHECKERBOARD.items():
        found = results.get(f"checkerboard-{stem}")
        share = 100 * activations(stem) / int(parameters.replace(",", ""))
        about = [name, shape, parameters, f"{ratio} / {share:.2f}", test]
        if found is None:
            rows.append([*about, "not run", "", "", "", train, "", "", ""])
            continue
        stems.append(f"checkerboard-{stem}")
        each = found["best setting of each seed"]
        best, last, trained = (averaged(each[key]) for key in ("test, best", "test, last", "train, last"))
        about += [best, middle(each["test, best"]), one_setting(found), last, train, trained]
        rows.append([*about, seeds_and_rates(found), setting(found)])
    head = ["network", "layers", "parameters", "AR %, paper / ours", "test %, paper", "best", "median", "at one rate"]
    head += ["last", "train %, paper", "last", "seeds x rates", "run"]
    return f"""## Checkerboard

A quarter of 6,561 points trains; each seed has a split of its own, where the authors' files hold one for all. Batches
are drawn without replacement, as theirs. 'Best' is the best test accuracy seen every 100 iterations, as in their code;
'last' is the same run at its last iteration. Each seed has the learning rate with which its best is highest. 'At one
rate' is the best of all seeds at the rate with the highest mean. A point is right when the mean of both outputs is on
its label's side of 0.5; a network that diverged has no point right. AR, the activation ratio, is activations over
parameters; the paper's 1.96 of FCNet2 is a misprint most likely: 1,000 activations of 91,402 parameters are 1.09 %.

{table(head, rows)}
{results.commands()}
{results.pictures(stems, "what the network of seed 0 learnt")}
"""


def noise(results: Results) -> str:
    """The checkerboard with flipped training labels."""
    rows, stems = [], []
    for stem, (name, best, there, last, trained) in paper.NOISE.items():
        file = f"checkerboard-{stem}-noise0.1"
        found = results.get(file)
        told = [f"{there} train", *([f"{last} test, {trained} train at the end"] if last else [])]
        about = [name, f"{best} ({'; '.join(told)})"]
        if found is None:
            rows.append([*about, "not run", *[""] * 8])
            continue
        stems.append(file)
        each = found["best setting of each seed"]
        scores = numbers(each["test, best"])
        high = f"{sum(score > HIGH for score in scores)} of {len(scores)}"
        about += [middle(scores), f"{min(scores):.1f} to {max(scores):.1f}", high]
        about += [averaged(scores), one_setting(found)]
        about += [averaged(each[key]) for key in ("test, last", "train, last")]
        rows.append([*about, seeds_and_rates(found), setting(found)])
    head = ["network", "paper, one run", "best: median", "all seeds", f"seeds above {HIGH} %", "mean", "at one rate"]
    head += ["last", "train, last", "seeds x rates", "run"]
    return f"""### With 10 % of the training labels flipped

Test accuracy in %. The seeds of one network may lie far apart; median and range stand beside the mean. The paper's
figures are those of the one run that it pictures: [version 1, figure 5]({paper.V1}).

{table(head, rows)}
{results.commands()}
{results.pictures(stems, "what the network of seed 0 learnt")}
"""


def ablation(results: Results) -> str:
    """The ablation."""
    rows, penalties = [], set()
    for model, (name, *both) in paper.ABLATION.items():
        found = results.get(ablation_stem(model))
        about = [name, *("-" if figure is None else figure for figure in both)]
        if found is None:
            rows.append([*about, "", "not run", *[""] * 4])
            continue
        penalties |= {found["settings"]["penalty"]} if model.startswith("orth") else set()
        scores = found["best setting of each seed"]["test, best"]
        about += [f"{found['parameters']:,}", averaged(scores), middle(scores), one_setting(found)]
        rows.append([*about, seeds_and_rates(found), setting(found)])
    weight = "".join(f"The penalty of the orthogonal dense layers has the weight {p}. " for p in sorted(penalties))
    head = ["hidden layers, 20 of width 30", "v1", "later version", "parameters", "ours", "median", "at one rate"]
    return f"""## Ablation

Test accuracy on the checkerboard in %, as above. The first network is that of the checkerboard, read from its JSON.
{weight}The weight of the papers' penalty on orthogonal dense layers is lost from the text at hand.

{table([*head, "seeds x rates", "run"], rows)}
{results.commands()}
{results.pictures(["ablation"], "test accuracy of each network")}
"""


def heatmap(results: Results) -> str:
    """The maps over width and depth."""
    lines = []
    for model, found in results.each("heatmap", ("hannet", "fcnet", "hannet-about400")).items():
        own = found["settings"]
        means = [averages(cell["test, best"]) for cell in found["cells"]]
        figures = f"{sum(mean >= 99 for mean in means)} of {len(means)} shapes from 99 % on"
        figures += f", median {statistics.median(means):.2f} %, best {max(means):.2f} %"
        about = f", about {own['about']} parameters" if own.get("about") else ""
        sweep = f"{own['seeds']} seeds x {len(own['rates'])} rates a shape; {setting(found)}"
        lines.append(f"- {TITLES[model.partition('-')[0]]}{about}: {figures}; {sweep}.")
        for cell in found["cells"] if own.get("about") else []:
            scores = cell["test, best"]
            shape = f"{cell['depth']} x {cell['width']} ({cell['parameters']}): {averaged(scores)}"
            lines.append(
                f"    - {shape}, {from_99(cell)} of {len(scores)} seeds from 99, best {max(numbers(scores)):.2f}"
            )
    if not lines:
        return ""
    return f"""## Width and depth

The paper's map has widths 20 to 100 and depths 2 to 30: HanNet above 99 % over a wide range, dense networks about 85 %;
about 400 parameters can be enough. Ours: means over the seeds, each at the rate that is best for it.

{chr(10).join(lines)}

{results.commands()}
{results.pictures(["heatmap"], "test accuracy over width and depth")}
"""


def averages(values: Sequence[float | None]) -> float:
    """Returns the mean accuracy of seeds."""
    return statistics.fmean(numbers(values))


Kinds = dict[str, dict[str, Any]]  # the JSON of each kind of network over depth


def at_random(kinds: Kinds) -> str:
    """Returns the table of random networks."""
    rows = []
    for kind, found in kinds.items():
        count = f"{found['settings']['networks']:,}"
        for row in found["before training"]:
            varied = row["variability, geometric mean"]
            told = ["-" if varied is None else f"{varied:.1e}", f"{row['collapsed to a constant, %']:.0f}"]
            shape = f"{row['depth']} x {row['width']}"
            rows.append([KINDS[kind], shape, f"{row['parameters']:,}", *told, count, setting(found, TRAINED)])
    return table(["network, at random", "layers", "parameters", "variability", "collapsed, %", "networks", "run"], rows)


def trained(kinds: Kinds) -> str:
    """Returns the table of networks that have learnt, a row for each depth, and how each kind was run."""
    depths = sorted({row["depth"] for found in kinds.values() for row in found["learnt"]})
    shown = [{row["depth"]: row for row in found["learnt"]} for found in kinds.values()]
    rows = []
    for depth in depths:
        rows.append([str(depth)])
        for learnt in shown:
            row = learnt.get(depth)
            loss = averaged(row["loss"], ".2g", lower=True) if row else "not run"
            rows[-1] += [str(row["width"]) if row else "", loss]
    columns = [column for kind in kinds for column in (f"width of {KINDS[kind]}", "lowest loss")]
    runs = []
    for kind, found in kinds.items():
        own = found["settings"]
        rates = ", ".join(f"{rate:g}" for rate in own["rates"])
        sweep = f"{own['iterations']:,} iterations, {own['seeds']} seeds, the best of the rates {rates}"
        runs.append(f"- {KINDS[kind]}: {sweep}; {setting(found, DRAWN)}")
    return f"{table(['hidden layers, trained', *columns], rows)}\n{chr(10).join(runs)}\n"


def starts(kinds: Kinds) -> str:
    """Returns the tables of the rules by which dense layers may start, one for each list of depths."""
    tables: dict[tuple[int, ...], list[list[str]]] = {}
    for kind, found in kinds.items():
        for start, at in found["variability of each start"].items():
            name = f"{start}, as above" if start == found["settings"]["start"] else start
            cells = ["-" if value is None else f"{value:.0e}" for value in at]
            tables.setdefault(tuple(found["settings"]["depths"]), []).append([KINDS[kind], name, *cells])
    if not tables:
        return ""
    told = [table(["network", "start", *map(str, depths)], rows) for depths, rows in tables.items()]
    return (
        "The text at hand does not say how the papers' dense layers start. The variability of at most 100 random\n"
        "networks of each rule, by the number of hidden layers:\n\n" + "\n".join(told)
    )


def variability(results: Results) -> str:
    """Variability and collapse to a constant."""
    kinds = results.each("variability", KINDS)
    if not kinds:
        return ""
    return f"""## Variability, and collapse to a constant

The papers' first version: at about 4,000 parameters the variability of dense ReLU networks is 0 from 27 hidden layers
on, with abs it rises and declines but does not fully collapse by 45, and HanNets of 800 parameters keep theirs to 45.
On a board of 8 x 8 blocks of 9 x 9 points, with a margin of zeros, and with 3,200 parameters dense ReLU networks do not
reach a loss near 0 past 20 hidden layers, dense abs ones still do past 30 (plots only).

Ours: the geometric mean of random networks before training; one below 1e-9 has collapsed, and counts as 1e-9. Then
networks learn the authors' board. The loss is the lowest of the training, the mean over the seeds, each at the rate
that is best for it.

{at_random(kinds)}
{trained(kinds)}
{starts(kinds)}
{results.commands()}
{results.pictures(["variability"], "variability and loss over depth")}
"""


def sines(results: Results) -> str:
    """The sum of two waves."""
    rows, networks = [], ("hannet", "fcnet")
    for model, ours in results.each("sines", networks).items():
        each, own = ours["best setting of each seed"], ours["settings"]
        told = [averaged(each[key], ".2g", lower=True) for key in ("test, best", "test, last", "train, last")]
        told.insert(1, one_setting(ours, style=".2g", lower=True))
        shape = f"{own['depth']} x {own['width']}"
        rows.append([TITLES[model], shape, f"{ours['parameters']:,}", *told, seeds_and_rates(ours), setting(ours)])
    if not rows:
        return ""
    head = ["network", "layers", "parameters", "test RMSE, best", "at one rate", "test RMSE, last", "train RMSE, last"]
    return f"""## Two-frequency sines

The paper shows a plot only (HanNet clearly better; width 200, 20 hidden layers, 80,000 iterations) and the text at hand
does not print its frequencies. Ours are 1 and 8 half-waves a unit; each seed has a split of
its own. The learning rate is chosen as on the checkerboard.

{table([*head, "seeds x rates", "run"], rows)}
{results.commands()}
{results.pictures([f"sines-{model}" for model in networks], "the target and what was learnt")}
"""


Cells = dict[tuple[str, int, str], dict[str, Any]]  # of the approximation: of a file, a number of inputs and a pair


def best_setting(cells: Cells, inputs: int, pair: str) -> str:
    """Returns the errors of a pair with the optimizer, rate and decay of the best mean over all seeds."""
    found = []
    for stem, optimizer in zip(PAIRED, ("Adam", "SGD"), strict=True):
        for row in cells.get((stem, inputs, pair), {"RMSE of each setting": []})["RMSE of each setting"]:
            mean, _ = row["mean and spread"]
            if mean is not None:
                told = f"{spread(row['mean and spread'], '.5f')} at {optimizer}, {row['rate']:g}, {row['decay']:g}"
                found.append((mean, told))
    return min(found)[1] if found else "-"


def near(shares: Sequence[float], of: str) -> str:
    """Returns a sentence on our errors over the paper's."""
    close = sum(share <= NEAR for share in shares)
    middle = f"{statistics.geometric_mean(shares):.2f}" if all(map(math.isfinite, shares)) else "-"
    least, most = (f"{share:.2f}" if math.isfinite(share) else "-" for share in (min(shares), max(shares)))
    told = f"{least} to {most} times the paper's, {middle} in the geometric mean"
    return f"- On the {of} points ours are {told}; {close} of {len(shares)} are at most {NEAR} times."


def main_width(results: Results, cells: Cells) -> str:
    """Returns the table of width 50, and how near its errors are to the paper's, on test and training points."""
    rows: list[list[str]] = []
    over: dict[str, list[float]] = {"test": [], "training": []}
    for inputs, pairs in paper.APPROXIMATION.items():
        for pair, figure in pairs.items():
            row = [str(inputs), pair, figure, *(error(cells, stem, inputs, pair) for stem in PAIRED)]
            ours = fitted(results, inputs, pair)
            if ours is None:
                rows.append([*row, *[""] * 5])
                continue
            mean = averages(ours[0])
            learnt = on_training_points(results, inputs, pair)[0]
            shares = [each / printed(figure)[0] for each in (mean, math.inf if learnt is None else learnt)]
            for own, share in zip(over.values(), shares, strict=True):
                own.append(share)
            shares.append(100 * mean / ours[1])
            row += [averaged(ours[0], ".5f", lower=True), best_setting(cells, inputs, pair)]
            rows.append([*row, *(f"{share:.2f}" if math.isfinite(share) else "-" for share in shares)])
    head = ["inputs", "teacher by student", "RMSE, paper", "Adam", "SGD", "best of both", "at one setting"]
    told = [near(shares, of) for of, shares in over.items() if shares]
    head += ["best / paper", "training / paper", "best, % of the target's deviation"]
    return f"{table(head, rows)}\n{chr(10).join(told)}\n"


def error(cells: Cells, stem: str, inputs: int, pair: str) -> str:
    """Returns the errors of a pair in a file."""
    row = cells.get((stem, inputs, pair))
    return averaged(row["RMSE"], ".5f", lower=True) if row else "not run"


def other_widths(cells: Cells, wide: Sequence[str]) -> str:
    """Returns the table of other widths, nothing where none has run."""
    if not wide:
        return ""
    rows = [
        [str(inputs), pair, *(error(cells, stem, inputs, pair) for stem in wide)]
        for inputs, pairs in paper.APPROXIMATION.items()
        for pair in pairs
    ]
    columns = ["inputs", "teacher by student", *map(of_width, wide)]
    return f"\nThe paper has plots for the widths 30 to 100. RMSE of ours:\n\n{table(columns, rows)}"


def of_width(stem: str) -> str:
    """Returns the head of the column of a width: 'width 30', 'width 30, SGD'."""
    name, _, width = stem.partition("-width")
    return f"width {width}{', SGD' if name.endswith('-sgd') else ''}"


def approximation(results: Results) -> str:
    """Mutual approximation."""
    files = {stem: found for stem in APPROXIMATIONS if (found := results.get(stem))}
    if not files:
        return ""
    cells = {(stem, row["inputs"], row["pair"]): row for stem, found in files.items() for row in found["results"]}
    wide = [stem for stem in files if "-width" in stem]
    over_width = "\n" + results.pictures([WIDE], "RMSE over width") + "\n" if wide else ""
    sweeps = []
    for stem, found in files.items():
        own = found["settings"]
        sweep = f"{own['seeds']} seeds x {len(own['rates'])} rates x {len(own['decays'])} decays"
        sweeps.append(f"- {stem}: {sweep}; {setting(found)}")
    return f"""## Mutual approximation

Random networks are fitted by others of their width. As in the paper all dense layers start as random orthogonal
matrices, those of teachers and of students. Each seed has a teacher and points of its own, and the rate, weight decay
and optimizer with the least test error of it; 'at one setting' is the optimizer, rate and decay with the least mean
over all seeds. 'Training' is the error on the 2,000 points that were learnt, at the end, by the optimizer with the
lower mean on the 10,000 test points. Width 50:

{main_width(results, cells)}{other_widths(cells, wide)}
{chr(10).join(sweeps)}

{results.commands()}
{results.pictures(PAIRED, "RMSE of each pair", columns=2)}
{over_width}"""
