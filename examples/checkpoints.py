"""The files from which an interrupted training goes on: whole or not at all, with a checksum, and checked when read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

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
    if state["settings"] != settings:
        raise RefusedError(
            f"{path} is of another {kind}: go on with the settings {state['settings']}, or start --fresh"
        )
    return state


def check_progress(path: Path, done: Any, whole: int) -> None:
    """Checks how far the state of a file says to be.

    Raises:
        RefusedError: where that is no number from 0 to all of the way.
    """
    if type(done) is not int or not 0 <= done <= whole:
        raise RefusedError(f"{path} must be at a step from 0 to {whole}, got {done!r}: start --fresh")
