"""What nvcc made of the CUDA kernels' reads and writes of rows, by hanops.profiling.machine_code; no GPU is needed."""

import pytest

from hanops.profiling import machine_code
from hanops.profiling.machine_code import Instruction

from . import emulation
from .test_cuda import emulated, kernels_in_the_tables, needs_nvcc


@needs_nvcc
@emulated
def test_every_tile_has_its_row_loads_in_flight_and_stores_whole_words():
    emulation.build("kernels_sm_90")
    objects = (emulation.BUILD / "cuda" / "sm_90").glob("*.o")
    kernels = [kernel for file in objects for kernel in machine_code.read_object(file)]
    assert len(kernels) == kernels_in_the_tables()
    without_rows, wide_streams = 2 * 3, 3 + 2 + 2  # prepare, sum_parts, finish; float64's streams, and its gradients
    assert sum(len(k.in_flight) == 2 for k in kernels) == len(kernels) - without_rows - wide_streams
    assert [f"{k.kernel}: {', '.join(k.faults)}" for k in kernels if k.faults] == []


def one_by_one(opcode: str, loads: int) -> list[Instruction]:
    """Loads with a wait for each before the next."""
    return [i for _ in range(loads) for i in (Instruction(opcode, 2, 0), Instruction("HADD2.F32", 7, 1 << 2))]


def at_once(opcode: str, loads: int) -> list[Instruction]:
    """Loads on scoreboards 0 to 5 in turn, and then waits for all of these."""
    return [*(Instruction(opcode, n % 6, 0) for n in range(loads)), Instruction("FADD", 7, 0b111111)]


KERNEL = "forward<Tile<float, 4, 8, 4, 32, 1>, true>"
STORES = [Instruction("STG.E.64", 7, 0)] * 64 + [Instruction("STG.E.128", 7, 0)] * 32


def test_loads_in_flight():
    # bfloat16, float16 and float32; then parameters
    code = at_once("LDG.E.64", 32) * 2 + at_once("LDG.E.128", 32) + one_by_one("LDG.E.128.CONSTANT", 9)
    assert machine_code.examine(KERNEL, code + STORES) == machine_code.MachineCode(KERNEL, 0, (32, 32), ())


@pytest.mark.parametrize(
    ("half", "in_flight"),
    [
        (at_once("LDG.E.64", 30) + one_by_one("LDG.E.64", 2), 30),  # two may be late
        (at_once("LDG.E.64", 29) + one_by_one("LDG.E.64", 3), 1),
        (at_once("LDG.E.64", 8) * 4, 8),
        (one_by_one("LDG.E.64", 32), 1),
        (at_once("LDG.E.64", 31), 0),  # not all are there
        ([i for load in at_once("LDG.E.64", 32) for i in (load, Instruction("BRA", 7, 0, leaves=True))], 1),
    ],
)
def test_loads_that_wait(half, in_flight):
    code = at_once("LDG.E.64", 32) + half + at_once("LDG.E.128", 32) + STORES
    found = machine_code.examine(KERNEL, code)
    assert found.in_flight == (in_flight, 32)
    slow = (f"{in_flight} loads in flight of rows with 2 bytes an element",)
    assert found.faults == (slow if in_flight < 16 else ())


def test_stores_in_parts_and_local_memory():
    code = at_once("LDG.E.64", 32) * 2 + at_once("LDG.E.128", 32)
    code += [Instruction("STG.E.U16", 7, 0)] * 256 + STORES[32:] + [Instruction("STL.64", 7, 0)]
    faults = machine_code.examine(KERNEL, code).faults
    local = "1 accesses to local memory, 0 of them in the loop over layers"
    assert faults == (local, "32 stores are missing that take 8 bytes of a row at once")


@pytest.mark.parametrize(("spill", "in_loop"), [(0x20, 0), (0x40, 1), (0x60, 0)])
def test_local_memory_in_the_loop_over_layers(spill, in_loop):
    """Of the loop over tiles, from 0x10, and the one over layers in it, from 0x30, the latter has the sums."""
    jumps = {0x50: 0x30, 0x70: 0x10, 0x80: 0x90}
    code = [
        Instruction("BRA" if at in jumps else "SHFL.BFLY" if at == 0x30 else "LDL" if at == spill else "FADD", 7, 0,
                    address=at, target=jumps.get(at))
        for at in range(0, 0xA0, 0x10)
    ]  # fmt: skip
    assert [i.address for i in machine_code.loop_over_layers(code)] == [0x30, 0x40, 0x50]
    found = machine_code.examine("finish<float>", code)
    assert found.faults == (f"1 accesses to local memory, {in_loop} of them in the loop over layers",)
    allowed = next(iter(machine_code.ONCE_A_TILE))
    assert any("local memory" in fault for fault in machine_code.examine(allowed, code).faults) == bool(in_loop)


def test_reads_a_listing():
    """I2F waits for what LDC loads: scoreboard 0. A jump without a condition leaves."""
    listing = """
\t\tFunction : _Z7forwardv
        /*0010*/                   LDC.64 R12, c[0x0][0x2d8] ;      /* 0x0000b600ff0c7b82 */
                                                                    /* 0x000e220000000a00 */
        /*0080*/                   I2F.U32.RP R0, R13 ;             /* 0x0000000d00007306 */
                                                                    /* 0x001e240000209000 */
        /*00c0*/              @!P0 BRA 0x100 ;                      /* 0x0000000000048947 */
                                                                    /* 0x000fec0003800000 */
        /*00d0*/                   BRA 0x100 ;                      /* 0x0000000000087947 */
                                                                    /* 0x000fec0003800000 */
"""
    assert [(i.address, i.target) for i in machine_code.parse(listing)["_Z7forwardv"]] == [
        (0x10, None), (0x80, None), (0xC0, 0x100), (0xD0, 0x100)
    ]  # fmt: skip
    assert machine_code.parse(listing) == {
        "_Z7forwardv": [
            Instruction("LDC.64", 0, 0),
            Instruction("I2F.U32.RP", 0, 1),
            Instruction("BRA", 7, 0),
            Instruction("BRA", 7, 0, leaves=True),
        ]
    }
