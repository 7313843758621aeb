"""The README's example runs as it stands."""

import re
from pathlib import Path

import torch

README = Path(__file__).parent.parent / "README.md"


def test_example_trains():
    torch.manual_seed(0)
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), names)
    assert names["loss"].item() < 0.5
