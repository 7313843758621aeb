"""The command line of hanops: `info` tells what this installation has, `profile` measures its kernels."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import torch

import hanops
from hanops import backends
from hanops.backends.native import SUPPORTED, built_for, native
from hanops.profiling import profile
from hanops.profiling.case import ProfileCase

DTYPES = ["float32", "bfloat16", "float16", "float64"]
TARGETS = ["sm_80", "sm_90", "sm_100", "gfx942"]


def _backends_on(device: torch.device) -> dict[str, Any]:
    x, u = torch.empty(1, 1, device=device), torch.empty(1, 1, device=device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    try:
        told = hanops.explain(x, u)
    except RuntimeError as error:  # HANOPS_BACKEND names one that does not run here
        why = {other: backends.obstacle(other, device) for other in backends.IMPLEMENTATIONS}
        others = {other: obstacle or "another one was asked for" for other, obstacle in why.items()}
        return {"device": str(device), "name": name, "backend": None, "reason": str(error), "others": others}
    return {"device": str(device), "name": name, **vars(told)}


def _wheel() -> str | None:
    """Returns version and tags of the wheel that this package was installed from; None where it is in a clone."""
    try:
        found = distribution("hanops")
    except PackageNotFoundError:
        return None
    if Path(str(found.locate_file("hanops/__init__.py"))).resolve() != Path(hanops.__file__).resolve():
        return None  # an editable install, or a copy on the path
    tags = re.findall(r"^Tag: (.+)$", found.read_text("WHEEL") or "", re.MULTILINE)
    return f"{found.version} {' '.join(tags)}" if tags else None


def _installation() -> dict[str, Any]:
    """Returns versions, what the native code is, and for every device the backends with why each runs or not."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    built = {} if native is None else native.build_info()
    return {
        "hanops": hanops.__version__,
        "wheel": _wheel(),
        "built_for": built_for(),
        "torch": torch.__version__,
        "supported_torch": "{} or later, tested to {}".format(*SUPPORTED),
        "triton": triton,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "native": {name: value for name, value in built.items() if name not in ("torch", "built_for")} or None,
        "devices": [_backends_on(device) for device in devices],
    }


def _print_installation(found: dict[str, Any]) -> None:
    absent = {"wheel": "none: from a folder of sources", "built_for": "any torch, without native code"}
    for name, value in found.items():
        if name not in ("native", "devices"):
            told = absent.get(name, "none") if value is None else value
            print("CUDA of torch" if name == "cuda" else name.replace("_", " "), told)
    for name, value in (found["native"] or {}).items():
        print(name.replace("_", " "), ", ".join(value) if isinstance(value, list) else value)
    for on in found["devices"]:
        print(f"\non {on['device']}{'' if on['name'] is None else ' (' + on['name'] + ')'}:")
        print(f"  {on['reason']}" if on["backend"] is None else f"  {on['backend']}: {on['reason']}")
        for name, why in on["others"].items():
            print(f"  not {name}: {why}")


def _kernels(target: str, storages: list[str]) -> Iterator[dict[str, Any]]:
    """Compiles the Triton kernels one after the other, and yields a row of the table for each."""
    from hanops.profiling import ahead_of_time

    for kernel in ahead_of_time.table(tuple(storages)):
        tile, taken = kernel.tile, ahead_of_time.resources(kernel, target)
        yield {
            "kernel": kernel.name,
            "up to d": kernel.features,
            "storage": kernel.storage,
            "R x Q rows": f"{tile.R} x {tile.Q}",
            "C x K columns": f"{tile.C} x {tile.K}",
            "warps": tile.warps,
            f"registers on {target}": taken.registers,
            "spilled bytes": taken.spills,
        }


def _print_kernels(rows: Iterator[dict[str, Any]]) -> None:
    for number, row in enumerate(rows):
        if number == 0:
            print(f"| {' | '.join(row)} |\n|{'---|' * len(row)}")
        print(f"| {' | '.join(map(str, row.values()))} |", flush=True)


def _info(given: argparse.Namespace) -> int:
    if not given.kernels:
        for name, value in (("--target", given.target), ("--dtype", given.dtype)):
            if value is not None:
                given.parser.error(f"argument {name}: is of the kernels, and needs --kernels")
        found = _installation()
        print(json.dumps(found)) if given.json else _print_installation(found)
        return 0
    interpreter = "--kernels compiles, and TRITON_INTERPRET=1 has Triton interpret: start without it"
    if why := backends.missing("triton") or (interpreter if os.environ.get("TRITON_INTERPRET") == "1" else None):
        print(f"hanops info: {why}", file=sys.stderr)
        return 1
    rows = _kernels(given.target or TARGETS[1], given.dtype or DTYPES[:1])
    print(json.dumps({"kernels": list(rows)})) if given.json else _print_kernels(rows)
    return 0


def _memory(device: torch.device) -> int:
    """Returns the bytes of memory of a device, all of them."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _profile(given: argparse.Namespace) -> int:
    case = ProfileCase(
        given.features, given.depth, given.batch, given.groups, getattr(torch, given.dtype), torch.device(given.device)
    )
    if given.ncu and given.trace is not None:
        given.parser.error("argument --trace: not allowed with argument --ncu")
    if given.ncu:
        print(profile.ncu(case))
        return 0
    try:
        profile.check(case.device, given.backend)
    except ValueError as error:
        given.parser.error(str(error))
    needed, there = case.bytes_held, _memory(case.device)
    if needed > there:
        given.parser.error(f"these sizes need {needed / 1e9:,.1f} GB, and {case.device} has {there / 1e9:,.1f} GB")
    if given.trace is not None:
        try:
            profile.trace(case, given.trace, given.backend)
        except OSError as error:
            given.parser.error(f"argument --trace: must be a file to write, got {given.trace!r}: {error.strerror}")
    try:
        found = profile.profile(case, given.backend, given.seconds)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        print(f"hanops profile: there is no memory for these sizes on {case.device}", file=sys.stderr)
        return 1
    print(json.dumps(found.figures()) if given.json else found)
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds from 0, got {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hanops", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)

    info = verbs.add_parser("info", help="versions, backends and why each would run or not")
    info.set_defaults(run=_info, parser=info)
    info.add_argument("--kernels", action="store_true", help="compile the main Triton kernels and list what they take")
    info.add_argument("--target", choices=TARGETS, help=f"what the kernels are compiled for ({TARGETS[1]})")
    info.add_argument("--dtype", nargs="+", choices=DTYPES, help=f"of x, one table for each ({DTYPES[0]})")
    info.add_argument("--json", action="store_true", help="print one JSON object")

    measure = verbs.add_parser("profile", help="time the kernels of one stack against two ceilings of the machine")
    measure.set_defaults(run=_profile, parser=measure)
    measure.add_argument("--features", type=_count, default=1024, metavar="D", help="width of a row (1024)")
    measure.add_argument("--depth", type=_count, default=16, metavar="L", help="layers (16)")
    measure.add_argument("--batch", type=_count, default=4096, metavar="N", help="rows, of each group (4096)")
    measure.add_argument("--groups", type=_count, metavar="G", help="independent stacks, in the grouped form")
    there = "cuda" if torch.cuda.is_available() else "cpu"
    measure.add_argument("--device", default=there, choices=["cpu", "cuda"], help=f"({there} on this machine)")
    measure.add_argument("--dtype", default="float32", choices=DTYPES, help="of x and the parameters (float32)")
    backend = os.environ.get("HANOPS_BACKEND") or "auto"
    measure.add_argument(
        "--backend", default=backend, type=backends.current_name, choices=backends.BACKENDS, help=f"({backend})"
    )
    measure.add_argument("--seconds", type=_seconds, default=2.0, metavar="S", help="of measuring, about (2)")
    trace = "first write a torch.profiler trace of a few forward and backward calls"
    measure.add_argument("--trace", metavar="FILE", help=trace)
    output = measure.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON object, in SI units")
    output.add_argument("--ncu", action="store_true", help="only print the Nsight Compute commands for these sizes")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status. Wrong arguments exit with status 2."""
    given = _parser().parse_args(arguments)
    status: int = given.run(given)
    sys.stdout.flush()
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # whoever read has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
