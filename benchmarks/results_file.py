"""The results file of a run: replaced by a finished run alone; an unfinished one stays beside it as NAME.part.json."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.utils import get_commit_info

from hanops.profiling.files import write_text

from . import prepare

PART = ".part.json"


@cache
def commit_info() -> dict[str, Any]:
    """Returns the commit of this tree as it was at the start; where there is no git, the one that it was shipped as."""
    try:
        found: dict[str, Any] = get_commit_info()
    except Exception as error:  # of a missing git, in some versions
        found = {"id": "unknown", "error": repr(error)}
    return {**found, "id": prepare.commit()} if found.get("id") in ("unknown", "unversioned") else found


def read(file: Path) -> dict[str, Any]:
    """Returns a results file.

    Raises:
        ValueError: where it is not one, or not a whole one.
    """
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no results file, or not a whole one: {error}") from None
    benchmarks = found.get("benchmarks") if isinstance(found, dict) else None
    if not isinstance(benchmarks, list) or not isinstance(found.get("machine_info"), dict):
        raise ValueError(f"{file} is no results file: it has no benchmarks")
    for bench in benchmarks:
        info = bench.get("extra_info") if isinstance(bench, dict) else None
        is_own = isinstance(info, dict) and info.get("kind") in ("group", "share")
        if not is_own or not isinstance(bench.get("fullname"), str) or "median" not in (bench.get("stats") or {}):
            raise ValueError(f"{file} is no results file of these benchmarks: it has rows of others")
    return found


@dataclass
class Results:
    """A run's results in pytest-benchmark's format, with what an earlier run left.

    file: None where nothing is written. left_out: why a rival is missing, by 'group: case, rival'. is_cut: whether time
    ended before the last measurement. said: lines for the end of the run.
    """

    file: Path | None
    earlier: list[dict[str, Any]]
    machine: dict[str, Any] | None = None
    clocks: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    is_cut: bool = False
    written: float = 0.0
    said: list[str] = field(default_factory=list)

    @property
    def part(self) -> Path:
        assert self.file is not None
        return self.file.with_suffix(PART)

    def new(self, config: pytest.Config) -> list[dict[str, Any]]:
        """Returns the benchmarks of this run, without their single samples."""
        session = getattr(config, "_benchmarksession", None)
        found = [bench for bench in getattr(session, "benchmarks", []) if bench and not bench.has_error]
        return [bench.as_dict(include_data=False) for bench in found]

    def benchmarks(self, config: pytest.Config) -> list[dict[str, Any]]:
        """Returns the benchmarks of the earlier run and of this one."""
        return [*self.earlier, *self.new(config)]

    def text(self, config: pytest.Config) -> str:
        """Returns the file's text."""
        if self.machine is None or "ceilings" not in self.machine:
            self.machine = config._benchmarksession.get_machine_info()  # type: ignore[attr-defined]
        result = {
            "machine_info": {**self.machine, **({"clocks": self.clocks} if self.clocks else {})},
            "commit_info": commit_info(),
            "datetime": datetime.now(timezone.utc).isoformat(),
            "left_out": self.left_out,
            "benchmarks": self.benchmarks(config),
        }
        return json.dumps(result, indent=1, default=str)

    def write_part(self, config: pytest.Config, every: float = 0.0) -> None:
        """Writes what there is beside the file, where the last time is more than `every` seconds ago."""
        if self.file is None or time.monotonic() - self.written < every or not self.new(config):
            return
        self.written = time.monotonic()
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.part, self.text(config))
        except OSError as error:  # a full disk may have room again at the end
            self.said = [f"{self.part} was not written: {error}"]

    def finish(self, config: pytest.Config, status: int) -> bool:
        """Replaces the file where the run is finished and not empty; returns False where that failed."""
        is_rest = status == pytest.ExitCode.OK and bool(self.earlier)  # nothing was left to measure
        if self.file is None or not (self.new(config) or (is_rest and self.part.exists())):
            return True
        self.said = []
        if self.is_cut or status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            self.write_part(config)
            self.said.append(f"unfinished: what was measured is in {self.part}; --resume measures the rest")
            return True
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.file, self.text(config))
            self.part.unlink(missing_ok=True)
        except OSError as error:
            self.said.append(f"{self.file} was not written, and is as it was: {error}")
            return False
        return True


def results_of(config: pytest.Config) -> Results:
    """Returns the results of a run by its options.

    Raises:
        pytest.UsageError: where --results is not a folder, or --resume finds what is not a whole results file.
    """
    folder: Path | None = config.getoption("--results")
    commit_info()  # before a results file is a change
    if folder is None:
        if config.getoption("--resume"):
            raise pytest.UsageError("--resume goes on from a file of --results, which is missing")
        return Results(None, [])
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise pytest.UsageError(f"--results must be a folder, got {folder}: {above} is a file")
    on_gpu = config.getoption("--device") == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else "rehearsal" if config.getoption("--rehearse") else "cpu"
    results = Results(folder / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json"), [])
    if config.getoption("--resume"):
        assert results.file is not None
        for file in (results.part, results.file):
            if file.exists():
                try:
                    found = read(file)
                    results.earlier, results.left_out = found["benchmarks"], found.get("left_out", {})
                except (ValueError, OSError) as error:
                    raise pytest.UsageError(f"--resume: {error}; delete it to begin anew") from None
                break
    return results
