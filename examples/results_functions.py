"""Sections of docs/results.md on functions of a few variables: the checkerboard, sines, approximation."""

from __future__ import annotations

import statistics

from . import paper_figures as paper
from .experiment import TITLES, mean_and_spread, spread
from .paper_table import EXPERIMENTS
from .results_tables import Results, seeds_and_rates, setting, significant, table
from .results_verdicts import HIGH, KINDS, NEAR_0, activations, fitted

APPROXIMATIONS = [experiment.stem for experiment in EXPERIMENTS if experiment.program == "approximation"]
NEAR = 1.6  # times the paper's error


def checkerboard(results: Results) -> str:
    """The checkerboard of the main text."""
    rows, stems = [], []
    for stem, (name, shape, parameters, ratio, test, train) in paper.CHECKERBOARD.items():
        found = results.get(f"checkerboard-{stem}")
        about = [name, shape, f"{parameters:,}", f"{ratio} / {100 * activations(stem) / parameters:.2f}"]
        if found is None:
            rows.append([*about, spread(test), "not run", "", "", spread(train), "", "", ""])
            continue
        stems.append(f"checkerboard-{stem}")
        each = found["best setting of each seed"]
        ours = [spread(each[f"{key}, mean and spread"]) for key in ("test, best", "test, last", "train, last")]
        median = f"{statistics.median(each['test, best']):.2f}"
        run = setting(found, iterations=paper.CHECKERBOARD_ITERATIONS)
        about += [spread(test), ours[0], median, ours[1], spread(train), ours[2]]
        rows.append([*about, seeds_and_rates(found), run])
    head = ["network", "layers", "parameters", "AR %, paper / ours", "test %, paper", "best", "median", "last"]
    head += ["train %, paper", "last", "seeds x rates", "run"]
    return f"""## Checkerboard

A quarter of 6,561 points trains; each seed has a split of its own, where the authors' files hold one for all. Batches
are drawn without replacement, as theirs. As in their code the best learning rate is taken for each seed, by the best
test accuracy seen every 100 iterations; 'last' is the same run at its last iteration. A point is right when the mean of
both outputs is on its label's side of 0.5. AR, the activation ratio, is activations over parameters; the paper's 1.96
of FCNet2 is a misprint most likely: 1,000 activations of 91,402 parameters are 1.09 %.

{table(head, rows)}
{results.commands()}
{results.pictures(stems, "what the network of seed 0 learnt")}
"""


def noise(results: Results) -> str:
    """The checkerboard with flipped training labels."""
    rows, stems = [], []
    for stem, (name, best, told) in paper.NOISE.items():
        found = results.get(f"checkerboard-{stem}-noise0.1")
        if found is not None:
            stems.append(f"checkerboard-{stem}-noise0.1")
            each = found["best setting of each seed"]
            ours = [spread(each[f"{key}, mean and spread"]) for key in ("test, best", "test, last", "train, last")]
            scores = each["test, best"]
            high = f"{sum(score > HIGH for score in scores)} of {len(scores)}"
            run = setting(found, iterations=paper.CHECKERBOARD_ITERATIONS)
            about = [name, f"{best} ({told})", f"{statistics.median(scores):.2f}", high]
            rows.append([*about, *ours, seeds_and_rates(found), run])
    above = f"seeds above {HIGH} %"
    head = ["network", "paper, one run", "best: median", above, "mean", "last", "train, last", "seeds x rates", "run"]
    return f"""### With 10 % of the training labels flipped

Test accuracy in %. Those of HanNet lie in two heaps, so that a mean says little: some seeds find the board, others do
not. The paper's 96.5 is the one run that it pictures (v1, figure 5).

{table(head, rows)}
{results.commands()}
{results.pictures(stems, "what the network of seed 0 learnt")}
"""


def ablation(results: Results) -> str:
    """The ablation."""
    rows, penalty = [], None
    for model, (name, *both) in paper.ABLATION.items():
        found = results.get(f"ablation-{model}")
        if found is not None:
            each, penalty = found["best setting of each seed"], found["settings"]["penalty"]
            ours = [spread(each["test, best, mean and spread"]), f"{statistics.median(each['test, best']):.2f}"]
            figures = ["-" if figure is None else f"{figure}" for figure in both]
            run = setting(found, iterations=paper.CHECKERBOARD_ITERATIONS)
            rows.append([name, f"{found['parameters']:,}", *figures, *ours, seeds_and_rates(found), run])
    if not rows:
        return ""
    head = ["hidden layers, 20 of width 30", "parameters", "v1", "later version", "ours", "median", "seeds x rates"]
    return f"""## Ablation

Test accuracy on the checkerboard in %. The penalty of the orthogonal dense layers has the weight {penalty}; that of the
papers is lost from the text at hand.

{table([*head, "run"], rows)}
{results.commands()}
{results.pictures(["ablation"], "test accuracy of each network")}
"""


def heatmap(results: Results) -> str:
    """The maps over width and depth."""
    lines = []
    for model, found in results.each("heatmap", ("hannet", "fcnet", "hannet-about400")).items():
        own = found["settings"]
        means = [cell["test, best, mean and spread"][0] for cell in found["cells"]]
        above = sum(mean >= 99 for mean in means)
        sweep = f"{own['seeds']} seeds x {len(own['rates'])} rates a shape"
        shape = {} if own.get("about") else {"widths": 9, "depths": 9}
        run = setting(found, iterations=paper.CHECKERBOARD_ITERATIONS, **shape)
        figures = f"{above} of {len(means)} shapes from 99 % on, median {statistics.median(means):.2f} %"
        name = TITLES[model.partition("-")[0]]
        about = f", about {own['about']} parameters" if own.get("about") else ""
        lines.append(f"- {name}{about}: {figures}, best {max(means):.2f} %; {sweep}; {run}.")
        if own.get("about"):
            shapes = [
                f"{c['depth']} x {c['width']} ({c['parameters']}): {spread(c['test, best, mean and spread'])},"
                f" best seed {max(c['test, best']):.2f}"
                for c in found["cells"]
            ]
            lines += [f"    - {shape}" for shape in shapes]
    if not lines:
        return ""
    return f"""## Width and depth

The paper's map has widths 20 to 100 and depths 2 to 30: HanNet above 99 % over a wide range, dense networks about 85 %;
about 400 parameters can be enough. In the table of all figures half of the shapes count as a wide range, and a median
within 2 of 85 as about 85.

{chr(10).join(lines)}

{results.commands()}
{results.pictures(["heatmap"], "test accuracy over width and depth")}
"""


def variability(results: Results) -> str:
    """Variability and collapse to a constant."""
    kinds = results.each("variability", KINDS)
    rows, starts = [], []
    for kind, found in kinds.items():
        run = setting(found, iterations=paper.CHECKERBOARD_ITERATIONS, networks=3000)
        for before, learnt in zip(found["before training"], found["learnt"], strict=True):
            shapes = [f"{row['depth']} x {row['width']}" for row in (before, learnt)]
            varied = [f"{before['variability, geometric mean']:.1e}", f"{before['collapsed to a constant, %']:.0f}"]
            loss = significant(learnt["loss, mean and spread"])
            rows.append([KINDS[kind], shapes[0], *varied, shapes[1], loss, run])
        for start, at in found["variability of each start"].items():
            starts.append([KINDS[kind], start, *(f"{value:.0e}" for value in at)])
    if not rows:
        return ""
    depths = [str(depth) for depth in found["settings"]["depths"]]
    head = ["network", "layers, at random", "variability", "collapsed, %", "layers, trained", "lowest loss", "run"]
    options = found["settings"]
    rates = ", ".join(f"{rate:g}" for rate in options["rates"])
    return f"""## Variability, and collapse to a constant

The papers' first version: at about 4,000 parameters the variability of dense ReLU networks is 0 from 27 hidden layers
on, with abs it rises and declines but does not fully collapse by 45, and HanNets of 800 parameters keep theirs to 45.
On a board of 8 x 8 blocks of 9 x 9 points, with a margin of zeros, and with 3,200 parameters dense ReLU networks do not
reach a loss near 0 past 20 hidden layers, dense abs ones still do past 30 (plots only).

Ours: the geometric mean of {options["networks"]:,} random networks of {options["dense_parameters"]:,} parameters
(HanNet {options["han_parameters"]:,}) before training; one below 1e-9 has collapsed, and counts as 1e-9. Then
{options["seeds"]} seeds train on the authors' board for {options["iterations"]:,} iterations, at the best of the rates
{rates}. In the table of all figures a variability counts as 0 below a thousandth of the largest over depth, as high
above a tenth of it, and a loss as near 0 below {NEAR_0}.

{table(head, rows)}
The text at hand does not say how the papers' dense layers start. The table above has '{options["start"]}'. The
variability of 100 networks of each rule, by the number of hidden layers:

{table(["network", "start", *depths], starts)}
{results.commands()}
{results.pictures(["variability"], "variability and loss over depth")}
"""


def sines(results: Results) -> str:
    """The sum of two waves."""
    rows = []
    for model, ours in results.each("sines", ("hannet", "fcnet")).items():
        each = ours["best setting of each seed"]
        pairs = [significant(each[f"{key}, mean and spread"]) for key in ("test, best", "test, last", "train, last")]
        run = setting(ours, iterations=80_000, width=200)
        rows.append([TITLES[model], f"{ours['parameters']:,}", *pairs, seeds_and_rates(ours), run])
    if not rows:
        return ""
    head = ["network", "parameters", "test RMSE, best", "test RMSE, last", "train RMSE, last", "seeds x rates", "run"]
    return f"""## Two-frequency sines

The paper shows a plot only (HanNet clearly better; width 200, 20 hidden layers, 80,000 iterations) and the text at hand
does not print its frequencies. Ours are 1 and 8 half-waves a unit; each seed has a split of
its own.

{table(head, rows)}
{results.commands()}
{results.pictures([f"sines-{model}" for model in ("hannet", "fcnet")], "the target and what was learnt")}
"""


def approximation(results: Results) -> str:
    """Mutual approximation."""
    files = {stem: found for stem in APPROXIMATIONS if (found := results.get(stem))}
    if not files:
        return ""
    rmse = {
        (stem, row["inputs"], row["pair"]): row for stem, found in files.items() for row in found["results"]
    }  # of each file, number of inputs and pair

    def cell(stem: str, inputs: int, pair: str) -> str:
        row = rmse.get((stem, inputs, pair))
        return spread(row["RMSE, mean and spread"], ".5f") if row else "not run"

    rows, others, within = [], [], 0
    wide = [stem for stem in files if "-width" in stem]
    for inputs, pairs in paper.APPROXIMATION.items():
        for pair, figure in pairs.items():
            both = [cell(stem, inputs, pair) for stem in APPROXIMATIONS[:2]]
            ours = fitted(results, inputs, pair)
            if ours is not None:
                (mean, _), deviation = mean_and_spread(ours[0]), ours[1]
                within += mean <= NEAR * figure
                last = [f"{mean / figure:.2f}", f"{100 * mean / deviation:.2f}"]
                both += [spread(mean_and_spread(ours[0]), ".5f"), *last]
            else:
                both += [""] * 3
            rows.append([str(inputs), pair, f"{figure:.5f}", *both])
            others.append([str(inputs), pair, *(cell(stem, inputs, pair) for stem in wide)])
    sweeps = []
    for stem, found in files.items():
        own = found["settings"]
        sweep = f"{own['seeds']} seeds x {len(own['rates'])} rates x {len(own['decays'])} decays"
        sweeps.append(f"- {stem}: {sweep}; {setting(found, epochs=paper.APPROXIMATION_EPOCHS, rates=4, decays=2)}")
    head = ["inputs", "teacher by student", "RMSE, paper", "Adam", "SGD", "best of both", "best / paper"]
    return f"""## Mutual approximation

Random networks are fitted by others of their width. As in the paper all dense layers start as random orthogonal
matrices, those of teachers and of students, and each seed, which has a teacher and points of its own, has the best
rate, weight decay and optimizer. Width 50: {within} of {len(rows)} are at most {NEAR} times the paper's.

{table([*head, "% of the target's deviation"], rows)}
The paper has plots for the widths 30 to 100. RMSE of ours:

{table(["inputs", "teacher by student", *(stem.removeprefix("approximation-") for stem in wide)], others)}
{chr(10).join(sweeps)}

{results.commands()}
{results.pictures(files, "RMSE of each pair", columns=2)}
"""
