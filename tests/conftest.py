"""Every backend runs the same tests: a later one only adds a row to BACKENDS."""

from collections.abc import Iterator

import pytest
import torch

import hanops

BACKENDS = ["cpu", "reference"] if hanops.ops.native is not None else ["reference"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with hanops.use_backend(request.param):
        yield request.param


@pytest.fixture
def device(backend: str) -> torch.device:
    return torch.device("cpu")


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fills every tensor that comes uninitialised with NaN, so that an output element left unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Makes inputs fresh in every run; a failure shows the seed among its captured output."""
    print("seed", torch.seed())
