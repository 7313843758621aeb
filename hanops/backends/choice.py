"""Which implementation runs for a call, and why."""

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

from hanops.backends.native import native
from hanops.definition.checks import DTYPES, check_stack

IMPLEMENTATIONS = ("cuda", "triton", "cpu", "torch")
BACKENDS = ("auto", *IMPLEMENTATIONS)
_OLD_NAMES = {"reference": "torch"}  # of 0.1, until 0.3
_VARIABLE = "HANOPS_BACKEND"
_ANY = 2**63 - 1


@dataclass(frozen=True)
class Rule:
    """On a GPU: a backend for calls within these bounds, and what chose it.

    dtypes are those of x; features, layers and rows (of all groups) are at most these.
    """

    backend: str
    chosen_by: str
    dtypes: tuple[torch.dtype, ...] = DTYPES
    features: int = _ANY
    layers: int = _ANY
    rows: int = _ANY

    def fits(self, dtype: torch.dtype, features: int, layers: int, rows: int) -> bool:
        """Tells whether a call is within the bounds."""
        within = features <= self.features and layers <= self.layers and rows <= self.rows
        return dtype in self.dtypes and within


# The first rule that fits a call, of a backend that is there, decides. On an H100 CUDA C++ is up to 1.9 times as fast
# as Triton over 16 layers, and 2.5 to 4.5 times where calls wait for launches; one layer in a CUDA graph takes Triton
# 0.9 to 1.0 of the time (benchmarks/results/nvidia-h100-80gb-hbm3.json).
RULES = (
    Rule("cuda", "the fastest on an H100, but for single layers in CUDA graphs"),
    Rule("triton", "the fastest on a GPU where there are no CUDA kernels"),
)

_has_triton = importlib.util.find_spec("triton") is not None
_lock = threading.Lock()  # of the next three, and of the native copy of the last
_default = "auto"
_entered: dict[object, str] = {}  # `with` blocks that have not been left, in the order of their entry
_chosen = "auto"  # by the last of them, or by default


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
    return native is not None and key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(op, key)


def missing(name: str) -> str | None:
    """Returns why this installation lacks backend `name`, or None where it has it."""
    if name == "cuda" and not (_has_cuda("cuda") or _has_cuda("cpu")):
        return "this build of hanops has no CUDA kernels"
    if name == "triton" and not _has_triton:
        return "Triton is not installed"
    if name == "cpu" and native is None:
        return "hanops was built without native code (HANOPS_NO_NATIVE)"
    return None


def obstacle(name: str, device: torch.device) -> str | None:
    """Returns why backend `name` cannot run on tensors of `device`, or None where it can."""
    if lack := missing(name):
        return lack
    if name == "triton" and device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return f"the tensors are on {device}, and Triton's interpreter is off (TRITON_INTERPRET=1 before the start)"
    if name == "cuda":
        return None if _has_cuda(device.type) else f"the tensors are on {device}"
    if name != "torch" and device.type != ("cpu" if name == "cpu" else "cuda"):
        return f"the tensors are on {device}"
    return None


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
    _chosen = next(reversed(_entered.values()), _default)
    if native is not None:
        native.set_backend(_chosen)


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
    """Returns the backend that runs a call; csrc/backend.h decides the same for the native ops.

    Args:
        device: of the tensors.
        dtype: of x.
        features, layers, rows: sizes of the stack, and the rows of all groups.

    Raises:
        RuntimeError: where the backend that was asked for cannot run it.
    """
    return _select(_chosen, device, dtype, features, layers, rows)


def _select(chosen: str, device: torch.device, dtype: torch.dtype, features: int, layers: int, rows: int) -> str:
    if chosen != "auto":
        require(chosen, device)
        return chosen
    if device.type == "cuda":
        rule = _rule(dtype, features, layers, rows)
        return rule.backend if rule else "torch"
    return "cpu" if obstacle("cpu", device) is None else "torch"


def _rule(dtype: torch.dtype, features: int, layers: int, rows: int) -> Rule | None:
    fitting = (rule for rule in _available_rules() if rule.fits(dtype, features, layers, rows))
    return next(fitting, None)


def _available_rules() -> list[Rule]:
    there = {"cuda": _has_cuda("cuda"), "triton": _has_triton}
    return [rule for rule in RULES if there[rule.backend]]


def _unfit(name: str, device: torch.device) -> str | None:
    """Returns why 'auto' passes over backend `name`, or None where another one is preferred."""
    if device.type == "cpu" and name == "triton" and _has_triton:
        return "on the CPU Triton only has an interpreter, which runs when it is asked for"
    if device.type == "cpu" and name == "cuda" and _has_cuda("cpu"):
        return "on the CPU its kernels only have an emulator, which runs when it is asked for"
    return obstacle(name, device)


def explain(x: Tensor, u: Tensor, b: Tensor | None = None) -> Explanation:
    """Tells which backend `han_stack(x, u, b)` would run on, and why the others would not.

    Args:
        x: rows, (..., features) or (groups, ..., features).
        u: reflectors, (layers, features) or (groups, layers, features).
        b: biases of the shape of u, or None.

    Raises:
        TypeError, ValueError: as `han_stack` would.
        RuntimeError: where the backend that was asked for cannot run this call.

    >>> import torch, hanops
    >>> hanops.explain(torch.randn(3, 8), torch.randn(2, 8)).backend in ("cpu", "torch")
    True
    """
    check_stack("x", x, u, b)
    sizes = (x.dtype, u.shape[-1], u.shape[-2], x.numel() // u.shape[-1])
    chosen = _chosen  # another thread may change it
    backend = _select(chosen, x.device, *sizes)
    others = [name for name in IMPLEMENTATIONS if name != backend]
    if chosen != "auto":
        return Explanation(backend, "it was asked for", {name: f"{backend!r} was asked for" for name in others})
    rule = _rule(*sizes) if x.device.type == "cuda" else None
    reason = f"preferred on {x.device}: {rule.chosen_by}" if rule else f"the fastest that runs on {x.device}"
    return Explanation(
        backend, reason, {name: _unfit(name, x.device) or f"{backend!r} is preferred" for name in others}
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


if native is not None:
    native.set_rules(
        [
            (r.backend, [str(t).removeprefix("torch.") for t in r.dtypes], r.features, r.layers, r.rows)
            for r in _available_rules()
        ]
    )
_start_with(os.environ.get(_VARIABLE) or "auto")
