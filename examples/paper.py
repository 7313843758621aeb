"""Runs the papers' experiments, and writes docs/results.md: `make paper`, `make paper-part PART=1`, `make paper-full`.

A part is what two hours of two cores have room for of the full runs; `--parts` lists them. An interrupted call goes on
where it was; what a JSON of the same command is there for is not run again. The page is written anew after each
experiment, and a full run replaces the reduced one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from hanops.profiling.files import write_text

from .experiment import command
from .options import RefusedError, natural, run_program
from .paper_table import EXPERIMENTS, IMAGES, PARTS, Experiment, cost
from .results import page
from .results_tables import read

HERE = Path(__file__).parent
RESULTS = HERE / "results"


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


def run(calls: list[tuple[str, list[str]]], jobs: int, finished: Callable[[], None]) -> None:
    """Runs commands, `jobs` at a time, each on its part of the cores, and prints what they print.

    Args:
        calls: what is printed of a command, and its words.
        jobs: how many at a time.
        finished: called after each of them.

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
            finished()


def to_run(experiment: Experiment, arguments: argparse.Namespace, folders: dict[str, Path | None]) -> list[str] | None:
    """Returns the options with which an experiment is to be run, None where it is left out or done; it prints that."""
    words = experiment.words(arguments.full, folders)
    wanted = arguments.only is None or experiment.stem in arguments.only
    if words is None or not wanted or arguments.part not in (None, experiment.part):
        return None
    out = arguments.results / ("full" if arguments.full else "reduced")
    file, line = out / f"{experiment.stem}.json", command(experiment.program, words)
    made_by = read(file)["command"] if file.exists() else None
    in_full = not arguments.full and (arguments.results / "full" / file.name).exists()
    if (in_full or made_by == line) and not arguments.fresh:
        print(f"==> {line}: done before{' with the full options' if in_full else ''}")
        return None
    fresh = arguments.fresh or made_by is not None  # the checkpoints are of other options
    return [*words, "--out", str(out), *(["--fresh"] if fresh else [])]


def parts() -> str:
    """Returns a line for each part: about how long it takes, and its experiments."""
    own = {part: [experiment.stem for experiment in EXPERIMENTS if experiment.part == part] for part in PARTS}
    return "\n".join(f"part {part}, about {cost(part):,} s on 2 cores: {', '.join(own[part])}" for part in PARTS)


def main() -> None:
    """Runs what is yet to be run, and writes the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--full", action="store_true", help="full runs of all parts, and of what takes days")
    options.add_argument("--part", type=natural, choices=PARTS, help="full runs of a part, two hours at most")
    options.add_argument("--parts", action="store_true", help="list the parts, and end")
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
    if arguments.parts:
        print(parts())
        return
    known = {experiment.stem for experiment in EXPERIMENTS}
    if unknown := set(arguments.only or ()) - known:
        options.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    arguments.full = arguments.full or arguments.part is not None
    folders = data_folders(arguments.data)
    calls: dict[bool, list[tuple[str, list[str]]]] = {True: [], False: []}
    for experiment in EXPERIMENTS:
        words = to_run(experiment, arguments, folders)
        if words is not None:
            line = command(experiment.program, words)
            calls[experiment.alone].append((line, [sys.executable, "-m", f"examples.{experiment.program}", *words]))

    def finished() -> None:
        for file in (arguments.results / "full").glob("*"):
            if file.suffix in (".json", ".png"):
                (arguments.results / "reduced" / file.name).unlink(missing_ok=True)
        arguments.page.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.page, page(arguments.results))

    finished()
    run(calls[True], 1, finished)
    run(calls[False], arguments.jobs, finished)
    print(f"==> {arguments.page}")


if __name__ == "__main__":
    run_program(main)
