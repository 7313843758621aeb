"""What the fuzzer calls and with what: descriptions of cases that any process makes alike, and how they are drawn."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = ("float32", "float64", "bfloat16", "float16")
OTHER_DTYPES = ("int64", "int8", "uint8", "bool", "complex64", "float8_e4m3fn")
STRIDES = ("contiguous", "permuted", "gaps", "expanded", "overlapping")
LAYOUTS = ("sparse", "csr", "mkldnn", "jagged", "negated", "zero tensor")
VALUES = ("normal", "normal", "normal", "large", "zeros", "not finite")
HUGE = (2**46, 2**60, 2**62)  # elements: more than fit into 47 bits of addresses
SMALL = 1 << 22  # elements that a case may hold


@dataclass(frozen=True)
class Given:
    """A tensor argument: its shape, its place in memory, and the kind of its values."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    device: str = "cpu"
    strides: str = "contiguous"
    offset: int = 0
    layout: str = "strided"
    values: str = "normal"


@dataclass(frozen=True)
class FuzzCase:
    """A call: its arguments, and the seed of their values and strides.

    call: 'function', 'forward', 'backward', 'module' or 'layer'. The ops' x is dy where that is 'backward'.
    suffix: of the op, '' or that of a backend. y, signs: 'saved', as the forward gives them, or something else.
    options: of a module, beside its sizes, which are u's.
    """

    call: str
    x: Given | None
    u: Given | None
    b: Given | None
    final_abs: bool = True
    abs: bool = True
    suffix: str = ""
    save: int = 1
    exact: bool = True
    y: Given | str | None = "saved"
    signs: Given | str | None = "saved"
    needs: tuple[bool, ...] = (True, True, True)
    gradients: tuple[bool, ...] = (True, True, True)
    options: tuple[tuple[str, Any], ...] = ()
    seed: int = 0


def strides_of(given: Given, rng: random.Random) -> list[int]:
    """Returns strides of a kind, in elements. Huge axes and those before them have none of their own."""
    shape, kind = given.shape, given.strides
    order = list(range(len(shape)))
    if kind == "permuted":
        rng.shuffle(order)
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = step
        if kind == "gaps":
            strides[axis] *= rng.choice((1, 1, 2, 3))
        if kind == "expanded" and rng.random() < 0.5:
            strides[axis] = 0
        if kind == "overlapping":
            strides[axis] = rng.randrange(4)
        if shape[axis] > SMALL:
            strides[axis] = 0
        step = max(step, strides[axis] * max(shape[axis], 1)) if shape[axis] <= SMALL else step
    return strides


def make(given: Given | None, seed: int) -> Tensor | None:
    """Returns the tensor that is described, its values drawn with a seed. A layout that it cannot have is left."""
    if given is None:
        return None
    strides = strides_of(given, random.Random(seed))
    dtype = getattr(torch, given.dtype)
    extent = 1 + sum(stride * (size - 1) for stride, size in zip(strides, given.shape, strict=True) if size)
    size = given.offset + max(extent, 1) + 1
    generator = torch.Generator().manual_seed(seed)
    if given.values == "zeros":
        memory = torch.zeros(size)
    else:
        memory = torch.randn(size, generator=generator, dtype=torch.float64)
    if given.values == "large":
        memory *= 30 if given.dtype == "float16" else 1e3
    if given.values == "not finite":
        spoiled = torch.rand(size, generator=generator) < 0.02
        memory[spoiled] = torch.tensor([math.nan, math.inf, -math.inf])[torch.arange(int(spoiled.sum())) % 3].double()
    t = memory.to(dtype).to(given.device).as_strided(given.shape, strides, given.offset)
    return _laid_out(t, given.layout)


def _laid_out(t: Tensor, layout: str) -> Tensor:
    try:
        if layout == "sparse":
            return t.to_sparse()
        if layout == "csr":
            return t.to_sparse_csr()
        if layout == "mkldnn":
            return t.to_mkldnn()
        if layout == "jagged":
            return torch.nested.nested_tensor(list(t.unbind(0)), layout=torch.jagged)
        if layout == "negated":
            return torch._neg_view(-t)
        if layout == "zero tensor":
            return torch._efficientzerotensor(t.shape, dtype=t.dtype, device=t.device)
    except (RuntimeError, NotImplementedError, IndexError, ValueError):
        pass  # torch has no such tensor
    return t


# ---- drawing


def _changed_shape(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, ...]:
    how = draw(st.sampled_from(("drop", "add", "more", "less", "zero", "scalar", "huge")))
    if not shape or how == "scalar":
        return ()
    axis = draw(st.integers(0, len(shape) - 1))
    before, size, after = shape[:axis], shape[axis], shape[axis + 1 :]
    if how == "drop":
        return before + after
    if how == "add":
        return (*before, draw(st.integers(0, 3)), size, *after)
    if how == "huge":
        return (*before, draw(st.sampled_from(HUGE)), *after)
    return (*before, {"more": size + 1, "less": max(size - 1, 0), "zero": 0}[how], *after)


def _changed(draw: st.DrawFn, given: Given) -> Given | None:
    """Returns an argument that may not fit the others."""
    how = draw(st.sampled_from(("shape", "shape", "dtype", "device", "layout", "nothing")))
    if how == "shape":
        return replace(given, shape=_changed_shape(draw, given.shape))
    if how == "dtype":
        return replace(given, dtype=draw(st.sampled_from((*DTYPES, *OTHER_DTYPES))))
    if how == "device":
        return replace(given, device="meta")
    if how == "layout":
        return replace(given, layout=draw(st.sampled_from(LAYOUTS)))
    return None


def _placed(draw: st.DrawFn, given: Given) -> Given:
    return replace(given, strides=draw(st.sampled_from(STRIDES)), offset=draw(st.sampled_from((0, 0, 1, 3, 8))))


@st.composite
def cases(draw: st.DrawFn, backend: str, suffixes: tuple[str, ...], small: bool) -> FuzzCase:
    """Draws calls, about half of them with something that does not fit.

    Args:
        draw: of hypothesis.
        backend: that runs them.
        suffixes: of the ops that it may call, '' among them.
        small: whether sizes are to be small, for an interpreter.
    """
    widths = (1, 2, 3, 7, 8, 9, 16, 17, 31, 32, 33, 40)
    features = draw(st.sampled_from(widths if small else (*widths, 63, 64, 65, 100, 127, 128, 129, 200, 257, 520, 640)))
    layers = draw(st.integers(0, 3 if small else 6))
    groups = draw(st.sampled_from((None, None, None, 0, 1, 2, 3)))
    rank = draw(st.integers(0, 4))
    lead = [draw(st.sampled_from((0, 1, 1, 2, 3, 4, 5))) for _ in range(rank)]
    while math.prod(lead) > (12 if small else 70):
        lead.pop()
    if not small and len(lead) == 1 and lead[0]:
        lead[0] = draw(st.integers(1, 70))
    lead = ([] if groups is None else [groups]) + lead
    dtype = draw(st.sampled_from(DTYPES))
    parameters = draw(st.sampled_from((dtype, dtype, "float32")))
    device = draw(st.sampled_from(("cpu",) * 7 + ("meta",)))
    u = Given((*([] if groups is None else [groups]), layers, features), parameters, device)
    x = _placed(draw, Given((*lead, features), dtype, device, values=draw(st.sampled_from(VALUES))))
    u = _placed(draw, replace(u, values=draw(st.sampled_from(("normal", "normal", "zeros", "large")))))
    b = draw(st.sampled_from((None, 1, 1)))
    b = b if b is None else _placed(draw, replace(u, values="normal"))
    case = FuzzCase(
        draw(st.sampled_from(("function", "function", "forward", "backward", "backward", "module", "layer"))),
        x,
        u,
        b,
        final_abs=draw(st.booleans()),
        save=draw(st.sampled_from((0, 1, 2, 2))),
        exact=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31)),
    )
    if case.call == "layer":
        vectors = [t if t is None else replace(t, shape=(features,)) for t in (u, b)]
        case = replace(case, u=vectors[0], b=vectors[1], x=replace(x, shape=(*lead, features)))
    if case.call in ("forward", "backward"):
        case = replace(case, suffix=draw(st.sampled_from(suffixes)))
    case = replace(case, gradients=tuple(draw(st.booleans()) for _ in range(3)))
    if draw(st.integers(0, 3)) == 3:
        case = replace(case, abs=False, final_abs=case.final_abs or draw(st.booleans()))
    hostile = draw(st.sampled_from((0, 0, 0, 1, 1, 2)))
    if case.call == "backward":
        case = replace(case, needs=tuple(draw(st.booleans()) for _ in range(3)))
        if hostile and draw(st.booleans()):
            return _hostile_saved(draw, case)
    if case.call == "module":
        return _module(draw, case, hostile > 0)
    for _ in range(hostile):
        name = draw(st.sampled_from(("x", "u", "b")))
        given = getattr(case, name)
        if given is not None:
            case = replace(case, **{name: _changed(draw, given)})
    return case


def _hostile_saved(draw: st.DrawFn, case: FuzzCase) -> FuzzCase:
    """Returns a backward of something else than its forward saved."""
    assert case.x is not None
    assert case.u is not None
    name = draw(st.sampled_from(("y", "signs", "signs")))
    given = replace(case.x, values="normal")
    if name == "signs":
        layers, features = case.u.shape[-2] + draw(st.sampled_from((0, 0, 8))), case.u.shape[-1]
        shape = (*case.x.shape[:-1], layers, draw(st.sampled_from((-(-features // 8), 4, 8, 1, 0))))
        given = _placed(draw, Given(shape, "uint8", case.x.device))
    how = draw(st.sampled_from(("as it is", "changed", "changed", "none")))
    return replace(case, **{name: None if how == "none" else _changed(draw, given) if how == "changed" else given})


def _module(draw: st.DrawFn, case: FuzzCase, hostile: bool) -> FuzzCase:
    """Returns a call of a module along some axis, with options that it may refuse."""
    assert case.x is not None
    assert case.u is not None
    *groups, depth, features = case.u.shape
    rank = len(case.x.shape)
    options: dict[str, Any] = {"features": features, "depth": depth, "groups": groups[0] if groups else None}
    options |= {"bias": case.b is not None, "final_abs": case.final_abs, "dtype": case.u.dtype, "dim": -1}
    options |= {} if case.abs else {"activation": None}
    options |= {} if case.exact else {"exact": False}
    axis = draw(st.integers(len(groups), rank - 1)) - rank
    if draw(st.booleans()):
        *lead, size = case.x.shape
        lead.insert(rank + axis, size)
        options["dim"] = axis
        case = replace(case, x=replace(case.x, shape=tuple(lead)))
    if hostile and draw(st.booleans()):
        name = draw(st.sampled_from(("features", "depth", "groups", "dim", "dtype")))
        wrong = (-1, 0, 1.5, True, "8", rank, -rank - 1)
        options[name] = draw(st.sampled_from(OTHER_DTYPES if name == "dtype" else wrong))
    elif hostile:
        case = replace(case, x=_changed(draw, case.x))
    return replace(case, options=tuple(options.items()))
