"""examples/train_ddp.py ends with the same losses however often its processes are killed."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from torch import Tensor

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")

from examples import train_ddp

ROOT = Path(__file__).parent.parent
SMALL = {"seeds": 1, "iterations": 200, "every": 25, "width": 8, "depth": 5, "batch": 8}
REST = {"rate": 0.05, "device": "cpu", "fsdp": False, "fresh": False}


def trained(out: Path, stop: int | None = None, half: int | None = None, **options: Any) -> dict[str, Any] | None:
    """Trains in this process and its peers; stops at step `stop`, or within the checkpoint after step `half`."""
    batch, save = train_ddp.batch, train_ddp.save

    def interrupted(seed: int, step: int, rows: int) -> Tensor:
        if step == stop:
            raise KeyboardInterrupt
        return batch(seed, step, rows)

    def interrupted_save(state: dict[str, Any], checkpoint_id: Path) -> None:
        save(state, checkpoint_id=checkpoint_id)
        if int(state["progress"]["step"]) == half:
            raise KeyboardInterrupt

    with patch.object(train_ddp, "batch", interrupted), patch.object(train_ddp, "save", interrupted_save):
        try:
            return train_ddp.train(argparse.Namespace(out=out, **SMALL | REST | options), 0)
        except KeyboardInterrupt:
            return None


@pytest.fixture(scope="module")
def undisturbed(pools, tmp_path_factory):
    """The result of a training on two processes that nothing disturbs."""
    first, second = pools[2](trained, tmp_path_factory.mktemp("whole"))
    assert first["losses"] == second["losses"]
    return first


def start(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "examples.train_ddp"]
    for name, value in SMALL.items():
        command += [f"--{name}", str(value)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, "--out", str(out)], cwd=ROOT, **pipes)


def workers(agent: int) -> list[int]:
    """Returns the processes that torchrun started."""
    return [int(pid) for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]


def test_killed_processes_end_with_the_same_losses(undisturbed, tmp_path):
    process = start(tmp_path)
    folder = tmp_path / "train_ddp-seed0"
    deadline = time.monotonic() + 60
    while not (folder / "step-00000050").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    pids = workers(process.pid)
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (folder / "step-00000200").exists()
    process = start(tmp_path)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    resumed = json.loads((tmp_path / "train_ddp.json").read_text())
    assert resumed["losses of each seed"][0] == pytest.approx(undisturbed["losses"], rel=1e-6)
    assert resumed["error of each seed"] == pytest.approx([undisturbed["error"]], rel=1e-6)
    assert resumed["command"].startswith("torchrun --nproc-per-node 2 -m examples.train_ddp --seeds 1")
    assert resumed["processes"] == 2
    assert (tmp_path / "train_ddp.png").stat().st_size > 10_000


def test_two_processes_train_as_one(pools, undisturbed, tmp_path):
    (alone,) = pools[1](trained, tmp_path)
    assert alone["losses"] == pytest.approx(undisturbed["losses"], rel=1e-3)
    assert len(set(alone["losses"])) == 8


def test_a_checkpoint_counts_when_it_is_whole(pools, undisturbed, tmp_path):
    assert pools[2](partial(trained, half=75), tmp_path) == [None, None]
    steps = sorted(path.name for path in (tmp_path / "train_ddp-seed0").glob("step-*"))
    assert steps == ["step-00000025", "step-00000050", "step-00000075.part"]
    for got in pools[2](trained, tmp_path):
        assert got["losses"] == undisturbed["losses"]


def test_fsdp_goes_on_from_the_last_whole_checkpoint(pools, undisturbed, tmp_path):
    assert pools[2](trained, tmp_path, 140) == [None, None]  # by DDP
    folder = tmp_path / "train_ddp-seed0"
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-00000100", "step-00000125"]
    half = folder / "step-00000150.part"  # as a killed process leaves it
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"half")
    fsdp = partial(trained, fsdp=True)
    assert pools[4](fsdp, tmp_path, 155) == [None] * 4
    assert not half.exists()
    for got in pools[1](fsdp, tmp_path):
        assert got["losses"] == pytest.approx(undisturbed["losses"], rel=1e-3)  # sums of other parts
    (again,) = pools[1](trained, tmp_path)  # it is finished
    assert again["losses"] == got["losses"]


def refused(out: Path) -> None:
    trained(out, 30)
    with pytest.raises(ValueError, match=r"is of another training: go on with the settings .*'rate': 0.05"):
        trained(out, rate=0.1)
    trained(out, 30, rate=0.1, fresh=True)


def test_a_checkpoint_of_another_training_is_refused(pools, tmp_path):
    pools[2](refused, tmp_path)


def damaged(out: Path) -> None:
    with pytest.raises(ValueError, match=r"step-00000100 is damaged: remove it .* or start --fresh"):
        trained(out)


def test_a_damaged_checkpoint_is_refused(pools, undisturbed, tmp_path):
    """Each process says so; without it the training goes on from the one before."""
    assert pools[2](trained, tmp_path, 110) == [None, None]
    newest = tmp_path / "train_ddp-seed0" / "step-00000100"
    file = max(newest.glob("*.distcp"))
    data = file.read_bytes()
    for content in (data[:-1], data[:200] + bytes([data[200] ^ 1]) + data[201:], b""):
        file.write_bytes(content)
        pools[2](damaged, tmp_path)
    shutil.rmtree(newest)
    for got in pools[2](trained, tmp_path):
        assert got["losses"] == undisturbed["losses"]
