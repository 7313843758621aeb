"""How a result is trusted: its error against float64 may be twice that of eager float32, plus a few roundings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import hanops
from hanops.definition import reference

Stack = Callable[..., Tensor]  # of x, u, b, final_abs and, where it is not True, abs

# final_abs and abs: which layers take the absolute value
ABSOLUTES = {"all": (True, True), "all but the last": (False, True), "none": (True, False)}


def stack(x: Tensor, u: Tensor, b: Tensor | None, final_abs: bool = True, abs: bool = True) -> Tensor:
    """The stack under test, as `check` calls it."""
    return hanops.han_stack(x, u, b, final_abs=final_abs, activation="abs" if abs else None)


@dataclass
class Problem:
    """Inputs of a stack: x and dy (..., features), u and b (layers, features) or with leading groups."""

    x: Tensor
    u: Tensor
    b: Tensor | None
    dy: Tensor
    final_abs: bool = True
    abs: bool = True

    def inputs(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        tensors = [t for t in (self.x, self.u, self.b) if t is not None]
        return [(t if dtype is None else t.to(dtype)).detach().requires_grad_() for t in tensors]

    def run(self, stack: Stack, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Returns y, dx, du and db of `stack`, computed from the inputs converted to `dtype`."""
        inputs = self.inputs(dtype)
        flags = (self.final_abs,) if self.abs else (self.final_abs, self.abs)
        y = stack(inputs[0], inputs[1], inputs[2] if self.b is not None else None, *flags)
        grads = torch.autograd.grad(y, inputs, self.dy.to(y.dtype))
        return dict(zip(("y", "dx", "du", "db"), (y.detach(), *grads), strict=False))


def problem(
    rows: int,
    features: int,
    layers: int,
    dtype: torch.dtype,
    *,
    groups: int | None = None,
    parameters: torch.dtype | None = None,
    bias: float | None = 0.3,
    scale: float = 1.0,
    final_abs: bool = True,
    abs: bool = True,
    aligned: bool | None = None,
    device: torch.device | str = "cpu",
) -> Problem:
    """Makes random inputs; x and dy are slices of larger tensors, so that their rows are not packed.

    Their rows are `aligned` for access by vectors, or not, or one or the other by chance.
    """
    lead = () if groups is None else (groups,)
    if aligned is None:
        aligned = bool(torch.rand(()) < 0.5)

    def rows_of(scale: float) -> Tensor:
        values = scale * torch.randn(*lead, rows, features, device=device, dtype=torch.float64)
        margin = (0, 16) if aligned else (2, 1)  # columns before and after: no row starts where another one ends
        wide = torch.empty(*values.shape[:-1], features + sum(margin), dtype=dtype, device=device)
        return wide.narrow(-1, margin[0], features).copy_(values)

    x, dy = rows_of(scale), rows_of(1.0)
    u = torch.randn(*lead, layers, features, device=device).to(parameters or dtype)
    b = None if bias is None else (bias * torch.randn(*lead, layers, features, device=device)).to(parameters or dtype)
    return Problem(x, u, b, dy, final_abs, abs)


def activations(p: Problem) -> list[Tensor]:
    """Returns x_0, z_1, z_2, ... in float64, each before its absolute value."""
    x, u = p.x.double(), p.u.double()
    zs = [x]
    for layer in range(u.shape[-2]):
        b = None if p.b is None else p.b.double()[..., layer : layer + 1, :]
        x = zs[-1] if layer == 0 or not p.abs else zs[-1].abs()
        zs.append(reference.han_stack(x, u[..., layer : layer + 1, :], b, final_abs=False))
    return zs


def within_rounding(z: Tensor, layers: int, dtype: torch.dtype) -> Tensor:
    """Tells which elements of z, behind so many layers, are within rounding of 0 for inputs of `dtype`."""
    eps = torch.finfo(reference.arithmetic_dtype(dtype)).eps / 2
    z = z.abs()
    return z <= eps * (4 + layers**0.5) * z.amax(-1, keepdim=True)


def near_kinks(p: Problem, zs: list[Tensor]) -> Tensor:
    """Tells which rows have some |z| within rounding of 0, where either derivative is right."""
    near = torch.zeros(p.x.shape[:-1], dtype=torch.bool, device=p.x.device)
    for layer, z in enumerate(zs[1:], start=1):
        if p.abs and (layer < len(zs) - 1 or p.final_abs):
            near |= within_rounding(z, layer, p.x.dtype).any(-1)
    return near


def leave_kinks(p: Problem) -> tuple[list[Tensor], int]:
    """Moves rows off kinks: rolls the features of their x, and after five times sets their dy = 0.

    Returns the activations, and how many rows have dy = 0.
    """
    for _ in range(5):
        zs = activations(p)
        near = near_kinks(p, zs)
        if not near.any():
            return zs, 0
        p.x[near] = p.x[near].roll(1, -1)
    zs = activations(p)
    near = near_kinks(p, zs)
    p.dy[near] = 0
    return zs, int(near.sum())


def norms(t: Tensor, p: Problem, by_layer: bool = False) -> Tensor:
    """Returns the Frobenius norms of the groups of t, (groups, 1), or of their layers, (groups, layers).

    A stack without groups is one group: each is a stack of its own, whose u may be much longer than another one's.
    """
    t = t.double() if p.u.dim() == 3 else t.double().unsqueeze(0)
    return t.norm(dim=-1) if by_layer else t.flatten(1).norm(dim=1, keepdim=True)


def relative(value: Tensor, truth: Tensor) -> float:
    """Returns |value - truth| / |truth|, 0 where both are 0."""
    error, norm = (value.double() - truth).norm().item(), truth.norm().item()
    return error / norm if norm else (0.0 if error == 0 else float("inf"))


def assert_same(value: Tensor, other: Tensor, exactly: bool) -> None:
    """Asserts that two results of one computation agree: bit for bit, or but for the order of their sums."""
    arithmetic = reference.arithmetic_dtype(value.dtype)
    bound = 0.0 if exactly else torch.finfo(value.dtype).eps + 64 * torch.finfo(arithmetic).eps
    assert relative(value, other.double()) <= bound


def eager_runs(p: Problem) -> list[dict[str, Tensor]]:
    """Runs the eager formula, each time rounded otherwise: with the features, and so the sums, in another order.

    Two features have but one order, and the error of w = u / |u| is the same in every row: so each layer's u also gets
    another length, which its w does not have in exact arithmetic. More often in float64, whose truth is one of these
    runs itself, so that only their spread tells its error, and for few features, of which one run may err by little.
    """
    dtype = reference.arithmetic_dtype(p.x.dtype)
    runs = 9 if dtype == torch.float64 or p.x.shape[-1] < 8 else 2
    u = p.u.double()
    largest = u.abs().amax(-1, keepdim=True)
    results = []
    for run in range(runs):
        features, factor = torch.arange(p.x.shape[-1]), torch.ones_like(largest)
        if run > 0:
            features = torch.randperm(p.x.shape[-1])
            factor = (1 + torch.rand_like(largest)) / torch.where(largest == 0, 1, largest)
        back = features.argsort()
        b = None if p.b is None else p.b[..., features]
        shuffled = Problem(
            p.x[..., features], (u * factor)[..., features].to(dtype), b, p.dy[..., features], p.final_abs, p.abs
        )
        result = {name: value[..., back] for name, value in shuffled.run(reference.han_stack, dtype).items()}
        results.append(result | {"du": result["du"] * factor})  # of u itself
    return results


def check(stack: Stack, p: Problem) -> int:
    """Asserts that `stack` is as exact on `p` as its dtype allows; returns the number of silenced rows."""
    zs, silenced = leave_kinks(p)
    rows = p.x.numel() // p.x.shape[-1]
    assert silenced <= rows / 2, f"{silenced} of {rows} rows lie on a kink: the test would say little"
    compare(stack, p, zs)
    return silenced


def compare(stack: Stack, p: Problem, zs: list[Tensor]) -> None:
    """Asserts the same of a problem whose rows near a kink have dy = 0, or that has none; zs are its activations.

    The bound is 2 * (error of eager float32, rounded once) + c * eps * max_l |x_L| / |x_l|, with c = 16 + L / 25 and
    eps half an ulp of y's dtype: rebuilding x_l from a rounded y costs that much. For float64 the eager error is that
    of float64 itself, as the spread of its runs. Each group is measured by itself, as a stack of its own.
    du is measured layer by layer, relative to the layer's own norm or, where that is smaller, to that of the median
    layer or of random terms: in a deep stack, or with one row, some gradients cancel almost to nothing.
    """
    truth, eager, got = p.run(reference.han_stack, torch.float64), eager_runs(p), p.run(stack)
    sizes = torch.stack([norms(z, p) for z in zs])
    layers = len(zs) - 1
    growth = torch.where(sizes == 0, 1, sizes[-1] / sizes).amax(0)
    allowance = (16 + layers / 25) * torch.finfo(p.x.dtype).eps / 2 * growth
    dy = norms(p.dy, p)
    for name, value in got.items():
        assert value.shape == truth[name].shape
        assert value.dtype == (p.x if name in ("y", "dx") else p.u).dtype
        assert value.isfinite().all(), f"{name} is not finite"
        by_layer = name == "du"
        scale = norms(truth[name], p, by_layer)
        if by_layer:
            # A layer's gradient may cancel. It is a sum over rows of 2 (alpha gz + beta x) / |u|, and alpha = w . x is
            # |x| / sqrt(d) for a row of random x, beta alike: `terms` is its norm then.
            lengths = norms(p.u, p, True)
            inverse = torch.where(lengths == 0, 0, 1 / lengths)  # where u = 0, du is exactly 0
            typical = (scale * lengths).median(-1, keepdim=True).values * inverse
            terms = 8**0.5 * dy * sizes[0] * inverse / (p.x.numel() / len(dy)) ** 0.5
            scale = torch.maximum(scale, torch.maximum(typical, terms))
        if name == "db":  # a sum over rows of terms as large as dy, which may cancel
            scale = torch.maximum(scale, dy)
        errors = [norms(run[name].to(value.dtype) - truth[name], p, by_layer) for run in eager]
        yardstick = torch.stack(errors).amax(0)
        error, bound = norms(value - truth[name], p, by_layer), 2 * yardstick + allowance * scale
        if not (error <= bound).all():
            group, layer = at = divmod(int((error - bound).argmax()), error.shape[-1])
            place = (f"[{layer}]" if by_layer else "") + (f" of group {group}" if len(error) > 1 else "")
            raise AssertionError(
                f"{name}{place}: error {error[at] / scale[at]:.2e},"
                f" eager {yardstick[at] / scale[at]:.2e}, allowance {allowance[group, 0]:.2e}"
            )
