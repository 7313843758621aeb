"""Which backend runs, who decides, and that it is told."""

import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hanops
from hanops import backends
from hanops.backends import Rule, choice
from hanops.backends.native import native

HAS_NATIVE = native is not None


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_explain():
    told = hanops.explain(torch.randn(2, 4), torch.randn(3, 4))
    assert told.backend == ("cpu" if HAS_NATIVE else "torch")
    assert set(told.others) | {told.backend} == {"cuda", "triton", "cpu", "torch"}
    assert re.match("this build of hanops has no|the tensors are on cpu|on the CPU its kernels", told.others["cuda"])
    assert "interpreter" in told.others["triton"] or "not installed" in told.others["triton"]
    assert told.backend in str(told)
    with hanops.use_backend("torch"):
        told = hanops.explain(torch.randn(2, 4), torch.randn(3, 4))
    assert told.backend == "torch"
    assert told.reason == "it was asked for"


def test_explain_checks_its_arguments():
    with pytest.raises(ValueError, match="u must have shape"):
        hanops.explain(torch.randn(2, 4), torch.randn(4))


@pytest.mark.skipif(not HAS_NATIVE, reason="needs the native backend")
def test_a_backend_that_cannot_run_says_so():
    x, u = torch.empty(2, 4, device="meta"), torch.empty(3, 4, device="meta")
    assert hanops.explain(x, u).backend == "torch"
    with (
        hanops.use_backend("cpu"),
        pytest.raises(RuntimeError, match="'cpu' was asked for, but the tensors are on meta"),
    ):
        hanops.explain(x, u)


GPU_CALL = (torch.device("cuda", 0), torch.float32, 64, 2, 10)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("has_cuda", [True, False])
def test_the_default_on_a_gpu(monkeypatch, has_cuda):
    monkeypatch.setattr(choice, "_has_cuda", lambda device_type: has_cuda and device_type == "cuda")
    with hanops.use_backend("auto"):
        assert backends.select(*GPU_CALL) == ("cuda" if has_cuda else "triton")
    with hanops.use_backend("torch"):
        assert backends.select(*GPU_CALL) == "torch"
    with hanops.use_backend("cpu" if HAS_NATIVE else "triton"):
        wrong = torch.device("cuda", 0) if HAS_NATIVE else torch.device("meta")
        with pytest.raises(RuntimeError, match="was asked for, but the tensors are on"):
            backends.select(wrong, *GPU_CALL[1:])


def test_rules_are_taken_in_order(monkeypatch):
    rules = (
        Rule("triton", "a file", dtypes=(torch.float32,), features=64, rows=10),
        Rule("cuda", "a file", layers=4),
        Rule("triton", "the rest"),
    )
    monkeypatch.setattr(choice, "RULES", rules)
    monkeypatch.setattr(choice, "_has_cuda", lambda device_type: True)
    monkeypatch.setattr(choice, "_has_triton", True)
    device, dtype, *_ = GPU_CALL
    with hanops.use_backend("auto"):
        assert backends.select(device, dtype, 64, 2, 10) == "triton"
        assert backends.select(device, dtype, 65, 2, 10) == "cuda"
        assert backends.select(device, dtype, 64, 2, 11) == "cuda"
        assert backends.select(device, torch.bfloat16, 64, 4, 10) == "cuda"
        assert backends.select(device, torch.bfloat16, 64, 5, 10) == "triton"


@pytest.mark.skipif(not HAS_NATIVE, reason="needs the native module")
@pytest.mark.parametrize("device", ["cpu", "cuda", "other"])
def test_native_rules_are_checked(device):
    """What csrc/backend.h is given names backends and types that it has; else nothing changes."""
    x, u = torch.ones(1, 2), torch.ones(1, 2)
    for rule in (("fast", ["float32"], 1, 1, 1), ("auto", ["float32"], 1, 1, 1), ("cuda", ["int8"], 1, 1, 1)):
        none = {kind: ([], "") for kind in ("cpu", "cuda", "other")}
        with pytest.raises(ValueError, match="no such"):
            native.set_choice("auto", **{**none, device: ([rule], "")})
        assert hanops.han_stack(x, u).shape == (1, 2)


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_the_elsewhere_of_gpu_backends(name):
    """Without its interpreter Triton does not run on the CPU, nor CUDA kernels without an emulator: both say so."""
    if name == "triton" and find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    script = (
        "import torch, hanops, sys\n"
        f"with hanops.use_backend({name!r}):\n"
        "    hanops.han_stack(torch.ones(1, 2), torch.ones(1, 2))"
    )
    failed = run(script, TRITON_INTERPRET="0")
    assert failed.returncode != 0
    elsewhere = f"RuntimeError: han_stack: backend '{name}' was asked for, but the tensors are on cpu"
    not_built = "ValueError: use_backend: backend 'cuda' is not available: this build of hanops has no CUDA kernels"
    assert elsewhere in failed.stderr or (name == "cuda" and not_built in failed.stderr)


def test_import_does_not_import_triton():
    """Nor does a call that another backend runs."""
    script = (
        "import torch, sys\nbefore = 'triton' in sys.modules\nimport hanops\n"
        "hanops.han_stack(torch.ones(1, 2), torch.ones(1, 2))\n"
        "assert before or 'triton' not in sys.modules\nassert 'hanops.backends.triton' not in sys.modules"
    )
    assert run(script).returncode == 0


def test_use_backend_is_undone():
    with pytest.raises(KeyError), hanops.use_backend("torch"):
        raise KeyError
    assert hanops.explain(torch.randn(2, 4), torch.randn(3, 4)).reason != "it was asked for"
    with (
        pytest.raises(ValueError, match="backend must be one of auto, cuda, triton, cpu, torch, got 'fast'"),
        hanops.use_backend("fast"),
    ):
        pass


NAMES = ("cpu", "torch") if HAS_NATIVE else ("auto", "torch")


class Running:
    """Tells which backend holds: by `explain`, and, as their outputs differ in the last place, by a call."""

    def __init__(self) -> None:
        self.call = torch.randn(64, 300), torch.randn(9, 300), torch.randn(9, 300)
        self.outputs: dict[str, torch.Tensor] = {}
        for name in NAMES:
            with hanops.use_backend(name):
                self.outputs[name] = hanops.han_stack(*self.call)
        assert not native or not torch.equal(*self.outputs.values())

    def is_whole(self) -> bool:
        y = hanops.han_stack(*self.call)
        return any(torch.equal(y, output) for output in self.outputs.values())

    def __call__(self) -> str:
        told = hanops.explain(*self.call)
        assert not native or torch.equal(hanops.han_stack(*self.call), self.outputs[told.backend])
        return told.backend if told.reason == "it was asked for" else "auto"


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(NAMES)), max_size=12))
def test_blocks_are_left_in_any_order(steps):
    """Of the blocks that have not been left, the one entered last decides; with none, what held before."""
    running, blocks = Running(), []
    before = running()
    for place, name in steps:
        if place < len(blocks):
            blocks.pop(place)[1].__exit__(None, None, None)
        else:
            blocks.append((name, hanops.use_backend(name)))
            blocks[-1][1].__enter__()
        assert running() == (blocks[-1][0] if blocks else before)
    for _, block in blocks:
        block.__exit__(None, None, None)
    assert running() == before


def test_two_threads_that_overlap():
    """The first to enter is the first to leave: what it found must not hold again, nor what the second one found."""
    running, entered, both, left = Running(), threading.Event(), threading.Event(), threading.Event()
    before = running()

    def first():
        with hanops.use_backend("torch"):
            entered.set()
            both.wait(10)
        left.set()

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(10)
    assert running() == "torch"
    with hanops.use_backend(NAMES[0]):
        both.set()
        assert left.wait(10)
        assert running() == NAMES[0]
    thread.join()
    assert running() == before


def test_threads_switch_while_calls_run():
    """A call runs on one backend from its beginning to its end, and all that was switched is undone."""
    running = Running()
    before = running()

    def switch(thread: int) -> None:
        for turn in range(40):
            with hanops.use_backend(NAMES[(thread + turn) % 2]):
                assert running.is_whole()
                assert hanops.explain(*running.call).backend in backends.IMPLEMENTATIONS

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(switch, range(8)))
    assert running() == before


@pytest.mark.skipif(not HAS_NATIVE, reason="needs two backends")
def test_the_choice_reaches_the_ops():
    """Bits differ in the last place between the backends, so that their outputs tell which one ran."""
    x, u, b = torch.randn(64, 300), torch.randn(9, 300), torch.randn(9, 300)
    outputs = {}
    for name in ("auto", "cpu", "torch"):
        with hanops.use_backend(name):
            outputs[name] = hanops.han_stack(x, u, b)
    assert torch.equal(outputs["auto"], outputs["cpu"])
    assert not torch.equal(outputs["cpu"], outputs["torch"])
    torch.testing.assert_close(outputs["cpu"], outputs["torch"])


def test_environment_variable():
    script = "import torch, hanops; print(hanops.explain(torch.ones(1, 2), torch.ones(1, 2)).backend)"
    assert run(script, HANOPS_BACKEND="torch").stdout.split() == ["torch"]
    failed = run(script, HANOPS_BACKEND="fast")
    assert failed.returncode != 0
    assert "HANOPS_BACKEND: backend must be one of auto, cuda, triton, cpu, torch, got 'fast'" in failed.stderr


def test_the_old_name_of_plain_torch():
    """Until 0.3, with a warning."""
    warns = pytest.warns(FutureWarning, match="backend 'reference' is called 'torch'.* hanops 0.3")
    with warns, hanops.use_backend("reference"):
        assert hanops.explain(torch.ones(1, 2), torch.ones(1, 2)).backend == "torch"
    script = "import torch, hanops; print(hanops.explain(torch.ones(1, 2), torch.ones(1, 2)).backend)"
    done = run(script, HANOPS_BACKEND="reference")
    assert done.stdout.split() == ["torch"]
    assert "FutureWarning: backend 'reference' is called 'torch'" in done.stderr
    done = run("from hanops.__main__ import main; main(['profile', '--ncu', '--backend', 'reference'])")
    assert (done.returncode, "FutureWarning" in done.stderr) == (0, True), done.stderr


def test_info():
    done = subprocess.run([sys.executable, "-m", "hanops", "info"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"hanops {hanops.__version__}" in done.stdout
    assert str(hanops.explain(torch.ones(1, 1), torch.ones(1, 1))).splitlines()[0] in done.stdout
