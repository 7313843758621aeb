"""Trains a HanNet on several processes, by DDP or FSDP2, and goes on from its last checkpoint where it was killed.

`torchrun --nproc-per-node 2 -m examples.train_ddp`, or `python -m examples.train_ddp` alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from matplotlib import pyplot
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from hanops.models import HanNet
from hanops.profiling.files import write_text

from .checkpoints import check_progress
from .experiment import COLOURS, command, mean_and_spread, parser, save_plot, settings, spread, write
from .options import RefusedError, natural, positive, run_program
from .sweep import Recipe, rate_at

NAME = Path(__file__).stem
CHECKSUMS = "sha256.json"
WAVES = 2.0  # of the target along each axis


def target(x: Tensor) -> Tensor:
    """Returns sin(2 pi x_1) sin(2 pi x_2) of points (n, 2)."""
    return (math.pi * WAVES * x).sin().prod(1, keepdim=True)


def batch(seed: int, step: int, rows: int) -> Tensor:
    """Returns the points of a step, (rows, 2): the same on every process, and after any interruption."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    return 2 * torch.rand(rows, 2, generator=generator) - 1


def checksums(folder: Path) -> dict[str, str]:
    """Returns the checksums of a folder's files, but for the file that keeps them."""
    files = sorted(file for file in folder.iterdir() if file.name != CHECKSUMS)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


class Checkpoints:
    """The checkpoints of one training: `step-...` in a folder. One gets its name when all of it is written."""

    def __init__(self, folder: Path, wanted: dict[str, Any], fresh: bool) -> None:
        self.folder, described = folder, folder / "settings.json"
        if dist.get_rank() == 0:
            if fresh:
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            for part in folder.glob("*.part"):
                shutil.rmtree(part)
            if self.newest() is None:
                write_text(described, json.dumps(wanted))
        dist.barrier()
        found = json.loads(described.read_text()) if described.exists() else None
        if found != wanted:
            raise RefusedError(f"{folder} is of another training: go on with the settings {found}, or start --fresh")

    def newest(self) -> Path | None:
        """Returns the last whole checkpoint."""
        return max(self.folder.glob("step-" + "[0-9]" * 8), default=None)

    def load(self, state: dict[str, Any], path: Path) -> None:
        """Reads a checkpoint into a state.

        Raises:
            RefusedError: on every process, where a file of it is damaged.
        """
        kept = path / CHECKSUMS
        try:
            whole = json.loads(kept.read_text()) == checksums(path)
        except (OSError, ValueError):
            whole = False
        dist.barrier()  # all have read: what one refuses all refuse
        if not whole:
            raise RefusedError(f"{path} is damaged: remove it to go on from the one before it, or start --fresh")
        load(state, checkpoint_id=path)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Writes a checkpoint with the checksums of its files, and then removes the older ones but one."""
        part = self.folder / f"step-{step:08d}.part"
        save(state, checkpoint_id=part)  # returns when every process has written
        if dist.get_rank() == 0:
            write_text(part / CHECKSUMS, json.dumps(checksums(part)))
            part.rename(part.with_suffix(""))
            for old in sorted(self.folder.glob("step-" + "[0-9]" * 8))[:-2]:
                shutil.rmtree(old)


def network(arguments: argparse.Namespace, seed: int) -> nn.Module:
    """Returns the network of a seed, ready for gradients over all processes."""
    torch.manual_seed(seed)
    model = HanNet(2, arguments.width, arguments.depth, 1).to(arguments.device)
    if arguments.fsdp:
        kind = torch.device(arguments.device).type
        fully_shard(model, mesh=init_device_mesh(kind, (dist.get_world_size(),)))
        return model
    return DistributedDataParallel(model) if dist.get_world_size() > 1 else model


@torch.no_grad()
def error_on_mesh(model: nn.Module, device: torch.device) -> float:
    """Returns the mean squared error on 65 x 65 points."""
    axis = torch.linspace(-1, 1, 65, device=device)
    points = torch.cartesian_prod(axis, axis)
    return F.mse_loss(model(points), target(points)).item()


def train(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Trains one network, from its last checkpoint if there is one.

    Returns:
        The mean losses of each `every` steps, the error on a mesh of points, the parameters and the seconds.
    """
    device, rank, size = arguments.device, dist.get_rank(), dist.get_world_size()
    model = network(arguments, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.rate, momentum=0.9)
    recipe = Recipe(arguments.iterations)
    progress = {
        "step": torch.zeros((), dtype=torch.int64),
        "seconds": torch.zeros((), dtype=torch.float64),
        "losses": torch.zeros(-(-arguments.iterations // arguments.every), dtype=torch.float64),
    }

    def state() -> dict[str, Any]:
        return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True)) | {"progress": progress}

    left_out = ("fsdp", "device", "seeds")  # these may change between two calls, as may the number of processes
    wanted = {key: value for key, value in settings(arguments).items() if key not in left_out}
    checkpoints = Checkpoints(arguments.out / f"{NAME}-seed{seed}", wanted, arguments.fresh)
    if (newest := checkpoints.newest()) is not None:
        loaded = state()
        checkpoints.load(loaded, newest)
        set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
        check_progress(newest, int(progress["step"]), arguments.iterations)
    start, before = int(progress["step"]), float(progress["seconds"])
    started = time.perf_counter()
    mine = slice(rank * arguments.batch // size, (rank + 1) * arguments.batch // size)
    total = torch.zeros((), dtype=torch.float64, device=device)
    steps = tqdm(
        range(start, arguments.iterations),
        f"seed {seed}",
        arguments.iterations,
        initial=start,
        unit="step",
        mininterval=1.0,
        disable=rank != 0,
    )
    for step in steps:
        x = batch(seed, step, arguments.batch)[mine].to(device)
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * rate_at(recipe, step)
        loss = F.mse_loss(model(x), target(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
        if (step + 1) % arguments.every == 0 or step + 1 == arguments.iterations:
            dist.all_reduce(total)
            mean = total.item() / (size * (step % arguments.every + 1))
            progress["losses"][step // arguments.every] = mean
            progress["step"].fill_(step + 1)
            progress["seconds"].fill_(before + time.perf_counter() - started)
            checkpoints.save(step + 1, state())
            steps.set_postfix(loss=f"{mean:.3g}")
            total.zero_()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": progress["seconds"].item(),
        "losses": progress["losses"].tolist(),
        "error": error_on_mesh(model, device),
    }


def plot(path: Path, every: int, runs: list[dict[str, Any]], title: str) -> None:
    """Draws the losses of all seeds."""
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for seed, run in enumerate(runs):
        steps = [every * (i + 1) for i in range(len(run["losses"]))]
        axes.semilogy(steps, run["losses"], color=COLOURS[seed % len(COLOURS)], label=f"seed {seed}")
    axes.set(title=title, xlabel="step", ylabel="mean squared error")
    axes.legend()
    save_plot(figure, path)


def join(device: str) -> None:
    """Joins the processes that torchrun started, or makes a group of this one alone."""
    backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
    if "RANK" in os.environ:
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(backend)
    else:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)


def main() -> None:
    """Trains a network for each seed."""
    options = parser(__doc__, 2_000)
    options.add_argument("--batch", type=natural, default=256, help="rows of a step, over all processes")
    options.add_argument("--rate", type=positive, default=0.05, help="initial learning rate")
    options.add_argument("--width", type=natural, default=50, help="features of the hidden layers")
    options.add_argument("--depth", type=natural, default=10, help="hidden layers")
    options.add_argument("--every", type=natural, default=100, help="steps between two checkpoints")
    options.add_argument("--fsdp", action="store_true", help="shard parameters and optimizer (FSDP2) instead of DDP")
    arguments = options.parse_args()
    join(arguments.device)
    size = dist.get_world_size()
    if arguments.batch % size:
        options.error(f"--batch must be a multiple of the {size} processes, got {arguments.batch}")
    runs = [train(arguments, seed) for seed in range(arguments.seeds)]
    if dist.get_rank() == 0:
        launched = f"torchrun --nproc-per-node {size}" if "RANK" in os.environ else "python"
        errors = [run["error"] for run in runs]
        result = {
            "command": command("train_ddp", sys.argv[1:]).replace("python", launched, 1),
            "settings": settings(arguments),
            "processes": size,
            "parameters": runs[0]["parameters"],
            "seconds": sum(run["seconds"] for run in runs),
            "losses of each seed": [run["losses"] for run in runs],
            "error of each seed": errors,
            "error, mean and spread": mean_and_spread(errors),
        }
        write(arguments.out / f"{NAME}.json", result)
        error = spread(mean_and_spread(errors), ".1e")
        line = f"HanNet, {result['parameters']:,} parameters, {size} processes: error {error}"
        print(line)
        plot(arguments.out / f"{NAME}.png", arguments.every, runs, line)
    dist.destroy_process_group()


if __name__ == "__main__":
    run_program(main)
