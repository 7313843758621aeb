"""What nvidia-smi says reaches the results, and its absence is no error. A script stands for it."""

import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import clocks

GPU = torch.device("cuda")
# Knows no MIG and refuses all for it, as an old one does; says [N/A] of the power, as in some containers.
SCRIPT = """#!/bin/sh
echo "$@" >> "$0.log"
for word; do case $word in
--query-gpu=*mig.mode.current*) echo "Field is not a valid field to query."; exit 2;;
--query-gpu=*) fields=${word#--query-gpu=};;
esac; done
line=
for field in $(echo "$fields" | tr , ' '); do case $field in
name) value="NVIDIA H100 80GB HBM3";; clocks.sm) value=1755;; clocks.max.sm) value=1980;;
power.draw) value=[N/A];; driver_version) value=580.65.06;; *) value=7;;
esac; line="$line${line:+, }$value"; done
echo "$line"
"""


@pytest.fixture
def smi(tmp_path, monkeypatch):
    script = tmp_path / "nvidia-smi"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return script


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    properties = SimpleNamespace(uuid="ab-cd", multi_processor_count=132, major=9, minor=0, L2_cache_size=50 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)


def test_a_gpu_and_its_limits(smi):
    found = clocks.about(GPU)
    assert (found["sku"], found["driver"]) == ("NVIDIA H100 80GB HBM3", "580.65.06")
    assert (found["sm_mhz"], found["most_sm_mhz"], found["memory_mhz"]) == (1755, 1980, 7)
    assert (found["capability"], found["multiprocessors"]) == ("9.0", 132)
    assert not {"mig", "power_w"} & set(found)
    asked = [line for line in smi.with_name("nvidia-smi.log").read_text().splitlines() if "mig.mode" not in line]
    assert len(asked) == len(clocks.LIMITS) - 1
    assert all("-i GPU-ab-cd " in line for line in asked)


def test_clocks_while_it_is_measured(smi):
    watch, start = clocks.Watch(GPU, every=0.01), time.monotonic()
    while len(watch.readings) < 3:
        time.sleep(0.01)
    watch.close()
    assert watch.since(start)["sm_mhz"] == watch.since(start)["least_sm_mhz"] == 1755
    assert "power_w" not in watch.since(start)
    assert watch.since(time.monotonic()) == {}


@pytest.mark.parametrize("without", ["the program", "a GPU"])
def test_without_nvidia_smi(tmp_path, monkeypatch, without):
    if without == "a GPU":
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'No devices were found'; exit 6\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if without == "a GPU" else str(tmp_path))
    assert set(clocks.about(GPU)) == {"multiprocessors", "capability", "l2_bytes"}
    watch = clocks.Watch(GPU, every=0.0)
    watch.reader.join(timeout=10)
    assert not watch.reader.is_alive()
    assert watch.since(0) == {}
    watch.close()
