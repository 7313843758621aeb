"""Every backend runs the same tests, on the device of `--device`; the CPU interprets Triton and emulates CUDA."""

import os
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import numpy
import pytest
import torch

import hanops
from hanops import backends
from hanops.backends.native import native

from . import emulation, interpreter
from .processes import Processes

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=["cpu", "cuda"], default="cpu", help="where the backends' tests run")
    parser.addoption("--fake", action="store_true", help="with --device cuda: its tests, run on the CPU")
    parser.addoption("--all", action="store_true", help="also the tests that are marked `thorough`")
    parser.addoption(
        "--counts", action="store_true", help="print how many tests of each class, or file, ran and passed"
    )
    parser.addoption("--seed", type=int, default=0, help="another seed makes other inputs; 0 is what CI runs")


def pytest_configure(config: pytest.Config) -> None:
    wanted = os.environ.get("HANOPS_TEST_PACKAGE")
    if wanted and Path(hanops.__file__).parent.parent != Path(wanted):
        raise pytest.UsageError(f"HANOPS_TEST_PACKAGE: the tests are to run on {wanted}, got {hanops.__file__}")
    config.addinivalue_line("markers", "lacks(why): the backends that have no such feature, and why")
    config.addinivalue_line("markers", "thorough(why): left to `make test-all`, which CI runs")
    config.addinivalue_line("markers", "plain_torch: runs on the backend 'torch', a word that `-k` finds in dtypes too")
    config.addinivalue_line("markers", "only(*backends, interpreted=True): the backends that a test is about")
    hypothesis.settings.register_profile("fixed", derandomize=True)
    hypothesis.settings.load_profile("default" if config.getoption("--seed") else "fixed")
    if config.getoption("numprocesses", None):  # of pytest-xdist, which starts them later
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's idle threads leave their core to other processes
    if on_gpu(config):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matmul
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of compilers for each process of tests
    else:
        os.environ["TRITON_INTERPRET"] = "1"  # read when hanops.backends.triton is imported


def on_gpu(config: pytest.Config) -> bool:
    return config.getoption("--device") == "cuda" and not config.getoption("--fake")


# ---- what a GPU is to run: tests of its backends, and not what compiles, spawns or emulates on the CPU

ON_THE_CPU = {"emulator", "on_cpu", "pools"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if config.getoption("--device") == "cpu" or collection_path.suffix != ".py":
        return None
    return None if re.search(r"def test_\w+\((backend|gpu)\b", collection_path.read_text()) else True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if not config.getoption("--all") and (thorough := item.get_closest_marker("thorough")):
            item.add_marker(pytest.mark.skip(reason=f"left to make test-all: {thorough.args[0]}"))
    if config.getoption("--device") == "cpu":
        return
    fixtures = {item: set(getattr(item, "fixturenames", ())) for item in items}
    chosen = [item for item in items if "device" in fixtures[item] and not fixtures[item] & ON_THE_CPU]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.getoption("--counts"):
        return
    kinds = ("passed", "failed", "error", "xfailed", "xpassed", "skipped", "left to make test-all")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for kind, reports in terminalreporter.stats.items():
        for report in (report for report in reports if isinstance(report, pytest.TestReport)):
            left = kind == "skipped" and "left to make test-all" in str(report.longrepr)
            counts["::".join(report.nodeid.split("::")[:-1])][kinds[-1] if left else kind] += 1
    total = sum(counts.values(), Counter())
    kinds = tuple(kind for kind in kinds if total[kind] or kind in ("failed", "skipped"))
    width = max(map(len, counts), default=0)
    terminalreporter.section("counts")
    for name, row in [("", dict(zip(kinds, kinds, strict=True))), *sorted(counts.items()), ("all", total)]:
        cells = (f"{row[kind]:>{max(len(kind), 6)}}" for kind in kinds)
        terminalreporter.write_line(f"{name:{width}}  {'  '.join(cells)}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        config = metafunc.config
        have = {
            "cuda": backends.missing("cuda") is None if on_gpu(config) else emulation.available(),
            "triton": find_spec("triton") is not None,
            "cpu": config.getoption("--device") == "cpu" and native is not None,
        }
        names = [*(name for name in have if have[name]), "torch"]
        if only := metafunc.definition.get_closest_marker("only"):
            interpreted = only.kwargs.get("interpreted", True) or on_gpu(config)
            names = [name for name in names if name in only.args and (interpreted or name != "triton")]
        marked = [pytest.param(name, marks=pytest.mark.plain_torch) if name == "torch" else name for name in names]
        metafunc.parametrize("backend", marked, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest, device: torch.device) -> Iterator[str]:
    lacks = request.node.get_closest_marker("lacks")
    if lacks and request.param in lacks.args[0]:
        pytest.skip(lacks.args[0][request.param])
    if request.param == "cuda" and device.type == "cpu":
        emulation.load()
    if request.param == "triton" and device.type == "cpu":
        interpreter.patch_once()
    with hanops.use_backend(request.param):
        yield request.param


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device("cuda" if on_gpu(request.config) else "cpu")


@pytest.fixture(autouse=True)
def quiet_interpreter() -> Iterator[None]:
    """Triton's interpreter computes with NumPy, which warns of the infinities that tests are about."""
    with numpy.errstate(all="ignore"):
        yield


@pytest.fixture
def interpreted(backend: str, device: torch.device) -> bool:
    """Whether the test runs in Triton's interpreter, which is a thousand times slower: sizes are to be small."""
    return backend == "triton" and device.type == "cpu"


@pytest.fixture
def emulated(backend: str, device: torch.device) -> bool:
    """Whether CUDA kernels run in the emulator, hundreds of times slower than on a CPU's vectors."""
    return backend == "cuda" and device.type == "cpu"


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
