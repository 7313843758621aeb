"""HanStack with its features sharded over processes: as exact as on one device, and a few bytes for each row."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.func import functional_call

import hanops
from benchmarks import wire
from hanops.distributed import ShardFeatures, shard_features

from .accuracy import check, problem

SETTINGS: list[dict[str, Any]] = [
    {"features": 64},
    {"features": 10, "groups": 3},  # uneven parts
    {"features": 5, "bias": None},  # of 4 processes one has none
    {"features": 1, "final_abs": False},
    {"features": 33, "layers": 1, "rows": 1},
    {"features": 33, "layers": 30, "parameters": torch.float32},
]


def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def part(t: Tensor, dim: int = -1) -> Tensor:
    """Returns this process's part of t."""
    parts = t.chunk(dist.get_world_size(), dim)
    return parts[dist.get_rank()] if dist.get_rank() < len(parts) else t.narrow(dim, 0, 0)


def equal_everywhere(t: Tensor) -> None:
    """Asserts that all processes have the same bits."""
    copies = [torch.empty_like(t) for _ in range(dist.get_world_size())]
    dist.all_gather(copies, t.contiguous())
    assert all(torch.equal(t, other) for other in copies)


# ---- accuracy


def sharded_stack(x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool) -> Tensor:
    """Is a stack of whole tensors, and runs with all of them sharded."""
    groups = u.shape[0] if u.dim() == 3 else None
    bias = b is not None
    module = hanops.HanStack(u.shape[-1], u.shape[-2], groups=groups, bias=bias, final_abs=final_abs, dtype=u.dtype)
    devices = shard_features(module, mesh()).u.device_mesh

    def whole(t: Tensor) -> DTensor:
        return DTensor.from_local(t.contiguous(), devices, [Replicate()], run_check=False)

    given = {"u": u} if b is None else {"u": u, "b": b}
    parameters = {name: whole(t).redistribute(placements=[Shard(t.dim() - 1)]) for name, t in given.items()}
    y = functional_call(module, parameters, (whole(x),))
    assert y.placements == (Shard(x.dim() - 1),)
    return y.full_tensor()


def accurate(dtype: torch.dtype, settings: list[dict[str, Any]]) -> None:
    for options in settings:
        options = {"rows": 17, "layers": 6, **options}
        if dtype == torch.float64:
            options.pop("parameters", None)
        check(sharded_stack, problem(dtype=dtype, **options))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_accuracy(run, dtype, settings):
    run(accurate, dtype, [settings])


def scales(dtype: torch.dtype) -> None:
    for scale in (1e-30, 1e30):
        p = problem(5, 9, 3, dtype)
        p.u *= scale
        p.u[1, :4] *= 1e-6  # one process has small elements
        p.u[2] = 0
        check(sharded_stack, p)
        assert p.run(sharded_stack)["du"][2].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tiny_huge_and_zero_reflectors(run, dtype):
    run(scales, dtype)


def chunked() -> None:
    with ExitStack() as stack:
        for module in ("backends.plain_torch", "definition.signs", "distributed"):
            stack.enter_context(patch(f"hanops.{module}.is_chunked", return_value=True))
        accurate(torch.float32, SETTINGS[:3])


def test_signs_laid_out_as_on_a_gpu(run):
    run(chunked)


# ---- as a module


def local_shards() -> None:
    whole = hanops.HanStack(11, 4)
    sharded = shard_features(copy.deepcopy(whole), mesh())
    x = torch.randn(2, 3, 11, requires_grad=True)
    shard = part(x).detach().requires_grad_()
    y = sharded(shard)
    assert type(y) is Tensor
    wanted = whole(x)
    torch.testing.assert_close(y, part(wanted))
    dy = torch.randn_like(wanted)
    y.backward(part(dy).contiguous())
    wanted.backward(dy)
    torch.testing.assert_close(shard.grad, part(x.grad))
    for p, q in zip(sharded.parameters(), whole.parameters(), strict=True):
        assert p.grad.placements == (Shard(1),)
        torch.testing.assert_close(p.grad.full_tensor(), q.grad)
        equal_everywhere(p.grad.full_tensor())
    replicated = DTensor.from_local(x.detach(), sharded.u.device_mesh, [Replicate()])
    torch.testing.assert_close(sharded(replicated).full_tensor(), wanted)
    again = sharded(shard)
    assert torch.equal(y, again)
    with torch.no_grad():
        assert torch.equal(y, sharded(shard))
    with torch.autocast("cpu", torch.bfloat16):
        cast = sharded(shard)
    assert cast.dtype == torch.bfloat16
    torch.testing.assert_close(cast, sharded(shard.bfloat16()))


def test_local_shards(run):
    run(local_shards)


def compiled(features: int) -> None:
    stack = shard_features(hanops.HanStack(features, 3), mesh())
    x = part(torch.randn(5, features)).clone().requires_grad_()
    results = []
    for call in (stack, torch.compile(stack, backend="aot_eager", fullgraph=True)):
        stack.zero_grad()
        x.grad = None
        y = call(x)
        y.square().sum().backward()
        assert all(p.grad.placements == p.placements for p in stack.parameters())
        results.append((y, x.grad, *(p.grad.full_tensor() for p in stack.parameters())))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
        assert b.count_nonzero()


@pytest.mark.parametrize("features", [8, 11])
def test_compile(pools, features):
    pools[2](compiled, features)


def uneven() -> None:
    """Each way in: the gradient of a leaf is sharded as the leaf is, whatever its part here is."""
    devices = mesh()
    stack = shard_features(hanops.HanStack(11, 2), devices)
    x = distribute_tensor(torch.randn(3, 11), devices, [Shard(1)]).requires_grad_()
    stack(x).square().sum().backward()
    for t in (x, *stack.parameters()):
        assert (t.grad.placements, t.grad.shape, t.grad.stride()) == ((Shard(1),), t.shape, t.stride())
        assert t.grad.to_local().shape == t.to_local().shape
    whole = distribute_tensor(torch.randn(3, 11), devices, [Replicate()]).requires_grad_()
    stack(whole).square().sum().backward()
    assert whole.grad.placements == (Replicate(),)


def test_gradients_are_placed_as_what_they_are_of(run):
    run(uneven)


class Doubled(hanops.HanStack):
    """A HanStack of a user's own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def variants() -> None:
    devices = mesh()
    makers: list[tuple[Callable[[], hanops.HanStack], tuple[int, ...]]] = [
        (lambda: hanops.HanStack(6, 3, dim=1), (2, 6, 5)),
        (lambda: hanops.HanStack(6, 3, dim=-2, groups=2), (2, 6, 5)),
        (lambda: hanops.HanStack(6, 0), (2, 6)),
        (lambda: hanops.HanStack(6, 3), (0, 6)),
        (lambda: hanops.HanStack(6, 3), (6,)),
        (lambda: hanops.HanLayer(6), (2, 6)),
        (lambda: Doubled(6, 2), (2, 6)),
    ]
    for make, shape in makers:
        whole = make()
        sharded = copy.deepcopy(shard_features(copy.deepcopy(whole), devices))
        assert isinstance(sharded, type(whole))
        x = torch.randn(shape, requires_grad=True)
        wanted = whole(x)
        given = DTensor.from_local(x.detach(), devices, [Replicate()]).requires_grad_()
        y = sharded(given)
        assert y.shape == wanted.shape
        assert y.stride() == wanted.stride()
        torch.testing.assert_close(y.full_tensor(), wanted)
        y.sum().backward()
        wanted.sum().backward()
        torch.testing.assert_close(given.grad.full_tensor(), x.grad)
        for p, q in zip(sharded.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(p.grad.full_tensor(), q.grad)
        torch.testing.assert_close(sharded(part(x, whole.dim)), part(wanted, whole.dim))


def test_variants(run):
    run(variants)


def between_linear_layers(features: int, local: bool) -> None:
    whole = nn.Sequential(nn.Linear(4, features), nn.Tanh(), hanops.HanStack(features, 5), nn.Linear(features, 2))
    whole.double()
    model = copy.deepcopy(whole)
    plan = {"0": ColwiseParallel(use_local_output=local), "2": ShardFeatures(), "3": RowwiseParallel()}
    parallelize_module(model, mesh(), plan)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.02, momentum=0.9) for m in (model, whole)]
    for _ in range(10):
        x = torch.randn(7, 4, dtype=torch.float64)
        losses = []
        for m, optimizer in zip((model, whole), optimizers, strict=True):
            loss = (m(x) - x.prod(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.parametrize(("features", "local"), [(12, True), (10, False)])  # local parts have to be even
def test_between_linear_layers(run, features, local):
    """The stack trains between a column- and a row-parallel layer as on one device, without a gather."""
    run(between_linear_layers, features, local)


def drawn() -> None:
    stack = shard_features(hanops.HanStack(12, 3), mesh())
    before = stack.u.full_tensor()
    torch.manual_seed(dist.get_rank())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of random numbers on a mesh of CPUs
        stack.reset_parameters()
    assert not torch.equal(before, stack.u.full_tensor())
    torch.testing.assert_close(stack.u.full_tensor().norm(dim=-1), torch.ones(3))
    assert stack.b.full_tensor().abs().max() <= 12**-0.5


def test_reset_parameters(run):
    run(drawn)


# ---- what is kept, and what is sent


def kept() -> None:
    n, features, layers = 32, 64, 5
    stack = shard_features(hanops.HanStack(features, layers), mesh())
    x = part(torch.randn(n, features)).requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = stack(x)
    mine = x.shape[1]
    sizes = sorted(t.nbytes for t in saved)
    parameters = 2 * [4 * layers * mine]
    assert sizes == sorted([4 * n * mine, n * layers * mine // 8, *parameters, *2 * [4 * layers]])
    y.sum().backward()
    saved.clear()
    stack.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        stack(x)
    assert sorted(t.nbytes for t in saved) == sorted([n * layers * mine // 8, parameters[0], *2 * [4 * layers]])


def test_one_bit_for_each_element_is_kept(run):
    run(kept)


def sent(dtype: torch.dtype, groups: int | None, frozen: bool) -> wire.Sent:
    stack = shard_features(hanops.HanStack(16, 6, groups=groups, dtype=dtype), mesh())
    stack.u.requires_grad_(not frozen)
    x = part(torch.randn(groups or 1, 8000 // (groups or 1), 16, dtype=dtype)).requires_grad_()
    return wire.step(stack, x)


@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 4), (torch.float64, 8)])
def test_bytes_on_the_wire(run, dtype, size, groups):
    """One scalar for each row and layer forward and two backward; three for each layer, once."""
    rows, layers, scalars = 8000, 6, 6 * (groups or 1)
    for step in run(sent, dtype, groups, False):
        assert step.forward == [size * scalars] * 2 + [size * rows] * layers
        assert step.backward == [2 * size * rows] * layers + [size * scalars]
        calls = step.forward + step.backward
        ring = 2 * (run.size - 1) / run.size * sum(calls)  # gloo sends each byte so often, and some headers
        assert ring <= step.sockets <= ring + 2000 * len(calls)


def test_bytes_where_u_is_frozen(run):
    for step in run(sent, torch.float32, None, True):
        assert step.backward == [4 * 8000] * 6


def table_of_ways() -> str:
    return wire.table(2000, 8, 3, mesh())


def test_table_of_the_docs(run):
    """The table has the formulas of docs/scaling.md: N = 2,000 rows, d = 8, L = 3."""
    lines = run(table_of_ways)[0].splitlines()[2:]
    cells = {name: rest for _, name, *rest, _ in ([cell.strip() for cell in line.split("|")] for line in lines)}
    stack, *_, pair = cells.values()
    ring = 2 * (run.size - 1) / run.size
    for (forward, backward, once, sockets, calls), wanted in (
        (stack, [4 * 3, 8 * 3, 12 * 3, "5 + 4"]),
        (pair, [4 * 8, 4 * 8, 0, "1 + 1"]),
        (cells["HanStack, rows sharded"], [0, 0, 8 * 3 * 8, "0 + 2"]),
    ):
        assert [int(forward), int(backward), int(once), calls] == wanted
        assert int(sockets) == pytest.approx(ring * sum(wanted[:2]), abs=1)


def test_model_of_the_docs():
    """At the rows that the table names, the stack's messages and the pair's take the same time."""
    *_, line = wire.model(4096, 16, 8192, 5e-6, 1e11).splitlines()
    rows = int(line.split("|")[4].split()[0].replace(",", ""))
    _, _, stack, pair, _, _ = wire.model(4096, 16, rows, 5e-6, 1e11).splitlines()[-1].split("|")
    assert stack == pair


# ---- errors


def refused() -> None:
    devices = mesh()
    size = devices.size()
    stack = shard_features(hanops.HanStack(8, 2), devices)
    with pytest.raises(ValueError, match=rf"this device's {8 // size} of 8 features along axis -1.*got shape \[3, 8\]"):
        stack(torch.randn(3, 8))
    with pytest.raises(ValueError, match=r"must have 8 features along axis -1, got \[3, 9\]"):
        stack(DTensor.from_local(torch.randn(3, 9), devices, [Replicate()]))
    with pytest.raises(ValueError, match="must be on the mesh of the parameters"):
        stack(DTensor.from_local(torch.randn(3, 8), init_device_mesh("cpu", (size, 1)), [Replicate(), Replicate()]))
    with pytest.raises(TypeError, match="u must have the dtype of x"):
        shard_features(hanops.HanStack(8, 2, dtype=torch.float64), devices)(torch.randn(3, 8 // size))
    with pytest.raises(ValueError, match="sharded already"):
        shard_features(stack, devices)
    with pytest.raises(TypeError, match="module must be a HanStack, got Linear"):
        parallelize_module(nn.Linear(2, 2), devices, ShardFeatures())
    with pytest.raises(ValueError, match="must have one dimension"):
        shard_features(hanops.HanStack(8, 2), init_device_mesh("cpu", (size, 1)))
    x = torch.randn(3, 8 // size, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(stack(x).sum(), x, create_graph=True)
    y = stack(x)
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_errors(run):
    run(refused)
