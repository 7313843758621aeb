"""Han layers as modules: HanStack in place of square Linear layers with ReLU, HanLayer in place of one.

torch.fx and TorchScript read the annotations, so they are no strings.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from hanops.chain import han_stack_inverse
from hanops.definition.checks import DTYPES
from hanops.functional import _takes_abs, han_stack

_MARK = "_is_hf_initialized"  # of transformers, on modules and parameters that have their values


class SelfDrawn(nn.Module):
    """A module that draws its parameters: when it is made, and those that a checkpoint of transformers lacks."""

    def _draw(self, name: str, parameter: Tensor) -> None:
        """Draws one of the module's own parameters, in place; one of a name that it does not know stays."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Draws every parameter of the module, which then counts as initialised: transformers leaves it as it is."""
        parameters = dict(self.named_parameters(recurse=False))
        if any(parameter.is_meta for parameter in parameters.values()):
            return
        for name, parameter in parameters.items():
            with torch.no_grad():
                self._draw(name, parameter)
        vars(self)[_MARK] = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Draws what a checkpoint lacks, when `from_pretrained` of transformers marks the module as initialised.

        It makes a model on the meta device, marks the parameters that it loads, makes the others of raw memory, calls
        `_init_weights` with each module, which knows none of hanops, and marks the module.
        """
        super().__setattr__(name, value)
        if name == _MARK and value:
            for own, parameter in self.named_parameters(recurse=False):
                if not parameter.is_meta and not getattr(parameter, _MARK, False):
                    with torch.no_grad():
                        self._draw(own, parameter)


class HanStack(SelfDrawn):
    """A stack of Han layers, x <- |x - 2 (u . x) / |u|^2 u + b|, run by one kernel forward and one backward.

    Each layer has 2 * features parameters where a square Linear has features^2 + features.

    Args:
        features: size of the axis that is reflected.
        depth: number of layers; 0 makes the module a copy.
        dim: the axis of the input that is reflected. In the grouped form it may not be the first.
        groups: number of independent stacks. The input then has shape (groups, ..., features), as in `torch.bmm`.
        bias: False leaves out b.
        final_abs: False leaves the last layer without its absolute value.
        activation: 'abs', or None for no absolute value in any layer: a chain of reflections and biases.
        exact: False leaves out the byte per element with which the backward in bfloat16 and float16 undoes the rounding
            of the output: see `han_stack`.
        device: where the parameters are made.
        dtype: float64, float32, bfloat16 or float16. Inputs have this dtype; float32 parameters take any of the four.

    Attributes:
        u: reflectors, (depth, features) or (groups, depth, features). The output does not depend on their scale.
        b: biases of the same shape, or None.

    Raises:
        TypeError: for arguments of a wrong type.
        ValueError: for features < 1, depth < 0, groups < 1, another activation, final_abs=False without one, or dim=0
            with groups.

    Source: Yu and Zhang, arXiv 2106.04088, Algorithm 1 and the authors' initialisation.

    >>> import torch, hanops
    >>> stack = hanops.HanStack(64, depth=20)
    >>> stack(torch.randn(100, 64)).shape
    torch.Size([100, 64])
    """

    features: int
    depth: int
    dim: int
    groups: int | None
    final_abs: bool
    activation: str | None = "abs"  # this and the next, of modules that were pickled before there was a choice
    exact: bool = True
    b: Tensor | None

    def __init__(
        self,
        features: int,
        depth: int,
        *,
        dim: int = -1,
        groups: int | None = None,
        bias: bool = True,
        final_abs: bool = True,
        activation: str | None = "abs",
        exact: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        _check_count(name, "features", features, 1)
        _check_count(name, "depth", depth, 0)
        if groups is not None:
            _check_count(name, "groups", groups, 1)
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise TypeError(f"{name}: dim must be an int, got {dim!r}")
        if dtype is not None and dtype not in DTYPES:
            raise TypeError(f"{name}: dtype must be float64, float32, bfloat16 or float16, got {dtype!r}")
        if groups is not None and dim == 0:
            raise ValueError(f"{name}: dim must not be 0, the axis of the groups, got 0")
        if not _takes_abs(name, activation) and not final_abs:
            raise ValueError(f"{name}: final_abs must not be given where activation is None, got False")
        self.features, self.depth, self.dim, self.groups = features, depth, dim, groups
        self.final_abs, self.activation, self.exact = final_abs, activation, exact
        shape = (depth, features) if groups is None else (groups, depth, features)
        self.u = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if bias:
            self.b = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        else:
            self.register_parameter("b", None)
        self.reset_parameters()

    def _draw(self, name: str, parameter: Tensor) -> None:
        """Draws each u as a random unit vector, or b uniformly from ±1/sqrt(features), as the authors' code does."""
        if name == "u":
            wide = torch.randn_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))
            parameter.copy_(nn.functional.normalize(wide, dim=-1))
        elif name == "b":
            bound = 1 / math.sqrt(self.features)
            parameter.uniform_(-bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the stack's output, of the shape and dtype of x.

        Args:
            x: `features` long along `dim`; with groups, (groups, ..., features).
        """
        final_abs, activation, exact = self.final_abs, self.activation, self.exact
        if self.dim == -1:
            return han_stack(x, self.u, self.b, final_abs=final_abs, activation=activation, exact=exact)
        name = "HanStack" if torch.jit.is_scripting() else type(self).__name__  # type: ignore[attr-defined]
        x = _with_axis(name, x, self.dim, self.groups is not None)
        return _stack_along(x, self.u, self.b, self.dim, final_abs, activation, exact)

    @torch.jit.unused
    def inverse(self, y: Tensor, signs: Tensor | None = None) -> Tensor:
        """Returns the x of which the stack's output is y.

        Args:
            y: `features` long along `dim`; with groups, (groups, ..., features).
            signs: where the stack has absolute values, their sign bits: the second result of
                `han_stack(x, stack.u, stack.b, final_abs=stack.final_abs, dim=stack.dim, return_signs=True)`.

        Raises:
            TypeError, ValueError: as `han_stack_inverse` does.
        """
        y = _with_axis(type(self).__name__, y, self.dim, self.groups is not None)
        options: dict[str, Any] = {"final_abs": self.final_abs, "activation": self.activation, "signs": signs}
        return han_stack_inverse(y, self.u, self.b, dim=self.dim, **options)

    def extra_repr(self) -> str:
        """Returns the arguments that differ from their defaults, after features and depth."""
        parts = [f"features={self.features}", f"depth={self.depth}"]
        if self.dim != -1:
            parts.append(f"dim={self.dim}")
        if self.groups is not None:
            parts.append(f"groups={self.groups}")
        parts.append(f"bias={self.b is not None}")
        if not self.final_abs:
            parts.append("final_abs=False")
        if self.activation is None:
            parts.append("activation=None")
        if not self.exact:
            parts.append("exact=False")
        return ", ".join(parts)


class HanLayer(HanStack):
    """One Han layer, |x - 2 (u . x) / |u|^2 u + b|: a `HanStack` of depth 1.

    Args:
        features: size of the axis that is reflected.
        dim, groups, bias, final_abs, activation, exact, device, dtype: as in `HanStack`.

    Source: Yu and Zhang, arXiv 2106.04088, Algorithm 1.

    >>> import torch, hanops
    >>> hanops.HanLayer(8)(torch.randn(2, 8)).shape
    torch.Size([2, 8])
    """

    def __init__(
        self,
        features: int,
        *,
        dim: int = -1,
        groups: int | None = None,
        bias: bool = True,
        final_abs: bool = True,
        activation: str | None = "abs",
        exact: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options: dict[str, Any] = {"final_abs": final_abs, "activation": activation, "exact": exact}
        super().__init__(features, 1, dim=dim, groups=groups, bias=bias, device=device, dtype=dtype, **options)


@torch.fx.wrap  # one node of a traced graph
def _with_axis(module: str, x: Tensor, dim: int, grouped: bool) -> Tensor:
    """Returns x, after the checks that it has an axis `dim`, which is not the one of the groups."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{module}: x must be a Tensor, got {type(x).__name__}")
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"{module}: x must have an axis {dim}, got shape {list(x.shape)}")
    if grouped and dim % x.dim() == 0:
        raise ValueError(f"{module}: dim {dim} is the axis of the groups in shape {list(x.shape)}")
    return x


def is_innermost(x: Tensor, dim: int) -> bool:
    """Tells whether axis `dim` is the innermost one in memory, as the channels are in channels_last."""
    return x.stride(dim) == 1 and x.size(dim) > 1 and not x.is_contiguous()


@torch.fx.wrap  # which axis is innermost in memory is known where the graph runs
def _stack_along(
    x: Tensor, u: Tensor, b: Tensor | None, dim: int, final_abs: bool, activation: str | None, exact: bool
) -> Tensor:
    """Returns the output of a stack along axis `dim`, ordered in memory as x is: channels_last stays so."""
    if is_innermost(x, dim):
        rows = x.movedim(dim, -1)
        return han_stack(rows, u, b, final_abs=final_abs, activation=activation, exact=exact).movedim(-1, dim)
    return han_stack(x, u, b, final_abs=final_abs, activation=activation, exact=exact, dim=dim)


def _check_count(module: str, name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{module}: {name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{module}: {name} must be at least {least}, got {value}")
