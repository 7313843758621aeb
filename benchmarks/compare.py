"""Compares this tree's times on the CPU with those of another revision: `make bench-compare BASE=<rev>`.

Two builds cannot live in one process, for both register the ops of hanops. So each runs in a worker of its own
(compare_worker.py), and the workers take turns. A second worker of the base shows how far two runs of one build differ.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hanops.profiling.files import write_text

from .cases import Case
from .ratios import Samples, half_interval, median_ratio

ROOT = Path(__file__).resolve().parent.parent
WORKER = Path(__file__).with_name("compare_worker.py")
TESTS = {
    "quick": [
        "tests/test_han_stack.py",
        "tests/test_han_stack_conventions.py",
        "-k",
        "cpu and (widths or rows or narrow or grouped)",
    ],
    "all": ["tests"],
}
SITTINGS = 3  # each with new workers: where a process lies in memory changes its speed for as long as it lives
LEAST = 6  # rounds in a sitting: each order of three workers once
TURN = 10e-3  # seconds, of one call at least
# An idle thread gives its core up within a millisecond, so that it does not spin on into the next worker's turn. The
# caller's own setting comes first.
SETTINGS = {"GOMP_SPINCOUNT": "10000"}


class ComparisonError(Exception):
    """Says in one message why there is no comparison."""


@dataclass(frozen=True)
class Timed:
    case: Case
    direction: str

    def __str__(self) -> str:
        return f"{self.case}, {self.direction}"


_LARGE, _MIDDLE, _SMALL, _CALL = Case(4096, 1024, 16), Case(1024, 128, 20), Case(100, 30, 20), Case(4, 32, 20)
_HALF = Case(4096, 1024, 16, torch.bfloat16)
ROWS = [
    *(Timed(_LARGE, direction) for direction in ("forward", "forward with bits", "backward", "forward + backward")),
    Timed(_MIDDLE, "forward"),
    Timed(_MIDDLE, "forward + backward"),
    Timed(_SMALL, "forward"),
    Timed(_SMALL, "forward + backward"),
    Timed(_CALL, "forward"),
    Timed(_CALL, "forward + backward"),
    Timed(_HALF, "forward + backward"),
]


# ---- statistics


@dataclass(frozen=True)
class Comparison:
    """Medians in seconds; the ratio of this tree to the base and its noise; the ratio of the base to itself."""

    this: float
    base: float
    ratio: float
    noise: float
    base_to_base: float

    @property
    def verdict(self) -> str:
        if abs(self.ratio - 1) <= self.noise:
            return "same"
        return "faster" if self.ratio < 1 else "slower"


def compared(sittings: Sequence[Samples]) -> Comparison:
    """Returns what the samples of a row say.

    A round's ratio is free of the clock's drift, and what is left of the spread is in the interval of their median. A
    process that is slow for as long as it lives is not: that shows between the base's two workers.
    """
    pooled = {name: [s for samples in sittings for s in samples[name]] for name in ("this", "base", "base again")}
    ratios = [x / y for x, y in zip(pooled["this"], pooled["base"], strict=True)]
    ratio = statistics.median(ratios)
    offsets = [abs(median_ratio(samples["base again"], samples["base"]) - 1) for samples in sittings]
    return Comparison(
        this=statistics.median(pooled["this"]),
        base=statistics.median(pooled["base"]),
        ratio=ratio,
        noise=half_interval(ratios) + ratio * max(offsets),
        base_to_base=median_ratio(pooled["base again"], pooled["base"]),
    )


def markdown(comparisons: Mapping[Timed, Comparison]) -> str:
    lines = [
        "| case | direction | this, ms | base, ms | this / base | | base / base |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, c in comparisons.items():
        lines.append(
            f"| {row.case} | {row.direction} | {c.this * 1e3:.4g} | {c.base * 1e3:.4g} |"
            f" {c.ratio:.3f} ± {c.noise:.3f} | {c.verdict} | {c.base_to_base:.3f} |"
        )
    return "\n".join(lines)


# ---- the base: a worktree of git under build/compare, built once


def say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


def git(*arguments: str | Path, at: Path | None = None) -> subprocess.CompletedProcess[str]:
    # In a hook, git names its own repository here.
    environment = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    command = ["git", "-C", at or ROOT, *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, env=environment)
    except FileNotFoundError as error:
        raise ComparisonError("git was not found") from error


def commit_of(revision: str) -> str:
    """Returns the commit's full hash."""
    if not revision:
        raise ComparisonError("say which revision to compare with: make bench-compare BASE=<rev>")
    found = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if found.returncode != 0:
        raise ComparisonError(found.stderr.strip() or f"there is no revision {revision!r} in this repository")
    return found.stdout.strip()


def name_of_this_tree() -> str:
    changes = " with changes" if git("status", "--porcelain").stdout else ""
    return git("rev-parse", "--short=10", "HEAD").stdout.strip() + changes


def has_native_module(tree: Path) -> bool:
    return any((tree / "hanops").glob("_C*.so"))


def is_built(folder: Path, commit: str, stamp: Path, wanted: str) -> bool:
    """Tells whether a folder holds that commit, untouched and built for this torch."""
    if not stamp.exists() or stamp.read_text() != wanted or not has_native_module(folder):
        return False
    place = git("rev-parse", "--show-toplevel", "HEAD", at=folder).stdout.split("\n")[:2]
    changes = git("status", "--porcelain", "--untracked-files=no", at=folder).stdout
    return place == [str(folder.resolve()), commit] and not changes


def check_out(commit: str, folder: Path) -> None:
    """Makes a new worktree, in the place of whatever an earlier run left there."""
    git("worktree", "remove", "--force", folder)
    shutil.rmtree(folder, ignore_errors=True)
    # Twice forced: the entry may have stayed where the folder was deleted by hand.
    added = git("worktree", "add", "--quiet", "--force", "--force", "--detach", folder, commit)
    if added.returncode != 0:
        raise ComparisonError(f"git worktree add failed: {added.stderr.strip()}")


def build(commit: str) -> Path:
    """Returns a worktree of the commit with its native module, built unless an earlier run did."""
    folder = ROOT / "build" / "compare" / commit[:10]
    stamp = folder / "build" / "compared"
    wanted = f"{commit}\npython {sys.version}\ntorch {metadata.version('torch')}\n"
    if is_built(folder, commit, stamp, wanted):
        say(f"{folder.relative_to(ROOT)} is built already")
        return folder
    say(f"building {commit[:10]} in {folder.relative_to(ROOT)} (a few minutes)")
    check_out(commit, folder)
    environment = {k: v for k, v in os.environ.items() if k != "HANOPS_NO_NATIVE"}
    lines = []
    with subprocess.Popen(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith("["):  # Ninja's count of steps
                say(line.rstrip()[:100])
    if process.returncode != 0 or not has_native_module(folder):
        raise ComparisonError("\n".join([f"{commit[:10]} does not build; its last lines were:", *lines[-15:]]))
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(wanted)
    return folder


# ---- workers


class Worker:
    """A process that times the calls of one tree."""

    def __init__(self, name: str, tree: Path) -> None:
        self.name, self.tree = name, tree
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        path = os.pathsep.join(filter(None, [str(tree), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            env={**SETTINGS, **os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def hear(self) -> dict[str, Any]:
        """Returns the next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            last = "\n".join(self.errors.read().splitlines()[-10:])
            raise ComparisonError(f"the worker of {self.name} ended with status {self.process.returncode}:\n{last}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ComparisonError(f"the worker of {self.name}: {answer['error']}")
        return answer

    def started(self) -> dict[str, Any]:
        """Returns what the worker says of itself, once it is up."""
        about = self.hear()
        if Path(about["package"]).resolve() != (self.tree / "hanops").resolve():
            raise ComparisonError(f"the worker of {self.name} runs {about['package']}, not the hanops of {self.tree}")
        if not about["native"]:
            raise ComparisonError(f"{self.name} has no native module: 'make build' makes this tree's")
        return about

    def ask(self, **request: object) -> float:
        """Sends a request and returns the seconds of its answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; hear() says how
        return float(self.hear()["seconds"])

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def time_row(workers: Mapping[str, Worker], row: Timed, seconds: float) -> Samples:
    """Has the workers time a row in turns, in every order alike; returns each one's mean times of a call."""
    case = row.case
    sizes = {"rows": case.rows, "features": case.features, "layers": case.layers}
    dtype = str(case.dtype).removeprefix("torch.")
    ready = [w.ask(do="prepare", **sizes, dtype=dtype, direction=row.direction) for w in workers.values()]
    calls = max(1, round(TURN / min(ready)))
    samples: Samples = {name: [] for name in workers}
    orders = itertools.cycle(itertools.permutations(workers))
    end = time.perf_counter() + seconds
    while min(map(len, samples.values())) < LEAST or time.perf_counter() < end:
        for name in next(orders):
            samples[name].append(workers[name].ask(do="time", calls=calls))
    return samples


def measure(
    this: Path, base: Path, rows: Sequence[Timed], seconds: float, sittings: int = SITTINGS
) -> tuple[dict[str, Any], dict[Timed, list[Samples]]]:
    """Times all rows of both trees for about `seconds` each; returns what this tree's worker runs on, and samples."""
    about: dict[str, Any] = {}
    times: dict[Timed, list[Samples]] = {row: [] for row in rows}
    for sitting in range(sittings):
        say(f"measuring {len(rows)} rows, sitting {sitting + 1} of {sittings}")
        with ExitStack() as stack:
            trees = {"this": this, "base": base, "base again": base}
            workers = {name: stack.enter_context(closing(Worker(name, tree))) for name, tree in trees.items()}
            about = {name: worker.started() for name, worker in workers.items()}["this"]
            for row in rows:
                times[row].append(time_row(workers, row, seconds / sittings))
                if sitting == sittings - 1:
                    say(f"{row}: done")
    return about, times


# ---- the command


def check_tests(arguments: Sequence[str]) -> None:
    """Runs tests of this tree.

    Raises:
        ComparisonError: where they fail.
    """
    say("testing this tree: a time counts only where the results are right")
    command = [sys.executable, "-m", "pytest", "-q", "-x", *arguments]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, stdout=2)
    if done.returncode != 0:
        raise ComparisonError("the tests of this tree do not pass, so no ratio is shown")


def run(given: argparse.Namespace) -> None:
    commit = commit_of(given.base)
    this = name_of_this_tree()
    if not has_native_module(ROOT):
        raise ComparisonError("this tree has no native module: 'make build' makes it")
    check_tests(TESTS[given.tests])
    about, times = measure(ROOT, build(commit), ROWS, given.seconds_per_row)
    comparisons = {row: compared(sittings) for row, sittings in times.items()}
    print(
        f"\nThis tree ({this}) against {given.base} ({commit[:10]}): CPU, {about['threads']} threads, torch"
        f" {about['torch']}, float32 unless said. Times are medians. this / base is the median over rounds in which the"
        f" workers took turns. Its noise is half of the 95 % interval of that median (from the order of the rounds'"
        f" ratios), plus how far base / base, two workers of one build, was from 1 in the worst of {SITTINGS} sittings"
        " with new workers. Within the noise it is the same.\n"
    )
    print(markdown(comparisons))
    if given.json is not None:
        rows = [
            {"row": str(row), **asdict(c), "verdict": c.verdict, "sittings": times[row]}
            for row, c in comparisons.items()
        ]
        result = {"this": this, "base": commit, "threads": about["threads"], "torch": about["torch"], "rows": rows}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        write_text(given.json, json.dumps(result, indent=1))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", default="", help="the revision to compare with")
    parser.add_argument("--tests", choices=TESTS, default="quick", help="what has to pass first")
    parser.add_argument("--seconds-per-row", type=float, default=9.0, help="how long to measure it")
    parser.add_argument("--json", type=Path, help="also write all samples to this file")
    try:
        run(parser.parse_args(arguments))
    except ComparisonError as error:
        print(f"bench-compare: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench-compare: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
