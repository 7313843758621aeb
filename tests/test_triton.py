"""What only the Triton backend has: wide rows, training like the CPU's kernels, compilation without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accuracy import check, problem

import hanops

pytest.importorskip("triton")


@pytest.fixture
def triton_backend():
    with hanops.use_backend("triton"):
        yield


def stack(x, u, b, final_abs):
    return hanops.han_stack(x, u, b, final_abs=final_abs)


@pytest.mark.parametrize("features", [5000, 16384, 20000])
@pytest.mark.parametrize("final_abs", [True, False])
def test_wide_rows(triton_backend, device, features, final_abs):
    """Above 4096 features du and db have a kernel of their own; above 16384 rows are streamed."""
    check(stack, problem(2, features, 2, torch.float32, final_abs=final_abs, device=device))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_wide_grouped_rows(triton_backend, device, dtype):
    check(stack, problem(1, 17000, 2, dtype, groups=2, device=device))


def test_widest_rows(triton_backend, device):
    p = problem(1, 65536, 2, torch.float32, device=device)
    p.u.requires_grad_(False)
    y = hanops.han_stack(p.x, p.u, p.b)
    torch.testing.assert_close(y, hanops.reference.han_stack(p.x, p.u, p.b))


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
@pytest.mark.parametrize("features", [5000, 17000])
def test_needs_of_wide_rows(triton_backend, device, features, needs):
    p = problem(2, features, 2, torch.float32, device=device)
    y, signs = torch.ops.hanops.han_stack_forward_reference(p.x, p.u, p.b, True, True)
    arguments = (p.dy, y, signs, p.u, p.b, True, list(map(bool, needs)))
    got = torch.ops.hanops.han_stack_backward(*arguments)
    wanted = torch.ops.hanops.han_stack_backward_reference(*arguments)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def losses(backend: str, device: torch.device, steps: int) -> list[float]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 16), hanops.HanStack(16, depth=4), torch.nn.Linear(16, 1))
    x = torch.rand(64, 2) * 2 - 1
    target = torch.sign(x.prod(dim=1, keepdim=True))
    model, x, target = model.to(device), x.to(device), target.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    history = []
    with hanops.use_backend(backend):
        for _ in range(steps):
            loss = (model(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
    return history


def test_training_goes_as_with_the_other_kernels(device):
    """50 steps, and the losses stay together to float32 rounding."""
    other = "cpu" if device.type == "cpu" and hanops.ops.native is not None else "reference"
    got, wanted = losses("triton", device, 50), losses(other, device, 50)
    assert wanted[-1] < wanted[0]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(wanted), rtol=1e-4, atol=1e-5)


def test_batch_size_depth_and_strides_are_run_time_values():
    """None of them is part of what Triton compiles a kernel for."""
    script = (
        "from hanops.triton import han_stack_kernels as k\n"
        "kernels = [k.prepare, k.sum_parts, k.finish, k.forward, k.backward, k.parameter_gradients,"
        " k.forward_streaming, k.backward_streaming]\n"
        "for kernel in kernels:\n"
        "    for p in kernel.params:\n"
        "        assert p.is_constexpr or p.name.startswith('p_') or p.do_not_specialize, (kernel, p.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# float64 beyond sm_90 is left out: its streamed rows spill up to 128 bytes there.
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_every_tile_compiles_without_a_spill(target, tmp_path):
    """Ahead of time, with no GPU; in a process of its own, where Triton compiles and does not interpret."""
    storages = ("float32", "bfloat16", "float16", "float64") if target == "sm_90" else ("float32", "bfloat16")
    script = (
        "import json, sys\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from functools import partial\n"
        "from hanops.triton.compile import resources, table\n"
        f"kernels = list(table({storages!r}))\n"
        "with ProcessPoolExecutor(2) as pool:\n"
        f"    taken = list(pool.map(partial(resources, target={target!r}), kernels))\n"
        "json.dump({str(k): vars(t) for k, t in zip(kernels, taken)}, open(sys.argv[1], 'w'))\n"
    )
    file = tmp_path / "resources.json"
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(file)], env=environment, capture_output=True, text=True, cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert len(found) == len(storages) * 25
    assert all(r["registers"] > 0 for r in found.values())
    assert not {name: r for name, r in found.items() if r["spills"] != 0}


def test_info_lists_the_kernels():
    command = [sys.executable, "-m", "hanops", "info", "--kernels"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    assert len(rows) == 25
    assert all(int(registers) > 0 and int(spills) == 0 for *_, registers, spills in rows)
