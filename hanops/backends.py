"""Which implementation runs for a call, and why."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hanops.checks import check_stack
from hanops.native import native

IMPLEMENTATIONS = ("cuda", "triton", "cpu", "reference")  # the fastest first
BACKENDS = ("auto", *IMPLEMENTATIONS)
_VARIABLE = "HANOPS_BACKEND"

_has_triton = importlib.util.find_spec("triton") is not None
_chosen = "auto"


@dataclass(frozen=True)
class Explanation:
    """The backend that a call would reach, and for every other one why it would not."""

    backend: str
    reason: str
    others: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.backend}: {self.reason}", *(f"not {name}: {why}" for name, why in self.others.items())]
        return "\n".join(lines)


def missing(name: str) -> str | None:
    """Returns why this installation lacks backend `name`, or None where it has it."""
    if name == "cuda":
        return "this build of hanops has no CUDA kernels"
    if name == "triton" and not _has_triton:
        return "Triton is not installed"
    if name == "cpu" and native is None:
        return "hanops was built without native code (HANOPS_NO_NATIVE)"
    return None


def _obstacle(name: str, device: torch.device) -> str | None:
    """Returns why backend `name` cannot run on tensors of `device`, or None where it can."""
    if lack := missing(name):
        return lack
    interpreted = name == "triton" and device.type == "cpu"
    if interpreted and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {device}, and Triton's interpreter is off (TRITON_INTERPRET=1 before the start)"
    if name != "reference" and not interpreted and device.type != ("cpu" if name == "cpu" else "cuda"):
        return f"the tensors are on {device}"
    return None


def _set(name: str, where: str) -> None:
    global _chosen
    if name not in BACKENDS:
        raise ValueError(f"{where}: backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    if lack := missing(name):
        raise ValueError(f"{where}: backend {name!r} is not available: {lack}")
    if native is not None:
        native.set_backend(name)
    _chosen = name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Makes every Han op in the process run on backend `name` inside a `with` block.

    Args:
        name: 'auto' (the fastest that fits), 'cuda' (CUDA C++ kernels), 'triton' (Triton kernels; with
            TRITON_INTERPRET=1 in the environment also on the CPU, slowly, for tests), 'cpu' (C++ kernels) or
            'reference' (plain torch).

    Raises:
        ValueError: for an unknown name, or a backend that this installation does not have.

    The choice is process-wide: it also holds for other threads. A call that the chosen backend cannot run raises
    RuntimeError. The environment variable HANOPS_BACKEND sets the choice from the start.

    >>> import torch, hanops
    >>> x, u = torch.randn(3, 8), torch.randn(2, 8)
    >>> with hanops.use_backend("reference"):
    ...     y = hanops.han_stack(x, u)
    >>> torch.testing.assert_close(y, hanops.han_stack(x, u))
    """
    before = _chosen
    _set(name, "use_backend")
    try:
        yield
    finally:
        _set(before, "use_backend")


def require(name: str, device: torch.device) -> None:
    """Checks that backend `name` runs on tensors of `device`.

    Raises:
        RuntimeError: where it does not.
    """
    if obstacle := _obstacle(name, device):
        raise RuntimeError(f"han_stack: backend {name!r} was asked for, but {obstacle}")


def select(device: torch.device) -> str:
    """Returns the backend that runs a call on `device`; csrc/backend.h decides the same for the native ops.

    Raises:
        RuntimeError: where the backend that was asked for cannot run it.
    """
    if _chosen != "auto":
        require(_chosen, device)
        return _chosen
    return next(name for name in IMPLEMENTATIONS if _unfit(name, device) is None)


def _unfit(name: str, device: torch.device) -> str | None:
    """Returns why 'auto' passes over backend `name`, or None where it takes it."""
    if name == "triton" and _has_triton and device.type == "cpu":
        return "on the CPU Triton only has an interpreter, which runs when it is asked for"
    return _obstacle(name, device)


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
    >>> hanops.explain(torch.randn(3, 8), torch.randn(2, 8)).backend in ("cpu", "reference")
    True
    """
    check_stack("x", x, u, b)
    backend = select(x.device)
    others = [name for name in IMPLEMENTATIONS if name != backend]
    if _chosen != "auto":
        return Explanation(backend, "it was asked for", {name: f"{backend!r} was asked for" for name in others})
    reasons = {name: _unfit(name, x.device) or f"{backend!r} is faster" for name in others}
    return Explanation(backend, f"the fastest that runs on {x.device}", reasons)


if native is not None:
    native.set_has_triton(_has_triton)
_set(os.environ.get(_VARIABLE) or "auto", _VARIABLE)
