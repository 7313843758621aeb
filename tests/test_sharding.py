"""HanStack in torch's own ways over processes: DTensor's batch sharding, DDP, FSDP2, and checkpoints of any number."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import hanops
from benchmarks.wire import Collectives
from hanops.distributed import ShardFeatures, shard_features

# ---- the rules


def gradients(module: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Returns the output and the gradients of a loss in x and the parameters."""
    y = module(x)
    return y, list(torch.autograd.grad(y.square().sum(), [x, *module.parameters()]))


def distributed(module: nn.Module, mesh: Any, placement: Placement) -> nn.Module:
    """Returns a copy of the module whose parameters are DTensors."""

    def shard(_: str, part: nn.Module, __: Any) -> None:
        for name, p in list(part.named_parameters(recurse=False)):
            part.register_parameter(name, nn.Parameter(distribute_tensor(p.detach(), mesh, [placement])))

    return distribute_module(copy.deepcopy(module), mesh, shard)


def rules() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rows, whole, groups = Shard(0), Replicate(), Shard(0)
    cases: list[tuple[dict[str, Any], Placement, Placement, tuple[Placement, Placement], bool]] = [
        # options of the stack, placements of x and of u, those of dx and du, and whether anything is sent
        ({}, rows, whole, (rows, Partial()), False),
        ({}, Shard(1), whole, (Shard(1), Partial()), False),
        ({}, whole, whole, (whole, whole), False),
        ({"bias": False, "final_abs": False}, rows, whole, (rows, Partial()), False),
        ({"groups": 5}, groups, groups, (groups, groups), False),
        ({"groups": 5}, Shard(1), whole, (Shard(1), Partial()), False),
        ({"dim": 1}, rows, whole, (rows, Partial()), False),
        ({"dim": 1}, Shard(2), whole, (Shard(2), Partial()), False),
        ({"dim": -2, "groups": 5}, groups, groups, (groups, groups), False),
        ({}, Shard(2), whole, (whole, whole), True),  # the features are gathered
        ({"dim": 1}, Shard(1), whole, (whole, whole), True),
        ({}, rows, rows, (rows, Partial()), True),  # u and b are gathered
    ]
    for options, x_at, u_at, (dx_at, du_at), sends in cases:
        single = hanops.HanStack(8, 3, dtype=torch.float64, **options)
        shape = (5, 8, 6) if "dim" in options else (5, 6, 8)
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        y, wanted = gradients(single, x)
        module = distributed(single, mesh, u_at)
        shards = distribute_tensor(x.detach(), mesh, [x_at]).requires_grad_()
        with Collectives() as sent:
            got_y, got = gradients(module, shards)
        assert bool(sent.sizes) == sends, (options, x_at, u_at, sent.sizes)
        assert got_y.placements == (dx_at,)
        assert [g.placements for g in got] == [(dx_at,), *[(du_at,)] * (len(got) - 1)]
        torch.testing.assert_close([t.full_tensor() for t in (got_y, *got)], [y, *wanted])
        with torch.no_grad():
            torch.testing.assert_close(module(shards).full_tensor(), y)
        with torch.inference_mode():
            torch.testing.assert_close(module(distribute_tensor(x.detach(), mesh, [x_at])).full_tensor(), y)
        module.requires_grad_(False)
        (dx,) = torch.autograd.grad(module(shards).square().sum(), shards)
        torch.testing.assert_close(dx.full_tensor(), wanted[0])


def test_rules(run):
    """Sharded rows and sharded groups run without a message; what cannot be sharded is gathered."""
    run(rules)


def signs() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    single = hanops.HanStack(8, 3)
    x, u, b = (
        distribute_tensor(t.detach(), mesh, [Shard(0) if i == 0 else Replicate()])
        for i, t in enumerate((torch.randn(6, 8), single.u, single.b))
    )
    forward = torch.ops.hanops.han_stack_forward
    y, bits = forward(x, u, b, True, True)
    assert bits.placements == y.placements == (Shard(0),)
    assert torch.equal(bits.full_tensor(), forward(x.full_tensor(), u.to_local(), b.to_local(), True, True)[1])
    assert forward(x, u, b, True, False)[1].shape == (0,)
    for flags in ((True, -1), (True, 1)):
        assert torch.equal(forward(x, u, b, True, 1, *flags)[1].full_tensor(), bits.full_tensor())
        dx, *_ = torch.ops.hanops.han_stack_backward(y, y, bits, u, b, True, [True] * 3, *flags)
        assert dx.placements == (Shard(0),)
    with pytest.raises(Exception, match="axis 0 of x must have u's 8 features"):
        forward(x, u, b, True, 1, dim=0)
    for axis, of_signs in ((0, 0), (2, 3)):  # words have an axis more than the features
        whole = torch.randn(4, 8, 8)
        along = distribute_tensor(whole, mesh, [Shard(axis)])
        z, words = forward(along, u, b, True, 1, dim=1)
        assert (z.placements, words.placements) == ((Shard(axis),), (Shard(of_signs),))
        wanted = forward(whole, single.u.detach(), single.b.detach(), True, 1, dim=1)
        torch.testing.assert_close((z.full_tensor(), words.full_tensor()), wanted)
    with torch.inference_mode():
        assert torch.equal(torch.ops.hanops.han_stack(x, u, b, True, True, 1).full_tensor(), y.full_tensor())
        chain = torch.ops.hanops.han_stack(x, u, b, abs=False)
        assert torch.equal(chain.full_tensor(), hanops.han_stack(x.full_tensor(), single.u, single.b, activation=None))


def test_signs(run):
    run(signs)


def two_dimensions() -> None:
    mesh = init_device_mesh("cpu", (2, 2))
    single = hanops.HanStack(8, 3)
    x = torch.randn(4, 6, 8, requires_grad=True)
    y, wanted = gradients(single, x)
    module = distribute_module(copy.deepcopy(single), mesh)
    shards = distribute_tensor(x.detach(), mesh, [Shard(1), Shard(0)]).requires_grad_()
    got_y, got = gradients(module, shards)
    assert got_y.placements == (Shard(1), Shard(0))
    assert got[1].placements == (Partial(), Partial())
    torch.testing.assert_close([t.full_tensor() for t in (got_y, *got)], [y, *wanted])


def test_rules_on_a_mesh_of_two_dimensions(pools):
    pools[4](two_dimensions)


def test_rules_come_with_dtensor_alone():
    """`import hanops` leaves DTensor alone, and a program that uses DTensor needs no other import."""
    program = """
import sys, torch, hanops
assert "torch.distributed.tensor" not in sys.modules
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_module, distribute_tensor, init_device_mesh
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
stack = distribute_module(hanops.HanStack(8, 3), mesh)
x = distribute_tensor(torch.randn(4, 8), mesh, [Shard(0)])
with torch.no_grad():
    stack(x)
stack(x).sum().backward()
stack.b.requires_grad_(False)
stack(x).sum().backward()
print(stack.u.grad.shape, hanops.distributed.shard_features.__name__)
dist.destroy_process_group()
"""
    warnings_of = ["-W", "error::UserWarning", "-W", "ignore:hanops was built without native code:UserWarning"]
    done = subprocess.run([sys.executable, *warnings_of, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["torch.Size([3,", "8])", "shard_features"]


# ---- training


def network(depth: int = 5) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 12), hanops.HanStack(12, depth), nn.Linear(12, 2))


def losses(model: nn.Module, call: Callable[[Tensor], Tensor], rows: slice, steps: int = 10) -> list[float]:
    """Trains on some rows of each batch and returns the mean loss over all processes of each step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(2)
    history = []
    for _ in range(steps):
        x = torch.randn(8, 4, generator=generator)[rows]
        loss = (call(x) - x.prod(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


def mine() -> slice:
    """Returns this process's rows of a batch of 8."""
    size = 8 // dist.get_world_size()
    return slice(dist.get_rank() * size, (dist.get_rank() + 1) * size)


def averaged(run: Any, train: Callable[..., list[float]], *arguments: Any) -> list[float]:
    return torch.tensor(run(train, *arguments), dtype=torch.float64).mean(0).tolist()


def alone(depth: int = 5) -> list[float]:
    model = network(depth)
    return losses(model, model, slice(None))


def ddp() -> list[float]:
    model = network()
    return losses(model, nn.parallel.DistributedDataParallel(model), mine())


def test_ddp(run):
    assert averaged(run, ddp) == pytest.approx(alone(), rel=1e-5)


def by_dtensor() -> list[float]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = distribute_module(network(), mesh)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(2)
    history = []
    for _ in range(10):
        x = distribute_tensor(torch.randn(8, 4, generator=generator), mesh, [Shard(0)])
        loss = (model(x) - x.prod(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.full_tensor().item())
    return history


def test_training_on_sharded_rows(run):
    assert averaged(run, by_dtensor) == pytest.approx(alone(), rel=1e-5)


def fsdp(depth: int) -> list[float]:
    model = network(depth)
    fully_shard(model[1])
    fully_shard(model)
    assert model[1].u.placements == (Shard(0),)
    return losses(model, model, mine())


@pytest.mark.parametrize("depth", [1, 5, 8])
def test_fsdp(run, depth):
    """u and b are sharded over the layers, however many there are."""
    assert averaged(run, fsdp, depth) == pytest.approx(alone(depth), rel=1e-5)


def fsdp_bfloat16() -> list[float]:
    model = network()
    seen: list[torch.dtype] = []
    model[1].register_forward_pre_hook(lambda module, inputs: seen.extend([inputs[0].dtype, module.u.dtype]))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)
    fully_shard(model, mp_policy=policy)
    history = losses(model, model, mine())
    assert set(seen) == {torch.bfloat16}
    assert model[1].u.grad.dtype == torch.float32
    return history


def test_fsdp_mixed_precision(run):
    assert averaged(run, fsdp_bfloat16) == pytest.approx(alone(), rel=0.03)


def late() -> None:
    with torch.device("meta"):
        model = network()
    fully_shard(model)
    model.to_empty(device="cpu")
    torch.manual_seed(dist.get_rank())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of random numbers on a mesh of CPUs
        model[1].reset_parameters()
    torch.testing.assert_close(model[1].u.full_tensor().norm(dim=-1), torch.ones(5))
    assert model[1].b.full_tensor().abs().max() <= 12**-0.5


def test_fsdp_from_the_meta_device(run):
    run(late)


def both() -> list[float]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "features"))
    model = network()
    plan = {"0": ColwiseParallel(), "1": ShardFeatures(), "2": RowwiseParallel()}
    parallelize_module(model, mesh["features"], plan)
    fully_shard(model, mesh=mesh["rows"])
    half = mesh["rows"].get_local_rank() * 4
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # RowwiseParallel returns a view
        return losses(model, model, slice(half, half + 4))


def test_rows_and_features_sharded(pools):
    """FSDP2 over one dimension of a mesh, and the features over the other."""
    assert averaged(pools[4], both) == pytest.approx(alone(), rel=1e-5)


# ---- checkpoints


def sharded_by(kind: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network(3)
    if kind == "fsdp":
        fully_shard(model)
    elif kind == "features":
        shard_features(model[1], init_device_mesh("cpu", (dist.get_world_size(),)))
    return model, torch.optim.Adam(model.parameters(), lr=0.1)


def filled(model: nn.Module, optimizer: torch.optim.Optimizer, whole: list[Tensor]) -> None:
    """Takes a step with given gradients, so that parameters and moments have known values."""
    for p, g in zip(model.parameters(), whole, strict=True):
        p.grad = distribute_tensor(g, p.device_mesh, p.placements) if isinstance(p, DTensor) else g.clone()
    optimizer.step()


def noise() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(p.shape, generator=generator) for p in network(3).parameters()]


def save(kind: str, folder: str) -> None:
    model, optimizer = sharded_by(kind)
    filled(model, optimizer, noise())
    states = get_state_dict(model, optimizer)
    dcp.save(dict(zip(("model", "optimizer"), states, strict=True)), checkpoint_id=folder)


def values(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    tensors = [
        t for p in model.parameters() for t in (p, optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"])
    ]
    return [(t.full_tensor() if isinstance(t, DTensor) else t).detach() for t in tensors]


def load(kind: str, folder: str) -> list[Tensor]:
    model, optimizer = sharded_by(kind)
    state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return values(model, optimizer)


@pytest.mark.parametrize("kind", ["fsdp", "features"])
def test_checkpoints_of_another_number_of_processes(pools, tmp_path: Path, kind):
    """What 2 processes wrote, 1 and 4 read; and one that shards nothing."""
    model, optimizer = sharded_by("none")
    filled(model, optimizer, noise())
    wanted = values(model, optimizer)
    pools[2](save, kind, str(tmp_path))
    for size, way in ((1, kind), (4, kind), (1, "none")):
        for got in pools[size](load, way, str(tmp_path)):
            assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
