"""What only the Triton backend has: training like the CPU's kernels, compilation without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import hanops
from hanops.backends.triton.tiles import FUSED_LIMIT
from hanops.profiling.ahead_of_time import WIDTHS


def test_rows_layers_and_strides_are_run_time_values():
    """None of them is part of what Triton compiles a kernel for."""
    script = (
        "from hanops.backends.triton import han_stack_kernels as k, parameter_kernels as p, streaming_kernels as s\n"
        "kernels = [p.prepare, p.sum_parts, p.finish, k.forward, k.backward, k.parameter_gradients,"
        " s.forward_streaming, s.backward_streaming]\n"
        "for kernel in kernels:\n"
        "    for a in kernel.params:\n"
        "        assert a.is_constexpr or a.name.startswith('p_') or a.do_not_specialize, (kernel, a.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def kernels_of_a_storage() -> int:
    """A forward and a backward for each width, and the sums of a gradient's parts where they are in a kernel apart."""
    return 2 * len(WIDTHS) + sum(width > FUSED_LIMIT for width in WIDTHS)


thorough = pytest.mark.thorough("float32 and bfloat16 on sm_90 are compiled")
COMPILED = [
    ("sm_90", ("float32", "bfloat16")),
    pytest.param("sm_90", ("float16", "float64"), marks=thorough),
    # float64 is left out: its streamed rows spill up to 16 bytes there
    *(pytest.param(other, ("float32", "bfloat16"), marks=thorough) for other in ("sm_80", "sm_100", "gfx942")),
]


@pytest.mark.parametrize(("target", "storages"), COMPILED)
def test_every_tile_compiles_without_a_spill(target, storages, tmp_path):
    """Ahead of time, with no GPU; in a process of its own, where Triton compiles and does not interpret."""
    script = (
        "import json, sys\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from functools import partial\n"
        "from hanops.profiling.ahead_of_time import resources, table\n"
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
    assert len(found) == len(storages) * kernels_of_a_storage()
    assert all(r["registers"] > 0 for r in found.values())
    assert not {name: r for name, r in found.items() if r["spills"] != 0}


def test_info_lists_the_kernels():
    command = [sys.executable, "-m", "hanops", "info", "--kernels"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    assert len(rows) == kernels_of_a_storage()
    assert all(int(registers) > 0 and int(spills) == 0 for *_, registers, spills in rows)


@pytest.mark.parametrize("features", [32, 9000])
def test_refuses_more_layers_than_offsets_reach(features):
    """Sums of du lie 2 * layers * columns apart, in 32 bits; wide rows are padded to whole bytes of signs."""
    columns = -(-features // 32) * 32
    u = torch.zeros(1, 1).expand(2**30 // columns + 1, features)
    with (
        hanops.use_backend("triton"),
        pytest.raises(ValueError, match="takes less than 2\\^30 layers x features, these padded, got"),
    ):
        hanops.han_stack(torch.zeros(1, features), u)
