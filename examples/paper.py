"""Runs the papers' experiments, and writes docs/results.md: `make paper`, `make paper-part PART=1`, `make paper-full`.

A part is about two hours of the full runs on two idle cores; `--parts` lists them. An interrupted call goes on where
it was. What a JSON of the same command is there for is not run again; a result of other options is
removed when its experiment starts. After each experiment the plots that experiments share are drawn and the page is
written anew. A full run replaces the reduced one, and no result with data gives way to one without.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hanops.profiling.files import write_text

from . import ablation, approximation, heatmap, variability
from .experiment import command
from .options import RefusedError, natural, run_program
from .paper_table import EXPERIMENTS, IMAGES, PARTS, WIDE, WIDTHS, Experiment, ablation_stem, cost
from .results import page
from .results_tables import Results, read

HERE = Path(__file__).parent
RESULTS = HERE / "results"
POLL_SECONDS = 0.1
WITH_DATA = "--data DIR"  # in the command of a result
# Tensors of some MB are else mapped, and given back at every step: page faults took a fifth of its time.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
GLIBC = (2, 36)  # takes such thresholds; older ones may refuse them
# Of each plot that results share: what draws it, and the stem of each of them.
SHARED: dict[str, tuple[Callable[[Path, dict[str, dict[str, Any]]], None], dict[str, str]]] = {
    "ablation": (ablation.plot, {model: ablation_stem(model) for model in ablation.NAMES}),
    WIDE: (
        approximation.plot_widths,
        {str(approximation.WIDTH): "approximation", **{str(width): f"approximation-width{width}" for width in WIDTHS}},
    ),
    "heatmap": (heatmap.plot, {model: f"heatmap-{model}" for model in heatmap.MODELS}),
    "variability": (variability.plot, {kind: f"variability-{kind}" for kind in variability.KINDS}),
}


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


@dataclass
class Call:
    """An experiment to run.

    line: its command as it is written down.
    words: what is run.
    old: the JSON of a result of other options, which goes with its plot when the run starts.
    """

    line: str
    words: list[str]
    old: Path | None = None


@dataclass
class Child:
    """A call that runs. Files, {place}.out and {place}.err, take what it prints."""

    call: Call
    place: Path
    process: subprocess.Popen[bytes]

    def printed(self, kind: str) -> str:
        """Returns what it has printed, 'out' or 'err'."""
        return self.place.with_suffix(f".{kind}").read_text(errors="replace")


def environment(jobs: int) -> dict[str, str]:
    """Returns the environment of `jobs` programs at a time: each has its part of the cores."""
    library, version = platform.libc_ver()
    knows = library == "glibc" and tuple(map(int, version.split(".")[:2])) >= GLIBC
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    return {**(MALLOC if knows else {}), **os.environ, "OMP_NUM_THREADS": str(threads)}


def start(call: Call, place: Path, around: dict[str, str]) -> Child:
    """Starts a call in an environment, and removes the result that it replaces; what it prints goes to a place."""
    if call.old is not None:
        tqdm.write(f"==> {call.old} is removed, which {call.line} replaces")
        call.old.unlink()
        call.old.with_suffix(".png").unlink(missing_ok=True)
    with place.with_suffix(".out").open("w") as out, place.with_suffix(".err").open("w") as err:
        return Child(call, place, subprocess.Popen(call.words, env=around, stdout=out, stderr=err))


def run(calls: Sequence[Call], jobs: int, finished: Callable[[], None]) -> None:
    """Runs calls, `jobs` at a time, and prints what they print. An interrupt ends those that run.

    Args:
        calls: in their order.
        jobs: how many at a time.
        finished: called after each that ends well.

    Raises:
        RefusedError: where one fails; no other starts then, and those that run go on to their end.
    """
    around, waiting = environment(jobs), list(calls)
    running: list[Child] = []
    failures: list[str] = []
    started = time.perf_counter()
    bar = tqdm(total=len(calls), unit="experiment", disable=not calls)
    with tempfile.TemporaryDirectory() as folder, bar:
        try:
            while running or (waiting and not failures):
                while waiting and not failures and len(running) < jobs:
                    running.append(start(waiting.pop(0), Path(folder) / str(len(waiting)), around))
                ended = [child for child in running if child.process.poll() is not None]
                for child in ended:
                    running.remove(child)
                    minutes = (time.perf_counter() - started) / 60
                    bar.write(f"==> {child.call.line}\n{child.printed('out')}    {minutes:.1f} minutes in all")
                    bar.update()
                    if child.process.returncode == 0:
                        finished()
                    else:
                        failures.append(f"{child.call.line} failed:\n{child.printed('err')[-4000:]}")
                if not ended:
                    time.sleep(POLL_SECONDS)
        finally:
            for child in running:
                child.process.terminate()
            for child in running:
                child.process.wait()
    if failures:
        raise RefusedError("\n".join(failures))


def to_run(experiment: Experiment, arguments: argparse.Namespace, folders: dict[str, Path | None]) -> Call | None:
    """Returns the call of an experiment that can run, None where it need not, and prints why."""
    words = experiment.words(arguments.full, folders)
    assert words is not None
    line = command(experiment.program, words)
    files = {kind: arguments.results / kind / f"{experiment.stem}.json" for kind in ("full", "reduced")}
    made_by = {kind: read(file)["command"] for kind, file in files.items() if file.exists()}
    kind = "full" if arguments.full else "reduced"
    drawn = files[kind].with_suffix(".png").exists() or not experiment.has_plot
    done = made_by.get(kind) == line and drawn
    if not arguments.fresh and (done or ("full" in made_by and not arguments.full)):
        print(f"==> {line}: done before{'' if arguments.full or 'full' not in made_by else ' with the full options'}")
        return None
    if WITH_DATA not in line and any(WITH_DATA in made for made in made_by.values()):
        print(f"==> {line}: left out, as there is a result with data; to run it anew give --data")
        return None
    if made_by.get(kind) == line and not drawn:
        print(f"==> {line}: again, as its plot is missing")
    replaced = files[kind] if kind in made_by and (arguments.fresh or made_by[kind] != line) else None
    words += ["--out", str(files[kind].parent), "--fresh" if arguments.fresh else "--renew"]
    words += ["--no-plot"] if experiment.shared else []
    return Call(line, [sys.executable, "-m", f"examples.{experiment.program}", *words], replaced)


def draw(folder: Path) -> None:
    """Draws the plots that experiments share, of full results and of the reduced ones that no full run has replaced."""
    results = Results(folder)
    for shared, (plot, stems) in SHARED.items():
        found = {name: result for name, stem in stems.items() if (result := results.peek(stem)) is not None}
        if found:
            full = any(results.files[stems[name]].parent.name == "full" for name in found)
            place, other = ("full", "reduced") if full else ("reduced", "full")
            plot(folder / place / f"{shared}.png", found)
            (folder / other / f"{shared}.png").unlink(missing_ok=True)


def update(folder: Path, to: Path) -> None:
    """Puts full results in the place of the reduced ones of the same experiments, draws shared plots, writes the page.

    Args:
        folder: of the results.
        to: the page.
    """
    for experiment in EXPERIMENTS:
        if (folder / "full" / f"{experiment.stem}.json").exists():
            for suffix in (".json", ".png"):
                (folder / "reduced" / f"{experiment.stem}{suffix}").unlink(missing_ok=True)
    draw(folder)
    to.parent.mkdir(parents=True, exist_ok=True)
    write_text(to, page(folder))


def parts() -> str:
    """Returns a line for each part: about how long it takes, and its experiments."""
    own = {part: [experiment.stem for experiment in EXPERIMENTS if experiment.part == part] for part in PARTS}
    return "\n".join(f"part {part}, about {cost(part):,} s on 2 idle cores: {', '.join(own[part])}" for part in PARTS)


def planned(arguments: argparse.Namespace) -> dict[bool, list[Call]]:
    """Returns the calls of what is asked for, those that have all cores and the others; prints what is left out."""
    folders = data_folders(arguments.data)
    calls: dict[bool, list[Call]] = {True: [], False: []}
    left_out: dict[str, list[str]] = {}
    for experiment in EXPERIMENTS:
        there = (experiment.full if arguments.full else experiment.reduced) is not None
        in_part = arguments.part in (None, experiment.part)
        if not (there and in_part if arguments.only is None else experiment.stem in arguments.only):
            continue
        if not there:
            left_out.setdefault(f"no {'full' if arguments.full else 'reduced'} run", []).append(experiment.stem)
        elif experiment.words(arguments.full, folders) is None:
            data = "CSV tables" if experiment.data == "tables" else f"a folder {experiment.data}"
            left_out.setdefault(f"left out, as needing --data DIR with {data}", []).append(experiment.stem)
        elif (call := to_run(experiment, arguments, folders)) is not None:
            calls[experiment.alone].append(call)
    for why, stems in left_out.items():
        print(f"==> {', '.join(stems)}: {why}")
    return calls


def main() -> None:
    """Runs what is yet to be run, and writes the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--full", action="store_true", help="full runs of all parts, and of what takes days")
    options.add_argument("--part", type=natural, choices=PARTS, help="full runs of a part, see --parts")
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
    calls = planned(arguments)
    errors: list[Exception] = []  # of the last update

    def finished() -> None:
        errors.clear()
        try:
            update(arguments.results, arguments.page)
        except Exception as error:  # which ends no run: it is told at the end
            errors.append(error)

    try:
        finished()
        run(calls[True], 1, finished)
        run(calls[False], arguments.jobs, finished)
    except BaseException:
        finished()
        for error in errors:
            print(f"{arguments.page} is not up to date: {error!r}", file=sys.stderr)
        raise
    if errors:
        raise errors[0]
    print(f"==> {arguments.page}")


if __name__ == "__main__":
    run_program(main)
