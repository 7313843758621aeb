"""Compiles every CUDA kernel for some GPUs, and lists what each takes: `make kernels`."""

from __future__ import annotations

import argparse
import sys

from hanops.profiling import resources

from . import emulation


def main() -> int:
    """Returns 1 where a kernel does not compile, or has a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architectures", nargs="*", default=["80", "90", "100"], help="80, 90, 100 (all)")
    architectures = parser.parse_args().architectures
    try:
        emulation.build(*(f"kernels_sm_{architecture}" for architecture in architectures))
    except RuntimeError as error:
        sys.exit(f"kernels: {error}")
    folders = [emulation.BUILD / "cuda" / f"sm_{architecture}" for architecture in architectures]
    return resources.main([file for folder in folders for file in sorted(folder.glob("*.txt"))])


if __name__ == "__main__":
    sys.exit(main())
