"""Which implementation runs for a call, and why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from hanops import ops
from hanops.checks import check_stack

BACKENDS = ("auto", "cpu", "reference")
_VARIABLE = "HANOPS_BACKEND"

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


def _obstacle(name: str, x: Tensor) -> str | None:
    """Returns why backend `name` cannot run on x, or None where it can."""
    if name == "cpu" and ops.native is None:
        return "hanops was built without native code (HANOPS_NO_NATIVE)"
    if name == "cpu" and x.device.type != "cpu":
        return f"the tensors are on {x.device}"
    return None


def _set(name: str, where: str) -> None:
    global _chosen
    if name not in BACKENDS:
        raise ValueError(f"{where}: backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    if name == "cpu" and ops.native is None:
        raise ValueError(f"{where}: backend 'cpu' is not available: hanops was built without native code")
    if ops.native is not None:
        ops.native.set_backend(name)
    _chosen = name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Makes every Han op in the process run on backend `name` inside a `with` block.

    Args:
        name: 'auto' (the fastest that fits), 'cpu' (C++ kernels) or 'reference' (plain torch).

    Raises:
        ValueError: for an unknown name, or a backend that this build does not have.

    The choice is process-wide: it also holds for other threads. The environment variable HANOPS_BACKEND sets it
    from the start.

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
    candidates = [name for name in BACKENDS if name != "auto"]
    obstacles = {name: _obstacle(name, x) for name in candidates}
    if _chosen != "auto":
        if obstacle := obstacles[_chosen]:
            raise RuntimeError(f"han_stack: backend {_chosen!r} was asked for, but {obstacle}")
        others = {name: f"{_chosen!r} was asked for" for name in candidates if name != _chosen}
        return Explanation(_chosen, "it was asked for", others)
    backend = next(name for name in candidates if obstacles[name] is None)
    others = {name: obstacles[name] or f"{backend!r} is faster" for name in candidates if name != backend}
    return Explanation(backend, f"the fastest that runs on {x.device}", others)


_set(os.environ.get(_VARIABLE) or "auto", _VARIABLE)
