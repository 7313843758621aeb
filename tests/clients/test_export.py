"""Packages that run a model without Python: its graph has no op of hanops."""

import numpy
import pytest
import torch
from torch import nn

import hanops

from .steps import learns


def exported(make, data):
    model = make()
    learns(model, lambda: nn.functional.cross_entropy(model(data[0]), data[1]))
    model.eval().requires_grad_(False)
    program = torch.export.export(model, (data[0][:8],))
    return model, program.run_decompositions(hanops.decompositions())


@pytest.mark.client("onnxruntime", "an exported model, by hanops.decompositions()")
def test_onnxruntime(make, data, tmp_path):
    import onnxruntime

    pytest.importorskip("onnxscript", reason="torch's exporter needs onnxscript")
    model, program = exported(make, data)
    torch.onnx.export(program, dynamo=True).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    x = data[0][:8]
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    numpy.testing.assert_allclose(got, model(x).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.client("executorch", "to_edge after hanops.decompositions(), saved, run by its runtime")
def test_executorch(make, data, tmp_path):
    from executorch.exir import to_edge
    from executorch.runtime import Runtime

    model, program = exported(make, data)
    (tmp_path / "model.pte").write_bytes(to_edge(program).to_executorch().buffer)
    method = Runtime.get().load_program(tmp_path / "model.pte").load_method("forward")
    x = data[0][:8].contiguous()
    (got,) = method.execute([x])
    torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-5)
