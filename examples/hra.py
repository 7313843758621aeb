"""Trains HRA adapters on a small transformer by PEFT's layers and by fused ones, and compares losses, time and memory.

The weights are random, and nothing is downloaded. Times are medians of calls in turns. The peak of memory is what a
forward and backward allocates beyond what is there before: on a CPU the sum of what torch.profiler notes of torch's
allocator, on a GPU the allocator's own count.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from peft import HRAConfig, get_peft_model
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from hanops.peft import fuse_hra
from hanops.profiling.timing import in_turns, seconds_of, seconds_on_gpu, timer

from .options import amount, device, natural, run_program

WORDS = 1000  # of the made language


def transformer(hidden: int) -> LlamaForCausalLM:
    """Returns a Llama of four layers with random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
        )
    )


def pair(model: nn.Module, targets: list[str], r: int, gram_schmidt: bool) -> dict[str, nn.Module]:
    """Returns a model with HRA adapters on the Linears of these names, as PEFT makes it, and the same fused."""
    config = HRAConfig(r=r, target_modules=targets, apply_GS=gram_schmidt, init_weights=not gram_schmidt)
    theirs = get_peft_model(model, config)
    ours = copy.deepcopy(theirs)
    fuse_hra(ours)
    return {"PEFT": theirs, "fused": ours}


def losses(model: nn.Module, tokens: Tensor, steps: int) -> list[float]:
    """Trains the adapters to know some tokens by heart."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def peak_bytes(call: Callable[[], None], on: str) -> int:
    """Returns what a call allocates at its peak beyond what is there before it."""
    if on != "cpu":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return int(torch.cuda.max_memory_allocated() - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as noted:
        call()
    with TemporaryDirectory() as folder:
        noted.export_chrome_trace(str(file := Path(folder) / "trace.json"))
        events = json.loads(file.read_text())["traceEvents"]
    memory = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: float(event["ts"]))
    return int(max(accumulate((event["args"]["Bytes"] for event in memory), initial=0)))


def compared(name: str, steps: dict[str, Callable[[], None]], seconds: float, on: str) -> str:
    """Returns a row of the table: times and peaks of PEFT's step and of the fused one."""
    measure = seconds_of if on == "cpu" else seconds_on_gpu
    samples = in_turns({key: timer(step, measure, turn=0.0, calls=1) for key, step in steps.items()}, seconds)
    times = [1e3 * median(samples[key]) for key in steps]
    ratio = median(a / b for a, b in zip(*samples.values(), strict=True))
    peaks = [peak_bytes(step, on) / 2**20 for step in steps.values()]
    cells = [f"{times[0]:,.1f} ms", f"{times[1]:,.1f} ms", f"{ratio:.1f}"]
    cells += [f"{peaks[0]:,.1f} MiB", f"{peaks[1]:,.1f} MiB", f"{peaks[0] / peaks[1]:.1f}"]
    return f"| {' | '.join([name, *cells])} |"


def summed(x: Tensor, model: nn.Module) -> Tensor:
    """Returns the sum of a model's output."""
    return model(x).sum()  # type: ignore[no-any-return]


def step_of(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Callable[[], None]:
    """Returns a forward and backward that leaves no gradients."""

    def step() -> None:
        loss(model).backward()
        for parameter in model.parameters():
            parameter.grad = None

    return step


def arguments() -> argparse.Namespace:
    """Returns the options."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--device", type=device, default="cpu")
    given.add_argument("--steps", type=natural, default=10, help="of training")
    given.add_argument("--hidden", type=natural, default=256, help="features of the transformer, a multiple of 8")
    given.add_argument("--features", type=natural, nargs="*", default=[1024, 4096], help="of single Linears")
    given.add_argument("--rows", type=natural, default=2048, help="that go through a single Linear")
    given.add_argument("--r", type=natural, default=8, help="reflectors")
    given.add_argument("--gram-schmidt", action="store_true", help="apply_GS, with a random start")
    given.add_argument("--seconds", type=amount, default=20.0, help="of timing, for each row of the table")
    return given.parse_args()


def main() -> None:
    """Runs the example."""
    given = arguments()
    torch.manual_seed(0)
    tokens = torch.randint(WORDS, (8, 128), device=given.device)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    models = pair(transformer(given.hidden).to(given.device), targets, given.r, given.gram_schmidt)
    steps = {key: step_of(model, lambda m: m(input_ids=tokens, labels=tokens).loss) for key, model in models.items()}
    name = f"transformer, {given.hidden} features, {tokens.numel():,} tokens"
    rows = [compared(name, steps, given.seconds, given.device)]
    found = {key: losses(model, tokens, given.steps) for key, model in models.items()}
    print("| step | loss, PEFT | loss, fused |", "|---|---|---|", sep="\n")
    for step, (theirs, ours) in enumerate(zip(*found.values(), strict=True)):
        print(f"| {step} | {theirs:.6f} | {ours:.6f} |")
    apart = max(abs(a / b - 1) for a, b in zip(*found.values(), strict=True))
    print(f"\nThe losses differ by at most {apart:.1e} of their value.\n")

    for d in given.features:
        layers = pair(nn.Sequential(nn.Linear(d, d)).to(given.device), ["0"], given.r, given.gram_schmidt)
        x = torch.randn(given.rows, d, device=given.device, requires_grad=True)
        steps = {key: step_of(layer, partial(summed, x)) for key, layer in layers.items()}
        rows.append(compared(f"Linear, {d} x {d}", steps, given.seconds, given.device))
    where = f"{given.device}, {torch.get_num_threads()} threads"
    print(f"Forward and backward, r = {given.r}; Linears with {given.rows:,} rows; {where}")
    print()
    print(
        "| model | PEFT | fused | ratio | peak, PEFT | peak, fused | ratio |", "|---|---|---|---|---|---|---|", sep="\n"
    )
    print(*rows, sep="\n")


if __name__ == "__main__":
    run_program(main)
