"""The Han layer and the Han stack as functions. torch.fx and TorchScript read the annotations: they are no strings."""

import re
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from hanops import _torch, ops  # noqa: F401  the latter registers the op
from hanops.ops import autocast
from hanops.ops.when_imported import when_imported

_op = torch.ops.hanops.han_stack.default
_forward_op = torch.ops.hanops.han_stack_forward.default
_OF_ANOTHER_TYPE = re.compile(r"Expected a value of type '(.*?)' for argument '(\w+)' but instead found type '(.*?)'")


def _takes_abs(function: str, activation: Any) -> bool:
    """Tells whether layers take the absolute value, after the check of `activation`."""
    if activation is not None and activation != "abs":
        raise ValueError(f"{function}: activation must be 'abs' or None, got {activation!r}")
    return activation is not None


@overload
def han_stack(
    x: Tensor,
    u: Tensor,
    b: Tensor | None = None,
    *,
    final_abs: bool = True,
    activation: str | None = "abs",
    exact: bool = True,
    dim: int = -1,
    return_signs: Literal[False] = False,
) -> Tensor: ...


@overload
def han_stack(
    x: Tensor,
    u: Tensor,
    b: Tensor | None = None,
    *,
    final_abs: bool = True,
    activation: str | None = "abs",
    exact: bool = True,
    dim: int = -1,
    return_signs: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def han_stack(
    x: Tensor,
    u: Tensor,
    b: Tensor | None = None,
    *,
    final_abs: bool = True,
    activation: str | None = "abs",
    exact: bool = True,
    dim: int = -1,
    return_signs: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Applies a stack of Han layers, x <- |x - 2 (u . x) / |u|^2 u + b|, in one kernel.

    The forward keeps its output and one bit per element and layer for the backward, which rebuilds every activation
    from them. Where the output is rounded to 16 bits, it also keeps a byte per element of what that took. The
    derivative of the absolute value is -1 where the sign bit is set and +1 elsewhere, never 0, so that every layer's
    Jacobian is orthogonal. A layer with u = 0 reflects nothing, and its u gets a zero gradient.

    Args:
        x: (..., features), or (groups, ..., features) for grouped stacks; float64, float32, bfloat16 or float16,
            any strides. Arithmetic is in float32 (float64 for float64), and only the result is rounded.
        u: reflectors, (layers, features) or (groups, layers, features), of any non-zero scale; the dtype of x or
            float32.
        b: biases of the shape and dtype of u, or None.
        final_abs: False leaves the last layer without its absolute value.
        activation: 'abs', or None for no absolute value in any layer: a chain of reflections and biases. Its backward
            reflects back from the output, and keeps no bits.
        exact: False leaves out that byte: du is then off by as much as the rounded output is, times the growth of the
            rows (`metrics.growth`). Only for bfloat16 and float16, and where u gets a gradient.
        dim: the axis of x that has the features, the last one by default; not that of the groups.
        return_signs: True also returns the sign bits, uint8 (..., layers with abs, bytes), for `han_stack_inverse`;
            where `exact` applies, 8 layers more hold the bytes. With another `dim` than the last they are words of 32
            columns, x.shape with (layers, words) at `dim` and 4 bytes at the end. Which bit is which column's is the
            device's own: csrc/signs.h.

    Returns:
        The output, contiguous, of the shape and dtype of x, or under autocast of its dtype. With no layers, a copy of
        x.

    Raises:
        TypeError: for a dtype that does not fit, or what is no strided tensor.
        ValueError: for a shape, a device or an axis that does not fit, an unknown activation, or final_abs=False where
            there is none.

    Source: Yu and Zhang, arXiv 2106.04088, Algorithm 1.

    >>> import torch, hanops
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> u = torch.tensor([[1.0, 0.0], [0.0, 3.0]])  # two layers: reflect the first axis, then the second
    >>> b = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    >>> hanops.han_stack(x, u, b)
    tensor([[0.5000, 1.5000]])
    """
    if has_torch_function_variadic(x, u, b):
        options: dict[str, Any] = {"final_abs": final_abs, "activation": activation}
        options |= {} if exact else {"exact": False}
        options |= {} if dim == -1 else {"dim": dim}
        options |= {"return_signs": True} if return_signs else {}
        return handle_torch_function(han_stack, (x, u, b), x, u, b, **options)  # type: ignore[arg-type]
    abs = activation == "abs" or _takes_abs("han_stack", activation)
    try:
        if return_signs:
            return _forward_op(*autocast.cast(x, u, b), final_abs, 2 if exact else 1, abs, dim)
        return _op(x, u, b, final_abs, abs) if exact and dim == -1 else _op(x, u, b, final_abs, abs, dim, exact=exact)
    except RuntimeError as error:  # of an argument that is no tensor, or no bool
        found = _OF_ANOTHER_TYPE.search(str(error))
        if found is None:
            raise
        wanted = found[1].replace("Optional[Tensor]", "Tensor or None")
        raise TypeError(f"han_stack: {found[2]} must be a {wanted}, got {found[3]}") from None


def han_layer(
    x: Tensor,
    u: Tensor,
    b: Tensor | None = None,
    *,
    final_abs: bool = True,
    activation: str | None = "abs",
    exact: bool = True,
    dim: int = -1,
) -> Tensor:
    """Applies one Han layer, |x - 2 (u . x) / |u|^2 u + b|.

    Args:
        x: (..., features); float64, float32, bfloat16 or float16, any strides.
        u: reflector, (features,), of any non-zero scale; the dtype of x or float32.
        b: bias of the shape and dtype of u, or None.
        final_abs: False leaves out the absolute value: a plain reflection plus bias.
        activation: 'abs', or None, which leaves it out too.
        exact, dim: as in `han_stack`.

    Returns:
        The output, contiguous, of the shape and dtype of x, or under autocast of its dtype.

    Raises:
        TypeError: for a dtype that does not fit, or what is no strided tensor.
        ValueError: for a shape or a device that does not fit, an unknown activation, or final_abs=False where there is
            none.

    Source: Yu and Zhang, arXiv 2106.04088, Algorithm 1.

    >>> import torch, hanops
    >>> hanops.han_layer(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]))
    tensor([2., 5.])
    """
    if has_torch_function_variadic(x, u, b):
        options: dict[str, Any] = {"final_abs": final_abs, "activation": activation}
        options |= {} if exact else {"exact": False}
        options |= {} if dim == -1 else {"dim": dim}
        return handle_torch_function(han_layer, (x, u, b), x, u, b, **options)  # type: ignore[arg-type]
    return han_stack(x, *_layer_as_stack(u, b), final_abs=final_abs, activation=activation, exact=exact, dim=dim)


def _layer_as_stack(u: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Returns u and b of one layer as those of a stack, after the checks that they are vectors."""
    for name, vector in (("u", u), ("b", b)):
        if vector is None and name == "b":
            continue
        if not isinstance(vector, Tensor):
            came = "None" if vector is None else type(vector).__name__
            raise TypeError(f"han_layer: {name} must be a Tensor, got {came}")
        if vector.layout != torch.strided or vector.is_nested:
            raise TypeError(f"han_layer: {name} must be a strided tensor, got one of layout {vector.layout}")
    if u.dim() != 1:
        raise ValueError(f"han_layer: u must have shape (features,), got {list(u.shape)}")
    if b is not None and b.dim() != 1:
        raise ValueError(f"han_layer: b must have shape (features,), got {list(b.shape)}")
    return u.unsqueeze(0), None if b is None else b.unsqueeze(0)


def _scripted_stack(
    x: Tensor,
    u: Tensor,
    b: Tensor | None = None,
    final_abs: bool = True,
    activation: str | None = "abs",
    exact: bool = True,
    dim: int = -1,
) -> Tensor:
    if activation is not None and activation != "abs":
        raise ValueError(f"han_stack: activation must be 'abs' or None, got {activation}")
    return torch.ops.hanops.han_stack(x, u, b, final_abs, activation is not None, dim, exact)


def _scripted_layer(
    x: Tensor,
    u: Tensor,
    b: Tensor | None = None,
    final_abs: bool = True,
    activation: str | None = "abs",
    exact: bool = True,
    dim: int = -1,
) -> Tensor:
    if u.dim() != 1:
        raise ValueError(f"han_layer: u must have shape (features,), got {u.shape}")
    if b is not None and b.dim() != 1:
        raise ValueError(f"han_layer: b must have shape (features,), got {b.shape}")
    bias = None if b is None else b.unsqueeze(0)
    return _scripted_stack(x, u.unsqueeze(0), bias, final_abs, activation, exact, dim)


# What TorchScript compiles in their place: its language has no `try`, and no defaults of keyword-only arguments.
han_stack.__prepare_scriptable__ = lambda: _scripted_stack  # type: ignore[attr-defined]
han_layer.__prepare_scriptable__ = lambda: _scripted_layer  # type: ignore[attr-defined]


def _take_expanded_weights(_: object) -> None:
    from hanops.ops import per_sample

    per_sample.implement(han_stack, lambda u, b: (u, b))
    per_sample.implement(han_layer, _layer_as_stack)


when_imported(_torch.EXPANDED_WEIGHTS, _take_expanded_weights)
