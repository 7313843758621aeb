"""Small random models for every client, and the tables of docs/clients.md: `--table` writes what passed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from torch import Tensor, nn

import hanops

from ..pages import part
from .steps import PAGE

RESULTS: dict[tuple[str, str], set[str]] = {}  # by client and what was tried: outcomes of its tests, or why skipped
KNOWN: list[str] = []  # rows of known models that were converted
KEPT: list[torch.library.Library] = []  # a library undefines its ops when it is collected


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--table", action="store_true", help="write the tables of docs/clients.md")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "client(package, tried): a package, and what its test does with it")
    torchvision_without_its_ops()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("client"):
            item.add_marker(pytest.mark.filterwarnings("default"))  # clients warn of what is theirs


def package_of(item: pytest.Item) -> tuple[str, str] | None:
    marker = item.get_closest_marker("client")
    return None if marker is None else (marker.args[0], marker.args[1])


@pytest.fixture(autouse=True)
def client(request: pytest.FixtureRequest) -> None:
    """Skips a test whose package is not installed, or does not import here."""
    row = package_of(request.node)
    if row is not None:
        pytest.importorskip(row[0], reason=f"{row[0]} is not installed", exc_type=ImportError)
    torch.use_deterministic_algorithms(False)


def torchvision_without_its_ops() -> None:
    """Lets a torchvision that was built for CUDA's torch be imported: two of its ops lack only their schemas."""
    try:
        import_module("torchvision")
    except ImportError:
        return
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for op in ("nms", "qnms"):
            library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        KEPT.append(library)
        import_module("torchvision")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    outcome = yield
    report, row = outcome.get_result(), package_of(item)
    if row is None or (report.when != "call" and report.passed):
        return
    why = report.longrepr[2].removeprefix("Skipped: ") if report.skipped else ""
    RESULTS.setdefault(row, set()).add(f"not run: {why}" if report.skipped else report.outcome)


def rows() -> list[str]:
    lines = ["| client | version | tried | result |", "|---|---|---|---|"]
    for (package, tried), outcomes in sorted(RESULTS.items()):
        try:
            known = version(package)
        except PackageNotFoundError:
            known = "none"
        result = "failed" if "failed" in outcomes else "; ".join(sorted(outcomes))
        lines.append(f"| {package} | {known} | {tried} | {result} |")
    return lines


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--table"):
        head = f"torch {torch.__version__}, Python {sys.version.split()[0]}, hanops {hanops.__version__}, on a CPU."
        text = part("clients", [head, "", *rows()], PAGE.read_text())
        columns = ["| model | call | parameters | loss, ten steps |", "|---|---|---|---|"]
        PAGE.write_text(part("models", [*columns, *KNOWN], text))


# ---- models and data


def by_hand() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 16), hanops.HanStack(16, 3), nn.Linear(16, 2))


def converted() -> nn.Sequential:
    model = nn.Sequential(
        *(nn.Linear(4, 16), nn.ReLU(inplace=True), nn.Linear(16, 16), nn.ReLU(inplace=True)),
        *(nn.Dropout(0.1, inplace=True), nn.Linear(16, 2)),
    )
    hanops.convert(model, verbose=False)
    return model


@pytest.fixture(params=[by_hand, converted], ids=["by hand", "by convert"])
def make(request: pytest.FixtureRequest) -> Callable[[], nn.Sequential]:
    return request.param


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    """Points of four features in two classes, told apart by the sign of a product."""
    x = torch.randn(256, 4)
    return x, (x[:, 0] * x[:, 1] > 0).long()


@pytest.fixture
def known() -> Callable[[str, dict[str, object], hanops.conversion.Conversion, list[float]], None]:
    """Makes a row of the table of known models."""

    def add(name: str, options: dict[str, object], report: hanops.conversion.Conversion, losses: list[float]) -> None:
        given = "".join(f", {key}={value!r}" for key, value in options.items()).replace("'", '"')
        sizes = f"{report.before:,} → {report.after:,}"
        KNOWN.append(f"| {name} | `hanops.convert(model{given})` | {sizes} | {losses[0]:.2f} → {losses[-1]:.2f} |")

    return add
