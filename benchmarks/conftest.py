"""Options of the benchmarks, the table that ends a run, and one timing of all rivals of a case."""

from __future__ import annotations

import json
import math
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import pytest
import table
import torch
from interleave import Replay
from pytest_benchmark.utils import get_commit_info

import hanops

Measured = TypeVar("Measured")


RESULTS = pytest.StashKey["Results"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hanops")
    group.addoption("--suite", choices=["quick", "full"], default="quick", help="how much to measure")
    group.addoption("--device", choices=["none", "cpu", "cuda"], default="none", help="where bench_gpu.py runs")
    group.addoption("--results", type=Path, help="a folder: DEVICE.json in it is rewritten after each benchmark")
    group.addoption("--resume", action="store_true", help="keep what is in DEVICE.json, and measure the rest")
    group.addoption("--seconds", type=float, default=math.inf, help="start no measurement after this long")


@dataclass
class Results:
    """The results file of a run, in pytest-benchmark's format, and the benchmarks that an earlier run left in it."""

    file: Path | None
    earlier: list[dict[str, Any]]
    machine: dict[str, Any] | None = None

    def write(self, config: pytest.Config) -> None:
        session = getattr(config, "_benchmarksession", None)
        if self.file is None or session is None:
            return
        new = [bench.as_dict(include_data=True) for bench in session.benchmarks if bench]
        if self.machine is None:
            self.machine = session.get_machine_info()
        result = {
            "machine_info": self.machine,
            "commit_info": get_commit_info(),
            "datetime": datetime.now(timezone.utc).isoformat(),
            "benchmarks": [*self.earlier, *new],
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(result, indent=1, default=str))
        part.replace(self.file)


def results_of(config: pytest.Config) -> Results:
    folder = config.getoption("--results")
    if folder is None:
        return Results(None, [])
    device = config.getoption("--device")
    name = torch.cuda.get_device_name() if device == "cuda" else "rehearsal"
    file = folder / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json")
    earlier = json.loads(file.read_text())["benchmarks"] if config.getoption("--resume") and file.exists() else []
    return Results(file, earlier)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = results_of(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    done = {bench["fullname"] for bench in config.stash[RESULTS].earlier}
    items[:] = [item for item in items if item.nodeid not in done]


def pytest_runtest_teardown(item: pytest.Item) -> None:
    item.config.stash[RESULTS].write(item.config)


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

    def to_benchmark(group: str, samples: list[float], **figures: object) -> None:
        benchmark.group = group
        benchmark.extra_info.update(figures)
        benchmark.pedantic(Replay.player(samples), rounds=len(samples), iterations=1, warmup_rounds=0)

    return to_benchmark


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    native = hanops.ops.native
    machine_info["hanops"] = hanops.__version__
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
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
    session = getattr(config, "_benchmarksession", None)
    new = [bench.as_dict(include_data=True) for bench in getattr(session, "benchmarks", []) if bench]
    benchmarks = [*config.stash[RESULTS].earlier, *new]
    if benchmarks:
        terminalreporter.section("hanops")
        terminalreporter.write_line(table.markdown(benchmarks))
