"""What `python -m hanops` says where it cannot do what was asked: one line and an exit status, never a traceback."""

import os
import subprocess
import sys

import pytest

from hanops.__main__ import main

HANOPS = [sys.executable, "-m", "hanops"]


def told(*arguments: str, **environment: str) -> tuple[int, str]:
    """Returns the exit status and what was printed as an error."""
    done = subprocess.run([*HANOPS, *arguments], env={**os.environ, **environment}, capture_output=True, text=True)
    return done.returncode, done.stderr


def test_a_backend_that_is_unknown():
    status, error = told("info", HANOPS_BACKEND="bogus")
    names = "auto, cuda, triton, cpu, torch"
    assert (status, error) == (2, f"hanops: HANOPS_BACKEND: backend must be one of {names}, got 'bogus'\n")


def test_kernels_are_not_interpreted():
    status, error = told("info", "--kernels", TRITON_INTERPRET="1")
    assert status == 1
    assert error.startswith("hanops info: ")
    assert error.count("\n") == 1


def test_a_reader_that_has_seen_enough():
    """As `head` does, it closes its end of the pipe before all is written."""
    process = subprocess.Popen([*HANOPS, "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1
    process.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "--target", "sm_80"], "argument --target: is of the kernels, and needs --kernels"),
        (["info", "--dtype", "float16"], "argument --dtype: is of the kernels, and needs --kernels"),
        (["profile", "--device", "cpu", "--batch", str(10**12)], "these sizes need 16,384,000.0 GB, and cpu has"),
        (["profile", "--device", "cpu", "--features", str(10**30), "--json"], "GB, and cpu has"),
    ],
)
def test_arguments_that_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert not printed.out


def test_memory_that_is_not_there(capsys, monkeypatch):
    """Less is free than the machine has: torch says so when it is asked for the tensors."""
    monkeypatch.setattr("hanops.__main__._memory", lambda device: 2**80)
    assert main(["profile", "--device", "cpu", "--batch", str(10**12), "--features", "1000"]) == 1
    assert capsys.readouterr().err == "hanops profile: there is no memory for these sizes on cpu\n"
