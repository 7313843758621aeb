"""The extension module hanops._C, or None where hanops was built without native code."""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

import torch

SUPPORTED = ("2.11", "2.14")  # torch: the oldest that hanops takes (pyproject.toml says so too), and the newest tested
_MARK = b"hanops._C was built for: "  # csrc/bindings.cpp; what follows reads "torch=2.11.0+cu130 cuda=13.0"


def _remedy(module: Path) -> str:
    """Returns the command that builds a module again: in the tree that it stands in, or in any folder of sources."""
    tree = module.parent.parent
    where, what = (tree, "-e .") if (tree / "setup.py").exists() else ("the folder of hanops' sources", ".")
    pip = f"{sys.executable} -m pip install"
    if not any(distributions(name="pip")):
        pip = f"uv pip install --python {sys.executable} --no-build-isolation"
    return f"Build it for the torch that is here, in {where}: {pip} --force-reinstall --no-deps {what}"


def _built_for(module: Path) -> tuple[str, str] | None:
    """Returns the version of torch that a module was built for and the CUDA of its kernels ('none' without)."""
    code = module.read_bytes()
    start = code.find(_MARK)
    return None if start < 0 else _fields(code[start : code.index(b"\0", start)].decode())


def _fields(mark: str) -> tuple[str, str]:
    version, cuda = (word.partition("=")[2] for word in mark.split()[-2:])
    return version, cuda


def _minor(version: str) -> list[str]:
    return version.partition("+")[0].split(".")[:2]


def _fits(built: tuple[str, str], here: tuple[str, str]) -> bool:
    """Tells whether a module may be loaded, from (version of torch, CUDA or 'none') it was built for and is here.

    It must have the minor version of torch. Its CUDA kernels, if it has any, must have the major version of CUDA.
    """
    (built_torch, built_cuda), (torch_here, cuda_here) = built, here
    same_cuda = built_cuda == "none" or built_cuda.split(".")[0] == cuda_here.split(".")[0]
    return same_cuda and _minor(built_torch) == _minor(torch_here)


def _told_of(version: str, cuda: str) -> str:
    """Says what a module was built for."""
    return f"torch {version}, with " + ("CPU kernels" if cuda == "none" else f"CPU kernels and those of CUDA {cuda}")


def _told_here(version: str, cuda: str) -> str:
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
    if built is not None and not _fits(built, here):
        raise ImportError(
            f"hanops: the native library {spec.origin} was built for {_told_of(*built)}, but"
            f" {_told_here(*here)} is here. {_remedy(Path(spec.origin))}"
        )
    try:
        from hanops import _C
    except ImportError as error:
        was = f", though it was built for {_told_of(*built)}" if built else ": it tells not what it was built for"
        raise ImportError(
            f"hanops: the native library {spec.origin} does not load with {_told_here(*here)}{was} ({error})."
            f" {_remedy(Path(spec.origin))}"
        ) from error
    return _C


native = _load()


def built_for() -> str | None:
    """Returns what the native module was built for, "torch 2.13.0+cpu, with CPU kernels"; None without one."""
    return None if native is None else _told_of(*_fields(native.build_info()["built_for"]))
