"""What a build with CUDA kernels shows where no GPU is: its keys, its links, and fake tensors on 'cuda'."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

import hanops
from hanops.backends.native import native

HAS_KERNELS = native is not None and "cuda_architectures" in native.build_info()
kernels = pytest.mark.skipif(not HAS_KERNELS, reason="this build has no CUDA kernels")
OPS = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("hanops::")]
# libtorch_cuda is not among them: only torch's allocator and streams are asked for.
LIBRARIES = r"libc10|libc10_cuda|libtorch_cpu|libstdc\+\+|libgcc_s|libc|libm|libdl|librt|libpthread|ld-linux-x86-64"


@pytest.fixture
def fake_mode():
    if torch.version.cuda is None:
        pytest.skip("torch without CUDA aborts where autograd records a fake tensor on 'cuda'")
    with FakeTensorMode() as mode:
        yield mode


@pytest.mark.skipif("HANOPS_CUDA_CHECK" not in os.environ, reason="not in make cuda-check")
def test_the_build_that_is_tested():
    """In `make cuda-check` nothing below is skipped, and nothing runs from the tree's own build."""
    assert HAS_KERNELS
    assert "cuda-check" in native.__file__
    assert native.build_info()["torch"] == torch.__version__
    assert native.build_info()["built_for"].endswith(f"cuda={torch.version.cuda}")


# ---- keys


@kernels
def test_every_op_runs_on_cuda():
    assert {"hanops::han_stack", "hanops::han_stack_forward", "hanops::han_stack_backward"} < set(OPS)
    for op in OPS:
        for key in ("CUDA", "AutogradCUDA", "Meta"):
            assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(op, key), (op, key)


@kernels
def test_the_kernels_are_registered_for_cuda():
    for op in ("hanops::han_stack_forward_cuda", "hanops::han_stack_backward_cuda"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA"), op
    assert torch._C._dispatch_has_kernel_for_dispatch_key("hanops::han_stack", "AutocastCUDA")
    assert hanops.backends.missing("cuda") is None


# ---- the module as a file


@kernels
@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not on the path")
def test_links():
    """It needs what torch has loaded, no run-time library of CUDA, and no folder of the machine that built it."""
    told = subprocess.run(["readelf", "-dW", native.__file__], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*?)\.so", told)
    assert {"libc10", "libc10_cuda", "libtorch_cpu"} <= set(needed)
    assert not [library for library in needed if not re.fullmatch(LIBRARIES, library)]
    assert "RUNPATH" not in told
    assert "RPATH" not in told


@kernels
def test_architectures():
    nvidia = pytest.importorskip("triton.backends.nvidia", reason="Triton, which carries a cuobjdump, is not installed")
    tool = shutil.which("cuobjdump") or Path(nvidia.__path__[0], "bin", "cuobjdump")
    told = subprocess.run([tool, "--list-elf", native.__file__], capture_output=True, text=True, check=True)
    compiled = set(re.findall(r"sm_(\d+)", told.stdout))
    named = native.build_info()["cuda_architectures"]
    assert compiled == {name.partition("+")[0].replace(".", "") for name in named}


# ---- fake tensors


@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_forward_and_backward_of_fakes(fake_mode, groups, dtype):
    lead = () if groups is None else (groups,)
    x = torch.empty(*lead, 5, 8, device="cuda", dtype=dtype, requires_grad=True)
    u, b = (torch.empty(*lead, 3, 8, device="cuda", dtype=dtype, requires_grad=True) for _ in range(2))
    y = hanops.han_stack(x, u, b)
    assert (y.shape, y.dtype, y.device.type) == (x.shape, dtype, "cuda")
    # Autograd's node itself, by hand: torch's engine wants a GPU, for fakes too.
    for grad, t in zip(y.grad_fn(torch.empty_like(y)), (x, u, b), strict=True):
        assert (grad.shape, grad.dtype, grad.device.type) == (t.shape, dtype, "cuda")


@pytest.fixture
def autocast_on_cuda():
    """torch.autocast itself is off where no GPU is."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    yield
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])


def test_a_module_of_fakes(fake_mode):
    module = hanops.HanStack(8, 3, device="cuda")
    y = module(torch.empty(2, 5, 8, device="cuda"))
    assert (y.shape, y.dtype, y.device.type) == ((2, 5, 8), torch.float32, "cuda")
    assert y.requires_grad


def test_autocast_of_fakes(fake_mode, autocast_on_cuda):
    module = hanops.HanStack(8, 3, device="cuda")
    y = module(torch.empty(2, 5, 8, device="cuda"))
    assert (y.dtype, module.u.dtype) == (torch.bfloat16, torch.float32)


def test_each_backend_on_fakes(fake_mode):
    x, u = torch.empty(5, 8, device="cuda"), torch.empty(3, 8, device="cuda")
    for name in ("cuda", "triton", "torch"):
        if hanops.backends.missing(name) is None:
            with hanops.use_backend(name):
                assert hanops.han_stack(x, u).device.type == "cuda"


def test_export_of_fakes(fake_mode):
    module = hanops.HanStack(8, 3, device="cuda")
    program = torch.export.export(module, (torch.empty(5, 8, device="cuda"),))
    assert [n.target for n in program.graph.nodes if n.op == "call_function"] == [torch.ops.hanops.han_stack.default]


# ---- what is told


@kernels
def test_explain_on_fakes(fake_mode):
    x, u = torch.empty(5, 8, device="cuda"), torch.empty(3, 8, device="cuda")
    told = hanops.explain(x, u)
    assert told.backend == "cuda"
    assert told.reason.startswith("preferred on cuda:0: ")
    assert told.others["triton"] == "'cuda' is preferred" or "not installed" in told.others["triton"]
    assert told.others["cpu"] == "the tensors are on cuda:0"
    with hanops.use_backend("triton" if hanops.backends.missing("triton") is None else "torch"):
        assert hanops.explain(x, u).others["cuda"].endswith("was asked for")


@kernels
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_on_the_cpu_the_kernels_are_not_taken():
    x, u = torch.ones(2, 4), torch.ones(3, 4)
    assert hanops.explain(x, u).backend == "cpu"
    assert re.match("the tensors are on cpu|on the CPU its kernels", hanops.explain(x, u).others["cuda"])
