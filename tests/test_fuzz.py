"""A short run of the fuzzer on each backend; `make fuzz` runs as many cases as you like. A crash is a failure here."""

import os
import time
from dataclasses import replace

import hypothesis
import pytest

from . import fuzz, fuzz_check
from .fuzz_cases import LAYOUTS, FuzzCase, Given, cases
from .fuzz_check import check
from .fuzz_compare import MASKED, Outcome

CASES = {"cpu": 900, "torch": 150, "cuda": 60, "triton": 30}


@pytest.fixture
def on_cpu(device) -> None:
    if device.type != "cpu":
        pytest.skip("the cases are of the CPU")


def test_no_case_fails(backend, on_cpu, request):
    """No crash, no hang, every error a TypeError or ValueError that names an argument, every result as exact as due."""
    report = fuzz.fuzz(backend, CASES[backend], request.config.getoption("--seed"))
    print(report)
    assert not report.failures, f"\n{report}"
    assert report.kinds.total() == CASES[backend]
    assert report.kinds["right"] > CASES[backend] / 3
    assert report.kinds["refused"] > CASES[backend] / 10
    assert report.masked <= MASKED * report.rows
    assert report.unlucky <= 0.02 * CASES[backend]


SOUND = FuzzCase("function", Given((4, 8)), Given((2, 8)), None)


def crash(case: FuzzCase) -> Outcome:
    if case.seed == 3:
        time.sleep(60)
    if case.seed:
        os.abort() if case.seed == 1 else os._exit(7)
    return check(case)


def test_a_crash_is_reported_and_the_next_case_runs(monkeypatch):
    worker, report = fuzz.Worker("torch", crash), fuzz.Report()
    for seed in (1, 0, 2, 0, 3, 0):
        monkeypatch.setattr(fuzz, "SECONDS", 1.0 if seed == 3 else 60.0)
        case = replace(SOUND, seed=seed)
        report.add(case, worker(case))
    worker.stop()
    assert report.kinds == {"crashed": 2, "right": 3, "hung": 1}
    printed = str(report)
    assert "crashed: SIGABRT" in printed
    assert "crashed: exit status #" in printed
    assert "hung: no answer in # s" in printed
    assert repr(replace(SOUND, seed=1)) in printed
    assert eval(repr(SOUND)) == SOUND


def test_what_is_wrong_is_found(monkeypatch):
    """A stack of another order of layers, an error that names nothing, and an argument that is let pass."""
    sound = replace(SOUND, seed=5)
    assert check(sound).kind == "right"
    with monkeypatch.context() as patch:
        stack = fuzz_check.hanops.han_stack
        patch.setattr(fuzz_check.hanops, "han_stack", lambda x, u, b, **_: stack(x, u.flip(0), b))
        with pytest.raises(AssertionError, match="error"):
            check(sound)
    wrong = replace(sound, u=Given((2, 9)))
    assert check(wrong).kind == "refused"
    with monkeypatch.context() as patch:
        patch.setattr(fuzz_check.hanops, "han_stack", lambda *_, **__: [].pop(1.5))
        assert "an error names none of ['u', 'x']" in fuzz_check.check(wrong).message
    with monkeypatch.context() as patch:
        patch.setattr(fuzz_check.hanops, "han_stack", lambda x, u, b, **_: x)
        assert check(wrong).message == "accepted, in spite of ['u', 'x']"


def test_cases_are_of_all_kinds():
    """What is drawn covers the hostile arguments that the fuzzer is there for."""
    seen: set[str] = set()

    @hypothesis.seed(3)  # or its draws would depend on the names of modules: a rare kind comes in few of 800
    @hypothesis.settings(max_examples=800, phases=[hypothesis.Phase.generate], database=None, deadline=None)
    @hypothesis.given(cases("cpu", ("",), small=False))
    def look(case: FuzzCase) -> None:
        seen.add(case.call)
        for name in ("x", "u", "b", "y", "signs"):
            given = getattr(case, name)
            if isinstance(given, Given):
                huge = max(given.shape, default=0) > 2**40
                seen.update((given.strides, given.layout, given.dtype, given.device, given.values))
                seen.update((f"rank {len(given.shape)}", "huge" if huge else "", "empty" if 0 in given.shape else ""))
            elif given is None:
                seen.add(f"no {name}")

    look()
    wanted = {"function", "forward", "backward", "module", "layer", "huge", "empty", "meta", "int64", "not finite"}
    wanted |= {"expanded", "overlapping", "gaps", "permuted", "no x", "no u", "no b"}
    wanted |= {f"rank {rank}" for rank in range(7)}
    assert wanted <= seen, wanted - seen
    assert len(seen & set(LAYOUTS)) > 2
