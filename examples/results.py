"""Writes docs/results.md: each table of the papers beside what the examples' JSON files say of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import paper_figures as paper
from .results_functions import ablation, approximation, checkerboard, heatmap, noise, sines, variability
from .results_tables import Results, picture, spread, table

HEAD = """# The papers' experiments, run with hanops

Source: Yu and Zhang, arXiv 2106.04088, in two versions (v1, 2021; the later one, 2024).

- 'Paper' is their figure. The other columns are ours: the mean over the seeds ± the sample standard deviation.
- `make paper` makes reduced runs, within an hour on 2 cores; `make paper-full` runs the papers' settings. A full run
  replaces the reduced one of the same experiment. Both write this page from the JSON files in `examples/results`.
- Below each table is the command that made it. DIR is a folder of data that the repository does not ship.
- Reduced runs have few learning rates: those that won in trials, or at which no network diverged.
- In a reduced run an experiment has one core, so its seconds are not the fastest.
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
                row.append(f"{r2[part][place]:.3f}")
                row += [spread(ours[f"test R2, {when}, mean and spread"], 3).split(" ")[0] for when in ("best", "last")]
                rows.append([*row, str(found["settings"]["epochs"])])
    if not rows:
        return ""
    head = ["table", "trains", "network", "parameters", "RMSE, paper", "best", "last"]
    head += ["R2, paper", "best", "last", "epochs"]
    return f"""## Regression

Adam at 0.001, {paper.REGRESSION_EPOCHS} epochs in the paper; the last column has ours. Features are standardised by the
whole table (one row of Skillcraft lies so far out that scaling by the training rows fails where it is a test row);
targets are not scaled. 'best' is the lowest test error along the training, which the paper's figures agree with, 'last'
the one at its end. Rows of 60 epochs are short runs. The authors' code tries the rates 0.001 and 0.003, and steps its
schedule at every iteration, with milestones in epochs.

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

    def seconds(of: dict[str, Any]) -> str:
        pair = of["seconds, mean and spread"]
        return spread(pair, 1) if found["settings"]["seeds"] > 1 else f"{pair[0]:.1f}"

    rows = [
        ["one network, eager Han layers", seconds(eager), ""],
        ["one network, hanops", seconds(own), f"{found['times faster, one network']:.1f}x"],
        [f"{networks} networks, eager, one after another", f"{networks * one[0]:,.0f} (reckoned)", ""],
        [
            f"{networks} networks as one grouped model",
            f"{grouped['seconds']:.1f}",
            f"{found['times faster, all networks']:.1f}x",
        ],
    ]
    columns = [f"{iterations:,} steps", "seconds", "faster than eager"]
    return f"""## How long it takes

The checkerboard's HanNet, with evaluations, on {found["threads"]} threads. The first two train the same networks on the
same batches in turns, at the rate 0.05. They agree at first; later their rounding errors grow apart. The grouped ones
are 5 seeds at the papers' 10 rates.

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
        f"ImageNet-64 ({networks}): too large for these machines; `hanops.models.mixer_imagenet64` builds them. The"
        " 27.2 M of MLP(8) fit no number of blocks: 8 have 25.17 M, 9 have 27.28 M; most likely a misprint of 25.2."
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
