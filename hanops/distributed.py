"""A Han stack over several devices, each of which holds a part of the features: tensor parallelism.

A layer needs one number of a whole row, w . x, so the devices exchange one scalar for each row and layer forward and
two backward, where a tensor-parallel Linear exchanges whole rows. docs/scaling.md counts the bytes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad

if not dist.is_available():
    raise ImportError("hanops.distributed: this build of torch has no torch.distributed")

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle

from hanops import _torch
from hanops.backends.plain_torch import as_rows, by_layer, kept, plus_minus, split
from hanops.definition.checks import check_stack
from hanops.definition.reference import arithmetic_dtype
from hanops.definition.signs import is_chunked, layers_with_abs, pack, signs_shape
from hanops.modules import HanStack, _with_axis, is_innermost
from hanops.ops import autocast
from hanops.ops.autograd import is_differentiated

__all__ = ["ShardFeatures", "shard_features"]


def _total(part: Tensor, group: dist.ProcessGroup, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """Returns the sum of all devices' parts, in place: the same bits on each of them."""
    if part.numel():
        dist.all_reduce(part, op, group)
    return part


def _lengths(u: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Returns the largest element of each u over all devices and |u| over it, both 1 where u = 0: |u| may overflow."""
    largest = _total(u.abs().amax(-1, keepdim=True), group, dist.ReduceOp.MAX)
    largest = torch.where(largest == 0, 1, largest)
    squares = _total((u / largest).square().sum(-1, keepdim=True), group)
    return largest, torch.where(squares == 0, 1, squares).sqrt()


def _dot(rows: Tensor, w: Tensor) -> Tensor:
    return (rows * w).sum(-1, keepdim=True)


class _HanStack(torch.autograd.Function):
    """The stack on one device's features of every row. It keeps what the kernels keep: y, and one bit per element."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, u: Tensor, b: Tensor | None, abs_layers: int, save: int, group: dist.ProcessGroup
    ) -> Tensor:
        dtype = arithmetic_dtype(x.dtype)
        wide = by_layer(u).to(dtype)
        largest, size = _lengths(wide, group)
        w = wide / largest / size
        y = x.to(dtype, copy=True, memory_format=torch.contiguous_format)
        rows = as_rows(y, u)  # a view
        signs = x.new_empty(signs_shape(rows, abs_layers), dtype=torch.uint8) if save else None
        for layer in range(u.shape[-2]):
            w_l = w[:, layer, None]
            alpha = _total(_dot(rows, w_l), group)
            rows.addcmul_(alpha, w_l, value=-2)
            if b is not None:
                rows.add_(by_layer(b)[:, layer, None])
            if layer < abs_layers:
                if signs is not None:
                    signs[..., layer, :] = pack(torch.signbit(rows), is_chunked(x.device))
                rows.abs_()
        exact, y = rows, _torch.own_output(y, x.dtype)
        if signs is not None:
            signs = kept(exact, as_rows(y, u), signs, abs_layers, save)
        rebuild = ctx.needs_input_grad[1]  # y serves to rebuild the activations, which only du asks for
        ctx.save_for_backward(y if rebuild else None, signs, u, b if rebuild else None, largest, size)
        ctx.set_materialize_grads(False)
        ctx.abs_layers, ctx.group = abs_layers, group
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("ShardFeatures: there are no second derivatives, so create_graph must be False")
        if dy is None:
            return (None,) * 6
        y, signs, u, b, largest, size = ctx.saved_tensors
        signs, y = split(signs, y, ctx.abs_layers)
        needs_dx, needs_du, needs_db = ctx.needs_input_grad[:3]
        dtype = arithmetic_dtype(dy.dtype)
        w = by_layer(u).to(dtype) / largest / size
        g = as_rows(dy, u).to(dtype, copy=True)
        x = as_rows(y, u).to(dtype, copy=True) if y is not None else None
        silent = (g == 0).all(-1, keepdim=True) if needs_du else None  # on this device
        dw, db = torch.zeros_like(w), torch.zeros_like(w)
        for layer in reversed(range(u.shape[-2])):
            w_l = w[:, layer, None]
            s = plus_minus(signs, layer, g)
            g.mul_(s)
            db[:, layer] = g.sum(-2)
            if x is None:
                beta = _total(_dot(g, w_l), ctx.group)
            else:
                x.mul_(s)
                if b is not None:
                    x.sub_(by_layer(b)[:, layer, None])
                alpha, beta = _total(torch.stack([-_dot(x, w_l), _dot(g, w_l)]), ctx.group)
                if silent is not None:
                    # A row whose dy is 0 on all devices adds 0 to du, whatever its y holds. Where dy is 0 here alone,
                    # others keep the NaN that alpha carries, and it comes back with their next sums.
                    spoilt, silent = silent & (beta == 0) & ~alpha.isfinite(), None
                    x.masked_fill_(spoilt, 0)
                    alpha = alpha.masked_fill(spoilt, 0)
                x.addcmul_(alpha, w_l, value=2)
                dw[:, layer] = -2 * (alpha * g).addcmul_(beta, x).sum(-2)
            g.addcmul_(beta, w_l, value=-2)
        if needs_du:
            dw.addcmul_(_total(_dot(w, dw), ctx.group), w, value=-1).div_(size).div_(largest)
        return (
            g.reshape(dy.shape).to(dy.dtype) if needs_dx else None,
            dw.reshape(u.shape).to(u.dtype) if needs_du else None,
            db.reshape(u.shape).to(u.dtype) if needs_db else None,
            None,
            None,
            None,
        )


class ShardedHanStack(HanStack):
    """A `HanStack` whose parameters are DTensors, sharded over their features. `ShardFeatures` makes it."""

    u: DTensor  # type: ignore[assignment]
    b: DTensor | None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Returns the stack's output: this device's features where x is a plain tensor, a DTensor where x is one.

        Args:
            x: this device's features of every row, or a DTensor on the mesh of the parameters. A DTensor that is
                not sharded over its features is redistributed so.

        Raises:
            ValueError: for a shape or a mesh that does not fit.
        """
        name, mesh = type(self).__name__, self.u.device_mesh
        _with_axis(name, x, self.dim, self.groups is not None)
        dim = self.dim
        u, b = _torch.local_shard(self.u), None if self.b is None else _torch.local_shard(self.b)
        if not isinstance(x, DTensor):
            if x.shape[dim] != u.shape[-1]:
                wanted = f"this device's {u.shape[-1]} of {self.features} features along axis {dim}"
                raise ValueError(f"{name}: x must have {wanted}, or be a DTensor, got shape {list(x.shape)}")
            return self._run(x, u, b, is_innermost(x, dim))
        if x.device_mesh != mesh:
            raise ValueError(f"{name}: x must be on the mesh of the parameters, {mesh}, got {x.device_mesh}")
        if x.shape[dim] != self.features:
            raise ValueError(f"{name}: x must have {self.features} features along axis {dim}, got {list(x.shape)}")
        placements = [Shard(dim % x.dim())]
        keeps_order = is_innermost(x, dim)
        y = self._run(_torch.local_shard(x.redistribute(placements=placements)), u, b, keeps_order)
        like = torch.empty(x.movedim(dim, -1).shape, device="meta").movedim(-1, dim)
        like = like if keeps_order else like.contiguous()
        return DTensor.from_local(y, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())

    def _run(self, x: Tensor, u: Tensor, b: Tensor | None, keeps_order: bool) -> Tensor:
        """Returns the output of this device's part; its features are innermost in memory, or it is contiguous."""
        x, u, b = autocast.cast(x, u, b)
        rows = x if self.dim == -1 else x.movedim(self.dim, -1)
        empty = u.shape[-1] == 0  # there may be more devices than chunks: a feature that stays 0 takes part in the sums
        if empty:
            rows, u = pad(rows, (0, 1)), pad(u, (0, 1))
            b = None if b is None else pad(b, (0, 1))
        check_stack("x", rows, u, b)
        save = 2 if self.exact and is_differentiated(u) else int(is_differentiated(rows, u, b))
        abs_layers = layers_with_abs(u, self.final_abs, self.activation is not None)
        y = _HanStack.apply(rows, u, b, abs_layers, save, self.u.device_mesh.get_group())
        y = y[..., :0] if empty else y
        y = y.movedim(-1, self.dim)
        return y if keeps_order else y.contiguous()


@cache
def _sharded(kind: type[HanStack]) -> type[HanStack]:
    """Returns the sharded class of a HanStack's class: it keeps what a subclass adds."""
    return type(f"Sharded{kind.__name__}", (kind, ShardedHanStack), {}) if kind is not HanStack else ShardedHanStack


class ShardFeatures(ParallelStyle):
    """Shards the features of a `HanStack` over a mesh, in `torch.distributed.tensor.parallel.parallelize_module`.

    u and b become DTensors, sharded over their last axis as `torch.chunk` splits it; the module then takes and gives
    rows whose features are sharded alike: what `ColwiseParallel` gives and `RowwiseParallel` takes. Plain tensors are
    the shards themselves, and every device has all rows; a DTensor comes back as one.

    Each layer all-reduces one scalar per row forward, two backward, and two (forward) and one (backward) for itself:
    of 4 bytes, or 8 in float64. Results are the same in every run. There are no second derivatives.

    Source: Yu and Zhang, arXiv 2106.04088, Algorithm 1; docs/scaling.md.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, HanStack):
            raise TypeError(f"ShardFeatures: module must be a HanStack, got {type(module).__name__}")
        if isinstance(module, ShardedHanStack):
            raise ValueError("ShardFeatures: module is sharded already")
        if device_mesh.ndim != 1:
            raise ValueError(f"ShardFeatures: mesh must have one dimension, got {device_mesh}; slice it: mesh['tp']")
        for name, p in list(module.named_parameters(recurse=False)):
            shards = distribute_tensor(p.detach(), device_mesh, [Shard(p.dim() - 1)], src_data_rank=self.src_data_rank)
            module.register_parameter(name, nn.Parameter(shards, requires_grad=p.requires_grad))
        module.__class__ = _sharded(type(module))  # type: ignore[arg-type]
        return module


def shard_features(stack: HanStack, mesh: DeviceMesh) -> HanStack:
    """Shards a Han stack's features over the devices of a mesh, in place, and returns it: see `ShardFeatures`.

    Args:
        stack: on every device of the mesh; the values are those of the first.
        mesh: of one dimension.

    Raises:
        TypeError: where stack is not a HanStack.
        ValueError: where it is sharded already, or the mesh has more dimensions.

    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun sets this up for more
    >>> mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    >>> stack = shard_features(HanStack(8, depth=3), mesh)
    >>> stack(torch.randn(5, 8)).shape, stack.u.placements
    (torch.Size([5, 8]), (Shard(dim=1),))
    >>> dist.destroy_process_group()
    """
    ShardFeatures()._apply(stack, mesh)
    return stack
