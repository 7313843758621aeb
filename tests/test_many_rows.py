"""Tiles of many rows at the fewest rows that take them: against float64, and against one row less.

The CUDA kernels have a tile of many rows for calls that fill the GPU, and run one row less in tiles of one row.
Triton's tiles are the same for any number of rows: here, on a GPU alone, a call has one row more than the GPU holds at
once. The emulator is a GPU of a few SMs, and takes every second case: each two of width, dtype and alignment meet.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_left
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from hanops.backends.native import native
from hanops.definition import signs

from . import emulation
from .accuracy import Problem, activations, assert_same, check, problem, stack, within_rounding

WIDTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
STORAGES = (torch.float32, torch.bfloat16, torch.float16)
LAYERS = 3
FLOAT32_EPS = torch.finfo(torch.float32).eps

# Triton's interpreter takes minutes.
pytestmark = pytest.mark.only("cuda", "triton", interpreted=False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    every = list(product(WIDTHS, STORAGES, (True, False)))
    if metafunc.config.getoption("--device") == "cpu" or metafunc.config.getoption("--fake"):
        every = [c for c in every if (WIDTHS.index(c[0]) + STORAGES.index(c[1]) + c[2]) % 2]
    ids = [f"{f}-{str(s).removeprefix('torch.')}-{'aligned' if a else 'sliced'}" for f, s, a in every]
    metafunc.parametrize(("features", "storage", "aligned"), every, ids=ids)


@pytest.fixture(autouse=True)
def sms(backend: str, device: torch.device, features: int) -> Iterator[int]:
    """SMs of the GPU or of the emulator, enough that a call of few rows takes tiles of one row."""
    if device.type == "cuda":
        yield torch.cuda.get_device_properties(device).multi_processor_count
        return
    count = 4 if features >= 512 else 1
    if backend == "cuda":
        emulation.load().set_sms(count)
    yield count
    if backend == "cuda":
        emulation.load().set_sms(1)


def plan(kernel: str, storage: torch.dtype, rows: int, features: int, device: torch.device) -> str:
    """Returns how the CUDA kernels would run a call: 'forward', 'forward with bits' or 'backward'."""
    if device.type == "cuda":
        name = str(storage).removeprefix("torch.")
        return str(native.cuda_residence(kernel, name, 1, rows, features, LAYERS)["tile"])
    text = ctypes.create_string_buffer(1000)
    backward = int(kernel == "backward")
    emulation.load().describe_plan(ctypes.c_longlong(rows), features, LAYERS, backward, 0, 0, text, len(text))
    return text.value.decode()


def has_many_rows(*call) -> bool:
    tile = plan(*call)
    assert "row" in tile
    return not tile.startswith(("1 row,", "rows streamed"))


def fewest_rows(kernel: str, backend: str, storage: torch.dtype, features: int, device: torch.device, sms: int) -> int:
    """Returns the fewest rows that take a tile of many, or, of Triton, that do not all fit the GPU at once."""
    if backend == "triton":
        from hanops.backends.triton import tiles

        tile = (tiles.backward_tile if kernel == "backward" else tiles.forward_tile)(features, False)
        return tile.rows * tile.programs_per_sm * sms + 1
    rows = 1 + bisect_left(
        range(1, 1 << 20), True, key=lambda rows: has_many_rows(kernel, storage, rows, features, device)
    )
    assert has_many_rows(kernel, storage, rows, features, device)
    assert not has_many_rows(kernel, storage, rows - 1, features, device)
    return rows


def assert_rows_same(value: Tensor, other: Tensor, bound: float) -> None:
    """Asserts that each row is that of `other` but for `bound` of its norm; in a norm of all, one bad row is lost."""
    error, norm = (t.double().norm(dim=-1) for t in (value.double() - other.double(), other))
    worst = int((error - bound * norm).argmax())
    assert (error <= bound * norm).all(), f"row {worst}: {error[worst]:.2e} of {norm[worst]:.2e}"


def rounding(storage: torch.dtype) -> float:
    """What one rounding to `storage`, and float32 arithmetic before it, may cost a row."""
    return torch.finfo(storage).eps / 2 + 64 * FLOAT32_EPS


def test_forward(backend, device, features, storage, aligned, sms):
    rows = fewest_rows("forward", backend, storage, features, device, sms)
    assert backend == "triton" or has_many_rows("forward with bits", storage, rows, features, device)
    p = problem(rows, features, LAYERS, storage, aligned=aligned, device=device)
    check(stack, p)
    forward = torch.ops.hanops.han_stack_forward
    y, bits = forward(p.x, p.u, p.b, True, True)
    zs = activations(p)
    kinks = torch.stack([within_rounding(z, layer, storage) for layer, z in enumerate(zs[1:], start=1)], dim=-2)
    assert_rows_same(y, zs[-1].abs(), rounding(storage))
    negative = signs.unpack(bits, features, chunked=signs.is_chunked(device))
    truth = torch.stack([z.signbit() for z in zs[1:]], dim=-2)
    assert not ((negative != truth) & ~kinks).any()
    assert_rows_same(forward(p.x, p.u, p.b, True, False)[0], y, rounding(storage) * 2)

    fewer, fewer_bits = forward(p.x[1:], p.u, p.b, True, True)
    assert_rows_same(fewer, y[1:], rounding(storage) * 2)
    fewer_negative = signs.unpack(fewer_bits, features, chunked=signs.is_chunked(device))
    assert not ((fewer_negative != negative[1:]) & ~kinks[1:]).any()


def test_backward(backend, device, features, storage, aligned, sms):
    rows = fewest_rows("backward", backend, storage, features, device, sms)
    p = problem(rows, features, LAYERS, storage, parameters=torch.float32, aligned=aligned, device=device)
    p.dy[0] = 0  # the row that is left out below adds nothing to du and db
    check(stack, p)
    zs = activations(p)
    y, bits = torch.ops.hanops.han_stack_forward(p.x, p.u, p.b, True, True)
    backward = torch.ops.hanops.han_stack_backward
    needs = [True, True, True]
    dx, du, db = backward(p.dy, y, bits, p.u, p.b, True, needs)
    assert_rows_same(dx, input_gradient(p, zs), rounding(storage))
    assert_rows_same(backward(p.dy, None, bits, p.u, p.b, True, [True, False, False])[0], dx, rounding(storage) * 2)

    fewer = backward(p.dy[1:], y[1:], bits[1:], p.u, p.b, True, needs)
    assert_rows_same(fewer[0], dx[1:], rounding(storage) * 2)
    assert_same(fewer[1], du, exactly=False)
    assert_same(fewer[2], db, exactly=False)


def input_gradient(p: Problem, zs: list[Tensor]) -> Tensor:
    """Returns dx in float64, by the formula: signs, and reflections in reverse."""
    g = p.dy.double()
    for z, u in zip(reversed(zs[1:]), reversed(p.u.double()), strict=True):
        w = u / u.norm()
        g = torch.where(z.signbit(), -g, g)
        g = g - 2 * (g @ w).unsqueeze(-1) * w
    return g
