"""Options of the benchmarks, the table that ends a run, and one timing of all rivals of a case."""

from __future__ import annotations

import json
import math
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import pytest
import table
import torch
from cases import DTYPES, groups_of
from ceilings import Ceilings, measured_ceilings
from interleave import Replay
from pytest_benchmark.utils import get_commit_info

import hanops

Measured = TypeVar("Measured")


RESULTS = pytest.StashKey["Results"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hanops")
    group.addoption("--suite", choices=["quick", "full"], default="quick", help="how much to measure")
    group.addoption("--device", choices=["cpu", "cuda"], default="cpu", help="where to measure")
    group.addoption("--dtype", choices=list(DTYPES), help="measure this storage type instead of each case's own")
    group.addoption("--rehearse", action="store_true", help="run the GPU's benchmarks on the CPU, tiny")
    group.addoption(
        "--results", type=Path, help="a folder: a file for the device in it is rewritten as rows are measured"
    )
    group.addoption("--resume", action="store_true", help="keep what is in that file, and measure the rest")
    group.addoption("--seconds", type=float, default=math.inf, help="start no measurement after this long")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes a benchmark of each rival and direction in each case of the suite's groups."""
    if "group" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    device = "rehearsal" if option("--rehearse") else option("--device")
    dtype = DTYPES[option("--dtype")] if option("--dtype") else None
    rows, names = [], []
    for group in groups_of(device, option("--suite"), dtype):
        for case in group.cases:
            for direction in group.directions:
                for way in (direction, f"{direction}, graph") if device == "cuda" else (direction,):
                    for rival in group.rivals:
                        rows.append((group, case, rival, way))
                        names.append(f"{group.name}: {case}, {way}, {rival}")
    metafunc.parametrize(("group", "case", "rival", "way"), rows, ids=names)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    chosen = torch.device(request.config.getoption("--device"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.exit("torch sees no GPU", returncode=1)
    return chosen


@pytest.fixture(scope="session")
def rehearsal(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--rehearse"))


CEILINGS = pytest.StashKey[Ceilings]()


@pytest.fixture(scope="session")
def ceilings(request: pytest.FixtureRequest, device: torch.device) -> Ceilings:
    stash = request.config.stash
    if CEILINGS not in stash:
        stash[CEILINGS] = measured_ceilings(device)
    return stash[CEILINGS]


@dataclass
class Results:
    """The results file of a run, in pytest-benchmark's format, and the benchmarks that an earlier run left in it."""

    file: Path | None
    earlier: list[dict[str, Any]]
    commit: dict[str, Any] = field(default_factory=get_commit_info)  # before the file itself is a change
    machine: dict[str, Any] | None = None
    written: float = 0.0

    def benchmarks(self, config: pytest.Config) -> list[dict[str, Any]]:
        """Returns those of the earlier run and of this one, without their single samples."""
        session = getattr(config, "_benchmarksession", None)
        new = [bench.as_dict(include_data=False) for bench in getattr(session, "benchmarks", []) if bench]
        return [*self.earlier, *new]

    def write(self, config: pytest.Config, every: float = 0.0) -> None:
        """Writes the file, where the last time is more than `every` seconds ago."""
        session = getattr(config, "_benchmarksession", None)
        if self.file is None or session is None or time.monotonic() - self.written < every:
            return
        self.written = time.monotonic()
        if self.machine is None or "ceilings" not in self.machine:
            self.machine = session.get_machine_info()
        result = {
            "machine_info": self.machine,
            "commit_info": self.commit,
            "datetime": datetime.now(timezone.utc).isoformat(),
            "benchmarks": self.benchmarks(config),
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(result, indent=1, default=str))
        part.replace(self.file)


def results_of(config: pytest.Config) -> Results:
    folder = config.getoption("--results")
    if folder is None:
        return Results(None, [])
    on_gpu = config.getoption("--device") == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else "rehearsal" if config.getoption("--rehearse") else "cpu"
    file = folder / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json")
    earlier = json.loads(file.read_text())["benchmarks"] if config.getoption("--resume") and file.exists() else []
    return Results(file, earlier)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = results_of(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    done = {bench["fullname"] for bench in config.stash[RESULTS].earlier}
    items[:] = [item for item in items if item.nodeid not in done]


def pytest_runtest_teardown(item: pytest.Item) -> None:
    item.config.stash[RESULTS].write(item.config, every=5.0)


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[RESULTS].write(session.config)


@pytest.fixture(scope="session")
def timed(request: pytest.FixtureRequest) -> Callable[[str, Callable[[], Measured]], Measured]:
    """Returns what `measure` gave for a case, measured when its first rival asks."""
    cases: dict[str, Any] = {}
    end = time.monotonic() + request.config.getoption("--seconds")

    def measured(case: str, measure: Callable[[], Measured]) -> Measured:
        if case not in cases:
            if time.monotonic() > end:
                pytest.skip("out of time: RESUME=1 measures the rest")
            try:
                cases[case] = measure()
            except Exception as error:
                cases[case] = error  # its other rivals fail alike, at once
        if isinstance(cases[case], Exception):
            raise cases[case]
        return cases[case]

    return measured


@pytest.fixture
def report(benchmark: Any) -> Callable[..., None]:
    """Hands recorded samples and figures to pytest-benchmark."""

    def to_benchmark(name: str, samples: list[float], /, **figures: object) -> None:
        benchmark.group = name
        benchmark.extra_info.update(figures)
        benchmark.pedantic(Replay.player(samples), rounds=len(samples), iterations=1, warmup_rounds=0)

    return to_benchmark


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    native = hanops.ops.native
    machine_info["hanops"] = hanops.__version__
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
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        machine_info["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if benchmarks := config.stash[RESULTS].benchmarks(config):
        terminalreporter.section("hanops")
        terminalreporter.write_line(table.summary(benchmarks))
