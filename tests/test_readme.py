"""The README's examples run as they stand, and what it says of bits holds."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import hanops

README = Path(__file__).parent.parent / "README.md"


def test_examples(capsys):
    torch.manual_seed(0)
    readme = README.read_text()
    train, convert, export = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(train, str(README), "exec"), names)
    assert names["loss"].item() < 0.5
    exec(compile(convert, str(README), "exec"), names)
    assert f"```text\n{capsys.readouterr().out}```" in readme
    exec(compile(export, str(README), "exec"), names)
    x = torch.rand(7, 2)
    torch.testing.assert_close(names["program"].module()(x), names["model"](x))


@pytest.mark.skipif(hanops.ops.native is None, reason="needs the native code")
def test_bits_are_those_of_an_instruction_set():
    """As the README says: the same in every run on one, for any number of threads, and others on another."""
    assert (
        "CPUs of different instruction sets (AVX-512, AVX2, or neither) differ in the last bits" in README.read_text()
    )
    sets = hanops.ops.native.build_info()["instruction_sets"]
    if hanops.ops.native.build_info()["instruction_set"] == "DEFAULT":
        pytest.skip("this CPU has one instruction set")
    script = """
import torch, hanops, hashlib
torch.manual_seed(0)
x, u, b = torch.randn(64, 300), torch.randn(9, 300), torch.randn(9, 300)
print(hashlib.sha256(hanops.han_stack(x, u, b).numpy().tobytes()).hexdigest())
"""
    bits = []
    for capability, threads in (("default", 1), ("avx2", 1), ("avx2", 2)):
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        bits.append(done.stdout)
    assert len(sets) > 1
    assert bits[0] != bits[1] == bits[2] != ""
