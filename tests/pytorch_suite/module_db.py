"""ModuleInfos of HanStack and HanLayer: how they are made and called, what they compute, what they refuse."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import hanops
from hanops.definition import reference

from .machinery import (
    ErrorModuleInput,
    FunctionInput,
    ModuleErrorEnum,
    ModuleInfo,
    ModuleInput,
    make_tensor,
)
from .op_db import DTYPES


def truth(module: hanops.HanStack, parameters: list[nn.Parameter], x: Tensor) -> Tensor:
    """Returns what the module computes, in plain torch."""
    rows = x.movedim(module.dim, -1)
    y = reference.han_stack(rows, module.u, module.b, module.final_abs, module.activation is not None)
    return y.movedim(-1, module.dim)


def inputs(
    calls: list[tuple[str, tuple[int, ...], dict[str, Any], tuple[int, ...]]],
    module_info: ModuleInfo,
    device: Any,
    dtype: torch.dtype,
    requires_grad: bool,
    training: bool,
    **_: Any,
) -> list[ModuleInput]:
    new = partial(make_tensor, device=device, dtype=dtype, requires_grad=requires_grad, low=-1, high=1)
    return [
        ModuleInput(
            constructor_input=FunctionInput(*arguments, **options),
            forward_input=FunctionInput(new(shape)),
            desc=name,
            reference_fn=truth,
        )
        for name, arguments, options, shape in calls
    ]


STACKS: list[tuple[str, tuple[int, ...], dict[str, Any], tuple[int, ...]]] = [
    ("", (5, 3), {}, (4, 5)),
    ("no_bias", (5, 2), {"bias": False}, (4, 5)),
    ("no_batch_dim", (6, 2), {}, (6,)),
    ("no_final_abs", (5, 2), {"final_abs": False}, (2, 3, 5)),
    ("no_activation", (5, 2), {"activation": None}, (2, 3, 5)),
    ("groups", (4, 2), {"groups": 3}, (3, 2, 4)),
    ("channels", (4, 2), {"dim": 1}, (2, 4, 3, 3)),
    ("no_layers", (5, 0), {}, (4, 5)),
    ("no_rows", (5, 2), {}, (0, 5)),
]
LAYERS: list[tuple[str, tuple[int, ...], dict[str, Any], tuple[int, ...]]] = [
    ("", (5,), {}, (4, 5)),
    ("no_bias", (5,), {"bias": False}, (2, 3, 5)),
    ("no_batch_dim", (6,), {}, (6,)),
    ("no_final_abs", (5,), {"final_abs": False}, (4, 5)),
    ("no_activation", (5,), {"activation": None}, (4, 5)),
    ("groups", (4,), {"groups": 2}, (2, 3, 4)),
    ("channels", (4,), {"dim": 1}, (2, 4, 3, 3)),
]


def errors(
    more: tuple[int, ...], module_info: ModuleInfo, device: Any, dtype: torch.dtype, *_: Any
) -> list[ErrorModuleInput]:
    """Returns what construction and forward refuse; `more` follows features, as depth does for a stack."""
    new = partial(make_tensor, device=device, dtype=dtype)
    made: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
        ((0, *more), {}, ValueError, "features must be at least 1, got 0"),
        ((2.5, *more), {}, TypeError, "features must be an int, got 2.5"),
        ((4, *more), {"groups": 0}, ValueError, "groups must be at least 1, got 0"),
        ((4, *more), {"dtype": torch.int64}, TypeError, "dtype must be float64, float32, bfloat16 or float16"),
        ((4, *more), {"groups": 2, "dim": 0}, ValueError, "dim must not be 0, the axis of the groups"),
    ]
    called: list[tuple[dict[str, Any], Any, type[Exception], str]] = [
        ({}, new((2, 3)), ValueError, "last axis of x must have u's 4 features"),
        ({}, torch.ones(2, 4, dtype=torch.int64, device=device), TypeError, "x must be float64"),
        ({}, "x", TypeError, "x must be a Tensor, got"),
        ({"groups": 3}, new((2, 5, 4)), ValueError, "first axis of x must have u's 3 groups"),
        ({"dim": 2}, new((2, 4)), ValueError, "x must have an axis 2"),
    ]
    return [
        *(
            ErrorModuleInput(
                ModuleInput(constructor_input=FunctionInput(*arguments, **options)),
                error_on=ModuleErrorEnum.CONSTRUCTION_ERROR,
                error_type=error,
                error_regex=said,
            )
            for arguments, options, error, said in made
        ),
        *(
            ErrorModuleInput(
                ModuleInput(constructor_input=FunctionInput(4, *more, **options), forward_input=FunctionInput(x)),
                error_on=ModuleErrorEnum.FORWARD_ERROR,
                error_type=error,
                error_regex=said,
            )
            for options, x, error, said in called
        ),
    ]


module_db: list[ModuleInfo] = [
    ModuleInfo(
        hanops.HanStack,
        module_inputs_func=partial(inputs, STACKS),
        module_error_inputs_func=partial(errors, (2,)),
        dtypes=DTYPES,
        gradcheck_fast_mode=False,
    ),
    ModuleInfo(
        hanops.HanLayer,
        module_inputs_func=partial(inputs, LAYERS),
        module_error_inputs_func=partial(errors, ()),
        dtypes=DTYPES,
        gradcheck_fast_mode=False,
    ),
]
