"""Rules that C++ and Python both have, compared over all that a call can be: checks, layout of signs, choice."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import hanops
from hanops.backends import BACKENDS, Rule, choice
from hanops.backends.native import native
from hanops.definition import checks, signs

from . import emulation

pytestmark = [
    pytest.mark.skipif(native is None, reason="there is no C++ to compare with"),
    pytest.mark.filterwarnings("ignore:Sparse CS. tensor support"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support"),
    pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions"),
]
ops = torch.ops.hanops
# Those of plain torch are checked in C++ on every device; the others by the fakes where a tensor is on 'meta'.
FORWARDS = ops.han_stack_forward.default, ops.han_stack_forward_torch.default
BACKWARDS = ops.han_stack_backward.default, ops.han_stack_backward_torch.default
Calls = Iterable[tuple[Any, ...]]


def outcome(call: Callable[..., object], args: tuple[Any, ...]) -> tuple[type, str] | None:
    """Returns the type and the first line of the error that a call raises, or None."""
    try:
        call(*args)
    except (TypeError, ValueError, RuntimeError) as error:
        return type(error), str(error).splitlines()[0]
    return None


def compare(calls: Calls, check: Callable[..., None], *natives: Callable[..., object]) -> int:
    """Asserts that C++ raises what the check in Python raises, and nothing where that does not.

    Returns the number of different errors, but for the sizes, dtypes and devices that they name.
    """
    seen = set()
    for args in calls:
        wanted = outcome(check, args)
        for native_op in natives:
            assert outcome(native_op, args) == wanted, (native_op, args)
        if wanted:
            seen.add(re.sub(r"[-\d\[\], ]+|torch\.\w+|cpu|meta", " ", wanted[1].partition(", got")[0]))
    return len(seen)


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def shapes(most: int, sizes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for axes in range(most + 1):
        yield from product(sizes, repeat=axes)


def test_shapes():
    """Of x, u and b: every number of axes, axes of 0, and sizes that fit or do not."""
    tensors = [zeros(*shape) for shape in (*shapes(3, (0, 2, 3)), (2, 2, 2, 3), (3, 0, 3, 2))]
    assert compare(((x, u, None, True, 1) for x, u in product(tensors, tensors)), checks.check_forward, *FORWARDS) == 6
    fitting = [zeros(3), zeros(2, 3), zeros(2, 2, 3), zeros(0, 3), zeros(2, 2, 2, 3)]
    calls = ((x, u, b, True, 1) for x, u, b in product(fitting, fitting, tensors))
    assert compare(calls, checks.check_forward, *FORWARDS) == 4


def all_dtypes() -> Iterator[Tensor]:
    """Yields a (2, 3) tensor of every dtype."""
    torch.use_deterministic_algorithms(False)  # which fills new memory, and cannot with every dtype
    for dtype in sorted({t for t in vars(torch).values() if isinstance(t, torch.dtype)}, key=str):
        yield torch.empty(2, 3, dtype=dtype)


def test_dtypes():
    every = list(all_dtypes())
    assert len(every) > 30
    calls = ((x, u, None, True, 0) for x, u in product(every, every))
    assert compare(calls, checks.check_forward, ops.han_stack_forward.default) == 2
    floating = [t.zero_() for t in every if t.dtype in checks.DTYPES]
    calls = ((x, u, b, True, 0) for x, u, b in product(floating, floating, every))
    assert compare(calls, checks.check_forward, ops.han_stack_forward.default) == 2
    bits = ((x, x, t, x, None, True, [True] * 3) for x, t in product(floating, every))
    assert compare(bits, checks.check_backward, ops.han_stack_backward.default) == 3  # none has a shape of signs
    saved = ((x, y, zeros(2, 2, 1, dtype=torch.uint8), x, None, True, [False] * 3) for x, y in product(floating, every))
    assert compare(saved, checks.check_backward, ops.han_stack_backward.default) == 1


def test_options():
    xs = [zeros(3), zeros(2, 3), zeros(2, 2, 3), zeros(2, 2, 2, 3)]
    flags, axes = (True, False), range(-6, 6)
    us = [zeros(2, 3), zeros(2, 2, 3)]
    calls = ((x, u, None, *rest) for x, u, *rest in product(xs, us, flags, range(-3, 6), flags, axes))
    assert compare(calls, checks.check_forward, *FORWARDS) == 6
    stacks = ((x, u, None, *rest) for x, u, *rest in product(xs, us, flags, flags, axes))
    assert compare(stacks, lambda *args: checks.check_stack("x", *args), ops.han_stack.default) == 5


def kinds() -> dict[str, Tensor | None]:
    dense = torch.rand(2, 3)
    parts = [torch.rand(1, 3), torch.rand(2, 3)]
    made = {
        "None": None,
        "every other column": torch.rand(2, 6)[:, ::2],
        "transposed": torch.rand(3, 2).t(),
        "one row for all": torch.rand(1, 3).expand(2, 3),
        "coo": dense.to_sparse(),
        "csr": dense.to_sparse_csr(),
        "csc": dense.to_sparse_csc(),
        "bsr": torch.rand(2, 4).to_sparse_bsr((1, 2)),
        "bsc": torch.rand(2, 4).to_sparse_bsc((1, 2)),
        "nested": torch.nested.nested_tensor(parts),
        "jagged": torch.nested.nested_tensor(parts, layout=torch.jagged),
    }
    if torch.backends.mkldnn.is_available():
        made["mkldnn"] = dense.to_mkldnn()
    return made


def test_layouts():
    """Strides and layouts of any kind, in any place."""
    every = kinds().values()
    forwards = ((x, u, b, True, 1) for x, u, b in product(every, every, every))
    assert compare(forwards, checks.check_forward, *FORWARDS) == 3
    y, bits = zeros(2, 3), zeros(2, 2, 1, dtype=torch.uint8)
    few = [t for name, t in kinds().items() if name in ("None", "transposed", "coo", "nested", "jagged")]
    backwards = [[*given, True, [True] * 3] for given in product(few, [*few, y], [*few, bits], few, few)]
    assert compare(map(tuple, backwards), checks.check_backward, *BACKWARDS) == 7


def test_devices():
    """Each tensor on the CPU or on 'meta', which has the other layout of signs."""
    devices, both = ("cpu", "meta"), (True, False)

    def forwards() -> Calls:
        for on_x, on_u, on_b, save in product(devices, devices, (None, *devices), both):
            b = None if on_b is None else zeros(2, 3, device=on_b)
            yield zeros(2, 3, device=on_x), zeros(2, 3, device=on_u), b, True, save

    assert compare(forwards(), checks.check_forward, *FORWARDS) == 2

    def backwards() -> Calls:
        for where, size, needs in product(product(devices, repeat=5), (1, 4), product(both, repeat=3)):
            dy, y, u, b = (zeros(2, 3, device=on) for on in where[:4])
            yield dy, y, zeros(2, 2, size, dtype=torch.uint8, device=where[4]), u, b, True, list(needs)

    assert compare(backwards(), checks.check_backward, *BACKWARDS) == 5


X_FAULTS = [zeros(2, 2, 3), zeros(2, 2, 3, dtype=torch.int64), zeros(), zeros(2, 2, 4), zeros(4, 2, 3)]
U_FAULTS = [
    *(zeros(2, 3), zeros(2, 2, 3), zeros(2, 3, dtype=torch.float64), zeros(3), zeros(1, 1, 2, 3), zeros(2, 0)),
    *(zeros(0, 3), zeros(2, 3, device="meta")),
]
B_FAULTS = [None, zeros(2, 3), zeros(2, 2, 3), zeros(2, 3, dtype=torch.float16), zeros(2, 3, device="meta")]


def test_which_fault_is_told():
    """Of several faults of one call both languages tell the same one."""
    flags = ((True, True, -1), (True, False, -1), (False, False, 0), (False, True, 1), (True, True, 9))
    forwards = (
        (x, u, b, final_abs, save, abs, dim)
        for x, u, b, (final_abs, abs, dim), save in product(X_FAULTS, U_FAULTS, B_FAULTS, flags, (1, 2, 3))
    )
    assert compare(forwards, checks.check_forward, *FORWARDS) == 16
    ys = [None, zeros(2, 2, 3), zeros(2, 3), zeros(2, 2, 3, dtype=torch.float64), zeros(2, 2, 3, device="meta")]
    bits = [
        *(zeros(2, 2, size, 1, dtype=torch.uint8) for size in (2, 1, 0)),
        *(zeros(2, 2, 2, 1), zeros(2, 2, 2, 4, dtype=torch.uint8), zeros(2, 2, 2, 1, dtype=torch.uint8, device="meta")),
    ]
    some = U_FAULTS[0], U_FAULTS[1], U_FAULTS[3], U_FAULTS[6]
    needs = [True, True, True], [True, False, False]
    backwards = (
        (dy, y, signs, u, b, final_abs, need, abs, dim)
        for dy, y, signs, u, b, need, (final_abs, abs, dim) in product(
            X_FAULTS[:3], ys, bits, some, B_FAULTS[:3], needs, flags
        )
    )
    assert compare(backwards, checks.check_backward, *BACKWARDS) == 14


def test_the_fakes_tell_the_same():
    """A compiler meets the fakes: what C++ raises for tensors, they raise for fakes of them."""
    op = ops.han_stack_forward.default
    on_cpu = [t for t in U_FAULTS if t.device.type == "cpu"], [t for t in B_FAULTS if t is None or t.is_cpu]
    for x, u, b, dim in product(X_FAULTS, *on_cpu, (-1, 1, 9)):
        with FakeTensorMode() as mode:
            fakes = [None if t is None else mode.from_tensor(t) for t in (x, u, b)]
            got = outcome(op, (*fakes, True, 1, True, dim))
        assert got == outcome(op, (x, u, b, True, 1, True, dim))


# ---- the layout of signs


@pytest.fixture(scope="module")
def layout() -> ctypes.CDLL:
    if not emulation.available():
        pytest.skip("the native code was not built here")
    library = emulation.load()
    library.sign_bytes_of.restype = ctypes.c_longlong
    return library


@pytest.mark.parametrize("chunked", [False, True])
def test_bytes_of_signs(layout, chunked):
    for features in (*range(1, 5000), 2**15 - 1, 2**15, 2**15 + 1, 2**31 - 1, 2**40):
        assert layout.sign_bytes_of(ctypes.c_longlong(features), chunked) == signs.sign_bytes(features, chunked)


@pytest.mark.parametrize("chunked", [False, True])
def test_places_of_signs(layout, chunked):
    """Every column's byte and bit, from csrc/signs.h, against what hanops/definition/signs.py packs and unpacks."""
    for features in (*range(1, 140), 255, 256, 257, 1000, 1025):
        places = [(ctypes.c_longlong * features)() for _ in range(2)]
        layout.sign_bits_of(ctypes.c_longlong(features), chunked, *places)
        byte, bit = (torch.tensor(list(place)) for place in places)
        packed = signs.pack(torch.eye(features, dtype=torch.bool), chunked)
        assert torch.equal(packed.ne(0).nonzero()[:, 1], byte)
        assert torch.equal(packed.sum(-1, dtype=torch.int64), 2**bit)
        assert torch.equal(signs.unpack(packed, features, chunked), torch.eye(features, dtype=torch.bool))


def test_signs_that_backends_write(backend, device, interpreted):
    """With u = 0 and no bias a layer's z is its x, so that every backend's bits are those of x, at every width."""
    widths = (1, 31, 33, 40, 129) if interpreted else (*range(1, 140), 255, 256, 257, 1000, 1025)
    for features in widths:
        x = torch.randn(3, features, device=device)
        _, bits = ops.han_stack_forward(x, torch.zeros(2, features, device=device), None, True, 1)
        chunked = signs.is_chunked(device)
        assert torch.equal(bits[:, 0], signs.pack(torch.signbit(x), chunked)), features
        assert not bits[:, 1].any()


# ---- the choice

RULES = (
    Rule("triton", "narrow", dtypes=(torch.float32, torch.float64), features=64, rows=10),
    Rule("cuda", "few layers", layers=4),
    Rule("triton", "half types", dtypes=(torch.bfloat16,)),
)


@pytest.mark.parametrize("interpreter", ["0", "1"])
@pytest.mark.parametrize("has_cuda", ["", "cpu", "cuda", "cpu cuda"])
@pytest.mark.parametrize("has_triton", [False, True])
@pytest.mark.parametrize("rules", [choice.RULES, RULES], ids=["shipped", "several"])
def test_choice(monkeypatch, interpreter, has_cuda, has_triton, rules):
    """Every backend that can be asked for, on every kind of device, at and beyond the bounds of every rule."""
    monkeypatch.setenv("TRITON_INTERPRET", interpreter)
    monkeypatch.setattr(choice, "_has_cuda", lambda device_type: device_type in has_cuda.split())
    monkeypatch.setattr(choice, "_has_triton", has_triton)
    monkeypatch.setattr(choice, "RULES", rules)
    devices = [torch.device(name) for name in ("cpu", "cuda:1", "cuda", "meta", "xpu:0", "mps")]
    calls = list(product(devices, checks.DTYPES, (1, 64, 65), (0, 4, 5), (0, 10, 11)))
    chosen = set()
    for name in BACKENDS:
        if choice.missing(name):
            continue
        with hanops.use_backend(name):
            for device, dtype, *sizes in calls:
                wanted = outcome_of(choice.select, device, dtype, *sizes)
                asked = str(device), str(dtype).removeprefix("torch."), *sizes
                assert outcome_of(native.select_backend, *asked) == wanted
                chosen.add(wanted)
    there = {"cpu", "torch"} | ({"triton"} if has_triton else set()) | ({"cuda"} if has_cuda else set())
    assert {name for name in chosen if isinstance(name, str)} == there


def outcome_of(select: Callable[..., str], *args: Any) -> str | tuple[type, str]:
    try:
        return select(*args)
    except RuntimeError as error:
        return type(error), str(error).splitlines()[0]
