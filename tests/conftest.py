"""Every backend runs the same tests, on the device of `--device`; the CPU interprets Triton and emulates CUDA."""

import os
import zlib
from collections.abc import Iterator
from importlib.util import find_spec

import emulation
import hypothesis
import numpy
import pytest
import torch
from processes import Processes

import hanops
from hanops import backends

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=["cpu", "cuda"], default="cpu", help="where the backends' tests run")
    parser.addoption("--seed", type=int, default=0, help="another seed makes other inputs; 0 is what CI runs")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "lacks(why): the backends that have no such feature, and why")
    config.addinivalue_line("markers", "only(*backends, interpreted=True): the backends that a test is about")
    hypothesis.settings.register_profile("fixed", derandomize=True)
    hypothesis.settings.load_profile("default" if config.getoption("--seed") else "fixed")
    if config.getoption("numprocesses", None):  # of pytest-xdist, which starts them later
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's idle threads leave their core to other processes
    if config.getoption("--device") == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when hanops.triton is imported
    else:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matmul


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        on_gpu = metafunc.config.getoption("--device") == "cuda"
        have = {
            "cuda": backends.missing("cuda") is None if on_gpu else emulation.available(),
            "triton": find_spec("triton") is not None,
            "cpu": not on_gpu and hanops.ops.native is not None,
        }
        names = [*(name for name in have if have[name]), "reference"]
        if only := metafunc.definition.get_closest_marker("only"):
            interpreted = only.kwargs.get("interpreted", True) or on_gpu
            names = [name for name in names if name in only.args and (interpreted or name != "triton")]
        metafunc.parametrize("backend", names, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest, device: torch.device) -> Iterator[str]:
    lacks = request.node.get_closest_marker("lacks")
    if lacks and request.param in lacks.args[0]:
        pytest.skip(lacks.args[0][request.param])
    if request.param == "cuda" and device.type == "cpu":
        emulation.load()
    with hanops.use_backend(request.param):
        yield request.param


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def quiet_interpreter() -> Iterator[None]:
    """Triton's interpreter computes with NumPy, which warns of the infinities that tests are about."""
    with numpy.errstate(all="ignore"):
        yield


@pytest.fixture
def interpreted(backend: str, device: torch.device) -> bool:
    """Whether the test runs in Triton's interpreter, which is a thousand times slower: sizes are to be small."""
    return backend == "triton" and device.type == "cpu"


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fills every tensor that comes uninitialised with NaN, so that an output element left unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def undisturbed_compiler(poisoned_memory: None) -> Iterator[None]:
    """The compiler is guarded by the mode of deterministic algorithms; it is off but where a test says so."""
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()
    yield
    torch.compiler.set_stance("default")


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> None:
    """Gives each test inputs of its own, the same in every run with one `--seed`, alone or among others."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()) + request.config.getoption("--seed"))


@pytest.fixture(scope="session")
def pools() -> Iterator[dict[int, Processes]]:
    """Processes that run functions of test modules together, by their number."""
    pools = {size: Processes(size) for size in (1, 2, 4)}
    yield pools
    for processes in pools.values():
        processes.stop()


@pytest.fixture(params=[2, 4], ids=lambda size: f"{size} processes")
def run(request: pytest.FixtureRequest, pools: dict[int, Processes]) -> Processes:
    return pools[request.param]
