"""Options of the benchmarks, the table that ends a run, and one timing of all rivals of a case."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

import hanops
from hanops.backends.native import native

from . import clocks, tables
from .cases import COPY, DTYPES, OWN, Case, Group, groups_of
from .ceilings import Ceilings, measured_ceilings
from .interleave import Replay
from .results_file import Results, commit_info, results_of

Measured = TypeVar("Measured")

RESULTS = pytest.StashKey[Results]()
SELECTED = pytest.StashKey[dict[tuple[str, Case], list[tuple[str, str]]]]()
CEILINGS = pytest.StashKey[Ceilings]()
ONE_THREAD = "one thread"  # bench_kernels.py, as a group


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"must be a number of seconds from 0, got {text!r}")
    return value


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hanops")
    group.addoption("--suite", choices=["quick", "full"], default="quick", help="how much to measure")
    group.addoption("--device", choices=["cpu", "cuda"], default="cpu", help="where to measure")
    group.addoption("--dtype", choices=list(DTYPES), help="measure this storage type instead of each case's own")
    group.addoption("--groups", metavar="NAMES", help="only these groups, with commas: 'one layer,kernels'")
    group.addoption("--rehearse", action="store_true", help="run the GPU's benchmarks on the CPU, tiny")
    group.addoption(
        "--results", type=Path, help="a folder: the device's file in it is replaced when the run is finished"
    )
    group.addoption("--resume", action="store_true", help="keep what is in that file, and measure the rest")
    group.addoption("--seconds", type=_seconds, default=math.inf, help="start no measurement after this long")


def _groups(config: pytest.Config) -> list[Group]:
    """Returns the groups of the options, whatever --groups names."""
    device = "rehearsal" if config.getoption("--rehearse") else config.getoption("--device")
    return groups_of(device, config.getoption("--suite"), DTYPES.get(config.getoption("--dtype")))


def _chosen(config: pytest.Config) -> list[str]:
    """Returns the names of --groups, or of all groups.

    Raises:
        pytest.UsageError: for a name that is none.
    """
    there = [*(group.name for group in _groups(config)), ONE_THREAD]
    if config.getoption("--groups") is None:
        return there
    names = [name.strip() for name in config.getoption("--groups").split(",")]
    if wrong := [name for name in names if name not in there]:
        raise pytest.UsageError(f"--groups must name some of {', '.join(there)}, got {wrong[0]!r}")
    return names


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") == "cuda":
        if config.getoption("--rehearse"):
            raise pytest.UsageError("--rehearse runs on the CPU, got --device cuda")
        if not torch.cuda.is_available():
            raise pytest.UsageError("--device cuda: torch sees no GPU")
        # Time on a GPU is dear: what a library warns of is shown, and the row kept.
        config.addinivalue_line("filterwarnings", "default::UserWarning")
    config.addinivalue_line("filterwarnings", "ignore:Benchmark fixture was not used:pytest.PytestWarning")  # cut short
    _chosen(config)
    config.stash[RESULTS] = results_of(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes a benchmark of each rival and direction in each case of the suite's groups."""
    if "group" not in metafunc.fixturenames:
        return
    on_gpu = metafunc.config.getoption("--device") == "cuda"
    rows, names = [], []
    for group in _groups(metafunc.config):
        for case in group.cases:
            for rival, way in group.rows(case, on_gpu):
                rows.append((group, case, rival, way))
                names.append(f"{group.name}: {case}, {way}, {rival}")
    metafunc.parametrize(("group", "case", "rival", "way"), rows, ids=names)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = _chosen(config)
    done = {bench["fullname"] for bench in config.stash[RESULTS].earlier}
    kept, left = [], []
    for item in items:
        group = item.callspec.params.get("group") if hasattr(item, "callspec") else None
        wanted = (ONE_THREAD if group is None else group.name) in chosen and item.nodeid not in done
        (kept if wanted else left).append(item)
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept


def pytest_collection_finish(session: pytest.Session) -> None:
    found: dict[tuple[str, Case], list[tuple[str, str]]] = {}
    for item in session.items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if "group" in params:
            rows = found.setdefault((params["group"].name, params["case"]), [])
            rows.append((params["rival"], params["way"]))
    session.config.stash[SELECTED] = found


@pytest.fixture(scope="session")
def selected(request: pytest.FixtureRequest) -> Callable[[Group, Case], tuple[list[str], list[str]]]:
    """Returns a case's rivals and ways that were selected, with what they are compared with: HanStack, and a copy."""

    def of(group: Group, case: Case) -> tuple[list[str], list[str]]:
        rows = request.config.stash[SELECTED][group.name, case]
        rivals = {rival for rival, _ in rows} | {COPY, OWN}
        ways = list(dict.fromkeys(way for rival, way in rows if rival != COPY))
        return [rival for rival in group.rivals if rival in rivals], ways

    return of


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def rehearsal(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--rehearse"))


@pytest.fixture(scope="session")
def ceilings(request: pytest.FixtureRequest, device: torch.device) -> Ceilings:
    stash = request.config.stash
    if CEILINGS not in stash:
        stash[CEILINGS] = measured_ceilings(device)
    return stash[CEILINGS]


class Timings:
    """What was measured of each case, when its first rival asked; how long that took, and the GPU's clocks then."""

    def __init__(self, seconds: float, device: torch.device, results: Results) -> None:
        self.end = time.monotonic() + seconds
        self.results = results
        self.watch = clocks.Watch(device) if device.type == "cuda" else None
        self.cases: dict[str, Any] = {}
        self.about: dict[str, dict[str, Any]] = {}

    def __call__(self, case: str, measure: Callable[[], Measured]) -> Measured:
        """Returns what `measure` gave for a case, or raises what it raised."""
        if case not in self.cases:
            start = time.monotonic()
            if start > self.end:
                self.results.is_cut = True
                pytest.skip("out of time: --resume measures the rest")
            try:
                self.cases[case] = measure()
            except Exception as error:
                self.cases[case] = error  # its other rivals fail alike, at once
            self.about[case] = {"case_seconds": time.monotonic() - start}
            if self.watch is not None:
                self.about[case]["clocks"] = self.watch.since(start)
        if isinstance(self.cases[case], Exception):
            raise self.cases[case]
        return self.cases[case]

    def left_out(self, row: str, why: str) -> None:
        """Says in the results file why a rival is missing: row is 'group: case, rival'."""
        self.results.left_out[row] = why


@pytest.fixture(scope="session")
def timed(request: pytest.FixtureRequest, device: torch.device) -> Iterator[Timings]:
    results = request.config.stash[RESULTS]
    timings = Timings(request.config.getoption("--seconds"), device, results)
    yield timings
    if timings.watch is not None:
        timings.watch.close()
        results.clocks = timings.watch.since(0)


@pytest.fixture
def report(benchmark: Any) -> Callable[..., None]:
    """Hands recorded samples and figures to pytest-benchmark."""

    def to_benchmark(name: str, samples: list[float], /, **figures: object) -> None:
        benchmark.group = name
        benchmark.extra_info.update(figures)
        benchmark.pedantic(Replay.player(samples), rounds=len(samples), iterations=1, warmup_rounds=0)

    return to_benchmark


def pytest_runtest_teardown(item: pytest.Item) -> None:
    item.config.stash[RESULTS].write_part(item.config, every=5.0)


@pytest.hookimpl(hookwrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Iterator[None]:
    yield
    results = session.config.stash[RESULTS]
    results.is_cut |= bool(session.shouldfail or session.shouldstop)
    if not results.finish(session.config, exitstatus):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict[str, Any]:
    return commit_info()


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["hanops"] = hanops.__version__
    machine_info["commit"] = commit_info()["id"]
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["suite"] = config.getoption("--suite")
    if CEILINGS in config.stash:
        machine_info["ceilings"] = vars(config.stash[CEILINGS])
    machine_info["instruction_set"] = native.build_info()["instruction_set"] if native else "none"
    if find_spec("triton"):
        machine_info["triton"] = metadata.version("triton")
    if config.getoption("--device") == "cuda":
        machine_info["gpu"] = torch.cuda.get_device_name()
        machine_info["cuda"] = torch.version.cuda
        machine_info["cuda_architectures"] = (native.build_info() if native else {}).get("cuda_architectures")
        machine_info |= clocks.about(torch.device("cuda"))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    results = config.stash[RESULTS]
    for line in results.said:
        terminalreporter.write_line(line)
    if not config.getoption("collectonly") and (benchmarks := results.benchmarks(config)):
        terminalreporter.section("hanops")
        if config.getoption("--rehearse"):
            terminalreporter.write_line("a rehearsal: times of the interpreter and the emulator say nothing of a GPU")
        terminalreporter.write_line(tables.summary(benchmarks))
