"""Trains many small networks as one: all seeds and learning rates of an experiment are the groups of one model."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from hanops.models import Network

from . import checkpoints
from .checkpoints import Checkpoint

SAVE_SECONDS = 30.0
# Fused: one pass over the parameters, which counts where they do not fit a cache.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, momentum=0.9, fused=True),
    "adam": partial(torch.optim.Adam, fused=True),
}
TEST_ROWS = 4096  # at a time

PerGroup = Callable[[Tensor, Tensor], Tensor]  # of outputs and targets (groups, n, ...), a figure for each group


@dataclass
class Run:
    """One network to train: its seed, which sets its start, its data and its batches, and its optimizer's settings."""

    seed: int
    rate: float
    decay: float = 0.0  # of the weights, as in torch.optim.SGD and Adam


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean squared error of each group."""
    return (outputs - targets).square().flatten(1).mean(1)


def root_mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the square root of the mean squared error of each group, infinite where an output is not a number."""
    return mean_squared_error(outputs, targets).sqrt().nan_to_num(nan=torch.inf, posinf=torch.inf)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean cross entropy of each group, of logits (groups, n, classes) and classes (groups, n)."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape).mean(1)


def class_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the share of rows, in percent, whose largest logit is that of their class, for each group."""
    return 100 * (logits.argmax(-1) == targets).double().mean(1)


@dataclass
class Recipe:
    """How a sweep trains.

    iterations: steps in all.
    batch: rows of a step. They are drawn at random, no row twice in a step, as in the authors' code of the
        checkerboard, or in turns of all rows in a new order each time, where `epochs` is set.
    optimizer: 'sgd', with momentum, or 'adam'.
    milestones, factor: at these parts of the way the learning rate falls by the factor.
    every: iterations between two evaluations.
    loss: what is minimized. penalty: of a model, for each group, added to the loss.
    objective: of a model, rows and targets, for each group, in place of the loss; it may draw random numbers. It and
        the penalty are dataclasses: their repr tells what a checkpoint must agree with.
    """

    iterations: int
    batch: int = 100
    epochs: bool = False
    optimizer: str = "sgd"
    milestones: Sequence[float] = (0.5, 0.7, 0.9)
    factor: float = 0.2
    every: int = 100
    loss: PerGroup = mean_squared_error
    penalty: Callable[[Network], Tensor] | None = None
    objective: Callable[[Network, Tensor, Tensor], Tensor] | None = None

    def settings(self) -> dict[str, Any]:
        """Returns what a checkpoint must agree with."""
        plain = asdict(self) | {"milestones": list(self.milestones), "loss": self.loss.__name__}
        return plain | {"penalty": repr(self.penalty), "objective": repr(self.objective)}

    def losses(self, model: Network, x: Tensor, target: Tensor) -> Tensor:
        """Returns what is minimized for each group, but for the penalty."""
        return self.loss(model(x), target) if self.objective is None else self.objective(model, x, target)


@dataclass
class Data:
    """Points and targets of all runs: x (groups, n, in), target (groups, n, out), or (groups, n) of classes."""

    x: Tensor
    target: Tensor
    test_x: Tensor
    test_target: Tensor


@dataclass
class State:
    """Where a sweep is: all that a file needs to go on with it."""

    settings: dict[str, Any]  # of the sweep; a checkpoint of others is refused
    model: Network
    optimizer: Optimizer
    generators: list[torch.Generator]  # of the batches, one for each seed
    rows: Tensor  # (groups, every, batch), those of the steps up to the next evaluation
    iteration: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Writes the state, whole or not at all."""
        checkpoints.save(
            path,
            {
                "settings": self.settings,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.inner.state_dict(),
                "generators": [g.get_state() for g in self.generators],
                "random": torch.get_rng_state(),
                "rows": self.rows,
                "iteration": self.iteration,
                "seconds": self.seconds,
                "history": self.history,
            },
        )

    def load(self, file: Checkpoint) -> None:
        """Takes the state of a file if there is one; options.RefusedError where it is damaged or of another sweep."""
        keys = ("model", "optimizer", "generators", "random", "rows", "iteration", "seconds", "history")
        saved = file.load(self.settings, keys, self.rows.device, "sweep")
        if saved is None:
            return
        checkpoints.check_progress(file.path, saved["iteration"], self.settings["iterations"])
        self.model.load_state_dict(saved["model"])
        self.optimizer.inner.load_state_dict(saved["optimizer"])
        self.rows = saved["rows"]
        for generator, state in zip(self.generators, saved["generators"], strict=True):
            generator.set_state(state.cpu())
        torch.set_rng_state(saved["random"].cpu())
        self.iteration, self.seconds, self.history = saved["iteration"], saved["seconds"], saved["history"]


def rate_at(recipe: Recipe, iteration: int) -> float:
    """Returns the part of the initial learning rate that holds at an iteration."""
    return recipe.factor ** sum(iteration >= part * recipe.iterations for part in recipe.milestones)


def draw(generator: torch.Generator, recipe: Recipe, n: int) -> Tensor:
    """Returns the rows of the next `every` batches of one run, (every, batch)."""
    if not recipe.epochs:
        return torch.stack([torch.randperm(n, generator=generator)[: recipe.batch] for _ in range(recipe.every)])
    batches = n // recipe.batch  # of an epoch
    turns = [
        torch.randperm(n, generator=generator)[: batches * recipe.batch] for _ in range(-(-recipe.every // batches))
    ]
    return torch.cat(turns).view(-1, recipe.batch)[: recipe.every]


def outputs_of(model: Network, x: Tensor) -> Tensor:
    """Returns the outputs of many rows, some at a time."""
    return torch.cat([model(rows) for rows in x.split(TEST_ROWS, dim=1)], dim=1)


class Optimizer:
    """torch's SGD with momentum or Adam, for a grouped model whose runs have learning rates and decays of their own."""

    def __init__(self, recipe: Recipe, runs: Sequence[Run], parameters: Sequence[Tensor]) -> None:
        if recipe.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be 'sgd' or 'adam', got {recipe.optimizer!r}")
        self.runs: list[slice] = []  # neighbours with the same settings
        groups = []
        for (rate, decay), same in itertools.groupby(runs, key=lambda run: (run.rate, run.decay)):
            first = self.runs[-1].stop if self.runs else 0
            self.runs.append(slice(first, first + len(list(same))))
            own = [p.detach()[self.runs[-1]] for p in parameters]
            groups.append({"params": own, "lr": rate, "initial_lr": rate, "weight_decay": decay})
        self.inner: torch.optim.Optimizer = OPTIMIZERS[recipe.optimizer](groups)

    def step(self, gradients: Sequence[Tensor], part: float) -> None:
        """Takes a step with `part` of the learning rates, by the gradients of the parameters of all runs."""
        for group, own in zip(self.inner.param_groups, self.runs, strict=True):
            group["lr"] = part * group["initial_lr"]
            for p, gradient in zip(group["params"], gradients, strict=True):
                p.grad = gradient[own].contiguous()  # fused steps look at no strides
        self.inner.step()


def train(
    make: Callable[[], Network],
    runs: Sequence[Run],
    data: Data,
    recipe: Recipe,
    score: PerGroup,
    checkpoint: Checkpoint | None = None,
    lower: bool = False,
) -> State:
    """Trains one network for each run, all as one grouped model.

    Args:
        make: makes a network; called after the seed of its run is set.
        runs: the seeds, rates and decays.
        data: of all runs, on the device where the training is to be.
        recipe: how long and how.
        score: kept at every evaluation.
        checkpoint: of a file that is written now and then, and that an interrupted call goes on from.
        lower: whether a lower score is the better one.

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
    if n < recipe.batch:
        raise ValueError(f"a batch of {recipe.batch} rows needs as many to train on, got {n}")
    seeds = list(dict.fromkeys(run.seed for run in runs))
    seed_of_run = torch.tensor([seeds.index(run.seed) for run in runs])
    settings = recipe.settings() | {"runs": [asdict(run) for run in runs], "network": repr(singles[0])}
    settings["data"] = checkpoints.checksum(data.x, data.target, data.test_x, data.test_target)
    state = State(
        settings,
        model,
        Optimizer(recipe, runs, parameters),
        [torch.Generator().manual_seed(seed) for seed in seeds],
        torch.empty(len(runs), recipe.every, recipe.batch, dtype=torch.int64, device=device),
    )
    if checkpoint is not None:
        state.load(checkpoint)
    group = torch.arange(len(runs), device=device).unsqueeze(1)

    @torch.no_grad()
    def evaluate(loss: Tensor) -> None:
        trained = score(outputs_of(model, data.x), data.target)
        tested = score(outputs_of(model, data.test_x), data.test_target)
        entry = {"loss": loss.tolist(), "train": trained.tolist(), "test": tested.tolist()}
        state.history.append({"iteration": state.iteration, **entry})

    started = saved = time.perf_counter()
    before = state.seconds
    with tqdm(total=recipe.iterations, initial=state.iteration, unit="step", mininterval=1.0) as bar:
        while state.iteration < recipe.iterations:
            position = state.iteration % recipe.every
            if position == 0:
                state.rows.copy_(torch.stack([draw(g, recipe, n) for g in state.generators])[seed_of_run])
            rows = state.rows[:, position]
            loss = recipe.losses(model, data.x[group, rows], data.target[group, rows])
            total = loss if recipe.penalty is None else loss + recipe.penalty(model)
            gradients = torch.autograd.grad(total.sum(), parameters)
            state.optimizer.step(gradients, rate_at(recipe, state.iteration))
            state.iteration += 1
            bar.update()
            if state.iteration % recipe.every == 0 or state.iteration == recipe.iterations:
                evaluate(loss.detach())
                scores = state.history[-1]["test"]
                bar.set_postfix(test=f"{(min if lower else max)(scores):.4g}")
                state.seconds = before + time.perf_counter() - started
                if checkpoint is not None and time.perf_counter() - saved > SAVE_SECONDS:
                    state.save(checkpoint.path)
                    saved = time.perf_counter()
    if checkpoint is not None:
        state.save(checkpoint.path)
    return state
