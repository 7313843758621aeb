"""The papers' experiments: the program of each, its options for an hour and for a full run, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import paper_figures as paper

SHARED = ("ablation", "heatmap", "variability")  # programs whose experiments share a plot
WIDE = "approximation-widths"  # the plot that the approximations share whose width is not that of the main figure


@dataclass
class Experiment:
    """A program, the JSON that it writes, and its options.

    stem: of the JSON.
    reduced: options for an hour of all experiments on 2 cores; None leaves the experiment out.
    full: the papers' options, or as much of them as a part of two hours has room for; None leaves it out.
    part: of the full runs, in the order in which they matter; None where only all of them together have it.
    seconds: of the full run on one core, or on all where it runs alone. That is about, and of an idle machine: on
        cores that others use too, the first runs took two to five times as long.
    data, needed: which folder of data it reads, and whether it is left out without it.
    alone: whether it has all cores, before the others of its part: it measures time, or takes too long on one core.
    """

    stem: str
    program: str
    reduced: str | None
    full: str | None
    part: int | None = None
    seconds: int | None = None
    data: str | None = None
    needed: bool = False
    alone: bool = False

    def words(self, full: bool, folders: dict[str, Path | None]) -> list[str] | None:
        """Returns the command's options, or None where the experiment is left out."""
        options = self.full if full else self.reduced
        folder = folders[self.data] if self.data else None
        if options is None or (self.needed and folder is None):
            return None
        return options.split() + (["--data", str(folder)] if folder else [])

    @property
    def shared(self) -> str | None:
        """The stem of the plot that this experiment shares with others."""
        if self.program == "approximation" and "-width" in self.stem:
            return WIDE
        return self.program if self.program in SHARED else None

    @property
    def has_plot(self) -> bool:
        """Whether the program draws a plot for this experiment alone, a PNG beside the JSON."""
        return self.shared is None and self.program != "speed"

    def why_not(self) -> str:
        """Returns why there is no result where none is."""
        if self.part is not None:
            data = ", which needs data that are not included" if self.needed else ""
            return f"part {self.part} has not run (`make paper-part PART={self.part}`){data}"
        return "data are not included" if self.needed else f"in no part, left to `{self.left_to}`"

    @property
    def left_to(self) -> str:
        """The command that runs it where no part has it."""
        return "make paper-full" if self.reduced is None else "make paper"


def ablation_stem(model: str) -> str:
    """Returns the stem of a network of the ablation. HanNet's is that of the board: one sweep, of one network."""
    return "checkerboard-hannet" if model == "hannet" else f"ablation-{model}"


def board(model: str, reduced: str | None, full: str, part: int, seconds: int) -> Experiment:
    """Returns the experiment of a network on the checkerboard."""
    start = f"--model {model} --seeds 10"
    short = None if reduced is None else f"--model {model} {reduced}"
    return Experiment(f"checkerboard-{model}", "checkerboard", short, f"{start} {full}".strip(), part, seconds)


def noisy(model: str, reduced: str, full: str, seconds: int) -> Experiment:
    """Returns the experiment of a network on the checkerboard with flipped labels."""
    start = f"--model {model} --noise 0.1"
    words = f"{start} {reduced}", f"{start} --seeds 10 {full}".strip()
    return Experiment(f"checkerboard-{model}-noise0.1", "checkerboard", *words, 1, seconds)


def ablation(model: str, full: str, seconds: int) -> Experiment:
    """Returns the experiment of a network of the ablation."""
    reduced = f"--models {model} --rates 0.01 0.05 --iterations 20000"
    return Experiment(
        ablation_stem(model), "ablation", reduced, f"--models {model} --seeds 10 {full}".strip(), 1, seconds
    )


def variability(kind: str, seconds: int) -> Experiment:
    """Returns the experiment of a kind of network in depth."""
    reduced = f"--kinds {kind} --iterations 10000 --rates 0.01"
    full = f"--kinds {kind} --seeds 10 --rates 0.01 0.025 0.05"
    return Experiment(f"variability-{kind}", "variability", reduced, full, 4, seconds)


def approximation(name: str, options: str, part: int | None = None, seconds: int | None = None) -> Experiment:
    """Returns the experiment of teachers and students at a width, by an optimizer."""
    reduced = f"{options} {WINNER}".strip() if "sgd" not in name else None
    return Experiment(f"approximation{name}", "approximation", reduced, f"{options} --seeds 10".strip(), part, seconds)


def sines(model: str, seconds: int, alone: bool = False) -> Experiment:
    """Returns the experiment of a network that learns two waves."""
    rates = f"--models {model} --rates {'0.01 0.025' if model == 'hannet' else '0.005 0.01'}"
    reduced, full = f"{rates} --width 100 --iterations 8000", f"{rates} --seeds 5"  # 10 take over two hours
    return Experiment(f"sines-{model}", "sines", reduced, full, 5, seconds, alone=alone)


def regression(table: str, part: str, seconds: int) -> Experiment:
    """Returns the experiment of a table of numbers. Where most rows of a large one train, the reduced run is short."""
    options = f"--table {table} --part {part} --whole"
    short = part == "0.8" and table in ("bikesharing", "calhousing", "elevators")
    reduced = f"{options} --epochs 60" if short else options
    full = f"{options} --seeds 10 --every 1"
    stem = f"regression-{table}-{part}-whole"
    return Experiment(stem, "regression", reduced, full, 2, seconds, data="tables", needed=True)


def images(folder: str, model: str) -> Experiment:
    """Returns the experiment of an image network with the papers' options, which takes days on a CPU."""
    return Experiment(f"images-{folder}-{model}", "images", None, f"--model {model}", data=folder, needed=True)


def made(model: str) -> Experiment:
    """Returns the experiment of a narrow image network on the set that the example makes."""
    options = f"--model {model} --channels 64 --epochs 10 --batch 64 --made 2000"
    return Experiment(f"images-made-{model}", "images", options, options)


IMAGES = ("cifar10", "cifar100", "stl10")
# Of the papers' ten rates those that won in trials and their neighbours. From 0.1 on most dense networks diverge.
HAN = "--rates 0.01 0.025 0.05 0.075 0.1"
DENSE = "--rates 0.01 0.025 0.05 0.075"
DEEP = "--rates 0.001 0.005 0.01 0.025 0.05"
WINNER = "--rates 0.01 --decays 0"  # of the approximation: at width 50 at most 5 % worse than each seed's best setting
WIDTHS = (30, 40, 60, 70, 80, 90, 100)  # of the approximation beside 50
SECONDS = {  # of a full run on a table with four fifths of the rows, with one fifth
    "bikesharing": (1510, 740),
    "calhousing": (1790, 870),
    "elevators": (1440, 700),
    "parkinsons": (510, 250),
    "skillcraft": (290, 140),
}
EXPERIMENTS = [
    # Part 1: the board and what HanNet is made of.
    board("hannet", "--seeds 10 --rates 0.025 0.05 0.075", "", 1, 630),
    noisy("hannet", "--seeds 10 --rates 0.025 0.05 0.075", "", 630),
    noisy("fcnet1", "--rates 0.005 --iterations 20000", "--rates 0.005 0.01 0.025 0.05", 1390),
    ablation("han-maxmin", HAN, 1780),
    ablation("han-groupsort", HAN, 1640),
    ablation("orth-abs", DEEP, 1420),
    ablation("orth-relu", DEEP, 1420),
    ablation("dense-abs", DEEP, 1060),
    ablation("dense-relu", DEEP, 980),
    ablation("han-relu", "", 1280),
    # Part 2: regression, and approximation at the width of the main figure.
    *(regression(table, "0.8", SECONDS[table][0]) for table in paper.REGRESSION),
    approximation("", "", 2, 1370),
    approximation("-sgd", "--optimizer sgd", 2, 1100),
    *(regression(table, "0.2", SECONDS[table][1]) for table in paper.REGRESSION),
    # Part 3: the dense networks of the board, and times.
    Experiment("speed", "speed", "--iterations 20000 --seeds 1", "--seeds 5", 3, 1100, alone=True),
    board("fcnet2", None, DENSE, 3, 2430),
    board("fcnet1", "--rates 0.01", DENSE, 3, 1390),
    board("fcnet3", None, "--rates 0.01", 3, 2800),  # of FCNet2's ten seeds nine took it
    # Part 4: depth, and approximation at other widths.
    variability("fc-abs", 2600),
    variability("fc-relu", 2500),
    variability("hannet", 2100),
    approximation("-width100", "--width 100", 4, 3100),
    approximation("-width30", "--width 30", 4, 700),
    # Part 5: two waves, few parameters, attacks.
    sines("fcnet", 4200, alone=True),
    sines("hannet", 1100),
    Experiment(
        "heatmap-hannet-about400",
        "heatmap",
        None,
        f"--models hannet --about 400 --widths 5 6 7 8 9 10 11 12 --seeds 10 {HAN}",
        5,
        1000,
    ),
    Experiment("robustness", "robustness", "--decays 0.01 0.03", "--seeds 10", 5, 1000, data="mnist"),
    # Part 6: maps over width and depth.
    Experiment(
        "heatmap-fcnet",
        "heatmap",
        "--models fcnet --widths 20 60 --depths 2 10 20 --seeds 3 --rates 0.01",
        "--models fcnet --widths 20 40 60 80 100 --depths 2 10 20 30 --seeds 3 --rates 0.01 0.05",
        6,
        5550,
    ),
    Experiment(
        "heatmap-hannet",
        "heatmap",
        "--models hannet --widths 20 60 --depths 2 10 20 --rates 0.025 0.05",
        "--models hannet --widths 20 40 60 80 100 --rates 0.025 0.05",
        6,
        5040,
    ),
    # No part: beyond ten hours in all, or seconds, or data that are not included.
    *(approximation(f"-width{width}", f"--width {width}") for width in (40, 60, 70, 80, 90)),
    *(approximation(f"-sgd-width{width}", f"--optimizer sgd --width {width}") for width in WIDTHS),
    Experiment("digits", "digits", "", "", data="mnist"),
    made("stem"),
    made("han16"),
    Experiment("head-digits", "head", "--iterations 2000", "--iterations 2000"),
    *(images(folder, model) for folder in IMAGES for model in (*paper.MIXERS, *paper.MOBILEVITS)),
]
PARTS = sorted({experiment.part for experiment in EXPERIMENTS if experiment.part is not None})


def cost(part: int, cores: int = 2) -> int:
    """Returns about how many seconds the full runs of a part take on idle cores, each on one, in their order."""
    own = [experiment for experiment in EXPERIMENTS if experiment.part == part]
    busy = [0] * cores
    for experiment in own:
        if not experiment.alone:
            busy[busy.index(min(busy))] += experiment.seconds or 0
    return max(busy) + sum(experiment.seconds or 0 for experiment in own if experiment.alone)
