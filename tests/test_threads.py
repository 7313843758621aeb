"""What threads share: the rows of one call, and the choice of backend. `make sanitize` looks for races in them."""

import threading

import pytest
import torch

import hanops
from hanops.backends.native import native

from .accuracy import problem, stack

pytestmark = pytest.mark.skipif(native is None, reason="threads of the kernels")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("groups", [None, 3])
@pytest.mark.parametrize(("rows", "features"), [(700, 30), (257, 64), (300, 200), (130, 700), (40, 1100)])
def test_rows_of_one_call(threads, dtype, groups, rows, features):
    """Enough rows for every thread to have some, in both directions and in the sums of the parts."""
    p = problem(rows, features, 5, dtype, groups=groups)
    with hanops.use_backend("cpu"):
        threads(1)
        wanted = p.run(stack)
        threads(4)
        got = p.run(stack)
    for name, value in got.items():
        assert torch.equal(value, wanted[name]), name


def test_calls_while_the_backend_changes(threads):
    threads(1)
    p = problem(40, 24, 3, torch.float32)
    wanted, wrong = p.run(stack), []
    done = threading.Event()

    def call():
        while not done.is_set():
            got = p.run(stack)
            for name, value in got.items():
                if not torch.allclose(value, wanted[name], rtol=1e-3, atol=1e-3):
                    wrong.append(name)

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    for _ in range(100):
        for name in ("cpu", "torch", "auto"):
            with hanops.use_backend(name):
                stack(p.x, p.u, p.b)
    done.set()
    for caller in callers:
        caller.join()
    assert not wrong
