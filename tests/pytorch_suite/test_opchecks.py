"""Of torch's optests: each call of one of hanops' ops in these tests is checked again in each way of `opcheck`."""

from __future__ import annotations

from pathlib import Path

import torch

from .machinery import (
    DEVICES,
    F32,
    TestCase,
    call,
    generate_opcheck_tests,
    instantiate_device_type_tests,
    ops,
    tensors,
)
from .op_db import op_db


class TestGenerated(TestCase):
    @ops(op_db, allowed_dtypes=F32)
    def test_no_grad(self, device, dtype, op):
        for sample in op.sample_inputs(device, dtype):
            call(op, sample)

    @ops(op_db, allowed_dtypes=F32)
    def test_backward(self, device, dtype, op):
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            results = tensors(sample.output_process_fn_grad(call(op, sample)))
            leaves = [t for t in tensors((sample.input, sample.args)) if t.requires_grad]
            torch.autograd.grad(results, leaves, [torch.ones_like(t) for t in results], allow_unused=True)


instantiate_device_type_tests(TestGenerated, globals(), only_for=DEVICES)
generate_opcheck_tests(
    TestGeneratedCPU,  # noqa: F821  made by the line above
    ["hanops"],
    str(Path(__file__).with_name("opcheck_failures.json")),
    test_utils=["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"],
)
