"""What the kernels of a case take of a GPU: registers, and the warps that are resident with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hanops.backends.native import native
from hanops.profiling.case import FLOORS, ProfileCase

_REGISTERS, _BLOCKS = 64 << 10, 32  # of an SM: 32-bit registers, and the most programs it holds


@dataclass(frozen=True)
class Residence:
    """What a kernel's tile takes of an SM: registers of a thread, resident warps, the most it could hold."""

    registers: int
    warps: int
    most_warps: int
    tile: str = ""  # its rows, columns and lanes, in words


def resident_warps(registers: int, warps: int, most_warps: int) -> int:
    """Returns how many warps of a kernel an SM holds at once, by their registers.

    Args:
        registers: of a thread.
        warps: of a program.
        most_warps: that an SM holds of any kernel.

    The tiles' shared memory, some hundred bytes, never limits them. A quarter of an SM has a quarter of its
    registers, and gives them to whole warps in units of 256.
    """
    of_a_warp = -(-32 * registers // 256) * 256
    by_registers = 4 * (_REGISTERS // 4 // of_a_warp)
    return min(by_registers // warps, most_warps // warps, _BLOCKS) * warps


def cuda_residences(case: ProfileCase) -> dict[str, Residence]:
    """Asks the CUDA run-time library what the kernels of a case take of its GPU."""
    assert native is not None
    sizes = (case.storage, case.groups or 1, case.rows, case.features, case.layers)
    with torch.cuda.device(case.device):
        taken = {kernel: native.cuda_residence(kernel, *sizes) for kernel in FLOORS["cuda"]}
    return {kernel: Residence(**figures) for kernel, figures in taken.items()}


def triton_residences(case: ProfileCase) -> dict[str, Residence]:
    """Compiles the Triton kernels of a case for its GPU, an NVIDIA one, and reads what they take."""
    from triton.backends.compiler import GPUTarget

    from hanops.profiling import ahead_of_time

    device = torch.cuda.get_device_properties(case.device)
    target = GPUTarget("cuda", 10 * device.major + device.minor, device.warp_size)
    most = device.max_threads_per_multi_processor // device.warp_size
    found = {}
    for name, kernel in ahead_of_time.main_kernels(case.storage, case.features).items():
        registers = ahead_of_time.resources(kernel, target).registers
        tile = f"{kernel.tile.rows} rows, {kernel.tile.columns} columns, {kernel.tile.warps} warps"
        found[name] = Residence(registers, resident_warps(registers, kernel.tile.warps, most), most, tile)
    return found
