"""torch.onnx.export of Han layers as it stands, and by `hanops.onnx_translations()`, run by onnxruntime."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

import hanops

from .accuracy import relative

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = [
    pytest.mark.usefixtures("undisturbed_compiler"),
    pytest.mark.filterwarnings("ignore"),  # the exporter's own
]


class Stacks(nn.Module):
    """Stacks of every kind. The first two are of x (n, 4, 6), the groups' of g (2, n, 6), and the last in halves."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = hanops.HanStack(6, 3)
        self.axis = hanops.HanStack(4, 2, dim=1, bias=False, final_abs=False)
        self.groups = hanops.HanStack(6, 3, groups=2)
        self.group_axis = hanops.HanStack(3, 2, groups=2, dim=-2)
        self.no_layers = hanops.HanStack(6, 0)
        self.in_float64 = hanops.HanStack(6, 3, dtype=torch.float64)
        self.in_bfloat16 = hanops.HanStack(6, 3, dtype=torch.bfloat16)
        self.in_float16 = hanops.HanLayer(6)
        with torch.no_grad():
            for stack in (self.rows, self.in_float64, self.groups):
                stack.u[..., 0, :] = 0
                stack.u[..., 1, :] *= 1e-30
                stack.u[..., 2, :] *= 1e30

    def forward(self, x: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        return (
            self.rows(x),
            self.rows(x[:, 0]),
            self.rows(x[0, 0]),
            self.axis(x),
            self.groups(g),
            self.groups(g[:, 0]),
            self.groups(g.unsqueeze(1)),
            self.group_axis(g.unflatten(-1, (3, 2))),
            self.no_layers(x),
            self.in_float64(x.double()),
            self.in_bfloat16(x.to(torch.bfloat16)).float(),
            self.in_float16(x.half()).float(),
        )


def inputs(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 4, 6), torch.randn(2, n, 6)


@pytest.mark.parametrize("table", [False, True], ids=["as it stands", "by the table"])
def test_export(table, tmp_path):
    model = Stacks()
    options = {"custom_translation_table": hanops.onnx_translations()} if table else {}
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        model, inputs(5), dynamo=True, verbose=False, dynamic_shapes=({0: batch}, {1: batch}), **options
    )
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for n in (5, 9):
        given = inputs(n)
        with torch.no_grad():
            wanted = model(*given)
        got = session.run(None, {i.name: t.numpy() for i, t in zip(session.get_inputs(), given, strict=True)})
        for a, b in zip(map(torch.from_numpy, got), wanted, strict=True):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
        tolerances = [1e-6] * 9 + [1e-14, 4e-3, 5e-4]  # of float32, float64, bfloat16, float16
        errors = [relative(torch.from_numpy(a), b.double()) for a, b in zip(got, wanted, strict=True)]
        assert all(error <= limit for error, limit in zip(errors, tolerances, strict=True)), errors


def test_table_makes_fewer_nodes():
    counts = []
    for options in ({}, {"custom_translation_table": hanops.onnx_translations()}):
        program = torch.onnx.export(
            hanops.HanStack(6, 4), (torch.randn(5, 6),), dynamo=True, verbose=False, optimize=False, **options
        )
        assert not program.model.functions
        counts.append(Counter(node.op_type for node in program.model.graph))
    assert counts[1]["Abs"] == 4 + 1  # the layers', and the one of |u|
    assert counts[1].total() < counts[0].total()


class Given(nn.Module):
    """Stacks whose parameters come from outside, with any number of layers."""

    def __init__(self, final_abs: bool) -> None:
        super().__init__()
        self.final_abs = final_abs

    def forward(self, x: Tensor, u: Tensor, b: Tensor, groups: Tensor) -> tuple[Tensor, ...]:
        options = {"final_abs": self.final_abs}
        return (
            hanops.han_stack(x, u, b, **options),
            hanops.han_stack(x[0].bfloat16(), u, **options).float(),
            hanops.han_stack(x, groups, **options),
        )


def given(layers: int) -> tuple[Tensor, ...]:
    return torch.randn(2, 5, 6), torch.randn(layers, 6), torch.randn(layers, 6), torch.randn(2, layers, 6)


LAYERS = torch.export.Dim("layers", min=2)
SHAPES = ({}, {0: LAYERS}, {0: LAYERS}, {1: LAYERS})


@pytest.mark.parametrize("final_abs", [True, False])
def test_any_number_of_layers(final_abs, tmp_path):
    """Exported as it stands, or decomposed: a loop over the layers, run for others than those it was traced with."""
    model = Given(final_abs)
    program = torch.export.export(model, given(3), dynamic_shapes=SHAPES)
    decomposed = program.run_decompositions(hanops.decompositions()).module()
    torch.onnx.export(model, given(3), dynamo=True, verbose=False, dynamic_shapes=SHAPES).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for layers in (2, 3, 7):
        arguments = given(layers)
        wanted = model(*arguments)
        named = {i.name: t.numpy() for i, t in zip(session.get_inputs(), arguments, strict=True)}
        for got in (decomposed(*arguments), map(torch.from_numpy, session.run(None, named))):
            errors = [relative(a, b.double()) for a, b in zip(got, wanted, strict=True)]
            assert all(error <= limit for error, limit in zip(errors, (1e-6, 4e-3, 1e-6), strict=True)), errors


@pytest.mark.parametrize("final_abs", [True, False])
def test_signs_of_any_number_of_layers(final_abs):
    class Forward(nn.Module):
        def forward(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
            return torch.ops.hanops.han_stack_forward(x, u, None, final_abs, 1)

    class Backward(nn.Module):
        def forward(self, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
            y, signs = torch.ops.hanops.han_stack_forward(x, u, None, final_abs, 1)
            return torch.ops.hanops.han_stack_backward(x, y, signs, u, None, final_abs, [True, True, False])

    x, _, _, u = given(4)
    shapes = ({}, {1: torch.export.Dim("layers", min=3)})
    program = torch.export.export(Forward(), (x, u), dynamic_shapes=shapes)
    run = program.run_decompositions(hanops.decompositions()).module()
    for layers in (3, 7):
        u = given(layers)[-1]
        (y, signs), wanted = run(x, u), Forward()(x, u)
        assert relative(y, wanted[0].double()) <= 1e-6
        assert torch.equal(signs, wanted[1])
    program = torch.export.export(Backward(), (x, u), dynamic_shapes=shapes)
    with pytest.raises(ValueError, match=r"u must have a fixed number of layers .*keep its axis of layers static"):
        program.run_decompositions(hanops.decompositions())


def test_the_table_wants_a_fixed_number_of_layers():
    with pytest.raises(Exception, match=r"u must have a fixed number of layers .*leave out custom_translation_table"):
        torch.onnx.export(
            Given(True),
            given(3),
            dynamo=True,
            verbose=False,
            dynamic_shapes=SHAPES,
            custom_translation_table=hanops.onnx_translations(),
        )
