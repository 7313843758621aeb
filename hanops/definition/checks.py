"""Argument checks of the ops where C++ does not make them: fakes, and builds without native code.

csrc/checks.h raises the same errors in the same words.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hanops.definition.signs import layers_with_abs, signs_shape

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _fail(kind: type[Exception], message: str) -> None:
    raise kind(f"han_stack: {message}")


def check_strided(name: str, t: Tensor | None) -> None:
    """Checks that t is a strided tensor, which comes before every other check.

    Raises:
        TypeError: where it is not.
    """
    if t is None:
        _fail(TypeError, f"{name} must be a strided tensor, got None")
    elif t.is_nested:
        _fail(TypeError, f"{name} must be a strided tensor, got a nested tensor")
    elif t.layout != torch.strided:
        _fail(TypeError, f"{name} must be a strided tensor, got one of layout {t.layout}")


def check_abs(final_abs: bool, abs: bool) -> None:
    """Checks which layers are to take the absolute value: all, all but the last, or none.

    Raises:
        ValueError: where no layer is, and the last is told of on its own.
    """
    if not final_abs and not abs:
        _fail(ValueError, "final_abs must be True where no layer takes the absolute value, got False")


def check_dim(name: str, axes: int, dim: int, grouped: bool = False) -> int:
    """Checks the axis of the features, of an x (called `name` in messages) of so many axes.

    Returns:
        It, counted from the first axis.

    Raises:
        ValueError: where there is no such axis, or it is that of the groups.
    """
    if not -axes <= dim < axes:
        _fail(ValueError, f"dim must be an axis of {name}, from {-axes} to {axes - 1}, got {dim}")
    axis = dim % axes
    if grouped and axis == 0:
        _fail(ValueError, f"dim must not be the first axis of {name}, that of the groups, got {dim}")
    return axis


def check_stack(
    name: str, x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool = True, abs: bool = True, dim: int = -1
) -> None:
    """Checks the rows x (called `name` in messages), the reflectors u and the biases b.

    Raises:
        TypeError: for a dtype that does not fit, or what is no strided tensor.
        ValueError: for a shape, a device, an axis or a choice of absolute values that does not fit.
    """
    check_strided(name, x)
    check_strided("u", u)
    if b is not None:
        check_strided("b", b)
    check_abs(final_abs, abs)
    if x.dtype not in DTYPES:
        _fail(TypeError, f"{name} must be float64, float32, bfloat16 or float16, got {x.dtype}")
    if u.dtype not in (x.dtype, torch.float32):
        _fail(TypeError, f"u must have the dtype of {name} ({x.dtype}) or torch.float32, got {u.dtype}")
    if u.dim() not in (2, 3):
        shape = list(u.shape)
        _fail(ValueError, f"u must have shape (layers, features) or (groups, layers, features), got {shape}")
    if u.shape[-1] == 0:
        _fail(ValueError, f"u must have at least 1 feature, got shape {list(u.shape)}")
    if x.dim() < u.dim() - 1:
        wanted = "(..., features)" if u.dim() == 2 else "(groups, ..., features)"
        _fail(ValueError, f"{name} must have shape {wanted}, got {list(x.shape)}")
    axis = check_dim(name, x.dim(), dim, grouped=u.dim() == 3)
    if x.shape[axis] != u.shape[-1]:
        place = "the last axis" if axis == x.dim() - 1 else f"axis {axis}"
        _fail(ValueError, f"{place} of {name} must have u's {u.shape[-1]} features, got shape {list(x.shape)}")
    if u.dim() == 3 and x.shape[0] != u.shape[0]:
        _fail(ValueError, f"the first axis of {name} must have u's {u.shape[0]} groups, got shape {list(x.shape)}")
    if u.device != x.device:
        _fail(ValueError, f"u must be on the device of {name} ({x.device}), got {u.device}")
    if b is None:
        return
    if b.dtype != u.dtype:
        _fail(TypeError, f"b must have the dtype of u ({u.dtype}), got {b.dtype}")
    if b.shape != u.shape:
        _fail(ValueError, f"b must have the shape of u ({list(u.shape)}), got {list(b.shape)}")
    if b.device != x.device:
        _fail(ValueError, f"b must be on the device of {name} ({x.device}), got {b.device}")


def check_forward(
    x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool, save: int, abs: bool = True, dim: int = -1
) -> None:
    """Checks the arguments of `han_stack_forward`; `save` tells what it keeps for the backward.

    Raises:
        TypeError, ValueError: as `check_stack` does; ValueError for another `save`.
    """
    check_stack("x", x, u, b, final_abs, abs, dim)
    if save not in (0, 1, 2):
        _fail(ValueError, f"save must be 0 (nothing), 1 (signs) or 2 (signs and the rest of y), got {save}")


def check_backward(
    dy: Tensor,
    y: Tensor | None,
    signs: Tensor,
    u: Tensor,
    b: Tensor | None,
    final_abs: bool,
    needs: Sequence[bool],
    abs: bool = True,
    dim: int = -1,
) -> None:
    """Checks the arguments of `han_stack_backward`.

    Raises:
        TypeError: as `check_stack` does, and where signs is not uint8.
        ValueError: as `check_stack` does, and where y is missing, or y or signs has another shape or device than
            forward gives.
    """
    check_strided("dy", dy)
    if y is not None:
        check_strided("y", y)
    check_strided("signs", signs)
    check_stack("dy", dy, u, b, final_abs, abs, dim)
    if needs[1] and y is None:
        _fail(ValueError, "y must be given where du is needed, got None")
    if y is not None and (y.shape != dy.shape or y.dtype != dy.dtype):
        wanted, got = f"{list(dy.shape)}, {dy.dtype}", f"{list(y.shape)}, {y.dtype}"
        _fail(ValueError, f"y must have the shape and dtype of dy ({wanted}), got {got}")
    if y is not None and y.device != dy.device:
        _fail(ValueError, f"y must be on the device of dy ({dy.device}), got {y.device}")
    if signs.dtype != torch.uint8:
        _fail(TypeError, f"signs must be torch.uint8, got {signs.dtype}")
    shape, with_rest = (signs_shape(dy, layers_with_abs(u, final_abs, abs), save, dim) for save in (1, 2))
    if list(signs.shape) not in (shape, with_rest):
        wanted = f"{shape}" if with_rest == shape else f"{shape}, or {with_rest} with the rest of y"
        _fail(ValueError, f"signs must have shape {wanted}, got {list(signs.shape)}")
    if signs.device != dy.device:
        _fail(ValueError, f"signs must be on the device of dy ({dy.device}), got {signs.device}")
