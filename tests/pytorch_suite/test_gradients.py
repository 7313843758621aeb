"""Of torch's test_ops_gradients and test_ops: derivatives against finite differences, and in tensor subclasses."""

from __future__ import annotations

from typing import Any

import torch

from .machinery import (
    DEVICES,
    F32,
    F64,
    OpDTypes,
    SampleInput,
    TestCase,
    TestGradients,
    call,
    composite_compliance,
    instantiate_device_type_tests,
    ops,
    tensors,
)
from .op_db import mixed_db, op_db


class TestBwdGradients(TestGradients):
    @ops(op_db, dtypes=OpDTypes.supported_backward, allowed_dtypes=F64)
    def test_fn_grad(self, device, dtype, op):
        self._grad_test_helper(device, dtype, op, op.get_op())

    @ops(op_db, dtypes=OpDTypes.supported_backward, allowed_dtypes=F64)
    def test_fn_gradgrad(self, device, dtype, op):
        self._check_helper(device, dtype, op, op.get_op(), "bwgrad_bwgrad")


class TestFwdGradients(TestGradients):
    @ops(op_db, dtypes=OpDTypes.supported_backward, allowed_dtypes=F64)
    def test_forward_mode_AD(self, device, dtype, op):  # noqa: N802
        self._grad_test_helper(
            device,
            dtype,
            op,
            op.get_op(),
            check_forward_ad=True,
            check_backward_ad=False,
            check_batched_grad=False,
            check_batched_forward_grad=op.check_batched_forward_grad,
        )

    @ops(op_db, dtypes=OpDTypes.supported_backward, allowed_dtypes=F64)
    def test_fn_fwgrad_bwgrad(self, device, dtype, op):
        self._check_helper(device, dtype, op, op.get_op(), "fwgrad_bwgrad")


class TestCompositeCompliance(TestCase):
    """An op sees a tensor only through the dispatcher: any of its arguments may be a subclass without memory."""

    def _sample(self, op: Any, device: Any, dtype: torch.dtype, requires_grad: bool) -> tuple[SampleInput, list[Any]]:
        """Returns a sample and its arguments."""
        sample = next(iter(op.sample_inputs(device, dtype, requires_grad)))
        return sample, [sample.input, *sample.args]

    @ops(op_db, allowed_dtypes=F32)
    def test_operator(self, device, dtype, op):
        sample, args = self._sample(op, device, dtype, False)
        composite_compliance.check_with_mode(op, args, sample.kwargs, self.assertEqual)
        composite_compliance.check_all_permutations(op, args, sample.kwargs, self.assertEqual)

    @ops(mixed_db, dtypes=OpDTypes.supported_backward, allowed_dtypes=F32)
    def test_backward(self, device, dtype, op):
        sample, args = self._sample(op, device, dtype, True)
        composite_compliance.check_backward_formula(
            op.get_op(), args, sample.kwargs, sample.output_process_fn_grad, op.gradcheck_wrapper, self.assertEqual
        )

    @ops(mixed_db, allowed_dtypes=F32)
    def test_forward_ad(self, device, dtype, op):
        sample, args = self._sample(op, device, dtype, True)
        composite_compliance.check_forward_ad_formula(
            op.get_op(), args, sample.kwargs, op.gradcheck_wrapper, self.assertEqual
        )

    @ops(op_db, dtypes=OpDTypes.supported_backward, allowed_dtypes=F32)
    def test_cow_input(self, device, dtype, op):
        """A lazy clone (copy on write) is only read, forward and backward: it gets no memory of its own."""
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            lazy = sample.transform(lambda t: t._lazy_clone() if isinstance(t, torch.Tensor) else t)
            given = tensors((lazy.input, lazy.args))
            for t, original in zip(given, tensors((sample.input, sample.args)), strict=True):
                t.requires_grad_(original.requires_grad)
            kept = [t for t in given if torch._C._is_cow_tensor(t)]
            results = lazy.output_process_fn_grad(call(op, lazy))
            wanted = sample.output_process_fn_grad(call(op, sample))
            self.assertEqual(results, wanted)
            self.assertTrue(all(torch._C._is_cow_tensor(t) for t in kept))
            leaves = [t for t in given if t.requires_grad]
            dys = [torch.randn_like(t)._lazy_clone() for t in tensors(results)]
            torch.autograd.grad(tensors(results), leaves, dys, allow_unused=True)
            self.assertTrue(all(torch._C._is_cow_tensor(t) for t in (*kept, *dys)))
            self.assertTrue(len(kept) == len(given))


instantiate_device_type_tests(TestBwdGradients, globals(), only_for=DEVICES)
instantiate_device_type_tests(TestFwdGradients, globals(), only_for=DEVICES)
instantiate_device_type_tests(TestCompositeCompliance, globals(), only_for=DEVICES)
