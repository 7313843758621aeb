"""Replaces a file as a whole: a full disk, an error or a kill leaves the old one, never half of a new one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write_bytes(path: Path, data: bytes) -> None:
    """Writes beside a file, to the disk, and then puts that in its place.

    Args:
        path: the file; its folder must exist. A link stays one, and the file that it names is replaced. What is no
            file, as /dev/stdout, is written to.
        data: the whole of it.

    Raises:
        OSError: where it cannot be written; the file is then as it was.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = path.resolve()
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if path.exists():
            shutil.copymode(path, part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes text as `write_bytes` writes bytes, in UTF-8."""
    write_bytes(path, text.encode())
