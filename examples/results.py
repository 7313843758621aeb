"""Writes docs/results.md: each table of the papers beside what the examples' JSON files say of ours."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from . import paper_figures as paper
from .options import RefusedError

HEAD = """# The papers' experiments, run with hanops

Source: Yu and Zhang, arXiv 2106.04088, in two versions (v1, 2021; the later one, 2024).

- 'Paper' is their figure. The other columns are ours: the mean over the seeds ± the sample standard deviation.
- `make paper` makes reduced runs, within an hour on 2 cores; `make paper-full` runs the papers' settings. A full run
  replaces the reduced one of the same experiment. Both write this page from the JSON files in `examples/results`.
- Below each table is the command that made it. DIR is a folder of data that the repository does not ship.
- Reduced runs have few learning rates: those that won in trials, or at which no network diverged.
- In a reduced run an experiment has one core, so its seconds are not the fastest.
"""


def read(file: Path) -> dict[str, Any]:
    """Returns what the JSON file of an experiment says.

    Raises:
        RefusedError: where that is not what an example writes.
    """
    try:
        found = json.loads(file.read_text())
    except ValueError as error:  # of UTF-8 too
        raise RefusedError(f"{file} is no JSON ({error}): remove it, and its experiment is run again") from error
    if not isinstance(found, dict) or "command" not in found:
        raise RefusedError(f"{file} is of no example: remove it, and its experiment is run again")
    return found


class Results:
    """The JSON files of the experiments: those of full runs before those of reduced ones."""

    def __init__(self, folder: Path) -> None:
        self.files = {
            file.stem: file for kind in ("reduced", "full") for file in sorted((folder / kind).glob("*.json"))
        }
        self.used: list[str] = []

    def get(self, stem: str) -> dict[str, Any] | None:
        """Returns the result of a stem, or None where there is none; its command goes below the table."""
        if stem not in self.files:
            return None
        found = read(self.files[stem])
        kind = "full" if self.files[stem].parent.name == "full" else "reduced"
        seconds = found.get("seconds")
        self.used.append(f"- `{found['command']}` ({kind}{f', {seconds:,.0f} s' if seconds else ''})")
        return found

    def commands(self) -> str:
        """Returns the commands of what was read since the last call."""
        lines, self.used = list(dict.fromkeys(self.used)), []
        return "\n".join(lines) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown, its columns aligned."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]) + "\n"


def spread(pair: Sequence[float | None] | None, digits: int = 2) -> str:
    """Returns a mean and its spread, or a dash. A JSON file has None for what is no finite number."""
    if pair is None or pair[0] is None:
        return "-"
    return f"{pair[0]:.{digits}f} ± {math.nan if pair[1] is None else pair[1]:.{digits}f}"


def significant(pair: Sequence[float | None]) -> str:
    """Returns a small mean and its spread with two significant digits of the mean."""
    if pair[0] is None or pair[1] is None or not math.isfinite(pair[0]):
        return "a seed diverged"
    return f"{pair[0]:.2g} ± {pair[1]:.1g}"


def seeds_and_rates(result: dict[str, Any]) -> str:
    """Returns how many runs a sweep had."""
    sweep = result["settings of the sweep"]
    return f"{len(sweep[0]['test, best'])} x {len(sweep)}"


def checkerboard(results: Results) -> str:
    """The checkerboard of the main text."""
    rows = []
    for stem, (name, shape, figure, train) in paper.CHECKERBOARD.items():
        found = results.get(f"checkerboard-{stem}")
        if found is None:
            rows.append([name, shape, "", f"{figure}", "not run", "", f"{train}", "", ""])
            continue
        each = found["best setting of each seed"]
        ours = [spread(each[f"{key}, mean and spread"]) for key in ("test, best", "test, last", "train, last")]
        rows.append(
            [name, shape, f"{found['parameters']:,}", figure, *ours[:2], train, ours[2], seeds_and_rates(found)]
        )
    head = [
        "network",
        "layers",
        "parameters",
        "test %, paper",
        "best",
        "last",
        "train %, paper",
        "last",
        "seeds x rates",
    ]
    return f"""## Checkerboard

A quarter of 6,561 points trains. As in the authors' code the best learning rate is taken for each seed, by the best
test accuracy seen every 100 iterations; 'last' is the same run at its last iteration. A point is right when both
outputs, rounded, are; the authors count each output. A network that diverged counts as 0 %.

{table(head, rows)}
{results.commands()}
{picture(results, "checkerboard-hannet", "what HanNet learnt")}
"""


def picture(results: Results, stem: str, title: str) -> str:
    """Returns a plot of an experiment, as seen from docs/, or nothing where there is none."""
    file = results.files[stem].with_suffix(".png") if stem in results.files else None
    return f"![{title}](../examples/results/{file.parent.name}/{file.name})" if file and file.exists() else ""


def noise(results: Results) -> str:
    """The checkerboard with flipped training labels."""
    rows = []
    for stem, (name, figure) in paper.NOISE.items():
        found = results.get(f"checkerboard-{stem}-noise0.1")
        if found is not None:
            each = found["best setting of each seed"]
            ours = [spread(each[f"{key}, mean and spread"]) for key in ("test, best", "test, last", "train, last")]
            rows.append([name, figure, *ours, seeds_and_rates(found)])
    head = ["network", "paper", "test %, best", "test %, last", "train %, last", "seeds x rates"]
    return f"""### With 10 % of the training labels flipped

{table(head, rows)}
{results.commands()}"""


def ablation(results: Results) -> str:
    """The ablation."""
    found = results.get("ablation")
    if found is None:
        return ""
    rows = []
    for model, (name, first, later) in paper.ABLATION.items():
        if model in found["models"]:
            ours = found["models"][model]
            pair = ours["best setting of each seed"]["test, best, mean and spread"]
            rows.append([name, f"{ours['parameters']:,}", first, later, spread(pair), seeds_and_rates(ours)])
    head = ["hidden layers, 20 of width 30", "parameters", "v1", "later version", "hanops", "seeds x rates"]
    iterations = found["settings"]["iterations"]
    return f"""## Ablation

Test accuracy on the checkerboard in %, {iterations:,} iterations (the papers: 40,000). The penalty of the orthogonal
dense layers has the weight {found["settings"]["penalty"]}; the papers do not print theirs.

{table(head, rows)}
{results.commands()}
{picture(results, "ablation", "test accuracy of each network")}
"""


def heatmap(results: Results) -> str:
    """The map over width and depth."""
    found = results.get("heatmap")
    if found is None:
        return ""
    lines = []
    for model, cells in found["cells"].items():
        means = [cell["test, best, mean and spread"][0] for cell in cells]
        above = sum(mean >= 99 for mean in means)
        lines.append(f"- {model}: {above} of {len(cells)} shapes at 99 % or above, best {max(means):.2f} %.")
    rates = ", ".join(f"{rate:g}" for rate in found["settings"]["rates"])
    return f"""## Width and depth

The paper's map has widths 20 to 100 and depths 2 to 30: HanNet above 99 % over a wide range, dense networks about 85 %.
Ours has {found["settings"]["iterations"]:,} iterations (the paper 40,000), {found["settings"]["seeds"]} seeds and the
rates {rates}.

{chr(10).join(lines)}

{results.commands()}
{picture(results, "heatmap", "test accuracy over width and depth")}
"""


def variability(results: Results) -> str:
    """Variability and collapse to a constant."""
    found = results.get("variability")
    if found is None:
        return ""
    rows = []
    for kind, starts in found["before training"].items():
        for before, learnt in zip(starts, found["learnt"][kind], strict=True):
            shape = f"{before['depth']} x {before['width']}"
            varied = [f"{before['variability, mean']:.1e}", f"{before['collapsed to a constant, %']:.0f}"]
            trained = f"{learnt['depth']} x {learnt['width']}"
            rows.append([kind, shape, *varied, trained, significant(learnt["loss, mean and spread"])])
    head = ["network", "layers, at random", "variability", "collapsed, %", "layers, trained", "lowest training loss"]
    options = found["settings"]
    rates = ", ".join(f"{rate:g}" for rate in options["rates"])
    return f"""## Variability, and collapse to a constant

The papers' first version: at about 4,000 parameters the variability of dense ReLU networks is 0 from 27 hidden layers
on, with abs it rises and declines, and HanNets of 800 parameters keep theirs to 45. On an 8 x 8 board and with 3,200
parameters dense ReLU networks do not reach a loss near 0 past 20 hidden layers, dense abs ones still do past 30
(figures only). Ours: {found["starts"]} random networks of {options["dense_parameters"]:,} parameters (HanNet
{options["han_parameters"]:,}) before training, and {options["seeds"]} seeds of {options["parameters"]:,} parameters
trained for {options["iterations"]:,} iterations at the best of the rates {rates}.

{table(head, rows)}
{results.commands()}
{picture(results, "variability", "variability and loss over depth")}
"""


def sines(results: Results) -> str:
    """The sum of two waves."""
    found = results.get("sines")
    if found is None:
        return ""
    rows = []
    for model, ours in found["models"].items():
        each = ours["best setting of each seed"]
        pairs = [significant(each[f"{key}, mean and spread"]) for key in ("test, best", "test, last", "train, last")]
        rows.append([model, f"{ours['parameters']:,}", *pairs, seeds_and_rates(ours)])
    head = ["network", "parameters", "test RMSE, best", "test RMSE, last", "train RMSE, last", "seeds x rates"]
    options = found["settings"]
    return f"""## Two-frequency sines

The paper shows a figure only (HanNet clearly better) and the text at hand does not print its frequencies. Ours are 1
and 8 half-waves a unit; width {options["width"]}, {options["depth"]} hidden layers, {options["iterations"]:,}
iterations (the paper: 200, 20, 80,000).

{table(head, rows)}
{results.commands()}
{picture(results, "sines", "the target and what was learnt")}
"""


def approximation(results: Results) -> str:
    """Mutual approximation."""
    found = results.get("approximation")
    if found is None:
        return ""
    rows = []
    for row in found["results"]:
        figure = paper.APPROXIMATION[row["inputs"]][row["pair"]]
        mean = row["RMSE, mean and spread"][0]
        deviation = sum(row["deviation of the teacher"]) / len(row["deviation of the teacher"])
        cells = [str(row["inputs"]), row["pair"], f"{figure:.5f}", spread(row["RMSE, mean and spread"], 5)]
        rows.append([*cells, f"{mean / figure:.2f}", f"{100 * mean / deviation:.2f}"])
    head = ["inputs", "what by what", "RMSE, paper", "hanops", "ours / paper", "% of the target's deviation"]
    options = found["settings"]
    rates, decays = (", ".join(f"{value:g}" for value in options[key]) for key in ("rates", "decays"))
    return f"""## Mutual approximation

Random networks of width {options["width"]} are fitted by others: {options["optimizer"]}, {options["epochs"]:,} epochs
(the paper: 1,000), rates {rates}, weight decay {decays}. The paper says neither how its teachers start nor what their
scale is. Ours start as torch's layers do, which gives errors of the paper's size; the last column has them in
proportion to what they are of.

{table(head, rows)}
{results.commands()}
{picture(results, "approximation", "RMSE of each pair")}
"""


def regression(results: Results) -> str:
    """The five tables."""
    rows, pictures = [], []
    for stem, (name, figures, r2) in paper.REGRESSION.items():
        for part in (0.8, 0.2):
            found = results.get(f"regression-{stem}-{part:g}-whole")
            if found is None:
                continue
            pictures.append(f"regression-{stem}-{part:g}-whole")
            for place, (model, title) in enumerate(paper.REGRESSION_MODELS.items()):
                ours = found["models"][model]
                row = [name, f"{100 * part:.0f} %", title, f"{ours['parameters']:,}", f"{figures[part][place]:.3f}"]
                row += [spread(ours[f"test RMSE, {when}, mean and spread"], 3) for when in ("best", "last")]
                row += [
                    f"{r2[place]:.3f}" if part == 0.8 else "-",
                    spread(ours["test R2, last, mean and spread"], 3).split(" ")[0],
                ]
                rows.append([*row, str(found["settings"]["epochs"])])
    if not rows:
        return ""
    head = ["table", "trains", "network", "parameters", "RMSE, paper", "best", "last", "R2, paper", "last", "epochs"]
    return f"""## Regression

Adam at 0.001, {paper.REGRESSION_EPOCHS} epochs in the paper; the last column has ours. Features are standardised by the
whole table (one row of Skillcraft lies so far out that scaling by the training rows fails where it is a test row);
targets are not scaled. 'best' is the lowest test error along the training, which the paper's figures agree with, 'last'
the one at its end.

{table(head, rows)}
{results.commands()}
{picture(results, pictures[0], "test error over the training")}
"""


def digits(results: Results) -> str:
    """Han layers against a dense one on images of digits."""
    found = results.get("digits")
    if found is None:
        return ""
    rows = []
    for model, ours in found["networks"].items():
        scores = [spread(ours[f"test, {when}, mean and spread"]) for when in ("best", "last")]
        name = "dense, ReLU" if model == "fcnet" else "Han"
        rows.append([name, str(ours["depth"]), f"{ours['parameters']:,}", *scores])
    head = ["hidden layers", "number", "parameters", "test accuracy %, best", "last"]
    return f"""## Digits

The paper has MNIST (width 784, 10,000 images train) and says that 20 Han layers reach the accuracy of one dense layer.
Data here: {found["data"]}, width {found["width"]}, {found["settings"]["train"]:,} images train,
{found["test images"]:,} test.

{table(head, rows)}
{results.commands()}
{picture(results, "digits", "accuracy over the number of Han layers")}
"""


def robustness(results: Results) -> str:
    """Accuracy under attack."""
    found = results.get("robustness")
    if found is None:
        return ""
    networks = found["networks"]
    kinds = list(next(iter(networks.values()))["accuracy"])
    rows = []
    for attack in kinds:
        cells = [spread(ours["accuracy"][attack]["mean and spread"], 1) for ours in networks.values()]
        rows.append([attack, *cells])
    ours = table(["accuracy in %", *networks], rows)
    attacks = ["clean", *(f"CW, c = {c}" for c in (1, 3, 5))]
    attacks += [f"PGD, {norm} norm, radius {place}" for norm in ("one", "the other") for place in (1, 2, 3)]
    columns = [[clean, *cw, *first, *second] for clean, cw, first, second in paper.ROBUSTNESS.values()]
    printed = [[attack, *(f"{100 * column[i]:.1f}" for column in columns)] for i, attack in enumerate(attacks)]
    theirs = table(["accuracy in %, paper", *paper.ROBUSTNESS], printed)
    return f"""## Robustness

Data here: {found["data"]}, {found["images attacked"]:,} images attacked, {found["settings"]["seeds"]} seeds. The paper
has MNIST, so the two tables compare in their order of networks only. The radii of the paper's PGD are not in the text
at hand.

{ours}
{theirs}
{results.commands()}
{picture(results, "robustness", "accuracy under attack")}
"""


def images(results: Results) -> str:
    """Han-Mixers and MobileViT."""
    sets = {"stl10": 0, "cifar10": 1, "cifar100": 2}
    rows = []
    made = [stem for stem in results.files if stem.startswith("images-")]
    for stem in made:
        found = results.get(stem)
        assert found is not None
        name, figures = found["model"], None
        for group in (paper.MIXERS, paper.MOBILEVITS):
            if found["model"] in group:
                name, _, figures = group[found["model"]]
        known = figures is not None and found["data set"] in sets
        theirs = f"{figures[sets[found['data set']]]}" if known and figures else "-"
        errors = [spread(found[f"top-1 error, {when}, mean and spread"]) for when in ("best", "last")]
        about = [found["data set"], name, f"{found['parameters']:,}", theirs, *errors]
        rows.append([*about, str(found["epochs"]), str(found["settings"]["seeds"])])
    if not rows:
        return ""
    head = ["data", "network", "parameters", "top-1 error %, paper", "best", "last", "epochs", "seeds"]
    return f"""## Images

Networks in the paper's shapes, but narrower where `--channels` says so. 'made' is a small set of coloured shapes that
the example draws itself: it shows that the loop works, and says nothing of photographs.

{table(head, rows)}
{results.commands()}
{picture(results, made[0], "test error over the training")}
"""


def head(results: Results) -> str:
    """A thin head on frozen features."""
    stems = [stem for stem in results.files if stem.startswith("head-")]
    rows = []
    for stem in stems:
        found = results.get(stem)
        assert found is not None
        for model in ("han", "linear"):
            each = found[model]["best setting of each seed"]
            errors = [spread(each[f"test, {when}, mean and spread"]) for when in ("best", "last")]
            rows.append([found["data set"], model, f"{found[model]['parameters']:,}", *errors])
    if not rows:
        return ""
    columns = ["features", "head", "parameters", "top-1 error %, best", "last"]
    return f"""## A head on frozen features

The paper: {paper.HEAD} % top-1 error on LaNet's features of CIFAR-10, which are not at hand.

{table(columns, rows)}
{results.commands()}"""


def speed(results: Results) -> str:
    """How much faster training is."""
    found = results.get("speed")
    if found is None:
        return ""
    eager, own, grouped = found["eager"], found["hanops"], found["grouped"]
    iterations, networks = found["settings"]["iterations"], found["networks"]
    one = eager["seconds, mean and spread"]
    rows = [
        ["one network, eager Han layers", spread(one, 1), "", spread(eager["test, best, mean and spread"])],
        [
            "one network, hanops",
            spread(own["seconds, mean and spread"], 1),
            f"{found['times faster, one network']:.1f}x",
            spread(own["test, best, mean and spread"]),
        ],
        [f"{networks} networks, eager, one after another", f"{networks * one[0]:,.0f} (reckoned)", "", ""],
        [
            f"{networks} networks as one grouped model",
            f"{grouped['seconds']:.1f}",
            f"{found['times faster, all networks']:.1f}x",
            spread(grouped["test, best, mean and spread"]),
        ],
    ]
    columns = [f"{iterations:,} steps", "seconds", "faster than eager", "test accuracy %, best"]
    return f"""## How long it takes

The checkerboard's HanNet, with evaluations, on {found["threads"]} threads. The first two train the same networks on the
same batches in turns, at the rate 0.05. They agree at first; later their rounding errors grow apart. The grouped ones
are 5 seeds at the papers' 10 rates; their accuracy is that of each seed's best rate.

{table(columns, rows)}
{results.commands()}"""


def not_run(results: Results) -> str:
    """What has no result."""
    lines = []
    for stem, (name, *_) in paper.CHECKERBOARD.items():
        if f"checkerboard-{stem}" not in results.files:
            lines.append(f"Checkerboard, {name}: left to `make paper-full`.")
    absent = [
        name for stem, (name, *_) in paper.REGRESSION.items() if f"regression-{stem}-0.8-whole" not in results.files
    ]
    if absent:
        lines.append(f"Regression on {', '.join(absent)}: no files were given (`make paper DATA=DIR`).")
    for data, name in (("mnist", "MNIST"), ("cifar10", "CIFAR-10"), ("cifar100", "CIFAR-100"), ("stl10", "STL-10")):
        there = [stem for stem in results.files if stem.startswith(f"images-{data}-")]
        if data == "mnist":
            found = results.get("digits")
            if found is None or "mnist" not in found["data"].lower():
                lines.append(
                    "MNIST: its files were not at hand; scikit-learn's digits stand in (`make paper DATA=DIR`)."
                )
        elif not there:
            lines.append(f"{name}: its files were not at hand (`make paper-full DATA=DIR`).")
    results.commands()
    networks = ", ".join(f"{name} ({size} M)" for name, size, _ in paper.IMAGENET.values())
    lines.append(
        f"ImageNet-64 ({networks}): too large for these machines; `hanops.models.mixer_imagenet64` builds them."
    )
    at_hand = "the features were not at hand (`python -m examples.head --data FILE`)"
    lines.append(f"CIFAR-10 head on LaNet's features: {at_hand}.")
    return "## Not run\n\n" + "\n".join(f"- {line}" for line in lines) + "\n"


SECTIONS: list[Callable[[Results], str]] = [
    speed,
    checkerboard,
    noise,
    ablation,
    heatmap,
    variability,
    sines,
    approximation,
    regression,
    digits,
    robustness,
    images,
    head,
    not_run,
]


def page(folder: Path) -> str:
    """Returns the page, of the JSON files in a folder's `reduced` and `full`."""
    results = Results(folder)
    return "\n".join([HEAD, *(text for section in SECTIONS if (text := section(results)))])
