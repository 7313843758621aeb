"""`python -m hanops info`: what this installation has; with --kernels, what each Triton kernel takes of a GPU."""

from __future__ import annotations

import argparse
import sys

import torch

import hanops
from hanops import backends
from hanops.native import native


def _info() -> str:
    lines = [f"hanops {hanops.__version__}", f"torch {torch.__version__}"]
    if native is not None:
        lines += [f"{name} {value}" for name, value in native.build_info().items() if name != "torch"]
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    for device in devices:
        x, u = torch.empty(1, 1, device=device), torch.empty(1, 1, device=device)
        name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
        lines += ["", f"on {device}{name}:", *("  " + line for line in str(hanops.explain(x, u)).splitlines())]
    return "\n".join(lines)


def _kernels(target: str, storages: list[str]) -> None:
    from hanops.triton import compile as ahead_of_time

    print(
        f"| kernel | up to d | storage | R x Q rows | C x K columns | warps | registers on {target} | spilled bytes |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for kernel in ahead_of_time.table(tuple(storages)):
        tile, taken = kernel.tile, ahead_of_time.resources(kernel, target)
        print(
            f"| {kernel.name} | {kernel.features} | {kernel.storage} | {tile.R} x {tile.Q} | {tile.C} x {tile.K} |"
            f" {tile.warps} | {taken.registers} | {taken.spills} |",
            flush=True,
        )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m hanops", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    info = verbs.add_parser("info", help="versions, backends and why each would run or not")
    info.add_argument("--kernels", action="store_true", help="compile every Triton kernel and list what it takes")
    info.add_argument("--target", default="sm_90", choices=["sm_80", "sm_90", "sm_100", "gfx942"])
    info.add_argument("--dtype", nargs="+", default=["float32"], choices=["float32", "bfloat16", "float16", "float64"])
    given = parser.parse_args(arguments)
    if not given.kernels:
        print(_info())
    elif missing := backends.missing("triton"):
        print(f"hanops info: {missing}", file=sys.stderr)
        return 1
    else:
        _kernels(given.target, given.dtype)
    return 0


if __name__ == "__main__":
    sys.exit(main())
