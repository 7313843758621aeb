"""Of torch's functorch/test_ops and test_vmap: grad, vjp, jvp, vmap, and each inside another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from .machinery import (
    DEVICES,
    F64,
    SampleInput,
    TestCase,
    function_of,
    instantiate_device_type_tests,
    like,
    ops,
    tensors,
)
from .op_db import op_db

BATCH = 3
Function = Callable[..., Any]
Dims = tuple[int | None, ...]


# ---- what transforms are compared with: autograd.grad, and a loop over the batch


def flat(function: Function) -> Function:
    """Returns function with its results as a tuple of tensors."""
    return lambda *args: tuple(tensors(function(*args)))


def pulled(results: Sequence[Tensor], leaves: Sequence[Tensor], cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Returns gradients of the results that have any, in a graph that can be derived again; 0 where none has."""
    chosen = [(t, v) for t, v in zip(results, cotangents, strict=True) if t.requires_grad]
    if not chosen:
        return tuple(torch.zeros_like(t) for t in leaves)
    some, vs = zip(*chosen, strict=True)
    return torch.autograd.grad(some, leaves, vs, create_graph=True, materialize_grads=True)


def recorded_vjp(function: Function, primals: Sequence[Tensor], cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
    leaves = [t if t.requires_grad else t.detach().requires_grad_() for t in primals]
    return pulled(function(*leaves), leaves, cotangents)


def recorded_jvp(function: Function, primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Returns J t, as the gradient in v of v J t: two backward passes."""
    cotangents = [torch.zeros_like(t).requires_grad_() for t in function(*primals)]
    return pulled(recorded_vjp(function, primals, cotangents), cotangents, tangents)


def looped(function: Function, in_dims: Dims) -> Function:
    """Returns vmap(function, in_dims) by a loop."""

    def loop(*batched: Tensor) -> tuple[Tensor, ...]:
        each = [
            flat(function)(*(t if d is None else t.select(d, i) for t, d in zip(batched, in_dims, strict=True)))
            for i in range(BATCH)
        ]
        return tuple(torch.stack(list(parts)) for parts in zip(*each, strict=True))

    return loop


def batches(primals: Sequence[Tensor], choices: Sequence[int | None]) -> Iterator[tuple[Dims, tuple[Tensor, ...]]]:
    """Yields in_dims, each of the choices for each tensor but not None for all of them, and batches to fit."""
    for in_dims in product(choices, repeat=len(primals)):
        if any(d is not None for d in in_dims):
            yield (
                in_dims,
                tuple(
                    t if d is None else torch.stack([t, *(like(t) for _ in range(BATCH - 1))], d)
                    for t, d in zip(primals, in_dims, strict=True)
                ),
            )


def few_batches(primals: Sequence[Tensor]) -> Iterator[tuple[Dims, tuple[Tensor, ...]]]:
    """Yields batches of all tensors, of the first one alone and of the last one alone."""
    for in_dims, batched in batches(primals, (0, None)):
        if in_dims in ((0,) * len(primals), (0, *(None,) * (len(primals) - 1)), (*(None,) * (len(primals) - 1), 0)):
            yield in_dims, batched


def vjp_of(function: Function, count: int) -> Function:
    """Returns the function of `count` primals and of cotangents that gives the results and the gradients."""

    def both(*args: Tensor) -> tuple[Tensor, ...]:
        results, pull = vjp(function, *args[:count])
        return (*results, *pull(tuple(args[count:])))

    return both


def jvp_of(function: Function, count: int) -> Function:
    """Returns the function of `count` primals and of tangents that gives the results and their tangents."""

    def both(*args: Tensor) -> tuple[Tensor, ...]:
        results, tangents = jvp(function, args[:count], args[count:])
        return (*results, *tangents)

    return both


def recorded_vjp_of(function: Function, count: int) -> Function:
    return lambda *args: (*function(*args[:count]), *recorded_vjp(function, args[:count], args[count:]))


class TestOperators(TestCase):
    def _samples(self, device: Any, dtype: torch.dtype, op: Any) -> Iterator[tuple[Function, tuple[Tensor, ...]]]:
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            function, primals = function_of(op, sample)
            yield flat(function), primals

    @ops(op_db, allowed_dtypes=F64)
    def test_grad(self, device, dtype, op):
        for function, primals in self._samples(device, dtype, op):

            def loss(*args: Tensor) -> Tensor:
                return sum(t.square().sum() for t in function(*args))

            places = tuple(range(len(primals)))
            self.assertEqual(
                grad(loss, places)(*primals),
                recorded_vjp(lambda *a: (loss(*a),), primals, [torch.ones((), dtype=dtype)]),
            )

    @ops(op_db, allowed_dtypes=F64)
    def test_vjp(self, device, dtype, op):
        for function, primals in self._samples(device, dtype, op):
            cotangents = [torch.randn_like(t) for t in function(*primals)]
            results, pull = vjp(function, *primals)
            self.assertEqual(results, function(*primals))
            self.assertEqual(pull(tuple(cotangents)), recorded_vjp(function, primals, cotangents))

    @ops(op_db, allowed_dtypes=F64)
    def test_jvp(self, device, dtype, op):
        for function, primals in self._samples(device, dtype, op):
            directions = tuple(torch.randn_like(t) for t in primals)
            results, tangents = jvp(function, primals, directions)
            self.assertEqual(results, function(*primals))
            self.assertEqual(tangents, recorded_jvp(function, primals, directions))

    @ops(op_db, allowed_dtypes=F64)
    def test_vjpvjp(self, device, dtype, op):
        for function, primals in self._samples(device, dtype, op):
            args = (*primals, *(torch.randn_like(t) for t in function(*primals)))
            twice = vjp_of(function, len(primals))
            results, pull = vjp(twice, *args)
            cotangents = tuple(torch.randn_like(t) for t in results)
            self.assertEqual(pull(cotangents), recorded_vjp(recorded_vjp_of(function, len(primals)), args, cotangents))

    @ops(op_db, allowed_dtypes=F64)
    def test_jvpvjp(self, device, dtype, op):
        for function, primals in self._samples(device, dtype, op):
            args = (*primals, *(torch.randn_like(t) for t in function(*primals)))
            directions = tuple(torch.randn_like(t) for t in args)
            _, tangents = jvp(vjp_of(function, len(primals)), args, directions)
            self.assertEqual(tangents, recorded_jvp(recorded_vjp_of(function, len(primals)), args, directions))

    @ops(op_db, allowed_dtypes=F64)
    def test_vjpjvp(self, device, dtype, op):
        for function, primals in self._samples(device, dtype, op):
            args = (*primals, *(torch.randn_like(t) for t in primals))
            twice = jvp_of(function, len(primals))
            results, pull = vjp(twice, *args)
            cotangents = tuple(torch.randn_like(t) for t in results)

            def recorded(*args: Tensor) -> tuple[Tensor, ...]:
                first, directions = args[: len(primals)], args[len(primals) :]
                return (*function(*first), *recorded_jvp(function, first, directions))

            self.assertEqual(pull(cotangents), recorded_vjp(recorded, args, cotangents))

    def _assert_batched(self, function: Function, args: Sequence[Tensor]) -> None:
        for in_dims, batched in few_batches(args):
            self.assertEqual(vmap(function, in_dims)(*batched), looped(function, in_dims)(*batched))

    @ops(op_db, allowed_dtypes=F64)
    def test_vmapvjp(self, device, dtype, op):
        for function, primals in self._samples(device, dtype, op):
            args = (*primals, *(torch.randn_like(t) for t in function(*primals)))
            self._assert_batched(vjp_of(function, len(primals)), args)

    @ops(op_db, allowed_dtypes=F64)
    def test_vmapjvp(self, device, dtype, op):
        for function, primals in self._samples(device, dtype, op):
            args = (*primals, *(torch.randn_like(t) for t in primals))
            self._assert_batched(jvp_of(function, len(primals)), args)

    @pytest.mark.thorough("a batch of second derivatives")
    @ops(op_db, allowed_dtypes=F64)
    def test_vmapvjpvjp(self, device, dtype, op):
        for function, primals in self._samples(device, dtype, op):
            args = (*primals, *(torch.randn_like(t) for t in function(*primals)))
            once = vjp_of(function, len(primals))
            more = tuple(torch.randn_like(t) for t in once(*args))
            self._assert_batched(vjp_of(once, len(args)), (*args, *more))

    @pytest.mark.thorough("a batch of second derivatives")
    @ops(op_db, allowed_dtypes=F64)
    def test_vmapjvpvjp(self, device, dtype, op):
        for function, primals in self._samples(device, dtype, op):
            args = (*primals, *(torch.randn_like(t) for t in function(*primals)))
            directions = tuple(torch.randn_like(t) for t in args)
            self._assert_batched(jvp_of(vjp_of(function, len(primals)), len(args)), (*args, *directions))

    @ops(op_db, allowed_dtypes=F64)
    def test_vjpvmap(self, device, dtype, op):
        for function, primals in self._samples(device, dtype, op):
            for in_dims, batched in few_batches(primals):
                results, pull = vjp(vmap(function, in_dims), *batched)
                cotangents = tuple(torch.randn_like(t) for t in results)
                self.assertEqual(pull(cotangents), recorded_vjp(looped(function, in_dims), batched, cotangents))

    @ops(op_db, allowed_dtypes=F64)
    def test_jvpvmap(self, device, dtype, op):
        for function, primals in self._samples(device, dtype, op):
            for in_dims, batched in few_batches(primals):
                directions = tuple(torch.randn_like(t) for t in batched)
                results, tangents = jvp(vmap(function, in_dims), batched, directions)
                self.assertEqual(results, looped(function, in_dims)(*batched))
                self.assertEqual(tangents, recorded_jvp(looped(function, in_dims), batched, directions))


class TestVmapOperators(TestCase):
    def _samples(self, device: Any, dtype: torch.dtype, op: Any) -> Iterator[tuple[Function, tuple[Tensor, ...]]]:
        """Yields an op as a function of all its tensors, also of those without gradient."""
        for sample in op.sample_inputs(device, dtype):
            whole = SampleInput(sample.input, args=sample.args, kwargs=sample.kwargs)
            function, primals = function_of(op, whole, lambda t: True)
            yield flat(function), primals

    @ops(op_db, allowed_dtypes=F64)
    def test_vmap_exhaustive(self, device, dtype, op):
        for function, primals in self._samples(device, dtype, op):
            for in_dims, batched in batches(primals, (0, -1, None)):
                self.assertEqual(vmap(function, in_dims)(*batched), looped(function, in_dims)(*batched))

    @ops(op_db, allowed_dtypes=F64)
    def test_vmapvmap(self, device, dtype, op):
        for function, primals in self._samples(device, dtype, op):
            for inner, once in few_batches(primals):
                for outer, twice in few_batches(once):
                    got = vmap(vmap(function, inner), outer)(*twice)
                    self.assertEqual(got, looped(looped(function, inner), outer)(*twice))

    @ops(op_db)
    def test_op_has_batch_rule(self, device, dtype, op):
        """vmap of the op and of its derivatives never falls back to a loop."""
        before = torch._C._functorch._is_vmap_fallback_enabled()
        torch._C._functorch._set_vmap_fallback_enabled(False)
        try:
            for sample in op.sample_inputs(device, dtype, requires_grad=True):
                function, primals = function_of(op, sample)
                cotangents = [torch.randn_like(t) for t in tensors(function(*primals))]
                args = (*primals, *cotangents)
                pulled = vjp_of(flat(function), len(primals))
                for in_dims, batched in few_batches(args):
                    vmap(pulled, in_dims)(*batched)
        finally:
            torch._C._functorch._set_vmap_fallback_enabled(before)

    @ops(op_db, allowed_dtypes=F64)
    def test_out_dims(self, device, dtype, op):
        for function, primals in self._samples(device, dtype, op):

            def batched_only(*args: Tensor) -> tuple[Tensor, ...]:
                # torch's vmap reads out of bounds where an out_dims of -1 meets a result without batch axis
                return tuple(t for t in function(*args) if t.shape != (0,))

            in_dims = (0,) * len(primals)
            _, batched = next(batches(primals, (0,)))
            got = vmap(batched_only, in_dims, out_dims=-1)(*batched)
            self.assertEqual(got, tuple(t.movedim(0, -1) for t in looped(batched_only, in_dims)(*batched)))


instantiate_device_type_tests(TestOperators, globals(), only_for=DEVICES)
instantiate_device_type_tests(TestVmapOperators, globals(), only_for=DEVICES)
