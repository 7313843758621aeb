"""Chains of reflections, and the inverse of every stack: orthogonal matrices as products of Householder reflections."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hanops.backends import by_rows, plain_torch
from hanops.definition.checks import check_backward, check_stack
from hanops.definition.signs import is_last, layers_with_abs
from hanops.functional import _takes_abs, han_stack
from hanops.ops import autocast


def han_stack_inverse(
    y: Tensor,
    u: Tensor,
    b: Tensor | None = None,
    *,
    final_abs: bool = True,
    activation: str | None = "abs",
    signs: Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    """Returns the x of which `han_stack` with the same u, b and options gives y.

    With absolute values it needs their signs, which `han_stack(..., return_signs=True)` gives, and runs in plain torch,
    layer by layer. Without an activation the inverse is a chain itself, one kernel: the layers in reverse order, their
    biases reflected. It is differentiable in y, u and b. Autocast does not change its dtypes.

    Args:
        y: (..., features), or (groups, ..., features) for grouped stacks; float64, float32, bfloat16 or float16.
        u, b, final_abs, activation, dim: as given to `han_stack`.
        signs: the sign bits of the forward, where the activation is 'abs'.

    Returns:
        x, of the shape and dtype of y. It is as exact as y is: in bfloat16 y has 8 bits, or with its signs 16.

    Raises:
        TypeError: for a dtype that does not fit, what is no strided tensor, or signs that are not uint8.
        ValueError: for a shape or a device that does not fit, signs that lack, or that no layer has.

    >>> import torch, hanops
    >>> x, u, b = torch.randn(5, 8), torch.randn(3, 8), torch.randn(3, 8)
    >>> y, signs = hanops.han_stack(x, u, b, return_signs=True)
    >>> torch.testing.assert_close(hanops.han_stack_inverse(y, u, b, signs=signs), x)
    >>> y = hanops.han_stack(x, u, b, activation=None)
    >>> torch.testing.assert_close(hanops.han_stack_inverse(y, u, b, activation=None), x)
    """
    abs = _takes_abs("han_stack_inverse", activation)
    check_stack("y", y, u, b, final_abs, abs, dim)
    if abs:
        if signs is None:
            raise ValueError(
                "han_stack_inverse: signs must be given where the activation is 'abs', got None:"
                " han_stack(..., return_signs=True) gives them; a chain has activation=None"
            )
        check_backward(y, y, signs, u, b, final_abs, [False] * 3, dim=dim)
        abs_layers = layers_with_abs(u, final_abs)
        if is_last(dim, y.dim()):
            return plain_torch.inverse(y, signs, u, b, abs_layers)
        of_rows = by_rows.signs_of(y, signs, abs_layers, dim)
        return plain_torch.inverse(y.movedim(dim, -1), of_rows, u, b, abs_layers).movedim(-1, dim).contiguous()
    if signs is not None:
        raise ValueError("han_stack_inverse: signs must be None where the activation is None")
    if b is not None:  # each reflected along its own u: x = (y - b) H = y H - b H
        with autocast.disabled(u):
            apart = han_stack(b.flatten(0, -2).unsqueeze(1), u.flatten(0, -2).unsqueeze(1), activation=None)
        b = -apart.view(b.shape).flip(-2)
    with autocast.disabled(y):
        return han_stack(y, u.flip(-2), b, activation=None, dim=dim)


def orthogonal(u: Tensor, columns: int | None = None) -> Tensor:
    """Returns the matrix Q of a chain of reflections, Q = H_1 H_2 ... H_L, or its first columns.

    H_l = I - 2 u_l u_l' / |u_l|^2. For rows x, `han_stack(x, u, activation=None)` is x @ Q.

    Args:
        u: reflectors, (layers, features) or (groups, layers, features), of any non-zero scale; float64, float32,
            bfloat16 or float16.
        columns: how many, from 0 to features; None: all.

    Returns:
        (features, columns) or (groups, features, columns), in the dtype of u, also under autocast. The columns are
        orthonormal.

    Raises:
        TypeError: for a dtype that does not fit, or what is no strided tensor.
        ValueError: for a shape or a number of columns that does not fit.

    >>> import torch, hanops
    >>> q = hanops.orthogonal(torch.randn(3, 8), columns=2)
    >>> torch.testing.assert_close(q.mT @ q, torch.eye(2))
    """
    if not isinstance(u, Tensor):
        raise TypeError(f"orthogonal: u must be a Tensor, got {type(u).__name__}")
    if u.dim() not in (2, 3):
        raise ValueError(
            f"orthogonal: u must have shape (layers, features) or (groups, layers, features), got {list(u.shape)}"
        )
    features = u.shape[-1]
    columns = features if columns is None else columns
    if isinstance(columns, bool) or not isinstance(columns, (int, torch.SymInt)):
        raise TypeError(f"orthogonal: columns must be an int, got {columns!r}")
    if not 0 <= columns <= features:
        raise ValueError(f"orthogonal: columns must be from 0 to u's {features} features, got {columns}")
    # Column j of Q is H_1 ... H_L e_j: the chain in reverse order, on the rows of the identity.
    rows = torch.eye(columns, features, dtype=u.dtype, device=u.device)
    if u.dim() == 3:
        rows = rows.expand(u.shape[0], columns, features)
    with autocast.disabled(u):
        return han_stack(rows, u.flip(-2), activation=None).mT


class Householder(nn.Module):
    """A parametrization: a matrix with orthonormal columns as a product of Householder reflections.

    For `torch.nn.utils.parametrize.register_parametrization(module, "weight", hanops.Householder())`. A matrix
    (rows, columns) with rows >= columns, or a batch of such, is the first columns of H_1 ... H_columns, each with a
    fixed sign; a wide one is the transpose of a tall one. The parameter, `parametrizations.weight.original`, has the
    shape of the tall matrix's transpose: one reflector in each row, of any scale. An orthonormal matrix keeps its value
    when it is registered or assigned; of any other, the Q of its QR decomposition is taken.

    Raises:
        ValueError: for a tensor with fewer than 2 or more than 3 axes.

    Source: Householder, 1958; the reflectors of a matrix are LAPACK's geqrf.

    >>> import torch, hanops
    >>> linear = torch.nn.Linear(4, 6)
    >>> linear = torch.nn.utils.parametrize.register_parametrization(linear, "weight", hanops.Householder())
    >>> torch.testing.assert_close(linear.weight.mT @ linear.weight, torch.eye(4))
    """

    signs: Tensor | None  # of the columns, (..., 1, columns); a buffer, for they are no parameters
    is_wide: bool

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("signs", None)
        self.is_wide = False

    def forward(self, u: Tensor) -> Tensor:
        """Returns the matrix of the reflectors u, (..., columns, rows)."""
        q = orthogonal(u, u.shape[-2])
        if self.signs is not None:
            q = q * self.signs
        return q.mT if self.is_wide else q

    @torch.no_grad()
    def right_inverse(self, matrix: Tensor) -> Tensor:
        """Returns reflectors of a matrix, (..., columns, rows)."""
        if matrix.dim() not in (2, 3):
            raise ValueError(
                f"Householder: the tensor must have shape (rows, columns) or (groups, rows, columns), got"
                f" {list(matrix.shape)}"
            )
        self.is_wide = matrix.shape[-2] < matrix.shape[-1]
        tall = (matrix.mT if self.is_wide else matrix).double()
        packed, scales = torch.geqrf(tall)
        # LAPACK's H = I - tau v v' with v = (0, ..., 0, 1, ...). Where tau is 0, it is the identity: e_l with its sign.
        reflectors = packed.tril(-1)
        reflectors.diagonal(dim1=-2, dim2=-1).fill_(1)
        diagonal = packed.diagonal(dim1=-2, dim2=-1)
        signs = torch.where((diagonal < 0) != (scales == 0), -1.0, 1.0)
        self.signs = signs.unsqueeze(-2).to(matrix)
        return reflectors.mT.to(matrix.dtype).contiguous()
