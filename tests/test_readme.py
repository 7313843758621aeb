"""The README's example runs as it stands, and what the docs say of bits holds."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hanops.backends.native import native

README = Path(__file__).parent.parent / "README.md"
CONVENTIONS = README.parent / "docs" / "conventions.md"


def test_example(capsys):
    torch.manual_seed(0)
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, str(README), "exec"), names)
    assert names["loss"].item() < 0.5
    assert capsys.readouterr().out.splitlines()[-1] == f"step 300: loss {names['loss'].item():.3f}"


def test_length():
    """Two screens: what does not fit goes to docs/."""
    assert len(README.read_text().splitlines()) <= 90


@pytest.mark.skipif(native is None, reason="needs the native code")
def test_bits_are_those_of_an_instruction_set():
    """As the docs say: the same in every run on one, for any number of threads, and others on another."""
    said = " ".join(CONVENTIONS.read_text().split())
    assert "CPUs of different instruction sets (AVX-512, AVX2, or neither) differ in the last bits" in said
    sets = native.build_info()["instruction_sets"]
    if native.build_info()["instruction_set"] == "DEFAULT":
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
