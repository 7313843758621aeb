"""What `pytest --device cuda` runs, on a machine that lacks packages and native code: told without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LACKING = ["hanops._C", "expecttest", "foolbox", "matplotlib", "pandas", "sklearn", "tqdm"]


@pytest.fixture
def pytest_without(tmp_path):
    """Runs pytest with arguments where LACKING cannot be imported."""
    (tmp_path / "lacking.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({LACKING!r}))\n")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "pytest", "-p", "lacking", "-q", "-p", "no:cacheprovider", *arguments]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_what_a_gpu_runs(pytest_without):
    chosen = pytest_without("tests", "--device", "cuda", "--fake", "--collect-only")
    for name in ("test_widths[", "test_no_synchronisation[triton]", "test_gradgradcheck[torch]"):
        assert f"::{name}" in chosen
    for name in ("test_broken_kernels", "test_every_tile", "test_examples", "test_distributed", "-cpu]", "[cpu]"):
        assert name not in chosen


def test_tests_of_a_gpu_run_on_the_cpu(pytest_without):
    """Nothing of theirs needs native code or a package that may not be there."""
    files = ("tests/test_ops.py", "tests/test_life_of_a_module.py")
    ran = pytest_without(*files, "--device", "cuda", "--fake", "-k", "plain_torch")
    assert " passed" in ran
