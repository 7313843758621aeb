"""The rest of y in the Triton kernels, for every kind of tile: its bytes, and du from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from hanops.backends.triton.tiles import Tile
from hanops.definition import reference
from hanops.definition.rest import bytes_of, rest_of, restored
from hanops.definition.signs import layers_with_abs

from .accuracy import leave_kinks, problem, relative

pytestmark = pytest.mark.only("triton")

STEP = {torch.bfloat16: 2.0**-16, torch.float16: 2.0**-19}  # half of a byte's last bit, beside the value
CASES = {
    "columns to spare": {"features": 30, "dtype": torch.float16},
    "7 of 8 chunks": {"features": 784, "dtype": torch.bfloat16},
    "groups": {"features": 64, "dtype": torch.bfloat16, "groups": 2},
    "a chain": {"features": 36, "dtype": torch.bfloat16, "abs": False},
    "du apart": {"features": 201, "dtype": torch.float16, "final_abs": False},
    "streamed": {"features": 204, "dtype": torch.bfloat16},
}


@pytest.fixture
def tiles(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has few columns take the kernels of wide rows, which are slow in the interpreter."""
    from hanops.backends.triton import han_stack

    if case in ("du apart", "streamed"):
        monkeypatch.setattr(han_stack, "FUSED_LIMIT", 0)
    if case == "streamed":
        for name in ("forward_tile", "backward_tile"):
            monkeypatch.setattr(han_stack, name, lambda features, wide: None)
        monkeypatch.setattr(han_stack, "streaming_tile", lambda: Tile(R=1, Q=1, C=32, K=8, warps=1))


def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    return torch.ops.hanops.han_stack_forward_triton(*arguments)


def backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.hanops.han_stack_backward_triton(*arguments)


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    assert torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))  # NaN like any other


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the forward kernels wrote, as they did. Backward kernels read the columns beyond the last as 255."""
    from hanops.backends.triton import han_stack

    found: list[Tensor] = []
    written, read = han_stack._to_device_layout, han_stack._from_device_layout

    def listen(signs: Tensor, *rest: Any) -> Tensor:
        found.append(signs)
        return written(signs, *rest)

    def spoil(signs: Tensor, stack: Any) -> Tensor:
        signs = read(signs, stack).clone()
        signs[..., stack.abs_layers :, :].flatten(-2)[..., stack.features :] = 255
        return signs

    monkeypatch.setattr(han_stack, "_to_device_layout", listen)
    monkeypatch.setattr(han_stack, "_from_device_layout", spoil)
    return found


@pytest.mark.parametrize("case", CASES)
def test_bytes_and_du(case, backend, device, interpreted, tiles, written):
    """Against the same stack in float32, which rounds nothing, on the same inputs."""
    options: dict[str, Any] = dict(CASES[case])
    dtype, features = options["dtype"], options["features"]
    p = problem(3, layers=2, parameters=torch.float32, device=device, **options)
    p.x[..., 0, 0], p.dy[..., 0, :] = torch.inf, 0
    flags, abs_layers = (p.abs,), layers_with_abs(p.u, p.final_abs, p.abs)
    exact, bits = forward(p.x.float(), p.u, p.b, p.final_abs, 1, *flags)
    written.clear()
    y, kept = forward(p.x, p.u, p.b, p.final_abs, 2, *flags)
    assert_same_bits(y, forward(p.x, p.u, p.b, p.final_abs, 0, *flags)[0])
    assert torch.equal(kept[..., :abs_layers, :], bits)

    rows, spoilt = written[0][..., abs_layers:, :].flatten(-2), ~y.isfinite()
    rest = rows[..., :features].view(torch.int8)
    assert not rows[..., features:].any()
    assert spoilt.any()
    assert not rest[spoilt].any()
    assert torch.equal(rest, bytes_of(kept[..., abs_layers:, :], features))
    if interpreted:  # a GPU's float32 kernels may order sums otherwise
        assert torch.equal(rest, rest_of(exact, y))
    off = (restored(y, rest) - exact).abs()[~spoilt]
    assert (off <= (1.1 + (rest == 127)[~spoilt]) * STEP[dtype] * exact.abs()[~spoilt]).all()

    wide = torch.empty(*y.shape[:-1], features + 3, dtype=dtype, device=device)
    y = wide.narrow(-1, 1, features).copy_(y)

    def run(y: Tensor, signs: Tensor, dy: Tensor = p.dy) -> tuple[Tensor, Tensor, Tensor]:
        return backward(dy, y, signs, p.u, p.b, p.final_abs, [True, True, p.b is not None], *flags)

    (dx, du, db), (dx_bits, du_bits, db_bits) = run(y, kept), run(y, kept[..., :abs_layers, :])
    truth = run(exact, bits, p.dy.float())[1]
    assert_same_bits(dx, dx_bits)
    assert_same_bits(db, db_bits)
    assert relative(du, truth.double()) < 4 * STEP[dtype]
    assert relative(du_bits, truth.double()) > 20 * relative(du, truth.double())


@pytest.mark.parametrize("dtype", STEP)
def test_du_where_rows_grow(dtype, backend, device):
    """20 biases of 1 make rows grow a hundredfold, and with them the rounding of y that rebuilding goes back from."""
    p = problem(4, 32, 20, dtype, parameters=torch.float32, scale=0.1, device=device)
    p.b = torch.ones_like(p.u)
    leave_kinks(p)
    u = p.u.double().requires_grad_()
    (truth,) = torch.autograd.grad(reference.han_stack(p.x.double(), u, p.b.double()), u, p.dy.double())

    y, kept = forward(p.x, p.u, p.b, True, 2)
    error, error_of_bits = (
        relative(backward(p.dy, y, signs, p.u, p.b, True, [False, True, False])[1], truth)
        for signs in (kept, kept[..., :20, :])
    )
    assert 20 * error < error_of_bits


@pytest.mark.parametrize("dtype", STEP)
def test_any_float32(dtype, backend, device):
    """A layer that reflects nothing gives its bias, here of random bits: subnormal, not finite, so once rounded."""
    bits = torch.randint(-(2**31), 2**31, (1, 4096), dtype=torch.int32)
    exact = torch.cat([bits[:, :3000].view(torch.float32), bits[:, 3000:] / 2.0**40], -1).to(device)
    exact[0, :4] = torch.tensor([torch.inf, torch.nan, -65520.0, -3.4e38])
    y, kept = forward(torch.zeros_like(exact, dtype=dtype), torch.zeros_like(exact), exact, True, 2, False)
    rounded = exact.to(dtype)
    torch.testing.assert_close(y, rounded, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(bytes_of(kept, 4096), rest_of(exact, rounded))


def test_no_layers(backend, device):
    x, u = torch.randn(2, 30, device=device).half(), torch.empty(0, 30, device=device)
    y, kept = forward(x, u, None, True, 2)
    assert torch.equal(y, x)
    assert kept.shape[:2] == (2, 8)
    assert not kept.any()
