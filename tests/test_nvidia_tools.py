"""What `make gpu` reads of NVIDIA's tools: Nsight Compute, compute-sanitizer, nvidia-smi."""

import os
import sys

import pytest

from benchmarks import gpu, nvidia

from .test_gpu_program import call_in, results

NCU = """==PROF== Connected to process 812 (/x/han_stack_profile)
NVIDIA H100 80GB HBM3, 132 SMs: 0.0 T float32 multiply-adds/s
==PROF== Profiling "forward" - 0: 0%....50%....100% - 12 passes
forward    launched: 16 rows, 4 x 8 columns a lane
==PROF== Disconnected from process 812
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"
"0","812","han_stack_profile","127.0.0.1","void hanops::cuda::forward<Tile<float, 16, 4>, 1>(Call)","1","7","(256, 1, 1)","(132, 1, 1)","0","9.0","Command line profiler metrics","dram__bytes_read.sum","byte","67,108,864"
"0","812","han_stack_profile","127.0.0.1","void hanops::cuda::forward<Tile<float, 16, 4>, 1>(Call)","1","7","(256, 1, 1)","(132, 1, 1)","0","9.0","Command line profiler metrics","dram__bytes_write.sum","byte","130,000,000"
"0","812","han_stack_profile","127.0.0.1","void hanops::cuda::forward<Tile<float, 16, 4>, 1>(Call)","1","7","(256, 1, 1)","(132, 1, 1)","0","9.0","Command line profiler metrics","gpu__time_duration.sum","ns","118,432"
"0","812","han_stack_profile","127.0.0.1","void hanops::cuda::forward<Tile<float, 16, 4>, 1>(Call)","1","7","(256, 1, 1)","(132, 1, 1)","0","9.0","Command line profiler metrics","l1tex__t_sector_hit_rate.pct","%","61.25"
"0","812","han_stack_profile","127.0.0.1","void hanops::cuda::forward<Tile<float, 16, 4>, 1>(Call)","1","7","(256, 1, 1)","(132, 1, 1)","0","9.0","Command line profiler metrics","lts__t_sector_hit_rate.pct","%","n/a"
"0","812","han_stack_profile","127.0.0.1","void hanops::cuda::forward<Tile<float, 16, 4>, 1>(Call)","1","7","(256, 1, 1)","(132, 1, 1)","0","9.0","Command line profiler metrics","smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio","inst","0.81"
"0","812","han_stack_profile","127.0.0.1","void hanops::cuda::forward<Tile<float, 16, 4>, 1>(Call)","1","7","(256, 1, 1)","(132, 1, 1)","0","9.0","Command line profiler metrics","smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio","inst","1.93"
"""  # noqa: E501


def test_metrics_of_ncu():
    (kernel,) = nvidia.kernels_of(NCU)
    assert kernel == {
        "kernel": "void forward<Tile<float, 16, 4>, 1>(Call)",
        "stalls": {"barrier": 0.81, "long_scoreboard": 1.93},
        "dram_bytes_read": 67108864.0,
        "dram_bytes_written": 130000000.0,
        "time_ns": 118432.0,
        "l1_hit_percent": 61.25,
    }
    reading = nvidia.read_ncu(NCU)
    assert reading.complaint is None
    assert "118.4 us, 197.1 MB" in reading.lines[0]
    assert "long_scoreboard 1.93, barrier 0.81" in reading.lines[1]


def test_ncu_that_measured_nothing():
    refused = (
        "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters\n"
    )
    reading = nvidia.read_ncu(refused)
    assert reading.complaint == "no kernel was measured"
    assert "ERR_NVGPUCTRPERM" in reading.lines[0]


def test_ncu_in_a_call(tmp_path, monkeypatch):
    tool = tmp_path / "ncu"
    tool.write_text(f"#!{sys.executable}\nprint({NCU!r})\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    part = next(part for part in gpu.first(tmp_path, False) if part.name.startswith("ncu"))
    assert {"--clock-control", "none", "--launch-count"} <= set(part.command)
    call = call_in(tmp_path / "out")
    assert call.run([part])
    assert results(call)[part.name]["data"][0]["time_ns"] == 118432


LAUNCHED = "========= COMPUTE-SANITIZER\nforward    launched: 16 rows, 4 x 8 columns a lane\n"
BAD_ACCESS = """========= Invalid __global__ read of size 4 bytes
=========     at void hanops::cuda::forward<...>(Call)+0x5b0
=========     by thread (3,0,0) in block (0,0,0)
=========     Address 0x7f50e2a00200 is out of bounds
========= ERROR SUMMARY: 1 error
"""
RACE = """========= Error: Race between Write access at void forward+0x1c0 and Read access at void forward+0x2f0
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        (f"{LAUNCHED}========= ERROR SUMMARY: 0 errors\n", None),
        (f"{LAUNCHED}========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", None),
        (LAUNCHED + BAD_ACCESS, "it found something"),
        (LAUNCHED + RACE, "it found something"),
        (LAUNCHED, "no verdict"),
        ("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n", "no kernel ran"),
        ("", "no verdict"),
    ],
)
def test_verdict_of_compute_sanitizer(output, complaint):
    reading = nvidia.read_sanitizer(output)
    assert reading.complaint == complaint
    if "Invalid" in output:
        assert "Invalid __global__ read of size 4 bytes" in reading.lines[1]


def test_clocks():
    head = "timestamp, pstate, clocks.current.sm [MHz], clocks.current.memory [MHz], power.draw [W], temperature.gpu\n"
    rows = "2026/01/02 03:04:05.6, P0, 1980, 2619, 112.40, 31\n2026/01/02 03:04:06.6, P0, 1755, 2619, 690.02, 55\n"
    reading = gpu.read_clocks(head + rows)
    assert "clocks.current.sm [MHz]: 1755 to 1980" in reading.lines
    assert "power.draw [W]: 112.4 to 690.02" in reading.lines
    assert gpu.read_clocks("nvidia-smi failed").lines == ["no samples"]
