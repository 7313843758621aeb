"""Which implementation runs for a call, and why: decided here, and looked up by the ops, in csrc/backend.h too."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hanops import _torch
from hanops.backends.native import native
from hanops.definition.checks import DTYPES, check_stack
from hanops.definition.signs import is_last

IMPLEMENTATIONS = ("cuda", "triton", "cpu", "torch")
BACKENDS = ("auto", *IMPLEMENTATIONS)
_OLD_NAMES = {"reference": "torch"}  # of 0.1, until 0.3
_VARIABLE = "HANOPS_BACKEND"
_ANY = 2**63 - 1


@dataclass(frozen=True)
class Rule:
    """A backend for calls within these bounds, and what chose it.

    dtypes are those of x; features, layers and rows (of all groups) are at most these.
    """

    backend: str
    chosen_by: str = ""
    dtypes: tuple[torch.dtype, ...] = DTYPES
    features: int = _ANY
    layers: int = _ANY
    rows: int = _ANY

    def fits(self, dtype: torch.dtype, features: int, layers: int, rows: int) -> bool:
        """Tells whether a call is within the bounds."""
        within = features <= self.features and layers <= self.layers and rows <= self.rows
        return dtype in self.dtypes and within


# On a GPU the first rule that fits a call, of a backend that is there, decides. On an H100 CUDA C++ is 1.4 to 2.8 times
# as fast as Triton over 16 layers, and more where calls wait for launches; one layer forward in a CUDA graph takes
# Triton 0.8 to 1.0 of the time, 512 rows of 1,024 features forward and back 0.7
# (benchmarks/results/nvidia-h100-80gb-hbm3.json).
RULES = (
    Rule("cuda", "the fastest on an H100, but for some sizes in CUDA graphs"),
    Rule("triton", "the fastest on a GPU where there are no CUDA kernels"),
)

# Features up to which a backend has kernels along another axis than the last, in 32 bits and less; csrc/backend.h has
# the same.
AXIS_FEATURES = {"cpu": _ANY, "cuda": 512}
_BY_ROWS = "; along this axis its kernels run on a copy of x whose last axis has the features"

_has_triton = importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class Explanation:
    """The backend that a call would reach, and for every other one why it would not."""

    backend: str
    reason: str
    others: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.backend}: {self.reason}", *(f"not {name}: {why}" for name, why in self.others.items())]
        return "\n".join(lines)


def _has_cuda(device_type: str) -> bool:
    """Tells whether the CUDA kernels run on a device: on the CPU where a test has loaded their emulator."""
    key = {"cuda": "CUDA", "cpu": "CPU"}.get(device_type)
    op = "hanops::han_stack_forward_cuda"
    return native is not None and key is not None and _torch.has_kernel(op, key)


def missing(name: str) -> str | None:
    """Returns why this installation lacks backend `name`, or None where it has it."""
    if name == "cuda" and not (_has_cuda("cuda") or _has_cuda("cpu")):
        return "this build of hanops has no CUDA kernels"
    if name == "triton" and not _has_triton:
        return "Triton is not installed"
    if name == "cpu" and native is None:
        return "hanops was built without native code"
    return None


def _runs_on(name: str, device_type: str) -> bool:
    """Tells whether backend `name`, where this installation has it, runs on tensors of a type of device."""
    if name == "triton" and device_type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    if name == "cuda":
        return _has_cuda(device_type)
    return name == "torch" or device_type == ("cpu" if name == "cpu" else "cuda")


def _besides(name: str, device_type: str) -> str:
    """Returns what is to be said besides where the tensors are, of a backend that does not run there."""
    if name == "triton" and device_type == "cpu":
        return ", and Triton's interpreter is off (TRITON_INTERPRET=1 before the start)"
    return ""


def obstacle(name: str, device: torch.device) -> str | None:
    """Returns why backend `name` cannot run on tensors of `device`, or None where it can."""
    if lack := missing(name):
        return lack
    return None if _runs_on(name, device.type) else f"the tensors are on {device}{_besides(name, device.type)}"


@dataclass(frozen=True)
class _Rules:
    """Of the calls on one type of device: the first rule that fits decides. Where none does, the error's last words."""

    rules: tuple[Rule, ...]
    why_not: str

    @classmethod
    def of(cls, name: str, device_type: str) -> _Rules:
        if name == "auto":
            wanted = (*{"cpu": (Rule("cpu"),), "cuda": RULES}.get(device_type, ()), Rule("torch"))
        else:
            wanted = (Rule(name),)
        there = (rule for rule in wanted if missing(rule.backend) is None and _runs_on(rule.backend, device_type))
        return cls(tuple(there), _besides(name, device_type))

    def for_native(self) -> tuple[list[tuple[str, list[str], int, int, int]], str]:
        names = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES}
        rules = [(r.backend, [names[t] for t in r.dtypes], r.features, r.layers, r.rows) for r in self.rules]
        return rules, self.why_not


class _Choice:
    """What was asked for, and what that means on each type of device."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rules = {device_type: _Rules.of(name, device_type) for device_type in ("cpu", "cuda", "other")}

    def rule(self, device: torch.device, dtype: torch.dtype, features: int, layers: int, rows: int) -> Rule:
        """Returns the rule that decides a call, or raises as the op does."""
        there = self.rules.get(device.type, self.rules["other"])
        for rule in there.rules:
            if rule.fits(dtype, features, layers, rows):
                return rule
        why = f"the tensors are on {device}{there.why_not}"
        raise RuntimeError(f"han_stack: backend {self.name!r} was asked for, but {why}")


_lock = threading.Lock()  # of the next three, and of the native copy of the last
_default = "auto"
_entered: dict[object, str] = {}  # `with` blocks that have not been left, in the order of their entry
_chosen = _Choice("auto")  # by the last of them, or by default


def current_name(name: str) -> str:
    """Returns the name of a backend as it is now. An old one gives a FutureWarning."""
    if name not in _OLD_NAMES:
        return name
    current = _OLD_NAMES[name]
    warnings.warn(f"backend {name!r} is called {current!r}: the old name goes with hanops 0.3", FutureWarning, 4)
    return current


def _check(name: str, where: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{where}: backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    if lack := missing(name):
        raise ValueError(f"{where}: backend {name!r} is not available: {lack}")


def _choose() -> None:
    """Makes the choice of the block that was entered last hold. The lock is held."""
    global _chosen
    _chosen = _Choice(next(reversed(_entered.values()), _default))
    if native is not None:
        native.set_choice(_chosen.name, **{kind: rules.for_native() for kind, rules in _chosen.rules.items()})


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Makes every Han op in the process run on backend `name` inside a `with` block.

    Args:
        name: 'auto' (the fastest that fits), 'cuda' (CUDA C++ kernels), 'triton' (Triton kernels; with
            TRITON_INTERPRET=1 in the environment also on the CPU, slowly, for tests), 'cpu' (C++ kernels) or
            'torch' (plain torch).

    Raises:
        ValueError: for an unknown name, or a backend that this installation does not have.

    The choice is process-wide: it also holds for other threads, autograd's among them. Of blocks that threads are in at
    the same time, the one entered last decides, and they may be left in any order. A call that the chosen backend
    cannot run raises RuntimeError. The environment variable HANOPS_BACKEND sets what holds outside of all blocks.

    >>> import torch, hanops
    >>> x, u = torch.randn(3, 8), torch.randn(2, 8)
    >>> with hanops.use_backend("torch"):
    ...     y = hanops.han_stack(x, u)
    >>> torch.testing.assert_close(y, hanops.han_stack(x, u))
    """
    name = current_name(name)
    _check(name, "use_backend")
    block = object()
    try:
        with _lock:
            _entered[block] = name
            _choose()
        yield
    finally:
        with _lock:
            _entered.pop(block, None)
            _choose()


def require(name: str, device: torch.device) -> None:
    """Checks that backend `name` runs on tensors of `device`.

    Raises:
        RuntimeError: where it does not.
    """
    if why := obstacle(name, device):
        raise RuntimeError(f"han_stack: backend {name!r} was asked for, but {why}")


def select(device: torch.device, dtype: torch.dtype, features: int, layers: int, rows: int) -> str:
    """Returns the backend that runs a call.

    Args:
        device: of the tensors.
        dtype: of x.
        features, layers, rows: sizes of the stack, and the rows of all groups.

    Raises:
        RuntimeError: where the backend that was asked for cannot run it.
    """
    return _chosen.rule(device, dtype, features, layers, rows).backend


def takes_axis(name: str, dtype: torch.dtype, features: int) -> bool:
    """Tells whether backend `name` has kernels for another axis than the last. Else it runs on copies."""
    return dtype != torch.float64 and features <= AXIS_FEATURES.get(name, 0)


def _unfit(name: str, device: torch.device) -> str | None:
    """Returns why 'auto' passes over backend `name`, or None where another one is preferred."""
    if device.type == "cpu" and name == "triton" and _has_triton:
        return "on the CPU Triton only has an interpreter, which runs when it is asked for"
    if device.type == "cpu" and name == "cuda" and _has_cuda("cpu"):
        return "on the CPU its kernels only have an emulator, which runs when it is asked for"
    return obstacle(name, device)


def explain(x: Tensor, u: Tensor, b: Tensor | None = None, *, dim: int = -1) -> Explanation:
    """Tells which backend `han_stack(x, u, b, dim=dim)` would run on, and why the others would not.

    Args:
        x: rows, (..., features) or (groups, ..., features).
        u: reflectors, (layers, features) or (groups, layers, features).
        b: biases of the shape of u, or None.
        dim: the axis of x that has the features.

    Raises:
        TypeError, ValueError: as `han_stack` would.
        RuntimeError: where the backend that was asked for cannot run this call.

    >>> import torch, hanops
    >>> hanops.explain(torch.randn(3, 8), torch.randn(2, 8)).backend in ("cpu", "torch")
    True
    """
    check_stack("x", x, u, b, dim=dim)
    chosen = _chosen  # another thread may change it
    rule = chosen.rule(x.device, x.dtype, u.shape[-1], u.shape[-2], x.numel() // u.shape[-1])
    backend = rule.backend
    others = [name for name in IMPLEMENTATIONS if name != backend]
    besides = "" if is_last(dim, x.dim()) or takes_axis(backend, x.dtype, u.shape[-1]) else _BY_ROWS
    if chosen.name != "auto":
        why_not = {name: f"{backend!r} was asked for" for name in others}
        return Explanation(backend, f"it was asked for{besides}", why_not)
    by = rule.chosen_by
    reason = f"preferred on {x.device}: {by}" if by else f"the fastest that runs on {x.device}"
    return Explanation(
        backend, reason + besides, {name: _unfit(name, x.device) or f"{backend!r} is preferred" for name in others}
    )


def _start_with(name: str) -> None:
    """Sets the backend that holds outside of all `with` blocks."""
    global _default
    name = current_name(name)
    try:
        _check(name, _VARIABLE)
    except ValueError as error:
        if sys.argv[:1] != ["-m"]:  # which Python says while `python -m hanops` imports this package
            raise
        print(f"hanops: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    with _lock:
        _default = name
        _choose()


_start_with(os.environ.get(_VARIABLE) or "auto")
