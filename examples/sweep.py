"""Trains many small networks as one: all seeds and learning rates of an experiment are the groups of one model."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import hanops
from hanops.models import Network

SAVE_SECONDS = 30.0


@dataclass
class Run:
    """One network to train: its seed, which sets its start, its data and its batches, and its learning rate."""

    seed: int
    rate: float


@dataclass
class Recipe:
    """Stochastic gradient descent with momentum, and a rate that falls at parts of the way.

    Each step takes `batch` rows at random, as the authors' code does, and not in epochs.

    penalty: of a model, for each group, added to the loss.
    """

    iterations: int
    batch: int = 100
    momentum: float = 0.9
    milestones: Sequence[float] = (0.5, 0.7, 0.9)
    factor: float = 0.2
    every: int = 100  # iterations between two evaluations
    penalty: Callable[[Network], Tensor] | None = None


@dataclass
class Data:
    """Points and targets of all runs: x (groups, n, in), target (groups, n, out)."""

    x: Tensor
    target: Tensor
    test_x: Tensor
    test_target: Tensor


@dataclass
class State:
    """Where a sweep is: all that a file needs to go on with it."""

    settings: dict[str, Any]  # of the sweep; a checkpoint of others is refused
    model: Network
    moments: list[Tensor]
    generators: list[torch.Generator]
    rows: Tensor  # (groups, every, batch), those of the steps up to the next evaluation
    iteration: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Writes the state, whole or not at all."""
        part = path.with_suffix(".part")
        torch.save(
            {
                "settings": self.settings,
                "model": self.model.state_dict(),
                "moments": self.moments,
                "generators": [g.get_state() for g in self.generators],
                "rows": self.rows,
                "iteration": self.iteration,
                "seconds": self.seconds,
                "history": self.history,
            },
            part,
        )
        part.replace(path)

    def load(self, path: Path) -> None:
        """Takes the state of a file; ValueError where that is of another sweep."""
        saved = torch.load(path, map_location=self.rows.device)
        if saved["settings"] != self.settings:
            raise ValueError(
                f"{path} is of another sweep: go on with the settings {saved['settings']}, or start --fresh"
            )
        self.model.load_state_dict(saved["model"])
        self.moments, self.rows = saved["moments"], saved["rows"]
        for generator, state in zip(self.generators, saved["generators"], strict=True):
            generator.set_state(state.cpu())
        self.iteration, self.seconds, self.history = saved["iteration"], saved["seconds"], saved["history"]


def rate_at(recipe: Recipe, iteration: int) -> float:
    """Returns the part of the initial learning rate that holds at an iteration."""
    return recipe.factor ** sum(iteration >= part * recipe.iterations for part in recipe.milestones)


def train(
    make: Callable[[], Network],
    runs: Sequence[Run],
    data: Data,
    recipe: Recipe,
    score: Callable[[Tensor, Tensor], Tensor],
    checkpoint: Path | None = None,
) -> State:
    """Trains one network for each run, all as one grouped model, by the mean squared error.

    Args:
        make: makes a network; called after the seed of its run is set.
        runs: the seeds and rates.
        data: of all runs, on the device where the training is to be.
        recipe: how long and how.
        score: of outputs and targets (groups, n, out), a figure for each group; kept at every evaluation.
        checkpoint: a file that is written now and then, and that an interrupted call goes on from.

    Returns:
        The state at the end; `history` has the iteration, the losses and the scores of training and test.
    """
    device = data.x.device
    singles = []
    for run in runs:
        torch.manual_seed(run.seed)
        singles.append(make())
    model = type(singles[0]).grouped(singles).to(device)
    parameters = list(model.parameters())
    n = data.x.shape[1]
    settings = asdict(recipe) | {"runs": [asdict(run) for run in runs], "network": repr(singles[0])}
    settings["penalty"] = recipe.penalty is not None
    settings["milestones"] = list(recipe.milestones)
    state = State(
        settings,
        model,
        [torch.zeros_like(p) for p in parameters],
        [torch.Generator().manual_seed(run.seed) for run in runs],
        torch.empty(len(runs), recipe.every, recipe.batch, dtype=torch.int64, device=device),
    )
    if checkpoint is not None and checkpoint.exists():
        state.load(checkpoint)
    rates = torch.tensor([run.rate for run in runs], device=device)
    scales = [-rates.view(-1, *[1] * (p.dim() - 1)) for p in parameters]
    group = torch.arange(len(runs), device=device).unsqueeze(1)
    shape = state.rows.shape[1:]

    def evaluate(loss: Tensor) -> None:
        with torch.no_grad():
            train_score, test_score = score(model(data.x), data.target), score(model(data.test_x), data.test_target)
        losses, trained, tested = (t.tolist() for t in (loss.detach(), train_score, test_score))
        state.history.append({"iteration": state.iteration, "loss": losses, "train": trained, "test": tested})

    started = saved = time.perf_counter()
    before = state.seconds
    with tqdm(total=recipe.iterations, initial=state.iteration, unit="step", mininterval=1.0) as bar:
        while state.iteration < recipe.iterations:
            position = state.iteration % recipe.every
            if position == 0:
                state.rows.copy_(torch.stack([torch.randint(n, shape, generator=g) for g in state.generators]))
            rows = state.rows[:, position]
            loss = (model(data.x[group, rows]) - data.target[group, rows]).square().mean((1, 2))
            total = loss if recipe.penalty is None else loss + recipe.penalty(model)
            gradients = torch.autograd.grad(total.sum(), parameters)
            part = rate_at(recipe, state.iteration)
            with torch.no_grad():
                torch._foreach_mul_(state.moments, recipe.momentum)
                torch._foreach_add_(state.moments, gradients)
                for p, moment, scale in zip(parameters, state.moments, scales, strict=True):
                    p.addcmul_(moment, scale, value=part)
            state.iteration += 1
            bar.update()
            if state.iteration % recipe.every == 0 or state.iteration == recipe.iterations:
                evaluate(loss)
                bar.set_postfix(test=f"{max(state.history[-1]['test']):.4f}")
                state.seconds = before + time.perf_counter() - started
                if checkpoint is not None and time.perf_counter() - saved > SAVE_SECONDS:
                    state.save(checkpoint)
                    saved = time.perf_counter()
    if checkpoint is not None:
        state.save(checkpoint)
    return state


def best(history: list[dict[str, Any]], key: str = "test") -> list[float]:
    """Returns the highest score of each run over all evaluations."""
    return [max(scores) for scores in zip(*(entry[key] for entry in history), strict=True)]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and the sample standard deviation, 0 of a single value."""
    t = torch.tensor(values, dtype=torch.float64)
    return t.mean().item(), t.std().item() if len(values) > 1 else 0.0


def parser(description: str | None, iterations: int, rates: Sequence[float]) -> argparse.ArgumentParser:
    """Returns a parser with the options that all sweeps have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--seeds", type=int, default=5, help="networks for each rate")
    options.add_argument("--rates", type=float, nargs="+", default=list(rates), help="initial learning rates")
    options.add_argument("--iterations", type=int, default=iterations, help="steps of training")
    options.add_argument("--device", default="cpu", help="where to train: cpu or cuda")
    options.add_argument("--out", type=Path, default=Path("runs"), help="folder of the JSON, the plot and checkpoints")
    options.add_argument("--fresh", action="store_true", help="start anew where an interrupted run left a checkpoint")
    return options


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes a result with the versions that made it."""
    versions = {"hanops": hanops.__version__, "torch": torch.__version__}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**result, "versions": versions}, indent=1) + "\n")
