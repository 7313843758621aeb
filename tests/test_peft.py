"""hanops.peft where there is no PEFT, as here or not: tests/clients has the tests of what it does."""

import subprocess
import sys

import pytest
from torch import nn

import hanops.peft


def test_peft_is_imported_by_its_user_only():
    program = "import sys, hanops; hanops.peft.fuse_hra; assert 'peft' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_no_peft(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.delitem(sys.modules, "peft.tuners.hra.layer", raising=False)
    hanops.peft._class.cache_clear()
    for user in (lambda: hanops.peft.fuse_hra(nn.Linear(4, 4)), lambda: hanops.peft.FusedHRALinear):
        with pytest.raises(ImportError, match=r"needs a PEFT that has HRA: pip install 'hanops\[peft\]'"):
            user()
    assert not hasattr(hanops.peft, "Other")
    hanops.peft.unfuse_hra(nn.Linear(4, 4))  # there is nothing to do


def test_no_module():
    with pytest.raises(TypeError, match="model must be a Module, got int"):
        hanops.peft.fuse_hra(3)
