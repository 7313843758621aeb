"""The files from which an interrupted training goes on: whole or not at all, with a checksum, and checked when read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hanops.profiling.files import write_bytes

from .options import RefusedError

CHECKSUM = hashlib.sha256
BYTES = CHECKSUM().digest_size  # at the end of a file


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a state, whole or not at all.

    Args:
        path: of the file.
        state: `settings`, and what else there is to go on with: numbers, strings, tensors and their containers.
    """
    stream = io.BytesIO()
    torch.save(state, stream)
    content = stream.getvalue()
    write_bytes(path, content + CHECKSUM(content).digest())


def load(
    path: Path, settings: dict[str, Any], keys: Collection[str], device: torch.device | str, kind: str
) -> dict[str, Any]:
    """Returns the state of a file that `save` wrote.

    Args:
        path: of the file.
        settings: of the program that goes on; those of the file must be the same.
        keys: what the state must have beside its settings.
        device: where its tensors are to be.
        kind: what it is a state of, for messages.

    Raises:
        RefusedError: where the file is damaged, or of another kind or other settings.
    """
    data = path.read_bytes()
    content, checksum = data[:-BYTES], data[-BYTES:]
    if CHECKSUM(content).digest() != checksum:
        raise RefusedError(f"{path} is damaged, or of another version of this program: start --fresh")
    state = torch.load(io.BytesIO(content), map_location=device)
    if not isinstance(state, dict) or not {"settings", *keys} <= state.keys():
        raise RefusedError(f"{path} is no {kind} of this program: start --fresh")
    theirs = state["settings"]
    if other := {key: theirs.get(key) for key in (settings | theirs) if theirs.get(key) != settings.get(key)}:
        raise RefusedError(
            f"{path} is of another {kind}, with other {', '.join(other)}: go on with {other}, or start --fresh"
        )
    return state


@dataclass(frozen=True)
class Checkpoint:
    """The file of a training, or where it is to be.

    path: of the file.
    renew: whether a file that cannot be gone on with is removed, which is told; else it is refused.
    """

    path: Path
    renew: bool = False

    def load(
        self, settings: dict[str, Any], keys: Collection[str], device: torch.device | str, kind: str
    ) -> dict[str, Any] | None:
        """Returns what `load` does of the file, or None where there is none to go on with."""
        if not self.path.exists():
            return None
        try:
            return load(self.path, settings, keys, device, kind)
        except RefusedError as error:
            if not self.renew:
                raise
            print(f"{error}. Here it starts anew.")
            self.path.unlink()
            return None


def checksum(*tensors: Tensor) -> list[str]:
    """Returns a text of each tensor that other values change, but not the rounding of another number of threads.

    It has the shape, the norm, and a sum with random weights over the norm.

    Args:
        tensors: of numbers; of groups that share their memory the first is looked at.
    """
    generator = torch.Generator().manual_seed(0)
    found = []
    for tensor in tensors:
        total = (tensor[:1] if tensor.stride(0) == 0 else tensor).cpu().float()
        norm = torch.linalg.vector_norm(total, dtype=torch.float64).item()
        while total.dim():
            total = total.double() if total.dim() == 1 else total
            total = total @ torch.randn(total.shape[-1], generator=generator, dtype=total.dtype)
        found.append(f"{list(tensor.shape)}, {norm:.6g}, {total.item() / max(norm, 1e-30):.4f}")
    return found


def check_progress(path: Path, done: Any, whole: int) -> None:
    """Checks how far the state of a file says to be.

    Raises:
        RefusedError: where that is no number from 0 to all of the way.
    """
    if type(done) is not int or not 0 <= done <= whole:
        raise RefusedError(f"{path} must be at a step from 0 to {whole}, got {done!r}: start --fresh")
