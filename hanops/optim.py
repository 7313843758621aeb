"""Parameters of a model in the groups that torch's optimizers take."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatch
from typing import Any

from torch import nn

from hanops.modules import HanStack


def param_groups_weight_decay(
    model: nn.Module,
    weight_decay: float = 1e-5,
    weight_decay_exclude_1d: bool = True,
    no_weight_decay_list: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Returns the parameters in groups for an optimizer, without weight decay of biases, norms and Han layers.

    It is timm's function of this name, and its two groups, but for the Han layers: neither their reflectors u, their
    biases b nor what these are computed from, where they are parametrized, decay. u and b have two axes, and their
    names say nothing to timm's rule or to that of transformers' Trainer.

    The output of a Han layer does not depend on the scale of its u, and the gradient of u is orthogonal to u. So decay
    of u regularises nothing: it shrinks |u|, and every step then turns u by a larger angle.

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
    if not isinstance(model, nn.Module):
        raise TypeError(f"param_groups_weight_decay: model must be an nn.Module, got {model!r}")
    if isinstance(weight_decay, bool) or not isinstance(weight_decay, int | float):
        raise TypeError(f"param_groups_weight_decay: weight_decay must be a number, got {weight_decay!r}")
    if not weight_decay >= 0:
        raise ValueError(f"param_groups_weight_decay: weight_decay must be at least 0, got {weight_decay}")
    if isinstance(no_weight_decay_list, str) or not isinstance(no_weight_decay_list, Collection):
        raise TypeError(
            f"param_groups_weight_decay: no_weight_decay_list must be names or patterns, got {no_weight_decay_list!r}"
        )
    stacks = [module for module in model.modules() if isinstance(module, HanStack)]
    han = {id(parameter) for stack in stacks for parameter in stack.parameters()}
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
