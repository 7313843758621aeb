"""torch's machinery for its own tests, imported without the changes that its import makes in a process."""

from __future__ import annotations

import sys
import unittest
from collections.abc import Callable
from typing import Any

import hypothesis
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_profile = hypothesis.settings.get_current_profile_name()

from torch.testing import make_tensor  # noqa: E402
from torch.testing._internal import common_utils, composite_compliance  # noqa: E402
from torch.testing._internal.common_device_type import OpDTypes, instantiate_device_type_tests, ops  # noqa: E402
from torch.testing._internal.common_dtype import all_types_and_complex_and  # noqa: E402
from torch.testing._internal.common_modules import (  # noqa: E402
    ErrorModuleInput,
    FunctionInput,
    ModuleErrorEnum,
    ModuleInfo,
    ModuleInput,
    modules,
)
from torch.testing._internal.common_utils import TestCase, TestGradients, noncontiguous_like  # noqa: E402
from torch.testing._internal.opinfo import core  # noqa: E402
from torch.testing._internal.opinfo.core import ErrorInput, OpInfo, SampleInput  # noqa: E402
from torch.testing._internal.optests import aot_autograd_check, fake_check, generate_opcheck_tests  # noqa: E402

hypothesis.settings.load_profile(_profile)


def _running_test() -> Callable[..., Any] | None:
    """Returns the method of a TestCase that runs, of which torch tells the sample that failed."""
    frame = sys._getframe().f_back
    while frame is not None:
        case = frame.f_locals.get("self")
        if isinstance(case, unittest.TestCase):
            return getattr(case, case._testMethodName).__func__
        frame = frame.f_back
    return None


for _module in (common_utils, core):
    _module.extract_test_fn = _running_test  # torch's own, called for every sample, reads the source of every frame
setattr(torch.backends, "__allow_nonbracketed_mutation_flag", True)

__all__ = [
    "ErrorInput",
    "ErrorModuleInput",
    "FunctionInput",
    "ModuleErrorEnum",
    "ModuleInfo",
    "ModuleInput",
    "OpDTypes",
    "OpInfo",
    "SampleInput",
    "TestCase",
    "TestGradients",
    "all_types_and_complex_and",
    "aot_autograd_check",
    "composite_compliance",
    "fake_check",
    "generate_opcheck_tests",
    "instantiate_device_type_tests",
    "make_tensor",
    "modules",
    "noncontiguous_like",
    "ops",
]

DEVICES = ("cpu",)
F64 = (torch.float64,)
F32 = (torch.float32,)
WARNINGS = (
    "ignore:There is a performance drop:UserWarning",  # vmap's own, where it loops
)


def tensors(tree: Any) -> list[Tensor]:
    """Returns the tensors of a tree."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def call(op: Callable[..., Any], sample: SampleInput) -> Any:
    """Calls op on a sample."""
    return op(sample.input, *sample.args, **sample.kwargs)


def function_of(
    op: Callable[..., Any], sample: SampleInput, chosen: Callable[[Tensor], bool] = lambda t: t.requires_grad
) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """Returns op as a function of the chosen tensors of a sample, all others fixed, and these tensors.

    The function's results are those that the sample says have a gradient.
    """
    leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and chosen(leaf)]

    def function(*new: Tensor) -> Any:
        mixed = list(leaves)
        for i, t in zip(places, new, strict=True):
            mixed[i] = t
        first, args, kwargs = pytree.tree_unflatten(mixed, spec)
        return sample.output_process_fn_grad(op(first, *args, **kwargs))

    return function, tuple(leaves[i].detach() for i in places)


def like(t: Tensor) -> Tensor:
    """Returns other random values for t: of the same range where it is a float, any bits where it is not."""
    if t.is_floating_point():
        return make_tensor(t.shape, dtype=t.dtype, device=t.device, low=-1, high=1)
    return torch.randint(0, 256, t.shape, dtype=t.dtype, device=t.device)
