"""Steps of training that the tests of clients share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
Make = Callable[[], nn.Module]


def documented(name: str, **names: Any) -> Any:
    """Runs the block of docs/clients.md that defines a class, and returns the class."""
    blocks = re.findall(r"```py\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (block,) = [block for block in blocks if f"class {name}(" in block]
    exec(compile(block, str(PAGE), "exec"), names)
    return names[name]


@contextmanager
def raw_memory_is_nan() -> Iterator[None]:
    """Lets torch fill what it allocates: a parameter that nobody starts is NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def loss_of(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return nn.functional.cross_entropy(model.eval()(data[0]), data[1]).item()


def learns(model: nn.Module, loss: Callable[[], Tensor], steps: int = 10, rate: float = 1e-2) -> list[float]:
    """Asserts that the loss is lower after some steps, and that every Han layer changed. Returns the losses."""
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith((".u", ".b"))}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], rate)
    losses = []
    for _ in range(steps + 1):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0], losses
    after = dict(model.named_parameters())
    assert before
    assert all(not torch.equal(p, after[name]) for name, p in before.items() if after[name].requires_grad)
    return losses


def same(model: nn.Module, other: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(x), model.eval()(x), rtol=0, atol=0)


def saved_and_loaded(model: nn.Module, make: Make, x: Tensor, folder: Path) -> None:
    torch.save(model.state_dict(), folder / "state.pt")
    other = make()
    other.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    same(model, other, x)
