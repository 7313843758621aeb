"""Of torch's test_modules and test_module_init, and of AOT autograd's and functorch's tests of modules."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.testing._internal.common_utils import gradcheck, gradgradcheck

from .machinery import (
    DEVICES,
    F32,
    F64,
    ModuleErrorEnum,
    ModuleInfo,
    ModuleInput,
    TestCase,
    aot_autograd_check,
    instantiate_device_type_tests,
    modules,
    noncontiguous_like,
)
from .module_db import module_db, truth

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def gradients(module: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Returns the output, and the gradients of its sum in x and the parameters."""
    x = x.detach().requires_grad_()
    y = module(x)
    return y, list(torch.autograd.grad(y.sum(), [x, *module.parameters()], allow_unused=True))


class ModuleTestCase(TestCase):
    def _inputs(self, info: ModuleInfo, device: Any, dtype: torch.dtype, training: bool) -> list[ModuleInput]:
        return info.module_inputs_func(info, device=device, dtype=dtype, requires_grad=False, training=training)

    def _made(
        self, info: ModuleInfo, device: Any, dtype: torch.dtype, training: bool
    ) -> Iterator[tuple[nn.Module, Tensor, ModuleInput]]:
        """Yields modules, and the x to call each with."""
        for given in self._inputs(info, device, dtype, training):
            made = given.constructor_input
            module = info.module_cls(*made.args, **made.kwargs, device=device, dtype=dtype)
            yield module.train(training), given.forward_input.args[0], given

    def _assert_same_module(self, got: nn.Module, wanted: nn.Module, x: Tensor) -> None:
        self.assertEqual(type(got), type(wanted))
        self.assertEqual(repr(got), repr(wanted))
        self.assertEqual(got.training, wanted.training)
        self.assertEqual(got.state_dict(), wanted.state_dict())
        self.assertEqual(gradients(got, x), gradients(wanted, x), rtol=0, atol=0)


class TestModule(ModuleTestCase):
    @modules(module_db)
    def test_forward(self, device, dtype, module_info, training):
        for module, x, given in self._made(module_info, device, dtype, training):
            y = module(x)
            self.assertEqual(y, given.reference_fn(module, x))
            self.assertEqual((y.shape, y.dtype, str(y.device)), (x.shape, x.dtype, device))

    @modules(module_db)
    def test_factory_kwargs(self, device, dtype, module_info, training):
        for given in self._inputs(module_info, device, dtype, training):
            made = given.constructor_input
            module = module_info.module_cls(*made.args, **made.kwargs, device=device, dtype=dtype)
            for t in (*module.parameters(), *module.buffers()):
                self.assertEqual((str(t.device), t.dtype), (device, dtype))

    @modules(module_db, allowed_dtypes=F32)
    def test_device_ctx_init(self, device, dtype, module_info, training):
        for given in self._inputs(module_info, device, dtype, training):
            made = given.constructor_input
            for place in (device, "meta"):
                with torch.device(place):
                    module = module_info.module_cls(*made.args, **made.kwargs)
                self.assertEqual({t.device.type for t in module.parameters()}, {place})

    @modules(module_db, allowed_dtypes=FLOATS)
    def test_repr(self, device, dtype, module_info, training):
        for module, _, given in self._made(module_info, device, dtype, training):
            said = repr(module)
            self.assertEqual(said, str(module))
            self.assertTrue(said.startswith(f"{module_info.name}("))
            for name, value in given.constructor_input.kwargs.items():
                self.assertIn(f"{name}={value}", said)

    @modules(module_db)
    def test_pickle(self, device, dtype, module_info, training):
        for module, x, _ in self._made(module_info, device, dtype, training):
            self._assert_same_module(pickle.loads(pickle.dumps(module)), module, x)

    @modules(module_db)
    def test_save_load(self, device, dtype, module_info, training):
        for module, x, _ in self._made(module_info, device, dtype, training):
            file = io.BytesIO()
            torch.save(module, file)
            file.seek(0)
            with torch.serialization.safe_globals([module_info.module_cls]):
                self._assert_same_module(torch.load(file, weights_only=False), module, x)

    @modules(module_db)
    def test_deepcopy(self, device, dtype, module_info, training):
        for module, x, _ in self._made(module_info, device, dtype, training):
            other = copy.deepcopy(module)
            self._assert_same_module(other, module, x)
            with torch.no_grad():
                for t in other.parameters():
                    t.add_(1)
            for a, b in zip(other.parameters(), module.parameters(), strict=True):
                self.assertTrue(a.numel() == 0 or not torch.equal(a, b))

    @modules(module_db)
    def test_state_dict_round_trip(self, device, dtype, module_info, training):
        for module, x, given in self._made(module_info, device, dtype, training):
            file = io.BytesIO()
            torch.save(module.state_dict(), file)
            for assign, place in ((False, device), (True, device), (True, "meta")):
                file.seek(0)
                made = given.constructor_input
                other = module_info.module_cls(*made.args, **made.kwargs, device=place, dtype=dtype).train(training)
                keys = other.load_state_dict(torch.load(file, weights_only=True), assign=assign)
                self.assertFalse(any(keys))
                self._assert_same_module(other, module, x)

    @modules(module_db)
    def test_state_dict_of_another(self, device, dtype, module_info, training):
        for module, _, _ in self._made(module_info, device, dtype, training):
            state = module.state_dict()
            with self.assertRaisesRegex(RuntimeError, 'Missing key.*"u"'):
                module.load_state_dict({})
            with self.assertRaisesRegex(RuntimeError, "size mismatch for u"):
                module.load_state_dict(state | {"u": torch.zeros(9, 9)})

    @modules(module_db)
    def test_to(self, device, dtype, module_info, training):
        casts = {
            torch.float64: nn.Module.double,
            torch.float32: nn.Module.float,
            torch.bfloat16: nn.Module.bfloat16,
            torch.float16: nn.Module.half,
        }
        for module, x, given in self._made(module_info, device, dtype, training):
            self.assertIs(module.to(device), module)
            self.assertIs(module.cpu(), module)
            for other, cast in casts.items():
                for moved in (cast(copy.deepcopy(module)), copy.deepcopy(module).to(other)):
                    self.assertEqual({t.dtype for t in moved.parameters()}, {other})
                    self.assertTrue(all(t.is_leaf and t.requires_grad for t in moved.parameters()))
                    y = moved(x.to(other))
                    self.assertEqual(y, given.reference_fn(moved, x.to(other)))
            meta = copy.deepcopy(module).to("meta")
            self.assertEqual(meta(x.to("meta")).shape, x.shape)

    @modules(module_db)
    def test_to_empty(self, device, dtype, module_info, training):
        for module, x, given in self._made(module_info, device, dtype, training):
            made = given.constructor_input
            other = module_info.module_cls(*made.args, **made.kwargs, device="meta", dtype=dtype).to_empty(
                device=device
            )
            other.reset_parameters()
            self.assertTrue(all(t.isfinite().all() for t in other.parameters()))
            other.load_state_dict(module.state_dict())
            self._assert_same_module(other.train(training), module, x)

    @modules(module_db)
    def test_cpu_grad_modes(self, device, dtype, module_info, training):
        for module, x, _ in self._made(module_info, device, dtype, training):
            wanted = module(x)
            with torch.no_grad():
                self.assertEqual(module(x), wanted, rtol=0, atol=0)
                self.assertFalse(module(x).requires_grad)
            with torch.inference_mode():
                self.assertEqual(module(x), wanted, rtol=0, atol=0)
                self.assertTrue(module(x).is_inference())
            self.assertEqual(wanted.requires_grad, any(t.requires_grad for t in module.parameters()))
            module.requires_grad_(False)
            self.assertFalse(module(x).requires_grad)
            self.assertTrue(module(x.requires_grad_()).requires_grad)

    @modules(module_db)
    def test_grad(self, device, dtype, module_info, training):
        """The gradients of each parameter and of x alone, and of all, as plain torch has them."""
        for module, x, _ in self._made(module_info, device, dtype, training):
            if dtype in F64 + F32:
                wide, x_wide = copy.deepcopy(module).double(), x.double().requires_grad_()
                leaves = [x_wide, *wide.parameters()]
                wanted = torch.autograd.grad(truth(wide, [], x_wide).sum(), leaves, materialize_grads=True)
                self.assertEqual(gradients(module, x)[1], [t.to(dtype) for t in wanted])
            _, all_of_them = gradients(module, x)
            self.assertEqual([t.dtype for t in all_of_them], [dtype] * len(all_of_them))
            x = x.detach().requires_grad_()
            for i, leaf in enumerate([x, *module.parameters()]):
                module.requires_grad_(False)
                x.requires_grad_(False)
                leaf.requires_grad_()
                module(x).sum().backward()
                self.assertEqual(leaf.grad, all_of_them[i])
                leaf.grad = None

    def _checked(self, module_info: ModuleInfo, device: Any, dtype: torch.dtype, training: bool, check: Any) -> None:
        for module, x, _ in self._made(module_info, device, dtype, training):
            names = [name for name, _ in module.named_parameters()]

            def function(x: Tensor, *parameters: Tensor) -> Tensor:
                return functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

            leaves = (x.requires_grad_(), *(t.detach().requires_grad_() for t in module.parameters()))
            self.assertTrue(check(function, leaves, fast_mode=module_info.gradcheck_fast_mode, nondet_tol=0.0))

    @modules(module_db, allowed_dtypes=F64)
    def test_gradcheck(self, device, dtype, module_info, training):
        self._checked(module_info, device, dtype, training, gradcheck)

    @modules(module_db, allowed_dtypes=F64)
    def test_gradgrad(self, device, dtype, module_info, training):
        self._checked(module_info, device, dtype, training, gradgradcheck)

    @modules(module_db)
    def test_non_contiguous_tensors(self, device, dtype, module_info, training):
        """x, the parameters and the gradient of the output, none of them contiguous."""
        for module, x, _ in self._made(module_info, device, dtype, training):
            wanted = gradients(module, x)
            other = copy.deepcopy(module)
            for name, t in list(other.named_parameters()):
                setattr(other, name, nn.Parameter(noncontiguous_like(t.detach())))
            self.assertEqual(gradients(other, noncontiguous_like(x)), wanted)
            dy = torch.randn_like(wanted[0])
            leaf = x.detach().requires_grad_()
            got = [torch.autograd.grad(module(leaf), leaf, v)[0] for v in (dy, noncontiguous_like(dy))]
            self.assertEqual(*got)

    @modules(module_db)
    def test_memory_format(self, device, dtype, module_info, training):
        """A channels_last x, and a module converted to channels_last: the same values."""
        for module, x, _ in self._made(module_info, device, dtype, training):
            if x.dim() != 4:
                x = x.reshape(x.shape[0], *(1,) * (4 - x.dim()), *x.shape[1:]) if x.dim() > 1 else x.view(1, 1, 1, -1)
            wanted = gradients(module, x)
            last = x.to(memory_format=torch.channels_last)
            self.assertEqual(gradients(module, last), wanted)
            self.assertEqual(gradients(copy.deepcopy(module).to(memory_format=torch.channels_last), last), wanted)

    @modules(module_db)
    def test_if_train_and_eval_modes_differ(self, device, dtype, module_info, training):
        for module, x, _ in self._made(module_info, device, dtype, training):
            self.assertEqual(gradients(module.train(), x), gradients(module.eval(), x), rtol=0, atol=0)
            self.assertFalse(module_info.train_and_eval_differ)

    @modules(module_db)
    def test_errors(self, device, dtype, module_info, training):
        for error in module_info.module_error_inputs_func(module_info, device, dtype, False, training):
            given = error.module_error_input
            made = given.constructor_input
            if error.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
                with self.assertRaisesRegex(error.error_type, error.error_regex):
                    module_info.module_cls(*made.args, **made.kwargs)
                continue
            module = module_info.module_cls(*made.args, **made.kwargs, device=device, dtype=dtype)
            with self.assertRaisesRegex(error.error_type, error.error_regex):
                module(*given.forward_input.args)

    @modules(module_db)
    def test_zero_grad_and_reset(self, device, dtype, module_info, training):
        for module, x, _ in self._made(module_info, device, dtype, training):
            module(x).sum().backward()
            self.assertTrue(all(t.grad is not None and t.grad.shape == t.shape for t in module.parameters()))
            module.zero_grad()
            self.assertTrue(all(t.grad is None for t in module.parameters()))
            torch.manual_seed(0)
            module.reset_parameters()
            first = copy.deepcopy(module.state_dict())
            torch.manual_seed(0)
            module.reset_parameters()
            self.assertEqual(module.state_dict(), first, rtol=0, atol=0)


class TestFunctionalModules(ModuleTestCase):
    """Modules as functions of their parameters: torch's test_stateless, and its tests of ensembles."""

    @modules(module_db)
    def test_functional_call(self, device, dtype, module_info, training):
        for module, x, _ in self._made(module_info, device, dtype, training):
            other = {name: torch.rand_like(t) for name, t in module.named_parameters()}
            before = copy.deepcopy(module.state_dict())
            y = functional_call(module, other, (x,))
            self.assertEqual(module.state_dict(), before)
            module.load_state_dict(other)
            self.assertEqual(y, module(x), rtol=0, atol=0)

    @modules(module_db, allowed_dtypes=F64)
    def test_ensemble(self, device, dtype, module_info, training):
        for given in self._inputs(module_info, device, dtype, training):
            made, x = given.constructor_input, given.forward_input.args[0]
            several = [module_info.module_cls(*made.args, **made.kwargs, device=device, dtype=dtype) for _ in range(3)]
            parameters, buffers = stack_module_state(several)

            def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
                return functional_call(several[0], (parameters, buffers), (x,)).square().sum()

            got = vmap(grad(loss))(parameters, buffers)
            for i, module in enumerate(several):
                module(x).square().sum().backward()
                self.assertEqual(
                    {name: t[i] for name, t in got.items()}, {n: t.grad for n, t in module.named_parameters()}
                )


class TestEagerFusionModuleInfo(ModuleTestCase):
    def _check(self, device: Any, dtype: torch.dtype, info: ModuleInfo, training: bool, dynamic: bool) -> None:
        for module, x, _ in self._made(info, device, dtype, training):
            names = [name for name, _ in module.named_parameters()]

            def function(x: Tensor, *parameters: Tensor) -> Tensor:
                return functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

            leaves = [x.requires_grad_(), *(t.detach().requires_grad_() for t in module.parameters())]
            aot_autograd_check(
                function,
                leaves,
                {},
                dynamic,
                self.assertRaisesRegex,
                self.assertEqual,
                try_check_data_specialization=True,
            )

    @modules(module_db, allowed_dtypes=F32)
    def test_aot_autograd_module_exhaustive(self, device, dtype, module_info, training):
        self._check(device, dtype, module_info, training, dynamic=False)

    @modules(module_db, allowed_dtypes=F32)
    def test_aot_autograd_symbolic_module_exhaustive(self, device, dtype, module_info, training):
        self._check(device, dtype, module_info, training, dynamic=True)


@pytest.mark.usefixtures("undisturbed_compiler")
class TestCompiledModules(ModuleTestCase):
    def _check(self, device: Any, dtype: torch.dtype, info: ModuleInfo, training: bool, **options: Any) -> None:
        for module, x, _ in self._made(info, device, dtype, training):
            torch._dynamo.reset()
            compiled = torch.compile(module, fullgraph=True, **options)
            self.assertEqual(gradients(compiled, x), gradients(module, x))

    @modules(module_db, allowed_dtypes=F32)
    def test_aot_eager(self, device, dtype, module_info, training):
        self._check(device, dtype, module_info, training, backend="aot_eager")

    @pytest.mark.thorough("the Inductor")
    @modules(module_db, allowed_dtypes=F32)
    def test_inductor(self, device, dtype, module_info, training):
        self._check(device, dtype, module_info, training, backend="inductor")


instantiate_device_type_tests(TestModule, globals(), only_for=DEVICES)
instantiate_device_type_tests(TestFunctionalModules, globals(), only_for=DEVICES)
instantiate_device_type_tests(TestEagerFusionModuleInfo, globals(), only_for=DEVICES)
instantiate_device_type_tests(TestCompiledModules, globals(), only_for=DEVICES)
