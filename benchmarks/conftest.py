"""Options of the benchmarks, the table that ends a run, and one timing of all rivals of a case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import table
import torch
from interleave import Replay, Samples

import hanops


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hanops")
    group.addoption("--suite", choices=["quick", "full"], default="quick", help="how much to measure")


@pytest.fixture(scope="session")
def timed() -> Callable[[str, Callable[[], Samples]], Samples]:
    """Returns the samples of a case, measured when its first rival asks."""
    cases: dict[str, Samples] = {}

    def samples_of(case: str, measure: Callable[[], Samples]) -> Samples:
        if case not in cases:
            cases[case] = measure()
        return cases[case]

    return samples_of


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


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    benchmarks = [bench.as_dict(include_data=True) for bench in getattr(session, "benchmarks", []) if bench]
    if benchmarks:
        terminalreporter.section("hanops")
        terminalreporter.write_line(table.markdown(benchmarks))
