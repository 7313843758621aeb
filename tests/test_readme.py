"""The README's examples run as they stand."""

import re
from pathlib import Path
from typing import Any

import torch

README = Path(__file__).parent.parent / "README.md"


def test_examples():
    torch.manual_seed(0)
    train, export = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(train, str(README), "exec"), names)
    assert names["loss"].item() < 0.5
    exec(compile(export, str(README), "exec"), names)
    x = torch.rand(7, 2)
    torch.testing.assert_close(names["program"].module()(x), names["model"](x))
