"""A row for each figure of both papers on data, and for each number of parameters."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from hanops.models import mixer_cifar, mixer_imagenet64

from . import paper_figures as paper
from .checkerboard import MODELS as BOARD_MODELS
from .experiment import mean_and_spread, spread
from .images import MIXERS, MOBILEVITS
from .regression import MODELS as TABLE_MODELS
from .results_judge import Row, claim, counted, measured, missing, pictured
from .results_tables import Results, numbers, setting, undertrained

IMAGENET_BLOCKS = {"stem": (0, 0), "mlp4": (4, 0), "mlp8": (8, 0), "han16": (0, 16), "mlp4-han16": (4, 16)}


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
                        rows.append(missing(where, what, figure, file))
                        continue
                    values = found["models"][model][f"test {kind}, best"]
                    rows.append(measured(where, what, figure, values, setting(found), ".3f", lower))
            if part == 0.8:
                rows.append(pictured(results, "regression, plots (v1, figure 6)", name, file, stale="0.1"))
    for stem, ratio in paper.REGRESSION_RATIOS.items():
        found = results.peek(f"regression-{stem}-0.8-whole")
        where, what = "regression, AR %", f"{paper.REGRESSION[stem][0]}, HanNet"
        if found is None:
            rows.append(missing(where, what, ratio, f"regression-{stem}-0.8-whole"))
        else:
            rows.append(counted(where, what, ratio, 100 * found["models"]["hannet"]["activation ratio"]))
    return rows


def size(model: nn.Module) -> int:
    """Returns the number of parameters."""
    return sum(p.numel() for p in model.parameters())


@cache
def image_sizes() -> dict[str, int]:
    """Returns the parameters of the image networks with 10 classes, and of those for ImageNet-64, without memory."""
    with torch.device("meta"):
        mixers = {stem: size(mixer_cifar(10, *blocks)) for stem, blocks in MIXERS.items()}
        mobile = {stem: size(build(10, stem.endswith("han"))) for stem, build in MOBILEVITS.items()}
        large = {f"imagenet-{s}": size(mixer_imagenet64(1000, *blocks)) for s, blocks in IMAGENET_BLOCKS.items()}
    return mixers | mobile | large


def parameters(results: Results) -> list[Row]:
    """How large networks are that the papers print a number for: ours are built, and counted."""
    del results  # nothing is trained
    where, rows = "parameters of networks", []
    for stem, (name, _, printed, *_) in paper.CHECKERBOARD.items():
        rows.append(counted(where, f"checkerboard, {name}", printed, size(BOARD_MODELS[stem]())))
    for stem, (features, figures) in paper.REGRESSION_PARAMETERS.items():
        name = paper.REGRESSION[stem][0]
        for (model, title), printed in zip(paper.REGRESSION_MODELS.items(), figures, strict=True):
            rows.append(counted(where, f"{name}, {title}", printed, size(TABLE_MODELS[model](features))))
    for stem, (name, printed, _) in paper.MIXERS.items():
        rows.append(counted(where, f"mixer, {name}, millions", printed, image_sizes()[stem] / 1e6))
    for stem, (name, printed, _) in paper.MOBILEVITS.items():
        rows.append(counted(where, name, printed, image_sizes()[stem]))
    for stem, (name, printed, _) in paper.IMAGENET.items():
        ours = image_sizes()[f"imagenet-{stem}"] / 1e6
        rows.append(counted(where, f"ImageNet-64, {name}, millions", printed, ours, "a misprint of 25.2 most likely"))
    return rows


def digits(results: Results) -> list[Row]:
    """MNIST over depth: 20 Han layers reach a dense one where they are no farther below than twice the deviation."""
    where, what, said = "MNIST, accuracy over depth", "HanNet", "20 layers reach the dense network's"
    found = results.peek("digits")
    if found is None or found["data"] != "MNIST":
        return [Row(where, what, said)]
    run, count = setting(found), str(found["settings"]["seeds"])
    if "hannet-20" not in found["networks"]:
        return [claim(where, what, said, "no network of 20 layers", None, run, count)]
    pairs = [mean_and_spread(numbers(found["networks"][name]["test, best"])) for name in ("hannet-20", "fcnet")]
    (han, own), (dense, other) = pairs
    ours = f"20 layers {spread(pairs[0])}, dense {spread(pairs[1])}"
    agrees = han >= dense - 2 * max(own, other)
    return [claim(where, what, said, ours, agrees, run, count, undertrained(found))]


def robustness(results: Results) -> list[Row]:
    """MNIST under attack: one row of a network where it has not run, else one of each attack."""
    where, found = "MNIST, accuracy % under attack", results.peek("robustness")
    rows = []
    for model, (name, figures) in paper.ROBUSTNESS.items():
        if found is None or found["data"] != "MNIST":
            groups = [figures[:1], figures[1:4], figures[4:7], figures[7:]]
            said = "; ".join("/".join(group) for group in groups)
            rows.append(Row(where, name, f"clean {said}", figures=len(figures)))
            continue
        scores = found["networks"].get(model, {"accuracy": {}})["accuracy"]
        for attack, figure in zip(paper.ATTACKS, figures, strict=True):
            key = attack.replace("CW, c =", "cw")
            if key in scores:
                rows.append(
                    measured(where, f"{name}, {attack}", figure, scores[key]["each seed"], setting(found), ".1f")
                )
            else:
                why = "the text at hand has no radii" if attack.startswith("PGD") else "left out by our options"
                rows.append(Row(where, f"{name}, {attack}", figure, verdict=f"not run: {why}"))
    return rows


def images(results: Results) -> list[Row]:
    """Mixers and MobileViT: one row of a network where none has run, else one of each set of images."""
    rows = []
    for where, group in (("mixers, error %", paper.MIXERS), ("MobileViT, error %", paper.MOBILEVITS)):
        for model, (name, _, figures) in group.items():
            found = {folder: results.peek(f"images-{folder}-{model}") for folder in paper.IMAGE_SETS}
            if not any(found.values()):
                said = ", ".join(f"{s} {figure}" for s, figure in zip(paper.IMAGE_SETS.values(), figures, strict=True))
                rows.append(Row(where, name, said, figures=len(figures)))
                continue
            for (folder, title), figure in zip(paper.IMAGE_SETS.items(), figures, strict=True):
                result = found[folder]
                if result is None:
                    rows.append(Row(where, f"{name}, {title}", figure))
                else:
                    errors = result["top-1 error, best"]
                    rows.append(measured(where, f"{name}, {title}", figure, errors, setting(result), lower=True))
    for name, _, (top1, top5) in paper.IMAGENET.values():
        rows.append(Row("ImageNet-64, error %", name, f"top-1 {top1}, top-5 {top5}", figures=2))
    return rows


def head(results: Results) -> list[Row]:
    """The head on LaNet's features, where a file of them was named lanet.npz."""
    where, found = "head on LaNet's features, error %", results.peek("head-lanet")
    rows = []
    for model, (name, figure) in paper.HEAD.items():
        if found is None:
            rows.append(Row(where, name, figure))
        else:
            values = found[model]["best setting of each seed"]["test, best"]
            rows.append(measured(where, name, figure, values, setting(found), lower=True))
    return rows
