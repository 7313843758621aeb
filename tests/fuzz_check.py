"""Runs one case of the fuzzer and judges it: what fits is as exact as it has to be, what does not is named."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import hanops
from hanops.definition.signs import is_chunked, sign_bytes, unpack

from .accuracy import Problem, activations, assert_same, near_kinks
from .fuzz_cases import SMALL, FuzzCase, Given, make
from .fuzz_compare import NEAR, Outcome, Stack, compared

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TRIES = 4
NO_MEMORY = re.compile("allocate memory|overflow|out of memory|too large|exceeds", re.IGNORECASE)


# ---- what fits


def misfits(name: str, x: Tensor | None, u: Tensor | None, b: Tensor | None) -> set[str]:
    """Returns the arguments of a stack that are at fault, x by its name; none where they fit."""
    given = {name: x, "u": u} | ({} if b is None else {"b": b})
    if x is None or u is None:
        return {argument for argument, t in given.items() if t is None or not is_plain(t)}
    if not all(map(is_plain, given.values())):
        return set(given)
    found: set[str] = set()
    if x.dtype not in DTYPES:
        found |= {name}
    if u.dtype not in (x.dtype, torch.float32):
        found |= {name, "u"}
    if u.dim() not in (2, 3) or u.shape[-1] == 0:
        found |= {"u"}
    elif x.dim() < u.dim() - 1 or x.shape[-1] != u.shape[-1] or (u.dim() == 3 and x.shape[0] != u.shape[0]):
        found |= {name, "u"}
    if u.device != x.device:
        found |= {name, "u"}
    if b is not None and (b.dtype, b.shape, b.device) != (u.dtype, u.shape, x.device):
        found |= {"b", "u"}
    return found


def is_plain(t: Tensor) -> bool:
    """Tells whether a tensor has strides."""
    return t.layout == torch.strided and not t.is_mkldnn and not t.is_nested


def misfits_of_options(case: FuzzCase) -> set[str]:
    """Returns the option that is at fault: where no layer takes the absolute value, the last is not told of."""
    return set() if case.abs or case.final_abs else {"final_abs"}


def signs_like(x: Tensor, u: Tensor, final_abs: bool = True, abs: bool = True, save: int = 1) -> list[int]:
    """Returns the shape of the sign bits of a stack, and of the rest of y behind them."""
    layers = (u.shape[-2] - (not final_abs and u.shape[-2] > 0)) if abs else 0
    layers += 8 if save == 2 and x.dtype in DTYPES[2:] else 0
    return [*x.shape[:-1], layers, sign_bytes(x.shape[-1], is_chunked(x.device))]


def misfits_of_saved(case: FuzzCase, dy: Tensor, y: Tensor | None, signs: Tensor | None, u: Tensor) -> set[str]:
    """Returns which of y and signs is at fault, where the other arguments fit."""
    found: set[str] = set()
    if y is None:
        found |= {"y"} if case.needs[1] else set()
    elif not is_plain(y) or (y.shape, y.dtype, y.device) != (dy.shape, dy.dtype, dy.device):
        found |= {"y"}
    fit = signs is not None and is_plain(signs) and (signs.dtype, signs.device) == (torch.uint8, dy.device)
    shapes = [signs_like(dy, u, case.final_abs, case.abs, save) for save in (1, 2)]
    if not fit or list(signs.shape) not in shapes:
        found |= {"signs"}
    return found


def is_makeable(*shapes: list[int]) -> bool:
    """Tells whether there can be tensors of some shapes, in the memory of a machine of 128 TiB."""
    try:
        return all(torch.empty(shape, device="meta", dtype=torch.float64).nbytes < 1 << 46 for shape in shapes)
    except RuntimeError:
        return False


# ---- running


def judge(call: Callable[[], Any], faults: set[str], shapes: list[list[int]]) -> tuple[Outcome | None, Any]:
    """Runs a call. Returns its outcome where that is settled, and what it returned where it is to be compared.

    Args:
        call: what is run.
        faults: the arguments one of which an error must name; none where there must be no error.
        shapes: of what the call makes.
    """
    try:
        result = call()
    except (TypeError, ValueError) as error:
        words = set(re.findall(r"\w+", str(error)))
        if not faults:
            return Outcome("failed", f"fitting arguments are refused: {short(error)}"), None
        if not faults & words:
            return Outcome("failed", f"an error names none of {sorted(faults)}: {short(error)}"), None
        return Outcome("refused", short(error)), None
    except (RuntimeError, MemoryError) as error:
        if "was asked for, but" in str(error):
            return Outcome("refused", short(error)), None
        if not faults and not is_makeable(*shapes) and NO_MEMORY.search(str(error)):
            return Outcome("unmade", short(error)), None
        return Outcome("failed", f"{'wrong' if faults else 'fitting'} arguments: {short(error)}"), None
    except Exception as error:
        return Outcome("failed", short(error)), None
    if faults:
        return Outcome("failed", f"accepted, in spite of {sorted(faults)}"), None
    return None, result


def short(error: BaseException) -> str:
    """Returns the type and the first line of an error."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def check(case: FuzzCase) -> Outcome:
    """Runs a case, with other values where too many rows lie near a kink; AssertionError where a result is wrong."""
    for attempt in range(TRIES):
        outcome = _check(replace(case, seed=case.seed + 7919 * attempt))
        if outcome.message != NEAR:
            break
    return outcome


def _check(case: FuzzCase) -> Outcome:
    for given in (case.x, case.u, case.b, case.y, case.signs):
        if isinstance(given, Given) and math.prod(size for size in given.shape if size) >= 1 << 63:
            return Outcome("unmade", "torch has no tensor of more elements than 63 bits count")
    torch.manual_seed(case.seed)
    if case.call == "module":
        return _check_module(case)
    x, u, b = (make(given, case.seed + place) for place, given in enumerate((case.x, case.u, case.b)))
    if case.call == "backward":
        return _check_backward(case, x, u, b)
    if case.call == "forward":
        return _check_forward(case, x, u, b)
    options: dict[str, Any] = {"final_abs": case.final_abs, "activation": "abs" if case.abs else None}
    options["exact"] = case.exact
    if case.call == "layer":
        faults = _misfits_of_layer(x, u, b)
        stack: Stack = lambda x, u, b, *_: hanops.han_layer(  # noqa: E731
            x, u.squeeze(0), None if b is None else b.squeeze(0), **options
        )
        call = partial(hanops.han_layer, x, u, b, **options)
        if not faults:
            u, b = u.unsqueeze(0), None if b is None else b.unsqueeze(0)
    else:
        faults = misfits("x", x, u, b)
        stack = lambda x, u, b, *_: hanops.han_stack(x, u, b, **options)  # noqa: E731
        call = partial(hanops.han_stack, x, u, b, **options)
    if is_jagged(x):
        return _check_jagged(x, partial(call.func, u=u, b=b, **options), jagged_faults(case, x, u, b))
    faults |= misfits_of_options(case)
    settled, y = judge(call, faults, [] if faults else [list(x.shape), signs_like(x, u), list(u.shape)])
    return settled or compared(case, stack, y, x, u, b)


def is_jagged(t: Tensor | None) -> bool:
    """Tells whether a tensor is nested, in the layout `torch.jagged`."""
    return t is not None and t.is_nested and t.layout == torch.jagged


def jagged_faults(case: FuzzCase, x: Tensor, u: Tensor | None, b: Tensor | None) -> set[str]:
    """Returns the arguments at fault where x is jagged: as of its values, which must have one width and no groups."""
    rows = x.values()
    faults = _misfits_of_layer(rows, u, b) if case.call == "layer" else misfits("x", rows, u, b)
    faults |= misfits_of_options(case) if case.call != "module" else set()
    return faults | ({"x"} if x.dim() == 2 or (u is not None and u.dim() == 3) else set())


def _check_jagged(x: Tensor, call: Callable[[Tensor], Tensor], faults: set[str]) -> Outcome:
    settled, y = judge(lambda: call(x), faults, [] if faults else [list(x.values().shape)])
    if not settled:
        assert is_jagged(y)
        assert y.values().shape == x.values().shape
        if not x.is_meta:
            together, wanted = torch.stack(y.unbind()), call(torch.stack(x.unbind()))
            finite = wanted.isfinite().all(-1)
            assert torch.equal(together.isfinite().all(-1), finite)
            assert_same(together[finite], wanted[finite], exactly=False)
    return settled or Outcome("right")


def _misfits_of_layer(x: Tensor | None, u: Tensor | None, b: Tensor | None) -> set[str]:
    if x is None or u is None or not is_plain(u) or (b is not None and not is_plain(b)):
        return {"x", "u", "b"}
    if u.dim() != 1 or (b is not None and b.dim() != 1):
        return {"u", "b"}
    return misfits("x", x, u.unsqueeze(0), None if b is None else b.unsqueeze(0))


def _check_module(case: FuzzCase) -> Outcome:
    options = dict(case.options)
    dtype = getattr(torch, options.pop("dtype"))
    features, depth, groups, dim = (options[name] for name in ("features", "depth", "groups", "dim"))
    whole = {name: type(value) is int for name, value in options.items() if name in ("features", "depth", "dim")}
    faults = {name for name, is_whole in whole.items() if not is_whole}
    faults |= {"features"} if whole["features"] and features < 1 else set()
    faults |= {"depth"} if whole["depth"] and depth < 0 else set()
    faults |= {"groups"} if groups is not None and (type(groups) is not int or groups < 1) else set()
    faults |= {"dim"} if groups is not None and dim == 0 and type(dim) is int else set()
    faults |= set() if dtype in DTYPES else {"dtype"}
    faults |= misfits_of_options(case)
    settled, module = judge(lambda: hanops.HanStack(**options, dtype=dtype), faults, [])
    if settled:
        return settled
    x = make(case.x, case.seed)
    if is_jagged(x) and dim == -1:
        return _check_jagged(x, module, jagged_faults(case, x, module.u, module.b))
    faults, moved = {"x"}, x
    if x is not None and is_plain(x) and -x.dim() <= dim < x.dim() and not (groups and dim % x.dim() == 0):
        moved = x.movedim(dim, -1)
        if x.device.type != "cpu":
            module = module.to(x.device)
        faults = misfits("x", moved, module.u, module.b)
    elif x is not None and dim == -1:
        faults = misfits("x", x, module.u, module.b) or {"x"}
    faults |= {"dim"} if faults else set()
    if faults == {"x", "dim"} and x is not None and not is_plain(x) and dim != -1:
        return Outcome("refused", "not run: torch has no movedim of this layout")
    settled, y = judge(lambda: module(x), faults, [] if faults else [list(x.shape)])

    def stack(x: Tensor, u: Tensor, b: Tensor | None, *_: bool) -> Tensor:
        parameters = {"u": u} | ({} if b is None else {"b": b})
        return torch.func.functional_call(module, parameters, (x.movedim(-1, dim),)).movedim(dim, -1)

    return settled or compared(case, stack, y.movedim(dim, -1), moved, module.u, module.b)


def _ops(case: FuzzCase) -> tuple[Any, Any]:
    suffix = f"_{case.suffix}" if case.suffix else ""
    ops = torch.ops.hanops
    return getattr(ops, f"han_stack_forward{suffix}"), getattr(ops, f"han_stack_backward{suffix}")


def _check_forward(case: FuzzCase, x: Tensor | None, u: Tensor | None, b: Tensor | None) -> Outcome:
    forward, backward = _ops(case)
    faults = misfits("x", x, u, b) | misfits_of_options(case)
    shapes = [] if faults else [list(x.shape), signs_like(x, u)]
    arguments = (x, u, b, case.final_abs, case.save, case.abs)
    settled, result = judge(lambda: forward(*arguments), faults, shapes)
    if settled and settled.kind != "refused":
        return settled
    _check_fake(forward, arguments, result)
    if settled:
        return settled
    y, signs = result
    assert signs.dtype == torch.uint8
    assert list(signs.shape) == (signs_like(x, u, case.final_abs, case.abs, case.save) if case.save else [0])
    if case.save and x.device.type == "cpu" and case.x.values == "normal" and 0 < x.numel() <= SMALL:
        p = Problem(x, u, b, x, case.final_abs, case.abs)
        zs = activations(p)
        far = ~near_kinks(p, zs)
        for layer in range(signs_like(x, u, case.final_abs, case.abs)[-2]):
            bits = unpack(signs[..., layer, :], x.shape[-1], is_chunked(x.device))
            assert torch.equal(bits[far], zs[layer + 1].signbit()[far]), f"sign bits of layer {layer}"

    def stack(x: Tensor, u: Tensor, b: Tensor | None, *_: bool) -> Tensor:
        return _Direct.apply(x, u, b, case, forward, backward)

    return compared(case, stack, y, x, u, b)


class _Direct(torch.autograd.Function):
    """A stack by the pair of ops, as the C++ autograd calls them."""

    @staticmethod
    def forward(ctx, x, u, b, case, forward, backward):
        y, signs = forward(x, u, b, case.final_abs, case.save or 1, case.abs)
        ctx.save_for_backward(y, signs, u, b)
        ctx.rest = case, backward
        return y

    @staticmethod
    def backward(ctx, dy):
        y, signs, u, b = ctx.saved_tensors
        case, backward = ctx.rest
        dx, du, db = backward(dy, y, signs, u, b, case.final_abs, [True, True, b is not None], case.abs)
        return dx, du, None if b is None else db, None, None, None


def _check_backward(case: FuzzCase, dy: Tensor | None, u: Tensor | None, b: Tensor | None) -> Outcome:
    forward, backward = _ops(case)
    faults = misfits("dy", dy, u, b) | misfits_of_options(case)
    x = None if case.x is None else make(replace(case.x, values="normal"), case.seed + 3)
    y, signs = x, torch.zeros(1, dtype=torch.uint8)
    sizes = [] if dy is None or u is None or dy.is_nested or u.is_nested else [*dy.shape, *u.shape]
    if sizes and max(sizes) <= SMALL and dy.dim() and u.dim() > 1:
        signs = torch.zeros(1, dtype=torch.uint8).expand(
            signs_like(dy, u, case.final_abs, case.abs)
        )  # as if they fitted
    if not faults:
        shapes = [list(dy.shape), signs_like(dy, u), list(u.shape)]
        settled, saved = judge(lambda: forward(x, u, b, case.final_abs, case.save or 1, case.abs), set(), shapes)
        if settled:
            return settled
        y, signs = saved
    if case.y != "saved":
        y = make(case.y, case.seed + 4)
    if case.signs != "saved":
        signs = make(case.signs, case.seed + 5)
    if not faults:
        faults = misfits_of_saved(case, dy, y, signs, u)
    elif (case.y, case.signs) != ("saved", "saved"):
        faults |= {"y", "signs"}  # too, perhaps
    arguments = (dy, y, signs, u, b, case.final_abs, list(case.needs), case.abs)
    shapes = [] if faults else [list(dy.shape), list(u.shape)]
    settled, result = judge(lambda: backward(*arguments), faults, shapes)
    if settled and settled.kind != "refused":
        return settled
    _check_fake(backward, arguments, result)
    if settled:
        return settled
    for value, like, needed in zip(result, (dy, u, u), case.needs, strict=True):
        assert value.shape == (like.shape if needed else (0,))
        assert value.dtype == like.dtype
        assert value.is_contiguous()
    if case.signs != "saved" or case.y != "saved" or case.x.values != "normal" or x.numel() > SMALL:
        return Outcome("right")

    def stack(x: Tensor, u: Tensor, b: Tensor | None, *_: bool) -> Tensor:
        return _Direct.apply(x, u, b, case, forward, backward)

    outcome = compared(case, stack, y, x, u, b)
    if dy.device.type == "cpu" and dy.numel():
        whole = backward(dy, y, signs, u, b, case.final_abs, [True, True, True], case.abs)
        for value, other, needed in zip(result, whole, case.needs, strict=True):
            if needed and other.isfinite().all():
                assert_same(value, other, exactly=False)
    return outcome


def _check_fake(op: Any, arguments: tuple[Any, ...], result: tuple[Tensor, ...] | None) -> None:
    """Asserts that the fake of an op makes what the op makes, or refuses what it refuses."""
    tensors = [t for t in arguments if isinstance(t, Tensor)]
    if not all(is_plain(t) and t.device.type == "cpu" for t in tensors):
        return
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) if isinstance(t, Tensor) else t for t in arguments]
        try:
            made = op(*fakes)
        except (TypeError, ValueError):
            assert result is None, "the fake refuses what the op takes"
            return
    assert result is not None, "the fake takes what the op refuses"
    for fake, real in zip(made, result, strict=True):
        assert (fake.shape, fake.dtype) == (real.shape, real.dtype), "the fake has another shape or type"
        if real.numel():
            # Those of axes of one element mean nothing.
            pairs = zip(fake.stride(), real.stride(), real.shape, strict=True)
            same = all(a == b for a, b, size in pairs if size > 1)
            assert same, f"the fake has strides {fake.stride()}, the op {real.stride()}"
