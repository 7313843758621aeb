"""Steps of training that the tests of clients share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

Make = Callable[[], nn.Module]


def loss_of(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return nn.functional.cross_entropy(model.eval()(data[0]), data[1]).item()


def learns(model: nn.Module, loss: Callable[[], Tensor], steps: int = 10, rate: float = 1e-2) -> None:
    """Asserts that the loss is finite and lower after some steps, and that every Han layer changed."""
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


def same(model: nn.Module, other: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(x), model.eval()(x), rtol=0, atol=0)


def saved_and_loaded(model: nn.Module, make: Make, x: Tensor, folder: Path) -> None:
    torch.save(model.state_dict(), folder / "state.pt")
    other = make()
    other.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    same(model, other, x)
