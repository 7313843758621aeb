"""PEFT's HRA adapters as chains of reflections: their layers multiply no (features, features) matrices any more.

HRA (Yuan et al., arXiv 2405.17484) puts r reflections before a frozen weight, W' = W H_1 ... H_r. PEFT builds the
product in every forward. Here x passes through the reflections, H_r first, and then through W.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hanops.functional import han_stack

__all__ = ["Fusion", "fuse_hra", "unfuse_hra"]


@dataclass(frozen=True)
class Fusion:
    """What `fuse_hra` did: the names of the layers that run as chains, and why others were left, by name."""

    fused: tuple[str, ...]
    left: dict[str, str]


def _orthonormal(u: Tensor) -> Tensor:
    """Returns the columns of u after Gram-Schmidt.

    Reflectors start in equal pairs, of which the second is then only rounding. So the operations are those of PEFT, in
    its order: that rounding is the same here.
    """
    done: list[Tensor] = []
    for column in u.split(1, 1):  # (features, 1)
        for other in done:
            column = column - (other.mT @ column) * other
        done.append(column / column.norm())
    return torch.cat(done, 1)


class _HRA(nn.Module):
    """What both fused layers have. The attributes are of PEFT's classes."""

    base_layer: Any
    hra_u: nn.ParameterDict  # (features, r) of each adapter, a reflector in each column
    hra_apply_GS: dict[str, bool]  # noqa: N815
    active_adapters: list[str]
    disable_adapters: bool
    merged: bool
    cast_input_dtype_enabled: bool
    get_base_layer: Any

    def _active(self) -> list[str]:
        return [name for name in self.active_adapters if name in self.hra_u]

    def _cast(self, *tensors: Tensor | None) -> list[Any]:
        """Returns tensors in the dtype that PEFT computes in: that of the last active adapter."""
        active = self._active()
        dtype = self.hra_u[active[-1]].dtype if active else torch.get_default_dtype()
        if not self.cast_input_dtype_enabled:
            dtype = self.get_base_layer().weight.dtype
        return [None if t is None else t.to(dtype) for t in tensors]

    def _times(self, rows: Tensor, name: str, transposed: bool) -> Tensor:
        """Returns rows (..., features) times an adapter's matrix H_1 ... H_r, or times its transpose."""
        u = self.hra_u[name]
        if self.hra_apply_GS[name]:  # I - 2 Q Q'
            q = _orthonormal(u).to(rows.dtype)
            flat = rows.reshape(-1, rows.shape[-1])
            return torch.addmm(flat, flat @ q, q.mT, alpha=-2).view(rows.shape)
        u = u.mT.to(rows.dtype)
        return han_stack(rows, u.flip(0) if transposed else u, activation=None)


class _Linear(_HRA):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        rows, weight, bias = self._cast(x, self.get_base_layer().weight.detach(), self.base_layer.bias)
        for name in reversed(self._active()):
            rows = self._times(rows, name, transposed=True)
        return F.linear(rows, weight, bias).to(x.dtype)


class _Conv2d(_HRA):
    """The reflections pass over patches of an image, which overlap: here they pass over the weight instead."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        x_cast, weight, bias = self._cast(x, self.base_layer.weight.detach(), self.base_layer.bias)
        rows = weight.flatten(1)  # (out_channels, in_channels * height * width)
        for name in self._active():
            rows = self._times(rows, name, transposed=False)
        stride, padding = self.base_layer.stride[0], self.base_layer.padding[0]  # the two that PEFT takes
        return F.conv2d(x_cast, rows.view(weight.shape), bias, stride, padding).to(x.dtype)


FUSED: dict[str, type[nn.Module]] = {"HRALinear": _Linear, "HRAConv2d": _Conv2d}  # by the name of PEFT's class


@cache
def _class(name: str) -> type[nn.Module]:
    """Returns PEFT's class of a name with the forward of here."""
    try:
        peft = import_module("peft.tuners.hra.layer")
    except ModuleNotFoundError as error:
        raise ImportError("hanops.peft needs a PEFT that has HRA: pip install 'hanops[peft]'") from error
    return type(f"Fused{name}", (FUSED[name], getattr(peft, name)), {"__module__": __name__})


def __getattr__(name: str) -> Any:
    """Makes the classes of fused layers when they are used: PEFT, which they need, is slow to import."""
    if name in ("FusedHRALinear", "FusedHRAConv2d"):
        return _class(name.removeprefix("Fused"))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _why_left(layer: Any, known: set[type[nn.Module]]) -> str | None:
    if type(layer) not in known:
        return f"of class {type(layer).__name__}, which may have a forward of its own"
    if "forward" in vars(layer):
        return "its forward was replaced"
    base = layer.get_base_layer()
    if not base.weight.is_floating_point():
        return f"its weight is of dtype {base.weight.dtype}"
    if isinstance(base, nn.Conv2d) and base.kernel_size[0] != base.kernel_size[1]:
        return f"its kernel, {base.kernel_size}, is not square, which PEFT's formula needs"
    return None


def fuse_hra(model: nn.Module) -> Fusion:
    """Makes PEFT's HRA layers in a model run as chains of reflections, in place.

    Parameters and state stay PEFT's own, and so does all it does with them: adapters are added, chosen, disabled,
    merged, unmerged, saved and loaded as before. Outputs and gradients are the same to rounding. Layers that are added
    later need another call.

    Args:
        model: a PeftModel, or a module with HRA layers somewhere inside.

    Returns:
        The names of the layers that run as chains, and the reason for each that does not.

    Raises:
        ImportError: if there is no PEFT, or one without HRA.
        TypeError: for what is no module.
        ValueError: if the model has no HRA layer.

    Source: Yuan, Liu and Xu, arXiv 2405.17484, Section 4.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse_hra: model must be a Module, got {type(model).__name__}")
    classes = {_class(name).__bases__[1]: _class(name) for name in FUSED}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, tuple(classes))}
    if not layers:
        raise ValueError("fuse_hra: model must have HRA layers of PEFT, got none: get_peft_model(model, HRAConfig())")
    others = {name: module for name, module in layers.items() if not isinstance(module, _HRA)}
    reasons = {name: _why_left(module, set(classes)) for name, module in others.items()}
    for name, module in others.items():
        if reasons[name] is None:
            module.__class__ = classes[type(module)]
    left = {name: why for name, why in reasons.items() if why is not None}
    return Fusion(tuple(name for name in layers if name not in left), left)


def unfuse_hra(model: nn.Module) -> None:
    """Makes fused layers PEFT's own again, in place: for a pickle that is read without hanops, say.

    Args:
        model: as given to `fuse_hra`.
    """
    for module in model.modules():
        if isinstance(module, _HRA):
            module.__class__ = type(module).__bases__[1]
