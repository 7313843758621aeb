"""SIGINT and SIGKILL at random times: a program that goes on loses nothing, and ends as if it had run undisturbed."""

import importlib
import json
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

for package in ("tqdm", "matplotlib", "PIL"):
    pytest.importorskip(package)

from examples import checkpoints  # noqa: E402

# A server imports torch and the programs once; each run is a fork of it.
_context = get_context("forkserver")
_context.set_forkserver_preload(
    ["pytest", "examples.checkerboard", "examples.images", "hanops.distributed", "torch.distributed.fsdp"]
)

COMMANDS = {
    "checkerboard": ["--iterations", "500", "--seeds", "2", "--rates", "0.02", "0.05"],
    "images": ["--model", "stem", "--made", "40", "--batch", "20", "--channels", "8", "--epochs", "6", "--seeds", "2"],
}
# How far a checkpoint is.
PROGRESS: dict[str, Callable[[dict[str, Any]], int]] = {
    "checkerboard": lambda state: state["iteration"],
    "images": lambda state: len(state["history"]),
}
KILLS = 6


def learn(program: str, out: str) -> None:
    """Runs a program in this process, and saves at each evaluation."""
    from examples.options import run_program

    warnings.simplefilter("error")
    torch.set_num_threads(1)
    os.chdir(out)
    sys.stderr = sys.stdout = open("printed", "a")  # noqa: SIM115
    importlib.import_module("examples.sweep").SAVE_SECONDS = 0.0
    sys.argv = [f"examples/{program}.py", *COMMANDS[program], "--out", out]
    run_program(importlib.import_module(f"examples.{program}").main)


def started(program: str, out: Path) -> Any:
    process = _context.Process(target=learn, args=(program, str(out)), daemon=True)
    process.start()
    return process


def figures(out: Path) -> list[dict[str, Any]]:
    """Returns the results, but for the times."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kept(part) for key, part in value.items() if "seconds" not in key}
        return [kept(part) for part in value] if isinstance(value, list) else value

    return [kept(json.loads(file.read_text())) for file in sorted(out.glob("*.json"))]


@pytest.mark.parametrize("program", COMMANDS)
def test_killed_at_random_times(program, tmp_path, request):
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    undisturbed.mkdir()
    out.mkdir()
    process, begin = started(program, undisturbed), time.monotonic()
    process.join(120)
    seconds = time.monotonic() - begin
    assert process.exitcode == 0, (undisturbed / "printed").read_text()
    states = {file.name: torch.load(file) for file in undisturbed.glob("*.pt")}
    far = dict.fromkeys(states, 0)
    rng = random.Random(request.config.getoption("--seed"))
    killed = 0
    while (process := started(program, out)).exitcode is None:
        process.join(seconds * 10 ** rng.uniform(-2, -0.7) if killed < KILLS else 120)
        if process.exitcode is not None:
            break
        os.kill(process.pid, rng.choice((signal.SIGINT, signal.SIGKILL)))
        process.join(60)
        killed += 1
        for name, state in states.items():
            if (out / name).exists():
                found = checkpoints.load(out / name, state["settings"], (), "cpu", "training")
                now = PROGRESS[program](found)
                assert now >= far[name]
                far[name] = now
        for file in out.glob("*.json"):
            json.loads(file.read_text())
    assert process.exitcode == 0, (out / "printed").read_text()
    assert killed > KILLS // 2
    assert figures(out) == figures(undisturbed) != []
    for name, state in states.items():
        again = torch.load(out / name)["model"]
        torch.testing.assert_close(again, state["model"], rtol=0, atol=0, equal_nan=True)
