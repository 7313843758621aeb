"""Of torch's tests of fake tensors, make_fx, AOT autograd, decompositions and the Inductor, for ops."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.fake_utils import CrossRefFakeMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.optests.make_fx import make_fx_check

import hanops

from .machinery import (
    DEVICES,
    F32,
    F64,
    SampleInput,
    TestCase,
    aot_autograd_check,
    call,
    function_of,
    instantiate_device_type_tests,
    like,
    ops,
    tensors,
)
from .op_db import op_db


def with_gradients(op: Any, sample: SampleInput) -> tuple[Any, tuple[Tensor, ...]]:
    """Returns the function of all tensors of a sample that gives the results and their gradients, and the tensors."""
    function, given = function_of(op, sample, lambda t: True)
    derived = [t.requires_grad for t in tensors((sample.input, sample.args, sample.kwargs))]

    def both(*args: Tensor) -> tuple[Tensor, ...]:
        args = tuple(t.detach().requires_grad_(need) for t, need in zip(args, derived, strict=True))
        results = tensors(function(*args))
        leaves = [t for t in args if t.requires_grad]
        return (*results, *torch.autograd.grad(results, leaves, [torch.ones_like(t) for t in results]))

    return both, given


class TestFakeTensor(TestCase):
    @ops(op_db)
    def test_fake(self, device, dtype, op):
        for sample in op.sample_inputs(device, dtype):
            wanted = call(op, sample)
            mode = FakeTensorMode()
            fake = sample.transform(lambda t, mode=mode: mode.from_tensor(t) if isinstance(t, Tensor) else t)
            with mode:
                got = call(op, fake)
            for a, b in zip(tensors(got), tensors(wanted), strict=True):
                self.assertIsInstance(a, FakeTensor)
                self.assertEqual(
                    (a.shape, a.stride(), a.dtype, a.device, a.layout),
                    (b.shape, b.stride(), b.dtype, b.device, b.layout),
                )

    @ops(op_db, allowed_dtypes=F32)
    def test_fake_autocast(self, device, dtype, op):
        for sample in op.sample_inputs(device, dtype):
            with torch.autocast(device, torch.bfloat16):
                wanted = call(op, sample)
                mode = FakeTensorMode()
                fake = sample.transform(lambda t, mode=mode: mode.from_tensor(t) if isinstance(t, Tensor) else t)
                with mode:
                    got = call(op, fake)
            for a, b in zip(tensors(got), tensors(wanted), strict=True):
                self.assertEqual((a.shape, a.dtype), (b.shape, b.dtype))

    def _crossref(self, device: str, dtype: torch.dtype, op: Any, context: Any) -> None:
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            function, leaves = function_of(op, sample)
            leaves = tuple(t.requires_grad_() for t in leaves)
            with context(), CrossRefFakeMode(check_strides=True, check_aliasing=True):
                results = tensors(function(*leaves))
                torch.autograd.grad(results, leaves, [torch.ones_like(t) for t in results], allow_unused=True)

    @ops(op_db, allowed_dtypes=(torch.float64, torch.bfloat16))
    def test_fake_crossref_backward_no_amp(self, device, dtype, op):
        self._crossref(device, dtype, op, nullcontext)

    @ops(op_db, allowed_dtypes=F32)
    def test_fake_crossref_backward_amp(self, device, dtype, op):
        self._crossref(device, dtype, op, lambda: torch.autocast(device, torch.bfloat16))


class TestProxyTensorOpInfo(TestCase):
    def _check(self, device: str, dtype: torch.dtype, op: Any, tracing_mode: str) -> None:
        for sample in op.sample_inputs(device, dtype):
            make_fx_check(
                op.get_op(),
                [sample.input, *sample.args],
                dict(sample.kwargs),
                tracing_mode,
                self.assertEqual,
                randomize_data=True,
            )
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            function, leaves = with_gradients(op, sample)
            graph = make_fx(function, tracing_mode=tracing_mode)(*leaves)
            other = [like(t) for t in leaves]
            self.assertEqual(graph(*other), function(*other))

    @ops(op_db, allowed_dtypes=F64)
    def test_make_fx_exhaustive(self, device, dtype, op):
        self._check(device, dtype, op, "real")

    @ops(op_db, allowed_dtypes=F64)
    def test_make_fx_fake_exhaustive(self, device, dtype, op):
        self._check(device, dtype, op, "fake")

    @pytest.mark.thorough("tracing with symbols")
    @ops(op_db, allowed_dtypes=F64)
    def test_make_fx_symbolic_exhaustive(self, device, dtype, op):
        self._check(device, dtype, op, "symbolic")


class TestDecomp(TestCase):
    @ops(op_db, allowed_dtypes=F64)
    def test_comprehensive(self, device, dtype, op):
        """Decomposed, results and gradients are ATen's alone, and the same."""
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            function, leaves = with_gradients(op, sample)
            graph = make_fx(function, decomposition_table=hanops.decompositions())(*leaves)
            self.assertFalse([node for node in graph.graph.nodes if "hanops" in str(node.target)])
            self.assertEqual(graph(*leaves), function(*leaves))


class TestEagerFusionOpInfo(TestCase):
    def _check(self, device: str, dtype: torch.dtype, op: Any, **options: Any) -> None:
        for sample in op.sample_inputs(device, dtype, requires_grad=True):

            def function(*args: Any, sample: SampleInput = sample, **kwargs: Any) -> Any:
                return sample.output_process_fn_grad(op(*args, **kwargs))

            aot_autograd_check(
                function,
                [sample.input, *sample.args],
                sample.kwargs,
                assert_raises_regex_fn=self.assertRaisesRegex,
                assert_equals_fn=self.assertEqual,
                try_check_data_specialization=True,
                **options,
            )

    @ops(op_db, allowed_dtypes=F32)
    def test_aot_autograd_exhaustive(self, device, dtype, op):
        self._check(device, dtype, op, dynamic=False)

    @ops(op_db, allowed_dtypes=F32)
    def test_aot_autograd_symbolic_exhaustive(self, device, dtype, op):
        self._check(device, dtype, op, dynamic=True)

    @ops(op_db, allowed_dtypes=F32)
    def test_aot_autograd_disable_functionalization_exhaustive(self, device, dtype, op):
        self._check(device, dtype, op, dynamic=False, disable_functionalization=True)


@pytest.mark.usefixtures("undisturbed_compiler")
@pytest.mark.thorough("the Inductor")
class TestInductorOpInfo(TestCase):
    @ops(op_db, allowed_dtypes=F32)
    def test_comprehensive(self, device, dtype, op):
        """Compiled, for sizes that are fixed and sizes that are symbols, forward and backward."""
        for dynamic in (False, True):
            torch._dynamo.reset()
            for sample in op.sample_inputs(device, dtype, requires_grad=True):
                function, leaves = function_of(op, sample)
                leaves = tuple(t.requires_grad_() for t in leaves)
                compiled = torch.compile(function, fullgraph=True, dynamic=dynamic)
                results = [tensors(f(*leaves)) for f in (compiled, function)]
                self.assertEqual(*results)
                dys = [torch.randn_like(t) for t in results[0]]
                self.assertEqual(*(torch.autograd.grad(r, leaves, dys, allow_unused=True) for r in results))


instantiate_device_type_tests(TestFakeTensor, globals(), only_for=DEVICES)
instantiate_device_type_tests(TestProxyTensorOpInfo, globals(), only_for=DEVICES)
instantiate_device_type_tests(TestDecomp, globals(), only_for=DEVICES)
instantiate_device_type_tests(TestEagerFusionOpInfo, globals(), only_for=DEVICES)
instantiate_device_type_tests(TestInductorOpInfo, globals(), only_for=DEVICES)
