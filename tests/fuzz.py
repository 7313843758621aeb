"""Calls hanops with arguments that nobody thought of: `python -m tests.fuzz --cases 20000 --backend cpu --seed 1`.

Cases run in a process of its own: one that crashes or hangs is reported, and the next one gets a new process.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase, settings

import hanops

from .fuzz_cases import FuzzCase, Given, cases  # noqa: F401  Given: of cases that are given
from .fuzz_check import check
from .fuzz_compare import NEAR, Outcome

BACKENDS = ("cpu", "torch", "cuda", "triton")
SECONDS = 120.0  # after which a case counts as hung


def work(backend: str, pipe: Connection, run: Callable[[FuzzCase], Outcome]) -> None:
    """Runs cases until there are no more."""
    import numpy
    import torch

    torch.set_num_threads(1)
    logging.getLogger("torch").setLevel(logging.CRITICAL)  # a fake that refuses its arguments is logged
    warnings.simplefilter("ignore")
    numpy.seterr(all="ignore")
    torch.use_deterministic_algorithms(True)  # what comes uninitialised is NaN
    if backend == "cuda":
        from . import emulation

        emulation.load()
    with hanops.use_backend(backend):
        while (case := pipe.recv()) is not None:
            try:
                outcome = run(case)
            except AssertionError as error:
                outcome = Outcome("failed", (str(error).splitlines() or [""])[0] or _place(error))
            except Exception as error:
                outcome = Outcome("failed", f"{type(error).__name__}: {str(error)[:200]} {_place(error)}")
            pipe.send(outcome)


def _place(error: BaseException) -> str:
    frame = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).stem.startswith("fuzz_")][-1]
    return f"in {frame.name}: {frame.line}"


class Worker:
    """A process that runs cases, started by the first and again by the first after a crash."""

    def __init__(self, backend: str, run: Callable[[FuzzCase], Outcome] = check) -> None:
        self.backend, self.run = backend, run
        self.context = get_context("forkserver")
        self.context.set_forkserver_preload(["hanops", "hypothesis", "numpy", "torch._subclasses.fake_tensor"])
        self.process = None

    def __call__(self, case: FuzzCase) -> Outcome:
        """Returns what became of a case."""
        if self.process is None:
            self.pipe, other = self.context.Pipe()
            self.process = self.context.Process(target=work, args=(self.backend, other, self.run), daemon=True)
            self.process.start()
            other.close()
        try:
            self.pipe.send(case)
            if not self.pipe.poll(SECONDS):
                self.stop()
                return Outcome("hung", f"no answer in {SECONDS:.0f} s")
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            self.stop()
            name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            return Outcome("crashed", name)

    def stop(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
        self.process = None


@dataclass
class Report:
    """The outcomes of many cases, and the smallest case of each failure."""

    kinds: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    masked: int = 0
    unlucky: int = 0
    failures: dict[str, list[FuzzCase]] = field(default_factory=dict)

    def add(self, case: FuzzCase, outcome: Outcome) -> None:
        """Counts an outcome."""
        self.kinds[outcome.kind] += 1
        self.calls[f"{case.call}{'_' + case.suffix if case.suffix else ''}"] += 1
        self.rows, self.masked = self.rows + outcome.rows, self.masked + outcome.masked
        self.unlucky += outcome.message == NEAR
        if outcome.kind in ("failed", "crashed", "hung"):
            what = re.sub(r"\d[\d.e+-]*", "#", f"{case.call} {case.suffix} {outcome.kind}: {outcome.message}")
            self.failures.setdefault(what, []).append(case)

    def __str__(self) -> str:
        """Returns the counts, and each failure with the smallest of its cases."""
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        lines = [
            f"{self.kinds.total():,} cases: {counts}",
            ", ".join(f"{count} {call}" for call, count in sorted(self.calls.items())),
            f"{self.masked:,} of {self.rows:,} rows masked near a kink; {self.unlucky} cases with too many of them",
        ]
        for what, found in sorted(self.failures.items(), key=lambda item: -len(item[1])):
            lines += [f"{len(found)} x {what}", f"    {min(map(repr, found), key=len)}"]
        return "\n".join(lines)


def fuzz(backend: str, count: int, seed: int, seconds: float = float("inf")) -> Report:
    """Runs `count` cases drawn with a seed, or fewer where the seconds are over."""
    report, worker, end = Report(), Worker(backend), time.monotonic() + seconds
    suffixes = ("", *([] if backend == "cpu" else [backend]), "differentiable")

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(cases(backend, suffixes, small=backend in ("triton", "cuda")))
    def one(case: FuzzCase) -> None:
        if time.monotonic() < end:
            report.add(case, worker(case))

    try:
        one()
    finally:
        worker.stop()
    return report


def main() -> int:
    """Runs the command line; returns 1 where a case failed."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--backend", choices=BACKENDS, default="cpu")
    options.add_argument("--cases", type=int, default=20_000)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--case", help="one case, as a report prints it")
    given = options.parse_args()
    os.environ["TRITON_INTERPRET"] = "1"  # before the processes start
    if given.case is not None:
        worker = Worker(given.backend)
        outcome = worker(eval(given.case))
        worker.stop()
        print(outcome)
        return int(outcome.kind in ("failed", "crashed", "hung"))
    started = time.perf_counter()
    report = fuzz(given.backend, given.cases, given.seed)
    print(f"{given.backend}, seed {given.seed}, {time.perf_counter() - started:.0f} s\n{report}")
    return int(bool(report.failures))


if __name__ == "__main__":
    sys.exit(main())
