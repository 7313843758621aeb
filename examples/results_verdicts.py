"""The first table of docs/results.md: a row for each figure of both papers, ours, and whether they agree."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import paper_figures as paper
from .experiment import TITLES, mean_and_spread, spread
from .paper_table import EXPERIMENTS
from .results_tables import ALL_RATES, Results, setting, table

INSIDE = ("within 2 s.e.", "within the spread")
COLUMNS = {  # of the summary: the verdicts that each counts
    "2 s.e.": (INSIDE[0],),
    "spread": (INSIDE[1],),
    "better": ("outside, better",),
    "worse": ("outside, worse",),
    "agrees": ("agrees", "equal", "shown"),
    "disagrees": ("disagrees",),
    "one run": ("one run",),
    "not run": ("not run",),
}
KINDS = {"fc-relu": "FC-ReLU", "fc-abs": "FC-ABS", "hannet": "HanNet"}  # of the networks over depth
HIGH = 95  # test accuracy in % of a run that found the board under noise
NEAR_0 = 0.01  # of a training loss on the board
NO_DATA = "not run: data are not included"


@dataclass(frozen=True)
class Row:
    """A figure of a paper and ours. `where` is its table or plot, `what` the figure in it."""

    where: str
    what: str
    paper: str
    ours: str = ""
    n: str = ""
    median: str = ""
    verdict: str = NO_DATA
    run: str = ""  # full, or in what it is short


def missing(where: str, what: str, figure: str, stem: str) -> Row:
    """Returns the row of an experiment without a result: why there is none."""
    (experiment,) = (e for e in EXPERIMENTS if e.stem == stem)
    return Row(where, what, figure, verdict=f"not run: {experiment.why_not().partition(' has not run')[0]}")


def judged(figure: float, own: float | None, values: Sequence[float], lower: bool) -> str:
    """Returns where a paper's figure lies from the mean of ours.

    Args:
        figure: the paper's.
        own: its deviation, None where the paper has none.
        values: ours, of each seed.
        lower: whether a lower one is better.
    """
    mean, deviation = mean_and_spread(values)
    off = abs(mean - figure)
    if off <= 2 * deviation / math.sqrt(len(values)):
        return INSIDE[0]
    if off <= 2 * max(deviation, own or 0.0):
        return INSIDE[1]
    return f"outside, {'better' if (mean < figure) == lower else 'worse'}"


def measured(
    where: str,
    what: str,
    figure: tuple[float, float | None],
    values: Sequence[float | None],
    run: str,
    style: str = ".2f",
    lower: bool = False,
) -> Row:
    """Returns the row of a figure that we have too, of the values of our seeds."""
    own = [math.nan if value is None else value for value in values]
    shown = {"paper": spread(figure, style), "n": str(len(own)), "run": run}
    if not all(map(math.isfinite, own)):
        return Row(where, what, ours="a seed diverged", verdict="outside, worse", **shown)
    ours, median = spread(mean_and_spread(own), style), f"{statistics.median(own):{style}}"
    verdict = judged(*figure, own, lower) if len(own) > 1 else "one run"
    return Row(where, what, ours=ours, median=median, verdict=verdict, **shown)


def claim(where: str, what: str, said: str, ours: str, agrees: bool, run: str, n: str = "") -> Row:
    """Returns the row of what a paper says of a plot."""
    return Row(where, what, said, ours, n, verdict="agrees" if agrees else "disagrees", run=run)


def pictured(results: Results, where: str, what: str, stem: str) -> Row:
    """Returns the row of a plot of which the paper says no figure."""
    if stem not in results.files:
        return missing(where, what, "plot only", stem)
    return Row(where, what, "plot only", "plot below", verdict="shown")


def checkerboard(results: Results) -> list[Row]:
    """Tables and pictures of the board."""
    rows = []
    for stem, (name, _, parameters, ratio, test, train) in paper.CHECKERBOARD.items():
        found = results.peek(f"checkerboard-{stem}")
        figures = {"test": ("test, best", test), "training": ("train, last", train)}
        for part, (key, figure) in figures.items():
            where, what = "checkerboard, accuracy %", f"{name}, {part}"
            if found is None:
                rows.append(missing(where, what, spread(figure), f"checkerboard-{stem}"))
                continue
            run = setting(found, iterations=paper.CHECKERBOARD_ITERATIONS, rates=ALL_RATES)
            rows.append(measured(where, what, figure, found["best setting of each seed"][key], run))
        ours = activations(stem)
        same = abs(100 * ours / parameters - ratio) < 0.015
        verdict = "equal" if same else f"disagrees: a misprint most likely, of {ours:,} activations"
        rows.append(
            Row(
                "checkerboard, parameters, AR %",
                name,
                f"{parameters:,}, {ratio}",
                f"{parameters:,}, {100 * ours / parameters:.2f}",
                verdict=verdict,
            )
        )
    where = "checkerboard, plots (v1, figure 5)"
    for stem in ("hannet", "fcnet1"):
        rows.append(pictured(results, where, TITLES[stem], f"checkerboard-{stem}"))
    for stem, (name, best, _) in paper.NOISE.items():
        found = results.peek(f"checkerboard-{stem}-noise0.1")
        where, what = "10 % flipped labels, test %", f"{name} (the paper: one run)"
        if found is None:
            rows.append(missing(where, what, f"{best}", f"checkerboard-{stem}-noise0.1"))
        else:
            run = setting(found, iterations=paper.CHECKERBOARD_ITERATIONS, rates=ALL_RATES)
            values = found["best setting of each seed"]["test, best"]
            row = measured(where, what, (best, None), values, run)
            high = sum(value > HIGH for value in values)
            rows.append(replace(row, ours=f"{row.ours}; {high} of {len(values)} seeds above {HIGH}"))
    return rows


def activations(stem: str) -> int:
    """Returns how many activations a network of the board has: width times hidden layers."""
    depth, width = map(int, paper.CHECKERBOARD[stem][1].split(" x "))
    return depth * width


def ablation(results: Results) -> list[Row]:
    """Both ablations."""
    rows = []
    for model, (name, *both) in paper.ABLATION.items():
        found = results.peek(f"ablation-{model}")
        for version, figure in zip(("v1", "later"), both, strict=True):
            where = f"ablation, {version}, test %"
            if figure is None:
                continue
            if found is None:
                rows.append(missing(where, name, f"{figure}", f"ablation-{model}"))
            else:
                run = setting(found, iterations=paper.CHECKERBOARD_ITERATIONS, rates=ALL_RATES)
                values = found["best setting of each seed"]["test, best"]
                rows.append(measured(where, name, (figure, None), values, run))
    return rows


def maps(results: Results) -> list[Row]:
    """The heat maps, and the claim of few parameters."""
    rows = []
    for model, said in (("hannet", "above 99 over a wide range"), ("fcnet", "about 85")):
        found = results.peek(f"heatmap-{model}")
        where, name = "heat map, test %", TITLES[model]
        if found is None:
            rows.append(missing(where, name, said, f"heatmap-{model}"))
            continue
        means = [cell["test, best, mean and spread"][0] for cell in found["cells"]]
        high, middle = sum(mean >= 99 for mean in means), statistics.median(means)
        ours = f"{high} of {len(means)} shapes from 99, median {middle:.1f}, best {max(means):.2f}"
        agrees = 2 * high >= len(means) if model == "hannet" else abs(middle - 85) <= 2
        run = setting(found, iterations=paper.CHECKERBOARD_ITERATIONS, rates=ALL_RATES, widths=9, depths=9)
        rows.append(claim(where, name, said, ours, agrees, run, f"{found['settings']['seeds']} a shape"))
    found, said = results.peek("heatmap-hannet-about400"), "about 400 parameters can be enough"
    if found is None:
        return [*rows, missing("heat map, test %", "HanNet", said, "heatmap-hannet-about400")]
    cell = max(found["cells"], key=lambda cell: max(cell["test, best"]))
    ours = f"{cell['depth']} x {cell['width']}, {cell['parameters']} parameters: {max(cell['test, best']):.2f} at best"
    run = setting(found, iterations=paper.CHECKERBOARD_ITERATIONS, rates=ALL_RATES)
    agrees = max(cell["test, best"]) >= 99
    return [*rows, claim("heat map, test %", "HanNet", said, ours, agrees, run, str(len(cell["test, best"])))]


def depth(results: Results) -> list[Row]:
    """What v1 says of variability and loss over depth."""
    starts: dict[str, tuple[str, Callable[[dict[int, dict[str, Any]]], bool]]] = {
        "fc-relu": (
            "0 from 27 hidden layers on",
            lambda at: all(varied(at[d]) < 0.001 * peak(at) for d in at if d >= 27),
        ),
        "fc-abs": (
            "rises, declines, no full collapse by 45",
            lambda at: varied(at[min(at)]) < peak(at) > varied(at[max(at)]) and collapsed(at[max(at)]) < 50,
        ),
        "hannet": ("high to 45 hidden layers", lambda at: varied(at[max(at)]) > 0.1 * peak(at)),
    }
    losses = {"fc-relu": ("not near 0 past 20", False, 20), "fc-abs": ("near 0 past 30", True, 30)}
    rows = []
    for kind, (said, holds) in starts.items():
        found = results.peek(f"variability-{kind}")
        name = KINDS[kind]
        where, stem = "over depth, v1: variability", f"variability-{kind}"
        loss_where = "over depth, v1: training loss"
        if found is None:
            rows.append(missing(where, name, said, stem))
            if kind in losses:
                rows.append(missing(loss_where, name, losses[kind][0], stem))
            continue
        at = {row["depth"]: row for row in found["before training"]}
        ours = ", ".join(f"{d}: {varied(row):.0e}" for d, row in at.items())
        networks = found["settings"]["networks"]
        rows.append(claim(where, name, said, ours, holds(at), setting(found, networks=3000, depths=8), f"{networks:,}"))
        if kind in losses:
            said, low, past = losses[kind]
            lowest = {
                row["depth"]: min((v for v in row["loss"] if v is not None), default=1.0) for row in found["learnt"]
            }
            deep = [value < NEAR_0 for d, value in lowest.items() if d > past]
            ours = ", ".join(f"{d}: {value:.1g}" for d, value in lowest.items() if d > past)
            agrees = any(deep) if low else not any(deep)
            run = setting(found, iterations=paper.CHECKERBOARD_ITERATIONS)
            rows.append(
                claim(
                    loss_where, name, said, f"least of the seeds {ours}", agrees, run, str(found["settings"]["seeds"])
                )
            )
    return rows


def varied(row: dict[str, Any]) -> float:
    """Returns the variability of a depth."""
    value: float = row["variability, geometric mean"]
    return value


def peak(at: dict[int, dict[str, Any]]) -> float:
    """Returns the largest variability of all depths."""
    return max(map(varied, at.values()))


def collapsed(row: dict[str, Any]) -> float:
    """Returns the share of networks that have collapsed, in percent."""
    value: float = row["collapsed to a constant, %"]
    return value


def sines(results: Results) -> list[Row]:
    """The sum of two waves."""
    where, what, said = "two-frequency sines", "test RMSE", "HanNet clearly better than FCNet"
    found = {model: results.peek(f"sines-{model}") for model in ("hannet", "fcnet")}
    for model, result in found.items():
        if result is None:
            return [missing(where, what, said, f"sines-{model}")]
    han, dense = (result["best setting of each seed"]["test, best"] for result in found.values() if result)
    run = setting(found["fcnet"] or {}, iterations=80_000, width=200, rates=ALL_RATES)
    ours = f"HanNet {spread(mean_and_spread(han), '.2g')}, FCNet {spread(mean_and_spread(dense), '.2g')}"
    return [claim(where, what, said, ours, max(han) < min(dense), run, str(len(han)))]


def fitted(results: Results, inputs: int, pair: str) -> tuple[list[float], float] | None:
    """Returns the RMSE of each seed by the better of Adam and SGD, and the mean deviation of what was fitted."""
    rows = [
        row
        for stem in ("approximation", "approximation-sgd")
        for row in (results.peek(stem) or {"results": []})["results"]
        if (row["inputs"], row["pair"]) == (inputs, pair)
    ]
    if not rows:
        return None
    seeds = zip(*(row["RMSE"] for row in rows), strict=False)
    values = [min(value for value in seed if value is not None) for seed in seeds]
    return values, statistics.mean(rows[0]["deviation of the teacher"])


def approximation(results: Results) -> list[Row]:
    """Mutual approximation."""
    rows = []
    found = results.peek("approximation") or results.peek("approximation-sgd")
    both = results.peek("approximation") and results.peek("approximation-sgd")
    for inputs, pairs in paper.APPROXIMATION.items():
        for pair, figure in pairs.items():
            where, what = "approximation, RMSE", f"{inputs} inputs, {pair}"
            ours = fitted(results, inputs, pair)
            if ours is None or found is None:
                rows.append(missing(where, what, f"{figure}", "approximation"))
                continue
            run = setting(found, epochs=paper.APPROXIMATION_EPOCHS, rates=4, decays=2)
            run += "" if both else f"; {found['settings']['optimizer']} only"
            rows.append(measured(where, what, (figure, None), ours[0], run, ".5f", lower=True))
    for width in (30, 100):
        stem = f"approximation-width{width}"
        found = results.peek(stem)
        where, what, said = "approximation, other widths", f"width {width}", "Han-3 students much as FC-1's (plot only)"
        if found is None:
            rows.append(missing(where, what, said, stem))
            continue
        means = {(row["inputs"], row["pair"]): row["RMSE, mean and spread"][0] for row in found["results"]}
        ratios = [
            mean / means[inputs, f"{pair.split(' by ')[0]} by FC-1"]
            for (inputs, pair), mean in means.items()
            if pair.endswith("by Han-3")
        ]
        shown = f"RMSE of Han-3 over FC-1: {min(ratios):.2f} to {max(ratios):.2f}"
        run = setting(found, epochs=paper.APPROXIMATION_EPOCHS, rates=4, decays=2)
        rows.append(claim(where, what, said, shown, max(ratios) < 2, run, str(found["settings"]["seeds"])))
    return rows


def regression(results: Results) -> list[Row]:
    """The tables of numbers."""
    rows = []
    for stem, (name, errors, shares) in paper.REGRESSION.items():
        for part in (0.8, 0.2):
            file = f"regression-{stem}-{part:g}-whole"
            found = results.peek(file)
            for place, (model, title) in enumerate(paper.REGRESSION_MODELS.items()):
                for kind, figures, lower in (("RMSE", errors, True), ("R2", shares, False)):
                    where, what = f"regression, {kind}, {100 * part:.0f} % train", f"{name}, {title}"
                    figure = figures[part][place]
                    if found is None:
                        rows.append(missing(where, what, f"{figure:.3f}", file))
                        continue
                    run = setting(found, epochs=paper.REGRESSION_EPOCHS)
                    values = found["models"][model][f"test {kind}, best"]
                    rows.append(measured(where, what, (figure, None), values, run, ".3f", lower))
            if part == 0.8:
                rows.append(pictured(results, "regression, plots (v1, figure 6)", name, file))
    for stem, ratio in paper.REGRESSION_RATIOS.items():
        found = results.peek(f"regression-{stem}-0.8-whole")
        where, what = "regression, AR %", f"{paper.REGRESSION[stem][0]}, HanNet"
        if found is None:
            rows.append(missing(where, what, f"{ratio}", f"regression-{stem}-0.8-whole"))
            continue
        ours = 100 * found["models"]["hannet"]["activation ratio"]
        rows.append(
            Row(where, what, f"{ratio}", f"{ours:.2f}", verdict="equal" if abs(ours - ratio) < 0.011 else "disagrees")
        )
    return rows


def without_data(_: Results) -> list[Row]:
    """What needs images that are not included."""
    rows = [Row("MNIST, accuracy over depth", "HanNet", "20 layers reach the dense network's")]
    for model, (clean, *attacked) in paper.ROBUSTNESS.items():
        figures = "; ".join("/".join(f"{100 * a:.1f}" for a in kind) for kind in attacked)
        name = {**TITLES, "trades": "FCNet, TRADES", "adversarial": "FCNet, adversarial training"}[model]
        rows.append(Row("MNIST, accuracy % under attack", name, f"clean {100 * clean:.1f}; {figures}"))
    for where, group in (("mixers, error %", paper.MIXERS), ("MobileViT, error %", paper.MOBILEVITS)):
        for name, _size, errors in group.values():
            stl, ten, hundred = errors
            rows.append(Row(where, name, f"STL-10 {stl}, CIFAR-10 {ten}, CIFAR-100 {hundred}"))
    for name, _size, (top1, top5) in paper.IMAGENET.values():
        rows.append(Row("ImageNet-64, error %", name, f"top-1 {top1}, top-5 {top5}"))
    rows.append(Row("head on LaNet's features, error %", "Han head", paper.HEAD))
    return rows


SECTIONS = (checkerboard, ablation, maps, depth, sines, approximation, regression, without_data)


def all_rows(results: Results) -> list[Row]:
    """Returns the rows of both papers."""
    return [row for section in SECTIONS for row in section(results)]


def detail(rows: list[Row]) -> str:
    """Returns the rows of a table or plot, without the columns that are empty in all of them."""
    columns = {
        "figure": [row.what for row in rows],
        "paper": [row.paper for row in rows],
        "ours": [row.ours for row in rows],
        "n": [row.n for row in rows],
        "median": [row.median for row in rows],
        "verdict": [row.verdict for row in rows],
        "run": [row.run for row in rows],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    return table(list(shown), zip(*shown.values(), strict=True))


def verdicts(results: Results) -> str:
    """A row for each table and plot, with the count of each verdict, and a row for each figure in them."""
    rows = all_rows(results)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.where, []).append(row)

    def counted(of: list[Row]) -> list[str]:
        kinds = Counter(row.verdict.partition(":")[0] for row in of)
        return [str(len(of)), *(str(sum(kinds[kind] for kind in column) or "") for column in COLUMNS.values())]

    summary = [[where, *counted(own)] for where, own in groups.items()]
    summary.append(["all", *counted(rows)])
    tables = [f"**{where[0].upper()}{where[1:]}**\n\n{detail(own)}" for where, own in groups.items()]
    return f"""## Every figure of both papers

'Within 2 s.e.': the paper's figure is no farther from our mean than two standard errors, twice our deviation over the
root of n. 'Within the spread': no farther than twice the larger of both deviations. Outside, ours is better or worse.
What is said of a plot agrees or not; a plot without a figure is shown, and counted with what agrees.

{table(["table or plot", "rows", *COLUMNS], summary)}
{chr(10).join(tables)}"""
