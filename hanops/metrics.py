"""What the papers measure of a network, and hooks for packages that count operations.

The papers' are activation ratio, variability, Jacobian spectrum and Lipschitz constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from hanops.definition.reference import arithmetic_dtype, han_stack
from hanops.definition.signs import DROPPED, layers_with_abs
from hanops.models.layers import HIDDEN_ACTIVATIONS
from hanops.modules import HanLayer, HanStack

_ACTIVATIONS = (*HIDDEN_ACTIVATIONS, nn.Tanh, nn.Sigmoid)


@torch.no_grad()
def activation_ratio(model: nn.Module, x: Tensor) -> float:
    """Returns the activations of a network for each of its parameters.

    Args:
        model: its activations are counted in `HanStack`, one for each feature and layer that ends in an absolute value,
            in `nn.Tanh`, `nn.Sigmoid` and the activations that `hanops.convert` replaces; others, and activations that
            are functions, are not seen.
        x: one row, (in_features,) or (1, in_features); with groups, (groups, 1, in_features).

    Raises:
        ValueError: where the model has no parameters.

    Source: Yu and Zhang, arXiv 2106.04088.

    >>> import torch, hanops
    >>> model = hanops.models.HanNet(2, 30, 20, 2, dense_layers=(2, 20))
    >>> round(100 * hanops.metrics.activation_ratio(model, torch.zeros(2)), 2)
    19.79
    """
    parameters = sum(p.numel() for p in model.parameters())
    if parameters == 0:
        raise ValueError("activation_ratio: model must have parameters, got none")
    count = 0

    def add(module: nn.Module, _: object, y: Tensor) -> None:
        nonlocal count
        if isinstance(module, HanStack):
            count += y.numel() * layers_with_abs(module.u, module.final_abs, module.activation is not None)
        else:
            count += y.numel()

    watched = [m for m in model.modules() if isinstance(m, (HanStack, *_ACTIVATIONS))]
    hooks = [module.register_forward_hook(add) for module in watched]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return count / parameters


def variability(values: Tensor, step: float, dims: int = 2) -> Tensor:
    """Returns how much functions vary over a mesh: |f|^-2 times the integral of sum_i |d^3 f / d x_i^3|^2.

    Derivatives are differences, and integrals sums over the mesh. The result is 0 where f is 0, and for a network that
    has collapsed to a constant. The papers average it over random parameters.

    Args:
        values: f on the mesh, (..., n, ..., n), n at least 4.
        step: distance of two neighbours.
        dims: number of axes of the mesh, the last ones; at least 1.

    Returns:
        The variability of each f, (...), in float64.

    Raises:
        ValueError: where dims is below 1, or an axis of the mesh has fewer than 4 points.

    Source: Yu and Zhang, arXiv 2106.04088, version 1.
    """
    if dims < 1:
        raise ValueError(f"variability: dims must be at least 1, got {dims}")
    axes = tuple(range(-dims, 0))
    shape = list(values.shape)
    if values.dim() < dims or min(values.shape[axis] for axis in axes) < 4:
        raise ValueError(f"variability: values must have {dims} last axes of at least 4 points, got shape {shape}")
    f = values.double()
    cell = step**dims
    total = torch.zeros(f.shape[: f.dim() - dims], dtype=f.dtype, device=f.device)
    for axis in axes:
        total = total + (f.diff(n=3, dim=axis) / step**3).square().sum(axes) * cell
    norm = f.square().sum(axes) * cell
    return torch.where(norm == 0, 0, total / torch.where(norm == 0, 1, norm))


def jacobian_spectrum(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Returns the singular values of the Jacobian at each row, largest first. Those of a `HanStack` are all 1.

    Args:
        function: from rows (rows, in_features) to rows (rows, out_features), each on its own.
        x: (rows, in_features).

    Returns:
        (rows, min(in_features, out_features)).

    Raises:
        ValueError: where x does not have two axes.

    Source: the G-matrix of arXiv 2106.04088 is this Jacobian, for a layer in the middle of a network.

    >>> import torch, hanops
    >>> x = torch.randn(3, 8, dtype=torch.float64)
    >>> spectrum = hanops.metrics.jacobian_spectrum(hanops.HanStack(8, 100, dtype=torch.float64), x)
    >>> torch.testing.assert_close(spectrum, torch.ones_like(spectrum))
    """
    if x.dim() != 2:
        raise ValueError(f"jacobian_spectrum: x must have shape (rows, in_features), got {list(x.shape)}")
    jacobians: Tensor = torch.func.vmap(torch.func.jacrev(lambda row: function(row.unsqueeze(0)).squeeze(0)))(x)
    return torch.linalg.svdvals(jacobians.detach())


@torch.no_grad()
def lipschitz(function: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Returns the largest |f(a) - f(b)| / |a - b| over all pairs of rows: a lower bound of the Lipschitz constant.

    A `HanStack` gives at most 1, but for rounding.

    Args:
        function: from rows (rows, in_features) to rows (rows, out_features), each on its own.
        x: (rows, in_features), at least 2 different rows.

    Raises:
        ValueError: where there are fewer than two different rows.
    """
    y = function(x)
    before, after = torch.pdist(x.double()), torch.pdist(y.double())
    if before.numel() == 0 or before.max() == 0:
        raise ValueError(f"lipschitz: x must have at least 2 different rows, got shape {list(x.shape)}")
    return float((after[before > 0] / before[before > 0]).max())


@dataclass(frozen=True)
class Growth:
    """How the rows of a batch grow through a stack, and so how far its backward magnifies roundings.

    Attributes:
        sizes: norms of x_0, the rows that go in, to x_L, the output, over the batch: (layers + 1,), or with groups
            (groups, layers + 1). float64.
    """

    sizes: Tensor

    @property
    def ratios(self) -> Tensor:
        """|x_L| / |x_l| of what goes into each layer, (layers,) or (groups, layers)."""
        return self.sizes[..., -1:] / self.sizes[..., :-1]

    def du_error(self, dtype: torch.dtype, exact: bool = True) -> Tensor:
        """Returns the relative error to expect in each layer's du, like `ratios`, for rows of a dtype.

        It is that of the rebuilt x_l: y's rounding to the dtype (with `exact`, what is left of it after the byte that
        the forward keeps for bfloat16 and float16), and a rounding of the arithmetic, in float32 or float64, for each
        layer in between. A du that cancels almost to nothing has a larger one.
        """
        own, arithmetic = torch.finfo(dtype).eps, torch.finfo(arithmetic_dtype(dtype)).eps
        if exact and dtype in DROPPED:
            own /= 256
        between = self.sizes.square()
        between = torch.cat([between[..., 1:-1], torch.zeros_like(between[..., :1])], -1)  # x_{l+1} to x_{L-1}
        steps = between.flip(-1).cumsum(-1).flip(-1)[..., : self.sizes.shape[-1] - 1].sqrt()
        rounding = own / (2 * math.sqrt(12)) * self.sizes[..., -1:]
        return torch.hypot(rounding, 0.5 * arithmetic * steps) / self.sizes[..., :-1]


@torch.no_grad()
def growth(stack: HanStack, x: Tensor) -> Growth:
    """Returns how the rows of a batch grow in each layer of a stack, and the error in du that follows.

    The backward rebuilds x_l from y, which was rounded to its dtype. A reflection keeps lengths, so the rebuilt x_l is
    off by as much as y is: |x_L| / |x_l| times more of x_l. Biases that dwarf the input make that large. docs/maths.md
    derives it. Where the error is too large, run the stack in float32.

    Args:
        stack: any HanStack.
        x: what goes into it, `features` long along the stack's `dim`; a dtype and a device that the stack takes.

    Returns:
        The lengths of the rows, and `du_error(dtype)`: the error in du where the output has that dtype.

    Raises:
        ValueError: where x does not have the stack's features along its `dim`.

    >>> import torch, hanops
    >>> growth = hanops.metrics.growth(hanops.HanStack(8, 20), torch.randn(100, 8))
    >>> bool((growth.du_error(torch.bfloat16) < 0.05).all())
    True
    """
    if not -x.dim() <= stack.dim < x.dim() or x.shape[stack.dim] != stack.features:
        wanted = f"the stack's {stack.features} features along axis {stack.dim}"
        raise ValueError(f"growth: x must have {wanted}, got shape {list(x.shape)}")
    rows = x.movedim(stack.dim, -1)
    rows = rows.to(arithmetic_dtype(rows.dtype))
    abs_layers = layers_with_abs(stack.u, stack.final_abs, stack.activation is not None)
    sizes = []
    for layer in range(stack.depth + 1):
        sizes.append(rows.double().flatten(0 if stack.groups is None else 1).norm(dim=-1))
        if layer < stack.depth:
            one = slice(layer, layer + 1)
            b = None if stack.b is None else stack.b[..., one, :]
            rows = han_stack(rows, stack.u[..., one, :], b, abs=layer < abs_layers)
    return Growth(torch.stack(sizes, -1))


# ---- operations: a layer of d features costs 2 d multiply-adds a row. torch's FlopCounterMode needs no hook

_Hook = Callable[[Any, tuple[Tensor, ...], Tensor], None]


def _multiply_adds(stack: HanStack, x: Tensor) -> int:
    return 2 * x.numel() * stack.depth


def fvcore_handles() -> dict[str, Callable[..., int]]:
    """Returns what makes fvcore count: `FlopCountAnalysis(model, x).set_op_handle(**fvcore_handles())`.

    >>> list(fvcore_handles())
    ['hanops::han_stack']
    """

    def handle(inputs: list[Any], outputs: list[Any]) -> int:
        x, u = (value.type().sizes() for value in inputs[:2])
        return 2 * prod(x) * u[-2]

    return {"hanops::han_stack": handle}


def ptflops_hooks() -> dict[type[nn.Module], _Hook]:
    """Returns what makes ptflops count: `get_model_complexity_info(..., custom_modules_hooks=ptflops_hooks())`.

    >>> [module.__name__ for module in ptflops_hooks()]
    ['HanStack', 'HanLayer']
    """

    def hook(stack: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        stack.__flops__ += _multiply_adds(stack, inputs[0])

    return {HanStack: hook, HanLayer: hook}


def thop_hooks() -> dict[type[nn.Module], _Hook]:
    """Returns what makes thop count: `profile(model, (x,), custom_ops=thop_hooks())`.

    >>> [module.__name__ for module in thop_hooks()]
    ['HanStack', 'HanLayer']
    """

    def hook(stack: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        stack.total_ops += _multiply_adds(stack, inputs[0])

    return {HanStack: hook, HanLayer: hook}
