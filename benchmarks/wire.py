"""Counts the bytes that devices exchange for a row: HanStack with sharded features, and other ways to split layers.

    torchrun --nproc-per-node 4 -m benchmarks.wire --doc docs/scaling.md

Two counts are independent: what each process hands to collectives, and what it writes to its sockets, by Linux's count.
Each runs with N and with 2 N rows: the difference is what a row costs, the rest is paid once a step.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, log2
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hanops
from hanops.distributed import shard_features
from hanops.profiling.files import write_text

NUMBER = 4  # bytes of a float32
SILENT = ("wait_tensor", "_wrap_tensor_autograd")  # of the ops of collectives, those that send nothing


@dataclass
class Sent:
    """What one process sent in a step: the whole tensor of each collective, and what its sockets took, in bytes."""

    forward: list[int]
    backward: list[int]
    sockets: int


class Collectives(TorchDispatchMode):
    """Notes the bytes of the collectives that are called inside of it, on this thread: `sizes`."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes back as ops on this process's tensors
        result = op(*args, **(kwargs or {}))
        if op.namespace in ("c10d", "_c10d_functional") and op._opname not in SILENT:
            tensors = [*args, result]
            sizes = (sum(t.nbytes for t in tree_leaves(each) if isinstance(t, Tensor)) for each in tensors)
            self.sizes.append(max(sizes))
        return result


def written() -> int:
    """Returns the bytes that this process has written so far: to sockets, where it writes no files."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


# ---- models: each is made on every process, and gives the input, a shard or a whole tensor, and the output

Model = Callable[[Tensor], Tensor]


def sharded(features: int, layers: int, mesh: DeviceMesh) -> tuple[nn.Module, Model]:
    stack = shard_features(hanops.HanStack(features, layers), mesh)
    return stack, lambda x: stack(x.chunk(mesh.size(), -1)[mesh.get_local_rank()])


def gathered(features: int, layers: int, mesh: DeviceMesh) -> tuple[nn.Module, Model]:
    stack = distribute_module(hanops.HanStack(features, layers), mesh)

    def call(x: Tensor) -> Tensor:
        shard = x.chunk(mesh.size(), -1)[mesh.get_local_rank()]
        return stack(DTensor.from_local(shard, mesh, [Shard(1)])).redistribute(placements=[Shard(1)]).to_local()

    return stack, call


def by_rows(features: int, layers: int, mesh: DeviceMesh) -> tuple[nn.Module, Model]:
    stack = distribute_module(hanops.HanStack(features, layers), mesh)

    def reduce(p: Any) -> None:
        p.grad = p.grad.redistribute(placements=[Replicate()])  # as an optimizer takes it

    for p in stack.parameters():
        p.register_post_accumulate_grad_hook(reduce)
    return stack, lambda x: stack(distribute_tensor(x, mesh, [Shard(0)], src_data_rank=None)).to_local()


def linear_pair(features: int, layers: int, mesh: DeviceMesh) -> tuple[nn.Module, Model]:
    pair = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, features))
    return pair, parallelize_module(pair, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


WAYS = {
    "HanStack, features sharded": sharded,
    "HanStack, features redistributed for the plain op": gathered,
    "HanStack, rows sharded": by_rows,
    "two Linear layers, column- and row-parallel": linear_pair,
}


def step(model: Model, x: Tensor) -> Sent:
    """Returns what one process sends forward and backward for an input x, which requires a gradient.

    The last barrier counts too, the same for any x: only after it have the other processes all that this one sent,
    which gloo writes behind the back of its collectives.
    """
    dist.barrier()
    before = written()
    with Collectives() as forward:
        y = model(x)
    with Collectives() as backward:
        y.backward(torch.ones_like(y))
    dist.barrier()
    return Sent(forward.sizes, backward.sizes, written() - before)


# ---- the table


def cell(one: int, two: int, rows: int) -> tuple[float, float]:
    """Returns the bytes for each row, and once, from those of steps with `rows` and twice the rows."""
    return (two - one) / rows, 2 * one - two


def table(rows: int, features: int, layers: int, mesh: DeviceMesh) -> str:
    """Measures every way and returns the table."""
    lines = [
        "| | forward, bytes a row | backward, bytes a row | once a step, bytes | written to sockets, bytes a row |"
        " collectives |",
        "|---|---|---|---|---|---|",
    ]
    for name, make in WAYS.items():
        _, model = make(features, layers, mesh)
        _, few, many = (step(model, torch.randn(n, features, requires_grad=True)) for n in (1, rows, 2 * rows))
        forward, once = cell(sum(few.forward), sum(many.forward), rows)
        backward, once_too = cell(sum(few.backward), sum(many.backward), rows)
        sockets, _ = cell(few.sockets, many.sockets, rows)
        calls = f"{len(few.forward)} + {len(few.backward)}"
        figures = f"{forward:,.0f} | {backward:,.0f} | {once + once_too:,.0f} | {sockets:,.0f} | {calls}"
        lines.append(f"| {name} | {figures} |")
    return "\n".join(lines)


# ---- the time of the messages alone, by the usual model of an all-reduce


def seconds(calls: int, size: float, devices: int, hop: float, bandwidth: float) -> float:
    """Returns the time of `calls` all-reduces of `size` bytes in all: a tree's latency, and a ring's transfer."""
    return calls * 2 * hop * log2(devices) + 2 * (devices - 1) / devices * size / bandwidth


def model(features: int, layers: int, rows: int, hop: float, bandwidth: float) -> str:
    """Returns the time of a stack's messages and of a pair of Linear layers', forward and backward, on P devices."""
    lines = [
        f"| devices | HanStack, {rows:,} rows | pair of Linear layers, {rows:,} rows | the stack's take less from |",
        "|---|---|---|---|",
    ]
    for devices in (2, 8, 64, 512, 4096):

        def both(n: float, devices: int = devices) -> tuple[float, float]:
            stack = seconds(2 * layers + 3, 3 * NUMBER * layers * (n + 1), devices, hop, bandwidth)
            return stack, seconds(2, 2 * NUMBER * features * n, devices, hop, bandwidth)

        (stack, pair), (stack_0, pair_0) = both(rows), both(0)
        slower = (stack_0 - pair_0) / ((pair - pair_0) - (stack - stack_0)) * rows
        lines.append(f"| {devices:,} | {1e3 * stack:.2f} ms | {1e3 * pair:.2f} ms | {ceil(slower):,} rows |")
    return "\n".join(lines)


def write(doc: Path, name: str, text: str) -> None:
    """Writes text between the markers of a name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, after = re.split(f"{begin}.*{end}", doc.read_text(), flags=re.DOTALL)
    write_text(doc, f"{before}{begin}\n{text}\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hop", type=float, default=5.0, help="microseconds, assumed for the model")
    parser.add_argument("--bandwidth", type=float, default=100.0, help="GB/s of each device, assumed for the model")
    parser.add_argument("--doc", type=Path, help="write both tables between the markers of this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rows, features, layers = given.rows, given.features, given.layers
    measured = (
        f"{mesh.size()} processes (gloo, one machine), N = {rows:,} and {2 * rows:,} rows, d = {features:,},"
        f" L = {layers} Han layers, float32; torch {torch.__version__}.\n\n{table(rows, features, layers, mesh)}"
    )
    wide, many = 4 * features, 8 * rows
    modelled = (
        f"Assumed, not measured: {given.hop:g} us a hop, {given.bandwidth:g} GB/s; d = {wide:,}, L = {layers}."
        f"\n\n{model(wide, layers, many, given.hop * 1e-6, given.bandwidth * 1e9)}"
    )
    if dist.get_rank() == 0:
        print(measured, modelled, sep="\n\n")
        if given.doc:
            write(given.doc, "wire", measured)
            write(given.doc, "model", modelled)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
