"""The README's examples run as they stand."""

import re
from pathlib import Path
from typing import Any

import torch

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
