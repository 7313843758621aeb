"""Times the training of the checkerboard's HanNet: with eager Han layers, with hanops, and 50 networks as one.

The eager and the fused network start from the same weights and see the same batches, block by block in turns, with
torch.optim.SGD. The 50 networks are the paper's 10 learning rates at 5 seeds, trained by sweep.train.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import hanops

from .checkerboard import MODELS, RATES, accuracy, data
from .experiment import checkpoint, mean_and_spread, parser, settings, summary, write
from .options import run_program
from .sweep import Data, Recipe, Run, draw, mean_squared_error, rate_at, train

RATE = 0.05  # of the networks that train alone


class EagerHanStack(nn.Module):
    """Han layers as one writes them in PyTorch: dot product, rank-1 update, bias, absolute value."""

    def __init__(self, stack: hanops.HanStack) -> None:
        super().__init__()
        assert stack.b is not None
        self.u = nn.ParameterList([nn.Parameter(u.detach().clone().unsqueeze(1)) for u in stack.u])
        self.b = nn.ParameterList([nn.Parameter(b.detach().clone()) for b in stack.b])

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the stack returns."""
        for u, b in zip(self.u, self.b, strict=True):
            w = u / u.norm()
            x = torch.abs(x - 2 * (x @ w) @ w.t() + b)
        return x


def network(seed: int, eager: bool) -> nn.Module:
    """Returns the checkerboard's HanNet of a seed, with hanops' kernels or without."""
    torch.manual_seed(seed)
    model = MODELS["hannet"]()
    if eager:
        for position, module in enumerate(model.hidden):
            if isinstance(module, hanops.HanStack):
                model.hidden[position] = EagerHanStack(module)
    return model


def alone(model: nn.Module, seed: int, points: Data, recipe: Recipe) -> Iterator[float]:
    """Trains one network in plain PyTorch, and yields its test accuracy after each block of `recipe.every` steps."""
    model.to(points.x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    x, target = points.x[0], points.target[0]
    for iteration in range(recipe.iterations):
        position = iteration % recipe.every
        if position == 0:
            rows = draw(generator, recipe, len(x)).to(x.device)
        optimizer.param_groups[0]["lr"] = RATE * rate_at(recipe, iteration)
        optimizer.zero_grad()
        loss = mean_squared_error(model(x[rows[position]]).unsqueeze(0), target[rows[position]].unsqueeze(0))
        loss.sum().backward()
        optimizer.step()
        if position == recipe.every - 1:
            with torch.no_grad():
                score = accuracy(model(points.test_x[0]).unsqueeze(0), points.test_target)
            yield score.item()


def in_turns(seed: int, recipe: Recipe, device: str) -> dict[str, dict[str, Any]]:
    """Trains a seed's network with and without hanops' kernels, in turns, and returns the figures of both."""
    points = data([Run(seed, RATE)], full=False, noise=0.0, device=device)
    blocks = {name: alone(network(seed, name == "eager"), seed, points, recipe) for name in ("eager", "hanops")}
    seconds: dict[str, list[float]] = {name: [] for name in blocks}
    scores: dict[str, list[float]] = {name: [] for name in blocks}
    for _ in tqdm(range(recipe.iterations // recipe.every), unit="block", mininterval=1.0, desc=f"seed {seed}"):
        for name, block in blocks.items():
            started = time.perf_counter()
            scores[name].append(next(block))
            seconds[name].append(time.perf_counter() - started)
    return {
        name: {
            "seconds": sum(seconds[name]),
            "milliseconds a step": 1e3 * statistics.median(seconds[name]) / recipe.every,
            "test, best": max(scores[name]),
            "test, last": scores[name][-1],
        }
        for name in blocks
    }


def processor(device: str) -> str:
    """Returns what a time is of: the GPU's name, or the threads and their vector instructions, as torch names them."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads with {torch.backends.cpu.get_cpu_capability()}"


def main() -> None:
    """Times and trains all three."""
    options = parser(__doc__, 40_000)
    options.set_defaults(seeds=2)
    arguments = options.parse_args()
    if arguments.iterations % 100:
        options.error(f"argument --iterations: must be a multiple of 100, got {arguments.iterations}")
    recipe = Recipe(arguments.iterations)
    turns = [in_turns(seed, recipe, arguments.device) for seed in range(arguments.seeds)]
    runs = [Run(seed, rate) for rate in RATES for seed in range(5)]
    points = data(runs, full=False, noise=0.0, device=arguments.device)
    state = train(MODELS["hannet"], runs, points, recipe, accuracy, checkpoint(arguments, "speed"))
    result: dict[str, Any] = {"settings": settings(arguments), "processor": processor(arguments.device)}
    result["networks"] = len(runs)
    for name in ("eager", "hanops"):
        result[name] = {key: [turn[name][key] for turn in turns] for key in turns[0][name]}
        result[name]["seconds, mean and spread"] = mean_and_spread(result[name]["seconds"])
        result[name]["test, best, mean and spread"] = mean_and_spread(result[name]["test, best"])
    each = summary(runs, state.history)["best setting of each seed"]
    same = [state.history[-1]["test"][runs.index(Run(seed, RATE))] for seed in range(min(5, arguments.seeds))]
    grouped = {"seconds": state.seconds, "test, last": same}
    result["grouped"] = grouped | {key: each[key] for key in ("rate", "test, best", "test, best, mean and spread")}
    eager = result["eager"]["seconds, mean and spread"][0]
    one = result["times faster, one network"] = eager / result["hanops"]["seconds, mean and spread"][0]
    many = result["times faster, all networks"] = len(runs) * eager / state.seconds
    write(arguments.out / "speed.json", result)
    print(f"one network of {arguments.iterations:,} steps: eager {eager:.1f} s, hanops {eager / one:.1f} s, {one:.1f}x")
    print(f"{len(runs)} networks: eager {len(runs)} x {eager:.1f} s, as one model {state.seconds:.1f} s, {many:.1f}x")
    for name in ("eager", "hanops"):
        print(f"{name}: test accuracy at rate {RATE} {', '.join(f'{s:.2f}' for s in result[name]['test, last'])} %")


if __name__ == "__main__":
    run_program(main)
