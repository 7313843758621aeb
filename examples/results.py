"""Writes docs/results.md: each table of the papers beside what the examples' JSON files say of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import paper_figures as paper
from .experiment import spread
from .paper_table import EXPERIMENTS, PARTS, cost
from .results_functions import ablation, approximation, checkerboard, heatmap, noise, sines, variability
from .results_tables import Results, averaged, setting, table
from .results_verdicts import verdicts

HOURS = sum(map(cost, PARTS)) / 3600
HEAD = f"""# The papers' experiments, run with hanops

Source: Yu and Zhang, arXiv 2106.04088, in two versions (v1, 2021; the later one, 2024).

- 'Paper' is their figure. The other columns are ours: the mean over the seeds ± the sample standard deviation.
- `make paper` makes reduced runs, about an hour on 2 idle cores; `make paper-part PART=1` to {PARTS[-1]} full runs,
  about {HOURS:.0f} hours in all; `make paper-full` all there are, for days. A full run replaces the reduced one of the
  same experiment. All write this page from the JSON files in `examples/results`.
- 'Short run' in the column 'run' says in what a run is less than the papers', or than ours where they print no setting:
  fewer than 10 seeds, fewer steps or networks, or a shorter list of rates, widths or depths.
- Below each table is the command that made it, with the folder of its JSON. DIR is a folder of data that the repository
  does not ship. The machine was shared with other work, so the seconds are rough.
"""


def regression(results: Results) -> str:
    """The five tables."""
    rows, stems = [], []
    for stem, (name, figures, r2) in paper.REGRESSION.items():
        for part in (0.8, 0.2):
            found = results.get(f"regression-{stem}-{part:g}-whole")
            if found is None:
                continue
            stems.append(f"regression-{stem}-{part:g}-whole")
            for place, (model, title) in enumerate(paper.REGRESSION_MODELS.items()):
                ours = found["models"][model]
                ratio = f"{100 * ours['activation ratio']:.2f}"
                row = [name, f"{100 * part:.0f} %", title, f"{ours['parameters']:,}", ratio]
                row.append(figures[part][place])
                row += [averaged(ours[f"test RMSE, {when}"], ".3f", lower=True) for when in ("best", "last")]
                row.append(r2[part][place])
                row += [averaged(ours[f"test R2, {when}"], ".3f") for when in ("best", "last")]
                rows.append([*row, str(found["settings"]["seeds"]), setting(found)])
    if not rows:
        return ""
    head = ["table", "trains", "network", "parameters", "AR %", "RMSE, paper", "best", "last"]
    head += ["R2, paper", "best", "last", "seeds", "run"]
    return f"""## Regression

Adam at 0.001, for 300 epochs where the run is not short. Each seed has a split of its own. Features are standardised
by the whole table, as in the authors' code (one row of Skillcraft lies so far out that scaling by the training rows
fails where it is a test row); targets are not scaled. 'Best' is the lowest test error along the training, with which
the paper's figures go, 'last' the one at its end. The last, incomplete batch of an epoch is left out; the authors'
loader keeps it. The authors' code tries the rates 0.001 and 0.003, and steps its schedule at every iteration with
milestones in epochs: the rate is 0.04 of its start from iteration 210 on. Ours is constant at 0.001. The plots show the
test RMSE over the range of the target, as version 1 does.

{table(head, rows)}
{results.commands()}
{results.pictures(stems, "test error over the training", columns=2)}
"""


def digits(results: Results) -> str:
    """Han layers against a dense one on images of digits."""
    found = results.get("digits")
    if found is None:
        return ""
    rows, count = [], str(found["settings"]["seeds"])
    for model, ours in found["networks"].items():
        scores = [averaged(ours[f"test, {when}"]) for when in ("best", "last")]
        name = "dense, ReLU (FCNet)" if model == "fcnet" else "Han (HanNet)"
        rows.append([name, str(ours["depth"]), f"{ours['parameters']:,}", *scores, count, setting(found)])
    head = ["hidden layers", "number", "parameters", "test accuracy %, best", "last", "seeds", "run"]
    return f"""## Digits

The paper has MNIST (width 784, 10,000 images train) and says that 20 Han layers reach the accuracy of one dense layer.
Data here: {found["data"]}, width {found["width"]}, {found["settings"]["train"]:,} images train,
{found["test images"]:,} test, one split for all seeds.

{table(head, rows)}
{results.commands()}
{results.pictures(["digits"], "accuracy over the number of Han layers")}
"""


CLEAN = 90.0  # accuracy in percent that a weight decay is to leave, in results that do not say it
ATTACKS = {"linf": "PGD, largest pixel", "l2": "PGD, L2 norm", "cw": "CW, c ="}


def decay(ours: dict[str, Any], clean: float) -> str:
    """Returns the weight decay of a network under attack, and that it leaves too few images right where it does."""
    enough = ours["accuracy"]["clean"]["mean and spread"][0] >= clean
    return f"{ours['decay']:g}" + ("" if enough else f" (none leaves {clean:.0f} %)")


def robustness(results: Results) -> str:
    """Accuracy under attack."""
    found = results.get("robustness")
    if found is None:
        return ""
    networks, clean = found["networks"], found.get("accuracy to leave, %", CLEAN)
    rows = [["weight decay", *(decay(ours, clean) for ours in networks.values())]]
    for attack in next(iter(networks.values()))["accuracy"]:
        cells = [spread(ours["accuracy"][attack]["mean and spread"], ".1f") for ours in networks.values()]
        kind, _, number = attack.partition(" ")
        rows.append([f"{ATTACKS.get(kind, kind)} {number}".strip(), *cells])
    titles = [paper.ROBUSTNESS[name][0] for name in networks]
    columns = [figures for _, figures in paper.ROBUSTNESS.values()]
    theirs = [[attack, *row] for attack, *row in zip(paper.ATTACKS, *columns, strict=True)]
    apart = "The paper has MNIST, so the two tables compare in order only. On these smaller images its constants 1, 3\n"
    apart += "and 5 of Carlini-Wagner leave next to nothing of any network, and ours are lower. "
    apart = "" if found["data"] == "MNIST" else apart
    return f"""## Robustness

Data here: {found["data"]}, {found["images attacked"]:,} images attacked, {found["settings"]["seeds"]} seeds;
{setting(found)}. {apart}The paper tunes the weight decay at a clean accuracy of {clean:.0f} % or more. Ours is, of
{", ".join(f"{d:g}" for d in found["settings"]["decays"])}, the largest that leaves {clean:.0f} % of the images right
without an attack, or the one that leaves most where none does. The radii of the paper's PGD are not in the text at
hand. An attack of Carlini-Wagner succeeds however far it goes.

{table(["accuracy in %", *titles], rows)}
{table(["accuracy in %, paper", *(name for name, _ in paper.ROBUSTNESS.values())], theirs)}
{results.commands()}
{results.pictures(["robustness"], "accuracy under attack")}
"""


def images(results: Results) -> str:
    """Han-Mixers and MobileViT."""
    rows, sets = [], list(paper.IMAGE_SETS)
    made = [stem for stem in results.files if stem.startswith("images-")]
    for stem in made:
        found = results.get(stem)
        assert found is not None
        name, figures = found["model"], None
        for group in (paper.MIXERS, paper.MOBILEVITS):
            if found["model"] in group:
                name, _, figures = group[found["model"]]
        known = figures is not None and found["data set"] in sets
        theirs = figures[sets.index(found["data set"])] if known and figures else "-"
        errors = [averaged(found[f"top-1 error, {when}"], lower=True) for when in ("best", "last")]
        about = [found["data set"], name, f"{found['parameters']:,}", theirs, *errors]
        rows.append([*about, str(found["settings"]["seeds"]), setting(found)])
    if not rows:
        return ""
    head = ["data", "network", "parameters", "top-1 error %, paper", "best", "last", "seeds", "run"]
    return f"""## Images

Networks in the paper's shapes, but narrower where `--channels` says so. 'made' is a small set of coloured shapes that
the example draws itself: it shows that the loop works, and says nothing of photographs.

{table(head, rows)}
{results.commands()}
{results.pictures(made, "test error over the training", columns=2)}
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
            errors = [averaged(each[f"test, {when}"], lower=True) for when in ("best", "last")]
            name = {"han": "Han head", "linear": "linear"}[model]
            about = [found["data set"], name, f"{found[model]['parameters']:,}"]
            rows.append([*about, *errors, str(found["settings"]["seeds"]), setting(found)])
    if not rows:
        return ""
    columns = ["features", "head", "parameters", "top-1 error %, best", "last", "seeds", "run"]
    theirs = " against ".join(figure for _, figure in paper.HEAD.values())
    return f"""## A head on frozen features

The paper: {theirs} % top-1 error on LaNet's features of CIFAR-10, which are not at hand.

{table(columns, rows)}
{results.commands()}
{results.pictures(stems, "test error over the training")}
"""


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
        return spread(pair if found["settings"]["seeds"] > 1 else [*pair[:1], None], ".1f")

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
    columns, run = [f"{iterations:,} steps", "seconds", "faster than eager"], setting(found)
    return f"""## How long it takes

The checkerboard's HanNet, with evaluations, on {found["processor"]}. {run[0].upper()}{run[1:]}.
The first two train the same networks on the same batches in turns, at the rate 0.05. The grouped ones are 5 seeds at
the papers' 10 rates.

{table(columns, rows)}
{results.commands()}"""


def not_run(results: Results) -> str:
    """What has no result, and why, of the table of experiments; experiments of one reason are one line."""
    why: dict[str, list[str]] = {}
    for experiment in EXPERIMENTS:
        if experiment.stem not in results.files:
            why.setdefault(experiment.why_not(), []).append(experiment.stem)
    stand_ins = [
        stem for stem in ("digits", "robustness") if (results.peek(stem) or {"data": "MNIST"})["data"] != "MNIST"
    ]
    if stand_ins:
        why["MNIST is not included; scikit-learn's digits stand in (`make paper DATA=DIR`)"] = stand_ins
    lines = [f"- {reason}: {', '.join(stems)}." for reason, stems in why.items()]
    networks = ", ".join(f"{name} ({size} M)" for name, size, _ in paper.IMAGENET.values())
    lines.append(
        f"- ImageNet-64 is not included, and too large for these machines: {networks}; `hanops.models.mixer_imagenet64`"
        " builds them. The 27.2 M of MLP(8) fit no number of blocks: 8 have 25.17 M, 9 have 27.28 M; most likely a"
        " misprint of 25.2."
    )
    if results.peek("head-lanet") is None:
        line = "- CIFAR-10 head: LaNet's features are not included (`python -m examples.head --data lanet.npz`)."
        lines.append(line)
    return "## Not run\n\n" + "\n".join(lines) + "\n"


SECTIONS: list[Callable[[Results], str]] = [
    verdicts,
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
