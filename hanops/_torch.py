"""The private names of torch that hanops uses, and what differs between its versions: no other file has any.

`make matrix` tries each of them on every version of torch (tests/test_torch_versions.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch._functorch.utils import enable_single_level_autograd_function
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction as SingleLevelFunction
from torch.nn.modules.dropout import _DropoutNd as Dropout

__all__ = [
    "EXPANDED_WEIGHTS",
    "Dropout",
    "OpOverload",
    "SingleLevelFunction",
    "below_autograd",
    "compiled_autograd_id",
    "enable_single_level_autograd_function",
    "expanded_weights",
    "has_hooks",
    "has_kernel",
    "has_tangent",
    "jagged_axis",
    "jagged_like",
    "jagged_values",
    "local_shard",
    "next_transform",
    "own_output",
    "register_decomposition",
    "scan",
    "tell_calls_apart",
    "without_autocast",
]

_VIEWS = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)

# ---- autograd and the dispatcher


def has_tangent(*tensors: Tensor | None) -> bool:
    """Tells whether forward mode derives a call on these tensors."""
    # Level 0 is the only one. forward_ad.unpack_dual sees none where it was entered from C, as in compiled graphs.
    return any(
        t is not None
        and t.layout == torch.strided
        and not t.is_nested
        and torch._VF._unpack_dual(t, level=0)[1] is not None
        for t in tensors
    )


def below_autograd() -> Any:
    """Returns a context in which an op is called below autograd."""
    return torch._C._AutoDispatchBelowAutograd()


@contextmanager
def next_transform() -> Iterator[None]:
    """Makes a context in which an op is called below autograd, and the next transform outward may derive it."""
    with (
        torch.enable_grad(),
        forward_ad._set_fwd_grad_enabled(True),
        torch._C._AutoDispatchBelowAutograd(),
        torch._C._ExcludeDispatchKeyGuard(_VIEWS),
    ):
        yield


def without_autocast(device_type: str) -> Any:
    """Returns a context in which an op is called below the autocast of a type of device, 'cpu' or 'cuda'."""
    key = getattr(torch._C.DispatchKey, f"Autocast{device_type.upper()}")
    return torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key))


def has_kernel(op: str, key: str) -> bool:
    """Tells whether an op, by its name with the namespace, has an implementation of its own for a dispatch key."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(op, key)


def compiled_autograd_id(ctx: Any) -> int:
    """Returns the number by which compiled autograd knows a node's class."""
    return ctx._autograd_function_id


def has_hooks(t: Tensor) -> bool:
    """Tells whether a tensor has hooks on its gradient."""
    return bool(t._backward_hooks or t._post_accumulate_grad_hooks)


# ---- jagged nested tensors


def jagged_values(x: Tensor) -> Tensor:
    """Returns the values of a jagged tensor: its rows one after the other."""
    return torch.ops.aten._nested_get_values(x)


def jagged_axis(x: Tensor) -> int:
    """Returns the axis of a jagged tensor that has many lengths."""
    return torch.ops.aten._nested_get_ragged_idx(x)


def jagged_like(x: Tensor, values: Tensor) -> Tensor:
    """Returns a jagged tensor of these values with the offsets of x."""
    aten = torch.ops.aten
    return aten._nested_view_from_jagged(
        values,
        aten._nested_get_offsets(x),
        aten._nested_get_jagged_dummy(x),
        aten._nested_get_lengths(x),
        aten._nested_get_ragged_idx(x),
        aten._nested_get_min_seqlen(x),
        aten._nested_get_max_seqlen(x),
    )


# ---- DTensors, and Functions that torch.compile traces

_LOSES_GRADIENTS = torch.__version__ < "2.13"  # 2.11 does, 2.13 does not; 2.12 was not tried


def own_output(y: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns y in a dtype, in new memory where that is needed for a result of a Function.

    The compiler of torch 2.11 returns every intermediate tensor of a Function beside its results. The gradient of a
    result that is one of them, as `y.to(y.dtype)` is, comes back as zeros.
    """
    return y.to(dtype, copy=_LOSES_GRADIENTS and torch.compiler.is_compiling())


class _Local(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Any) -> Tensor:
        ctx.like = t.device_mesh, t.placements, t.shape, t.stride()
        shard = t.to_local()
        return shard.view_as(shard)  # autograd writes into what is returned

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        from torch.distributed.tensor import DTensor

        mesh, placements, shape, stride = ctx.like
        return DTensor.from_local(grad, mesh, placements, run_check=False, shape=shape, stride=stride)


def local_shard(t: Any) -> Tensor:
    """Returns this device's shard of a DTensor, whose gradient comes back with the placements of t.

    The gradient of `to_local()` has the strides of even shards. Where those are not t's, autograd copies it, and torch
    2.11 replicates a copy of uneven shards.
    """
    return _Local.apply(t)


# ---- what is slow to import, and so is imported by the call

EXPANDED_WEIGHTS = "torch.nn.utils._expanded_weights"


def expanded_weights() -> Any:
    """Returns torch's module of ExpandedWeights, which has the class and what a function that knows it is made with."""
    module = import_module(f"{EXPANDED_WEIGHTS}.expanded_weights_impl")
    tools = import_module(f"{EXPANDED_WEIGHTS}.expanded_weights_utils")
    return module, tools


def scan(step: Callable[..., list[Tensor]], carried: list[Tensor], each: list[Tensor]) -> list[Tensor]:
    """Returns what a loop over the first axis of `each` makes, of which a graph gets one node.

    Args:
        step: takes what is carried and a slice of each, and returns what is carried on and what is stacked.
        carried: where the loop starts.
        each: tensors of one length, at least 1.
    """
    from torch._higher_order_ops.scan import scan_op

    return list(scan_op(step, carried, each, ()))


def tell_calls_apart(op: Any) -> None:
    """Makes DTensor's cache of sharding decisions tell an op's calls apart by its flags and by which tensors are None.

    `register_sharding` leaves it with the tensors' shapes alone.
    """
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._op_schema import RuntimeSchemaInfo

    known = DTensor._op_dispatcher.sharding_propagator.op_to_schema_info
    known[op] = RuntimeSchemaInfo(1, needs_pytree=True)
