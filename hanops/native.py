"""The extension module hanops._C, or None where hanops was built without native code."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import torch


def _load() -> ModuleType | None:
    if importlib.util.find_spec("hanops._C") is None:
        return None
    try:
        from hanops import _C
    except ImportError as error:
        raise ImportError(
            f"hanops: the native library does not load with torch {torch.__version__}: it was built for another"
            " version of torch. Reinstall hanops with 'pip install --no-build-isolation --force-reinstall --no-deps'."
        ) from error
    built, running = _C.build_info()["torch"], torch.__version__
    if built.split("+")[0].split(".")[:2] != running.split("+")[0].split(".")[:2]:
        raise ImportError(f"hanops: the native library was built for torch {built}, but torch {running} is running")
    return _C


native = _load()
