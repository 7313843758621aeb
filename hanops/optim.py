"""Parameters of a model in the groups that torch's optimizers take."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from fnmatch import fnmatch
from typing import Any

from torch import nn

from hanops.modules import HanStack
from hanops.selection import choose


def _of_han_layers(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields the parameters of Han layers, by their names there; a parametrized u is `parametrizations.u.original`."""
    for module in model.modules():
        if isinstance(module, HanStack):
            yield from module.named_parameters()


def param_groups_weight_decay(
    model: nn.Module,
    weight_decay: float = 1e-5,
    weight_decay_exclude_1d: bool = True,
    no_weight_decay_list: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Returns the parameters in groups for an optimizer, without weight decay of biases, norms and Han layers.

    It is timm's function of this name, and its two groups, but for the Han layers: neither their reflectors u, their
    biases b nor what these are computed from, where they are parametrized, decay. u and b have two axes, and their
    names say nothing to timm's rule or to that of transformers' Trainer. `no_weight_decay` leaves out u alone.

    Args:
        model: its parameters that require a gradient are listed, each once.
        weight_decay: of all others; 0 makes one group.
        weight_decay_exclude_1d: parameters of one axis or none, and those called bias, do not decay either.
        no_weight_decay_list: names and patterns of parameters that do not decay either, such as "pos_embed".

    Returns:
        [{"params": [...], "weight_decay": 0.0}, {"params": [...], "weight_decay": weight_decay}], without empty ones.

    Raises:
        TypeError: for arguments of a wrong type.
        ValueError: for a negative weight_decay.

    Source: timm.optim.param_groups_weight_decay.

    >>> import torch, hanops
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 30), hanops.HanStack(30, depth=20), torch.nn.Linear(30, 1))
    >>> optimizer = torch.optim.AdamW(hanops.param_groups_weight_decay(model, 0.1), lr=1e-3)
    >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
    [(4, 0.0), (2, 0.1)]
    """
    _check("param_groups_weight_decay", model, weight_decay)
    if isinstance(no_weight_decay_list, str) or not isinstance(no_weight_decay_list, Collection):
        raise TypeError(
            f"param_groups_weight_decay: no_weight_decay_list must be names or patterns, got {no_weight_decay_list!r}"
        )
    han = {id(parameter) for _, parameter in _of_han_layers(model)}
    free: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        short = weight_decay_exclude_1d and (parameter.ndim <= 1 or name.endswith(".bias"))
        listed = any(fnmatch(name, pattern) for pattern in no_weight_decay_list)
        (free if not weight_decay or short or listed or id(parameter) in han else decayed).append(parameter)
    groups = [{"params": free, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
    return [group for group in groups if group["params"]]


def no_weight_decay(
    model: nn.Module,
    weight_decay: float,
    *,
    also: str | Collection[str] | Callable[[str, nn.Parameter], bool] | None = None,
) -> list[dict[str, Any]]:
    """Returns the parameters in two groups for an optimizer: with weight decay, and without, the reflectors u.

    The output of a Han layer does not depend on the scale of its u, and the gradient of u is orthogonal to u. So decay
    of u regularises nothing: it shrinks |u|, and every step then turns u by a larger angle.

    `param_groups_weight_decay` leaves out more: all biases and norms too, as most recipes do.

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
    _check("no_weight_decay", model, weight_decay)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    free = {id(p) for name, p in _of_han_layers(model) if name == "u" or name.startswith("parametrizations.u.")}
    if also is not None:
        free |= {id(named[name]) for name in choose("no_weight_decay: also", also, named)}
    decayed = [parameter for parameter in named.values() if id(parameter) not in free]
    others = [parameter for parameter in named.values() if id(parameter) in free]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _check(function: str, model: nn.Module, weight_decay: float) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be an nn.Module, got {model!r}")
    if isinstance(weight_decay, bool) or not isinstance(weight_decay, int | float):
        raise TypeError(f"{function}: weight_decay must be a number, got {weight_decay!r}")
    if not weight_decay >= 0:
        raise ValueError(f"{function}: weight_decay must be at least 0, got {weight_decay}")
