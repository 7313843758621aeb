"""Runs the papers' experiments, one program after another, and writes docs/results.md: `make paper`, `make paper-full`.

An interrupted call goes on where it was; what a JSON of the same command is there for is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from experiment import command
from results import page

HERE = Path(__file__).parent
RESULTS = HERE / "results"
TABLES = ("bikesharing", "calhousing", "elevators", "parkinsons", "skillcraft")


@dataclass
class Experiment:
    """A program, the JSON that it writes, and its options.

    reduced: those that fit an hour for all experiments on 2 cores; None leaves the experiment out.
    full: those of the papers.
    data: which folder of data it reads.
    """

    stem: str
    program: str
    reduced: str | None
    full: str = ""
    data: str | None = None

    def words(self, full: bool, folders: dict[str, Path | None]) -> list[str] | None:
        """Returns the command's options, or None where the experiment is left out."""
        options = self.full if full else self.reduced
        folder = folders.get(self.data or "")
        if options is None or (self.data in REQUIRED and folder is None):
            return None
        return options.split() + (["--data", str(folder)] if folder else [])


REQUIRED = ("tables",)  # data without which an experiment is not run

EXPERIMENTS = [
    Experiment("speed", "speed.py", "--iterations 20000"),
    Experiment("checkerboard-hannet", "checkerboard.py", "--model hannet", "--model hannet"),
    Experiment("checkerboard-fcnet1", "checkerboard.py", "--model fcnet1 --rates 0.05 0.1 0.25", "--model fcnet1"),
    Experiment("checkerboard-fcnet2", "checkerboard.py", None, "--model fcnet2 --rates 0.05 0.1 0.25"),
    Experiment("ablation", "ablation.py", "--rates 0.025 0.05 0.1 --iterations 20000"),
]


def main() -> None:
    """Runs what is yet to be run, and writes the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--full", action="store_true", help="the papers' settings, for days; without it about an hour")
    options.add_argument(
        "--only", nargs="+", metavar="NAME", help="experiments to run, by the names of their JSON files"
    )
    options.add_argument("--tables", type=Path, metavar="DIR", help="the regression tables, CSV files")
    options.add_argument("--mnist", type=Path, metavar="DIR", help="MNIST's four files")
    options.add_argument("--images", type=Path, metavar="DIR", help="files of CIFAR-10, CIFAR-100 or STL-10")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    options.add_argument("--page", type=Path, default=HERE.parent / "docs" / "results.md", help="what is written")
    arguments = options.parse_args()
    known = {experiment.stem for experiment in EXPERIMENTS}
    if unknown := set(arguments.only or ()) - known:
        options.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    folders = {name: getattr(arguments, name) for name in ("tables", "mnist", "images")}
    out = arguments.results / ("full" if arguments.full else "reduced")
    started = time.perf_counter()
    for experiment in EXPERIMENTS:
        words = experiment.words(arguments.full, folders)
        if words is None or (arguments.only and experiment.stem not in arguments.only):
            continue
        file = out / f"{experiment.stem}.json"
        line = command(experiment.program, words)
        if file.exists() and json.loads(file.read_text())["command"] == line:
            print(f"==> {line}: done before")
            continue
        print(f"==> {line}", flush=True)
        subprocess.run([sys.executable, str(HERE / experiment.program), *words, "--out", str(out)], check=True)
        print(f"    {(time.perf_counter() - started) / 60:.1f} minutes in all", flush=True)
    arguments.page.write_text(page(arguments.results))
    print(f"==> {arguments.page}")


if __name__ == "__main__":
    main()
