"""Runs the papers' experiments, one program after another, and writes docs/results.md: `make paper`, `make paper-full`.

An interrupted call goes on where it was; what a JSON of the same command is there for is not run again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from hanops.profiling.files import write_text

from . import paper_figures as paper
from .experiment import command
from .options import RefusedError, natural, run_program
from .results import page
from .results_tables import read

HERE = Path(__file__).parent
RESULTS = HERE / "results"


@dataclass
class Experiment:
    """A program, the JSON that it writes, and its options.

    stem: of the JSON.
    reduced: options for an hour of all experiments on 2 cores; None leaves the experiment out.
    full: the papers' options; None leaves it out.
    data, needed: which folder of data it reads, and whether it is left out without it.
    alone: whether it measures time, and so runs before the others.
    """

    stem: str
    program: str
    reduced: str | None
    full: str | None
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


def regression(table: str, part: str) -> Experiment:
    """Returns the experiment of a table of numbers. Where most rows of a large one train, the reduced run is short."""
    options = f"--table {table} --part {part} --whole"
    short = part == "0.8" and table in ("bikesharing", "calhousing", "elevators")
    reduced = f"{options} --epochs 60" if short else options
    return Experiment(f"regression-{table}-{part}-whole", "regression", reduced, options, "tables", needed=True)


def images(folder: str, model: str) -> Experiment:
    """Returns the experiment of an image network with the papers' options, which takes days on a CPU."""
    return Experiment(f"images-{folder}-{model}", "images", None, f"--model {model}", folder, needed=True)


def made(model: str) -> Experiment:
    """Returns the experiment of a narrow image network on the set that the example makes."""
    options = f"--model {model} --channels 64 --epochs 10 --batch 64 --made 2000"
    return Experiment(f"images-made-{model}", "images", options, options)


IMAGES = ("cifar10", "cifar100", "stl10")
UNSORTED = "hannet han-relu dense-abs dense-relu orth-abs orth-relu"  # to sort takes longer than all else
EXPERIMENTS = [
    Experiment("speed", "speed", "--iterations 20000 --seeds 1", "--seeds 5", alone=True),
    Experiment(
        "checkerboard-hannet",
        "checkerboard",
        "--model hannet --seeds 10 --rates 0.01 0.025 0.05 0.075 0.1",
        "--model hannet --seeds 20",
    ),
    Experiment("checkerboard-fcnet1", "checkerboard", "--model fcnet1 --rates 0.05 0.1 0.25", "--model fcnet1"),
    Experiment("checkerboard-fcnet2", "checkerboard", None, "--model fcnet2"),
    Experiment("checkerboard-fcnet3", "checkerboard", None, "--model fcnet3"),
    Experiment(
        "checkerboard-hannet-noise0.1",
        "checkerboard",
        "--model hannet --noise 0.1",
        "--model hannet --noise 0.1",
    ),
    Experiment(
        "checkerboard-fcnet1-noise0.1",
        "checkerboard",
        "--model fcnet1 --noise 0.1 --rates 0.025 --iterations 20000",
        "--model fcnet1 --noise 0.1",
    ),
    Experiment("checkerboard-hannet-full", "checkerboard", None, "--model hannet --full"),
    Experiment("checkerboard-fcnet1-full", "checkerboard", None, "--model fcnet1 --full"),
    Experiment("ablation", "ablation", f"--rates 0.01 0.05 --iterations 20000 --models {UNSORTED}", ""),
    Experiment("heatmap", "heatmap", "--models hannet --widths 20 60 --depths 2 10 20 --rates 0.025 0.05", ""),
    Experiment(
        "variability",
        "variability",
        "--iterations 10000 --depths 5 15 27 35 --rates 0.01",
        "--iterations 40000",
    ),
    Experiment("sines", "sines", "--width 100 --iterations 12000 --rates 0.005 0.01", ""),
    Experiment("approximation", "approximation", "--rates 0.01 --decays 0", ""),
    *(regression(table, part) for table in paper.REGRESSION for part in ("0.8", "0.2")),
    Experiment("digits", "digits", "", "", "mnist"),
    Experiment("robustness", "robustness", "", "", "mnist"),
    made("stem"),
    made("han16"),
    *(images(folder, model) for folder in IMAGES for model in (*paper.MIXERS, *paper.MOBILEVITS)),
    Experiment("head-digits", "head", "--iterations 2000", "--iterations 2000"),
]


def data_folders(data: Path | None) -> dict[str, Path | None]:
    """Returns where each kind of data is, None where it is not.

    Raises:
        RefusedError: where the folder has none of them.
    """
    names = ("mnist", *IMAGES)
    if data is None:
        return dict.fromkeys(("tables", *names))
    found = {name: data / name if (data / name).is_dir() else None for name in names}
    found["tables"] = data if any(data.glob("*.csv")) else None
    if not any(found.values()):
        raise RefusedError(
            f"argument --data: {data} must have CSV tables, or folders {', '.join(names)}; it has neither"
        )
    return found


def run(calls: list[tuple[str, list[str]]], jobs: int) -> None:
    """Runs commands, `jobs` at a time, each on its part of the cores, and prints what they print.

    Raises:
        RefusedError: where one fails; those that run are waited for.
    """
    cores = len(os.sched_getaffinity(0))
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // jobs))}

    def call(line: str, words: list[str]) -> tuple[str, subprocess.CompletedProcess[str]]:
        return line, subprocess.run(words, env=environment, capture_output=True, text=True)

    started = time.perf_counter()
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(calls), unit="experiment", disable=not calls) as bar:
        for future in as_completed([pool.submit(call, line, words) for line, words in calls]):
            line, done = future.result()
            bar.write(f"==> {line}\n{done.stdout}    {(time.perf_counter() - started) / 60:.1f} minutes in all")
            bar.update()
            if done.returncode != 0:
                pool.shutdown(cancel_futures=True)
                raise RefusedError(f"{line} failed:\n{done.stderr[-4000:]}")


def main() -> None:
    """Runs what is yet to be run, and writes the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--full", action="store_true", help="the papers' settings, for days; without it about an hour")
    options.add_argument(
        "--only", nargs="+", metavar="NAME", help="experiments to run, by the names of their JSON files"
    )
    options.add_argument(
        "--data", type=Path, help="folder with the regression tables, and folders mnist, cifar10, cifar100 and stl10"
    )
    options.add_argument("--jobs", type=natural, default=2, help="experiments at a time, which share the cores")
    options.add_argument("--fresh", action="store_true", help="run all of it anew, also what is done")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    options.add_argument("--page", type=Path, default=HERE.parent / "docs" / "results.md", help="what is written")
    arguments = options.parse_args()
    known = {experiment.stem for experiment in EXPERIMENTS}
    if unknown := set(arguments.only or ()) - known:
        options.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    folders = data_folders(arguments.data)
    out = arguments.results / ("full" if arguments.full else "reduced")
    calls: dict[bool, list[tuple[str, list[str]]]] = {True: [], False: []}
    for experiment in EXPERIMENTS:
        words = experiment.words(arguments.full, folders)
        if words is None or (arguments.only and experiment.stem not in arguments.only):
            continue
        file = out / f"{experiment.stem}.json"
        line = command(experiment.program, words)
        made_by = read(file)["command"] if file.exists() else None
        if made_by == line and not arguments.fresh:
            print(f"==> {line}: done before")
            continue
        fresh = arguments.fresh or made_by is not None  # the checkpoints are of other options
        words += ["--out", str(out), *(["--fresh"] if fresh else [])]
        calls[experiment.alone].append((line, [sys.executable, "-m", f"examples.{experiment.program}", *words]))
    run(calls[True], 1)
    run(calls[False], arguments.jobs)
    write_text(arguments.page, page(arguments.results))
    print(f"==> {arguments.page}")


if __name__ == "__main__":
    run_program(main)
