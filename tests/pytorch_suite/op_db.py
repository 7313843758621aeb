"""OpInfos of han_stack and of its forward and backward ops: dtypes, samples, references, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor

import hanops

from .machinery import ErrorInput, OpInfo, SampleInput, make_tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
stack_ops = torch.ops.hanops


@dataclass(frozen=True)
class Case:
    """One stack on rows of a shape: the last axis has the features, with groups the first has them."""

    shape: tuple[int, ...]
    layers: int
    groups: int | None = None
    bias: bool = True
    final_abs: bool = True
    abs: bool = True
    strides: Callable[[Tensor], Tensor] = lambda t: t  # of a contiguous x, another view of the same shape

    def tensors(
        self, device: Any, dtype: torch.dtype, requires_grad: bool, parameters: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns x, u and b. A |u| near 0 would make huge derivatives."""
        size = (self.layers, self.shape[-1]) if self.groups is None else (self.groups, self.layers, self.shape[-1])
        new = partial(make_tensor, device=device, low=-1, high=1)
        x = self.strides(new(self.shape, dtype=dtype))
        u, b = new(size, dtype=parameters or dtype), new(size, dtype=parameters or dtype)
        if u.is_floating_point():
            u = torch.where(u < 0, u - 0.5, u + 0.5)
        derived = requires_grad and (parameters is None or dtype != torch.float64)  # gradcheck derives float64 alone
        return (
            x.requires_grad_(requires_grad),
            u.requires_grad_(derived),
            b.requires_grad_(derived) if self.bias else None,
        )


def strided(t: Tensor) -> Tensor:
    """Returns t with its axes in another order in memory."""
    return t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim())))


def sliced(t: Tensor) -> Tensor:
    """Returns t as every second column of a larger tensor."""
    return t.repeat_interleave(2, -1)[..., ::2]


PLAIN = [Case((3, 4), 2), Case((5,), 1, bias=False), Case((2, 1, 3), 3)]
GROUPED = [Case((2, 3, 4), 2, groups=2), Case((2, 5), 1, groups=2, bias=False)]
EMPTY = [Case((0, 4), 2), Case((2, 0, 3), 1, groups=2, bias=False)]
NO_LAYERS = [Case((3, 4), 0), Case((2, 2, 3), 0, groups=2, bias=False)]
WITHOUT_LAST = [
    Case((3, 4), 2, final_abs=False),
    Case((3, 4), 1, bias=False, final_abs=False),
    Case((2, 2, 3), 2, groups=2, final_abs=False),
]
CHAINS = [Case((3, 4), 3, abs=False), Case((2, 2, 3), 2, groups=2, bias=False, abs=False)]
STRIDES = [Case((3, 4), 2, strides=strided), Case((2, 3, 5), 2, strides=sliced), Case((2, 2, 3), 1, 2, strides=strided)]
VARIANTS = {
    "": PLAIN,
    "grouped": GROUPED,
    "empty": EMPTY,
    "no_layers": NO_LAYERS,
    "without_final_abs": WITHOUT_LAST,
    "chain": CHAINS,
    "strides": STRIDES,
}
SIZES = [1, 7, 30, 65, 200]  # every tile of the CPU kernels has one of these, or of the large ones
LARGE = [333, 784, 1025, 4097]


# ---- samples: (op_info, device, dtype, requires_grad) -> an iterator of SampleInputs


def samples_of_stack(
    op_info: OpInfo,
    device: Any,
    dtype: torch.dtype,
    requires_grad: bool,
    *,
    cases: list[Case],
    parameters: torch.dtype | None = None,
    **_: Any,
) -> Iterator[SampleInput]:
    for case in cases:
        x, u, b = case.tensors(device, dtype, requires_grad, parameters)
        kwargs = {**({} if case.final_abs else {"final_abs": False}), **({} if case.abs else {"activation": None})}
        yield SampleInput(x, args=(u, b), kwargs=kwargs, name=str(case))


def reference_inputs_of_stack(
    op_info: OpInfo, device: Any, dtype: torch.dtype, requires_grad: bool, *, sizes: list[int], **_: Any
) -> Iterator[SampleInput]:
    """Yields stacks of many widths, and those whose values are awkward: u = 0, tiny and huge u, repeated rows."""
    for features in sizes:
        x, u, b = Case((13, features), 3).tensors(device, dtype, requires_grad)
        yield SampleInput(x, args=(u, b))
        yield SampleInput(x[:1].expand(4, -1), args=(u, None), kwargs={"final_abs": False})
        for scale in (0.0, 1e-30, 1e30):
            yield SampleInput(x, args=(u * scale, b))


def samples_of_forward(
    op_info: OpInfo, device: Any, dtype: torch.dtype, requires_grad: bool, *, cases: list[Case], **_: Any
) -> Iterator[SampleInput]:
    for i, case in enumerate(cases):
        tensors = case.tensors(device, dtype, requires_grad)
        save = (1, 0, 2)[i % 3]
        yield SampleInput(
            tensors[0],
            args=(*tensors[1:], case.final_abs, save, case.abs),
            output_process_fn_grad=lambda results: results[0],  # the bits have no gradient
            name=str(case),
        )


def samples_of_backward(
    op_info: OpInfo,
    device: Any,
    dtype: torch.dtype,
    requires_grad: bool,
    *,
    cases: list[tuple[Case, list[bool]]],
    **_: Any,
) -> Iterator[SampleInput]:
    """Yields dy with what a forward keeps; all of it is derived, as the backward's own arguments."""
    for case, needs in cases:
        half = dtype in (torch.bfloat16, torch.float16)  # with the rest of y, and else with bits of float64
        x, u, b = case.tensors(device, dtype if half else torch.float64, False)
        y, signs = stack_ops.han_stack_forward(x, u, b, case.final_abs, 2 if half else 1, case.abs)
        dy, y, u, b = (None if t is None else t.to(dtype) for t in (torch.randn_like(y), y, u, b))
        leaves = [t if t is None else t.requires_grad_(requires_grad) for t in (dy, y if needs[1] else None, u, b)]
        yield SampleInput(
            leaves[0],
            args=(leaves[1], signs, *leaves[2:], case.final_abs, needs, case.abs),
            output_process_fn_grad=lambda results, needs=needs: tuple(
                result for result, need in zip(results, needs, strict=True) if need
            ),
            name=str(case),
        )


# ---- references in NumPy, by the formula


def numpy_layers(x: Any, u: Any, b: Any, final_abs: bool, abs: bool) -> tuple[Any, list[Any]]:
    """Returns y, and z of each layer that ends in an absolute value."""
    rows, zs = x, []
    axes = (slice(None), *(None,) * (x.ndim - 2)) if u.ndim == 3 else (Ellipsis,)
    for layer in range(u.shape[-2]):
        u_l = u[..., layer, :][axes]
        largest = numpy.abs(u_l).max(-1, keepdims=True)
        w = u_l / numpy.where(largest == 0, 1, largest)
        w = w / numpy.where(largest == 0, 1, numpy.sqrt((w * w).sum(-1, keepdims=True)))
        z = rows - 2 * (rows * w).sum(-1, keepdims=True) * w
        z = z if b is None else z + b[..., layer, :][axes]
        takes_abs = abs and (final_abs or layer < u.shape[-2] - 1)
        rows = numpy.abs(z) if takes_abs else z
        zs += [z] if takes_abs else []
    return rows, zs


def numpy_stack(x: Any, u: Any, b: Any, final_abs: bool = True, activation: str | None = "abs") -> Any:
    return numpy_layers(x, u, b, final_abs, activation is not None)[0]


def numpy_forward(x: Any, u: Any, b: Any, final_abs: bool, save: int, abs: bool) -> tuple[Any, Any]:
    """Returns y, and the bits in the layout of a CPU: bit j of byte i is column 8 i + j."""
    y, zs = numpy_layers(x, u, b, final_abs, abs)
    if not save:
        return y, numpy.empty(0, numpy.uint8)
    if not zs:
        return y, numpy.empty((*x.shape[:-1], 0, (x.shape[-1] + 7) // 8), numpy.uint8)
    return y, numpy.packbits(numpy.signbit(numpy.stack(zs, -2)), axis=-1, bitorder="little")


# ---- what is refused


def refused(device: Any) -> Iterator[tuple[tuple[Tensor, Tensor, Tensor | None], type[Exception], str]]:
    """Yields x, u and b that do not fit, and what is said of them."""
    new = partial(torch.ones, device=device)
    x, u = new(2, 4), new(3, 4)
    yield (x.long(), u, None), TypeError, "x must be float64.*got torch.int64"
    yield (x.cfloat(), u, None), TypeError, "x must be .*got torch.complex64"
    yield (x, u.double(), None), TypeError, "u must have the dtype of x .*float64"
    yield (x, u[0], None), ValueError, r"u must have shape \(layers, features\).*got \[4\]"
    yield (x, u.view(1, 1, 3, 4), None), ValueError, r"u must have shape.*got \[1, 1, 3, 4\]"
    yield (new(2, 0), new(3, 0), None), ValueError, "u must have at least 1 feature"
    yield (new(()), u, None), ValueError, r"x must have shape \(\.\.\., features\), got \[\]"
    yield (new(2, 5), u, None), ValueError, r"last axis of x must have u's 4 features.*\[2, 5\]"
    yield (new(3, 4), new(2, 3, 4), None), ValueError, r"first axis of x must have u's 2 groups.*\[3, 4\]"
    yield (x, u, u.half()), TypeError, "b must have the dtype of u"
    yield (x, u, u[0]), ValueError, r"b must have the shape of u \(\[3, 4\]\), got \[4\]"
    yield (x, u.to("meta"), None), ValueError, "u must be on the device of x .*got meta"


def errors_of_stack(op_info: OpInfo, device: Any, *, more: tuple[Any, ...] = (), **_: Any) -> Iterator[ErrorInput]:
    for (x, u, b), error, said in refused(device):
        yield ErrorInput(SampleInput(x, args=(u, b, *more)), error_type=error, error_regex=f"han_stack: .*{said}")


def errors_of_forward(op_info: OpInfo, device: Any, **_: Any) -> Iterator[ErrorInput]:
    yield from errors_of_stack(op_info, device, more=(True, 1))
    x, u = torch.ones(2, 4, device=device), torch.ones(3, 4, device=device)
    yield ErrorInput(SampleInput(x, args=(u, None, True, 3)), error_type=ValueError, error_regex="save must be 0")


def errors_of_backward(op_info: OpInfo, device: Any, **_: Any) -> Iterator[ErrorInput]:
    x, u = torch.ones(2, 4, device=device), torch.ones(3, 4, device=device)
    y, signs = stack_ops.han_stack_forward(x, u, None, True, 1)
    needs = [True] * 3
    for given, error, said in (
        ((None, signs), ValueError, "y must be given where du is needed, got None"),
        ((y[:1], signs), ValueError, "y must have the shape and dtype of dy"),
        ((y.double(), signs), ValueError, "y must have the shape and dtype of dy"),
        ((y, signs.int()), TypeError, "signs must be torch.uint8, got torch.int32"),
        ((y, signs[:, :2]), ValueError, "signs must have shape"),
        ((y.to("meta"), signs), ValueError, "y must be on the device of dy .*got meta"),
    ):
        yield ErrorInput(SampleInput(x, args=(*given, u, None, True, needs)), error_type=error, error_regex=said)
    yield ErrorInput(
        SampleInput(x[:, :3], args=(None, signs, u, None, True, [True, False, False])),
        error_type=ValueError,
        error_regex="the last axis of dy must have u's 4 features",
    )


def sparse_errors(op_info: OpInfo, device: Any, layout: torch.layout, **_: Any) -> Iterator[ErrorInput]:
    """Yields the first sample with each of its floats in a sparse layout."""
    sample = next(iter(op_info.sample_inputs(device, torch.float32)))
    given = [sample.input, *sample.args]
    for i, t in enumerate(given):
        if isinstance(t, Tensor) and t.is_floating_point():
            wrong = [*given[:i], t.to_sparse(layout=layout), *given[i + 1 :]]
            yield ErrorInput(
                SampleInput(wrong[0], args=tuple(wrong[1:]), kwargs=sample.kwargs),
                error_type=TypeError,
                error_regex=f"han_stack: .* must be a strided tensor, got one of layout {layout}",
            )


# ---- the entries

ALL_DERIVATIVES: dict[str, Any] = {
    "supports_forward_ad": True,
    "supports_fwgrad_bwgrad": True,
    "supports_out": False,
    "error_inputs_sparse_func": sparse_errors,
}


def stack_info(variant: str, cases: list[Case]) -> OpInfo:
    first = (
        {}
        if variant
        else {
            "error_inputs_func": errors_of_stack,
            "reference_inputs_func": partial(reference_inputs_of_stack, sizes=SIZES),
        }
    )
    return OpInfo(
        "hanops.han_stack",
        variant_test_name=variant,
        op=hanops.han_stack,
        ref=numpy_stack,
        dtypes=DTYPES,
        sample_inputs_func=partial(samples_of_stack, cases=cases),
        **first,
        **ALL_DERIVATIVES,
    )


def forward_info(variant: str, cases: list[Case]) -> OpInfo:
    return OpInfo(
        "ops.hanops.han_stack_forward",
        variant_test_name=variant,
        op=stack_ops.han_stack_forward,
        ref=numpy_forward,
        dtypes=DTYPES,
        sample_inputs_func=partial(samples_of_forward, cases=cases),
        error_inputs_func=None if variant else errors_of_forward,
        **ALL_DERIVATIVES,
    )


def backward_info(variant: str, cases: list[tuple[Case, list[bool]]]) -> OpInfo:
    return OpInfo(
        "ops.hanops.han_stack_backward",
        variant_test_name=variant,
        op=stack_ops.han_stack_backward,
        dtypes=DTYPES,
        sample_inputs_func=partial(samples_of_backward, cases=cases),
        error_inputs_func=None if variant else errors_of_backward,
        **ALL_DERIVATIVES,
    )


op_db: list[OpInfo] = [
    *(stack_info(variant, cases) for variant, cases in VARIANTS.items()),
    OpInfo(
        "hanops.han_stack",
        variant_test_name="float32_parameters",
        op=hanops.han_stack,
        ref=numpy_stack,
        dtypes=DTYPES,
        sample_inputs_func=partial(samples_of_stack, cases=PLAIN[:1] + GROUPED[:1], parameters=torch.float32),
        **ALL_DERIVATIVES,
    ),
    forward_info("", PLAIN[:2]),
    forward_info("grouped", GROUPED),
    forward_info("chain", CHAINS[1:]),
    backward_info(
        "", [(Case((3, 4), 2), [True] * 3), (Case((5,), 2, bias=False, final_abs=False), [True, False, False])]
    ),
    backward_info("grouped", [(Case((2, 3, 4), 2, groups=2), [False, True, True])]),
    backward_info("chain", [(CHAINS[0], [True] * 3)]),
]
# For derivatives of mixtures of tensors and subclasses, 2^n or 4^n of them: the backward is without b or y.
mixed_db: list[OpInfo] = [
    *(info for info in op_db if "backward" not in info.name),
    backward_info("without_b", [(Case((2, 2, 3), 2, groups=2, bias=False), [True, True, False])]),
    backward_info("without_y", [(Case((2, 3), 1, groups=2, abs=False), [True, False, True])]),
]
large_db: list[OpInfo] = [
    OpInfo(
        "hanops.han_stack",
        variant_test_name="large",
        op=hanops.han_stack,
        ref=numpy_stack,
        dtypes=DTYPES,
        sample_inputs_func=partial(samples_of_stack, cases=[Case((64, size), 8) for size in LARGE]),
        reference_inputs_func=partial(reference_inputs_of_stack, sizes=LARGE),
        **ALL_DERIVATIVES,
    )
]
