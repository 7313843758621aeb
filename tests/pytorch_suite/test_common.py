"""Of torch's test_ops, test_meta and test_schema_check: what any op does with its arguments, whatever it computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._prims_common import compare_tensor_meta
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from .machinery import (
    DEVICES,
    F32,
    F64,
    OpDTypes,
    OpInfo,
    SampleInput,
    TestCase,
    all_types_and_complex_and,
    call,
    function_of,
    instantiate_device_type_tests,
    noncontiguous_like,
    ops,
    tensors,
)
from .op_db import large_db, op_db

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CS. tensor support")
LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


def gradients(op: OpInfo, sample: SampleInput) -> tuple[Any, tuple[Tensor, ...]]:
    """Returns the results, and the gradients of their sum in what requires them."""
    results = call(op, sample)
    loss = sum(t.sum() for t in tensors(sample.output_process_fn_grad(results)))
    wanted = [t for t in tensors((sample.input, sample.args, sample.kwargs)) if t.requires_grad]
    return results, torch.autograd.grad(loss, wanted, allow_unused=True)


class TestCommon(TestCase):
    @ops(op_db, dtypes=OpDTypes.none)
    def test_dtypes(self, device, op):
        """The dtypes that an entry claims are those that run, forward and backward; others raise a TypeError."""
        every = all_types_and_complex_and(torch.bfloat16, torch.float16, torch.bool)
        for dtype in every:
            derived = dtype in op.supported_backward_dtypes(device)
            for sample in op.sample_inputs(device, dtype, requires_grad=derived):
                if op.supports_dtype(dtype, device):
                    call(op, sample)
                    if derived:
                        gradients(op, sample)
                else:
                    with self.assertRaisesRegex(TypeError, "must be float64, float32, bfloat16 or float16"):
                        call(op, sample)

    @ops([op for op in op_db if op.ref is not None], allowed_dtypes=F64)
    def test_numpy_ref(self, device, dtype, op):
        for sample in op.reference_inputs(device, dtype):
            self.compare_with_reference(op, op.ref, sample)

    @pytest.mark.thorough("wide stacks")
    @ops(large_db, allowed_dtypes=F64)
    def test_numpy_ref_large(self, device, dtype, op):
        for sample in op.reference_inputs(device, dtype):
            self.compare_with_reference(op, op.ref, sample)

    @ops([op for op in op_db if op.error_inputs_func is not None], dtypes=OpDTypes.none)
    def test_errors(self, device, op):
        for error in op.error_inputs(device):
            with self.assertRaisesRegex(error.error_type, error.error_regex):
                call(op, error.sample_input)

    @ops([op for op in op_db if not op.variant_test_name], dtypes=OpDTypes.none)
    def test_errors_sparse(self, device, op):
        for layout in LAYOUTS:
            for error in op.error_inputs_sparse_func(op, device, layout):
                with self.assertRaisesRegex(error.error_type, error.error_regex):
                    call(op, error.sample_input)

    @ops(op_db)
    def test_noncontiguous_samples(self, device, dtype, op):
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            other = sample.noncontiguous()
            for t, n in zip(*(tensors((s.input, s.args)) for s in (sample, other)), strict=True):
                assert t.numel() <= 1 or not n.is_contiguous()
                n.requires_grad_(t.requires_grad)
            self.assertEqual(gradients(op, other), gradients(op, sample))

    @ops(op_db, allowed_dtypes=F32)
    def test_noncontiguous_output_gradients(self, device, dtype, op):
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            function, leaves = function_of(op, sample)
            leaves = [leaf.requires_grad_() for leaf in leaves]
            results = tensors(function(*leaves))
            dense = [torch.randn_like(t) for t in results]
            got, wanted = (
                torch.autograd.grad(results, leaves, grads, retain_graph=True, allow_unused=True)
                for grads in ([noncontiguous_like(t) for t in dense], dense)
            )
            self.assertEqual(got, wanted)
            ones = [torch.ones_like(t) for t in results]
            repeated = [torch.ones((), dtype=t.dtype, device=device).expand_as(t) for t in results]
            got, wanted = (
                torch.autograd.grad(results, leaves, grads, retain_graph=True, allow_unused=True)
                for grads in (repeated, ones)
            )
            self.assertEqual(got, wanted)

    @ops(op_db, allowed_dtypes=F32)
    def test_out(self, device, dtype, op):
        """No op has an out= variant, and none takes an `out` that it would not fill."""
        self.assertFalse(op.supports_out)
        for sample in op.sample_inputs(device, dtype):
            out = pytree.tree_map(torch.empty_like, call(op, sample))
            with self.assertRaises((TypeError, RuntimeError)):
                op(sample.input, *sample.args, **sample.kwargs, out=out)

    @ops(op_db)
    def test_variant_consistency_eager(self, device, dtype, op):
        """With gradients recorded or not, in inference mode, again, and by keyword: the same results to the bit."""
        names = {
            "dy": ("dy", "y", "signs", "u", "b", "final_abs", "needs", "abs"),
            "x": ("x", "u", "b", "final_abs", "save", "abs"),
        }
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            wanted = call(op, sample)
            keywords = names["dy" if "backward" in op.name else "x"]
            given = dict(zip(keywords, (sample.input, *sample.args), strict=False)) | sample.kwargs
            results = [call(op, sample), op(**given)]
            with torch.no_grad():
                results.append(call(op, sample))
            with torch.inference_mode():
                results.append(call(op, sample))
            for result in results:
                self.assertEqual(result, wanted, rtol=0, atol=0)

    @ops(op_db)
    def test_inputs_are_left_alone(self, device, dtype, op):
        """The values, versions and strides of the arguments stay, and no result is one of them."""
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            given = tensors((sample.input, sample.args))
            before = [(t.detach().clone(), t._version, t.stride(), t.data_ptr()) for t in given]
            results, grads = gradients(op, sample)
            for t, (values, version, stride, address) in zip(given, before, strict=True):
                self.assertEqual(t.detach(), values, rtol=0, atol=0)
                self.assertEqual((t._version, t.stride(), t.data_ptr()), (version, stride, address))
            owned = {t.data_ptr() for t in given if t.numel()}
            for result in tensors((results, grads)):
                self.assertNotIn(result.data_ptr(), owned)

    @ops(op_db, allowed_dtypes=F64)
    def test_results_are_contiguous(self, device, dtype, op):
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            results, grads = gradients(op, sample)
            for t in tensors((results, grads)):
                self.assertTrue(t.is_contiguous())


class TestMathBits(TestCase):
    @ops(op_db, allowed_dtypes=F64)
    def test_neg_view(self, device, dtype, op):
        """Tensors whose minus sign is a bit of theirs, as the imaginary part of a conjugate has it."""
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            function, leaves = function_of(op, sample)
            wanted = function(*leaves)
            negative = [torch._neg_view((-t).detach()).requires_grad_() for t in leaves]
            self.assertTrue(all(t.is_neg() for t in negative))
            got = function(*negative)
            self.assertEqual(got, wanted)
            positive = [t.clone().requires_grad_() for t in leaves]
            self.assertEqual(
                *(
                    torch.autograd.grad(sum(t.sum() for t in tensors(function(*given))), given, allow_unused=True)
                    for given in (negative, positive)
                )
            )


class TestSchemaCheckModeOpInfo(TestCase):
    @ops(op_db)
    def test_schema_correctness(self, device, dtype, op):
        """Nothing is written to, or given back, that the schema does not say."""
        for sample in op.sample_inputs(device, dtype):
            with SchemaCheckMode():
                call(op, sample)


class TestTags(TestCase):
    @ops(op_db, dtypes=OpDTypes.none)
    def test_tags(self, device, op):
        overload = getattr(torch.ops.hanops, op.name.rpartition(".")[2]).default
        self.assertEqual(overload.tags, [torch.Tag.pt2_compliant_tag])
        self.assertFalse(overload._schema.is_mutable)
        self.assertFalse(any(result.alias_info for result in overload._schema.returns))


class TestMeta(TestCase):
    """What is told of a result without computing it: shape, dtype and strides are those of the result."""

    @ops(op_db)
    def test_meta_outplace(self, device, dtype, op):
        for sample, meta in zip(op.sample_inputs(device, dtype), op.sample_inputs("meta", dtype), strict=True):
            for a, b in zip(tensors(call(op, meta)), tensors(call(op, sample)), strict=True):
                if b.dtype == torch.uint8:  # bits of signs, whose last axis depends on the device
                    self.assertEqual((a.dtype, a.shape[:-1]), (b.dtype, b.shape[:-1]))
                else:
                    compare_tensor_meta(a, b.to("meta"), check_strides=True)

    @ops(op_db, allowed_dtypes=F32)
    def test_dispatch_symbolic_meta_outplace(self, device, dtype, op):
        """With sizes that are symbols; the gradients' too."""
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            results, grads = gradients(op, sample)
            mode = FakeTensorMode(shape_env=ShapeEnv())
            leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
            fakes = [mode.from_tensor(t) if isinstance(t, Tensor) else t for t in leaves]
            first, args, kwargs = pytree.tree_unflatten(fakes, spec)
            symbolic = SampleInput(first, args=args, kwargs=kwargs)
            symbolic.output_process_fn_grad = sample.output_process_fn_grad
            with mode:
                fake_results, fake_grads = gradients(op, symbolic)
            for a, b in zip(tensors((fake_results, fake_grads)), tensors((results, grads)), strict=True):
                self.assertEqual([int(n) for n in a.shape], list(b.shape))
                self.assertEqual([int(n) for n in a.stride()], list(b.stride()))
                self.assertEqual((a.dtype, a.device), (b.dtype, b.device))


instantiate_device_type_tests(TestCommon, globals(), only_for=DEVICES)
instantiate_device_type_tests(TestMathBits, globals(), only_for=DEVICES)
instantiate_device_type_tests(TestSchemaCheckModeOpInfo, globals(), only_for=DEVICES)
instantiate_device_type_tests(TestTags, globals(), only_for=DEVICES)
instantiate_device_type_tests(TestMeta, globals(), only_for=DEVICES)
