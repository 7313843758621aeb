"""Parameters of a model in the groups that torch's optimizers take."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import nn

from hanops.modules import HanStack
from hanops.selection import choose


def no_weight_decay(
    model: nn.Module,
    weight_decay: float,
    *,
    also: str | Collection[str] | Callable[[str, nn.Parameter], bool] | None = None,
) -> list[dict[str, Any]]:
    """Returns the parameters in two groups for an optimizer: with weight decay, and without, the reflectors u.

    The output of a Han layer does not depend on the scale of its u, and the gradient of u is orthogonal to u. So decay
    of u regularises nothing: it shrinks |u|, and every step then turns u by a larger angle.

    Args:
        model: its parameters that require a gradient are listed, each once.
        weight_decay: of all others, also of the biases b.
        also: parameters to leave out of decay beside u: a predicate of name and parameter, such as
            `lambda name, p: p.dim() < 2`, or names and patterns such as "*.bias".

    Returns:
        [{"params": [...], "weight_decay": weight_decay}, {"params": [...], "weight_decay": 0.0}].

    Raises:
        TypeError: for arguments of a wrong type.
        ValueError: for a negative weight_decay, or where `also` names no parameter.

    >>> import torch, hanops
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 30), hanops.HanStack(30, depth=20), torch.nn.Linear(30, 1))
    >>> optimizer = torch.optim.AdamW(hanops.no_weight_decay(model, 0.1), lr=1e-3)
    >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
    [(5, 0.1), (1, 0.0)]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"no_weight_decay: model must be an nn.Module, got {model!r}")
    if isinstance(weight_decay, bool) or not isinstance(weight_decay, int | float):
        raise TypeError(f"no_weight_decay: weight_decay must be a number, got {weight_decay!r}")
    if not weight_decay >= 0:
        raise ValueError(f"no_weight_decay: weight_decay must be at least 0, got {weight_decay}")
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    free = {id(module.u) for module in model.modules() if isinstance(module, HanStack)}
    if also is not None:
        free |= {id(named[name]) for name in choose("no_weight_decay: also", also, named)}
    decayed = [parameter for parameter in named.values() if id(parameter) not in free]
    others = [parameter for parameter in named.values() if id(parameter) in free]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
