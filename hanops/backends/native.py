"""The extension module hanops._C, or None where hanops was built without native code."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

_MARK = b"hanops._C was built for: "  # csrc/bindings.cpp; what follows reads "torch=2.11.0+cu130 cuda=13.0"
_REMEDY = (
    "Build it for the torch that is here, in the folder of hanops' sources: "
    f"{sys.executable} -m pip install --no-build-isolation --force-reinstall --no-deps ."
)


def _built_for(module: Path) -> tuple[str, str] | None:
    """Returns the version of torch that a module was built for and the CUDA of its kernels ('none' without)."""
    code = module.read_bytes()
    start = code.find(_MARK)
    if start < 0:
        return None
    text = code[start + len(_MARK) : code.index(b"\0", start)].decode()
    version, cuda = (word.partition("=")[2] for word in text.split())
    return version, cuda


def _minor(version: str) -> list[str]:
    return version.partition("+")[0].split(".")[:2]


def _named(version: str, cuda: str) -> str:
    return f"torch {version} " + ("without CUDA" if cuda == "none" else f"with CUDA {cuda}")


def _load() -> ModuleType | None:
    """Loads the module where it fits this torch. One of another torch may load, and crash later: it is read first.

    Raises:
        ImportError: where it was built for another minor version of torch, or has CUDA kernels for another major
            version of CUDA than torch's, or does not load.
    """
    spec = importlib.util.find_spec("hanops._C")
    if spec is None or spec.origin is None:
        return None
    here = torch.__version__, torch.version.cuda or "none"
    built = _built_for(Path(spec.origin))
    if built is not None:
        version, cuda = built
        other_cuda = cuda != "none" and cuda.split(".")[0] != here[1].split(".")[0]
        if other_cuda or _minor(version) != _minor(here[0]):
            raise ImportError(
                f"hanops: the native library {spec.origin} was built for {_named(*built)}, but {_named(*here)} is"
                f" here. {_REMEDY}"
            )
    try:
        from hanops import _C
    except ImportError as error:
        was = f", though it was built for {_named(*built)}" if built else ": it tells not what it was built for"
        raise ImportError(
            f"hanops: the native library {spec.origin} does not load with {_named(*here)}{was} ({error}). {_REMEDY}"
        ) from error
    return _C


native = _load()
