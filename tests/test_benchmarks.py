"""The benchmarks' own arithmetic, and what they measure of a case."""

import gc
import weakref
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("pandas")

import hanops
from benchmarks import (
    bench_han_stack,
    ceilings,
    exponents,
    measure,
    ratios,
    rivals,
)
from benchmarks.cases import (
    COPY,
    DEEP,
    EAGER,
    GRAPH,
    LINEAR,
    OWN,
    POINTWISE,
    SLIM,
    TRANSPOSED,
    Case,
    Group,
    gpu_groups,
    groups_of,
)

CPU = torch.device("cpu")


def test_ratio_of_rounds_does_not_drift():
    """Both slow down together: the ratio stays, and its noise is small."""
    a = [2.0 * (1 + i / 10) for i in range(20)]
    b = [1.0 * (1 + i / 10) for i in range(20)]
    found = ratios.ratio_figures("ratio", a, b)
    assert found == pytest.approx({"ratio": 2.0, "ratio_noise": 0.0, "ratio_iqr": 0.0}, abs=1e-12)


def test_figures_of_a_ratio():
    found = ratios.ratio_figures("copies", [1.0, 2.0, 3.0, 4.0, 10.0], [1.0] * 5)
    assert found == {"copies": 3.0, "copies_noise": 7.0, "copies_iqr": 2.0}
    assert ratios.middle_half([3.0]) == 0.0


def test_fit_finds_the_exponent():
    law = exponents.fit([(x, 3.0 * x**1.25) for x in (4, 16, 64, 256)])
    assert law is not None
    assert law.exponent == pytest.approx(1.25)
    assert law.at(100) == pytest.approx(3.0 * 100**1.25)
    assert exponents.fit([(1, 1), (2, 2)]) is None


def test_householder_product_is_a_han_layer():
    torch.manual_seed(0)
    module = rivals.HouseholderProduct(9, torch.float64)
    torch.nn.init.normal_(module.b)
    x, w = torch.randn(5, 9, dtype=torch.float64), module.u / module.u.norm()
    torch.testing.assert_close(module(x), (x - 2 * (x @ w)[:, None] * w + module.b).abs())


@pytest.mark.parametrize("name", [OWN, LINEAR, DEEP, SLIM, EAGER, TRANSPOSED, POINTWISE])
@pytest.mark.parametrize("case", [Case(3, 8, 2), Case(3, 8, 2, groups=2), Case(2, 6, 2, inner=5)], ids=str)
def test_rivals_take_every_case(name, case):
    if why := rivals.unfit(name, case, "cpu"):
        assert case.inner is None, why
        return
    x, dy = case.input(), case.input(grad=False)
    module = rivals.build(name, case, CPU)
    assert module(x).shape == x.shape
    for direction in ("forward", "backward", "both", "step"):
        measure.call_of(module, direction, x, dy)()


def test_transposed_copies_give_the_same():
    case = Case(2, 6, 3, inner=5)
    along, copied = (rivals.build(name, case, CPU) for name in (OWN, TRANSPOSED))
    copied.module.load_state_dict(along.state_dict())
    x = case.input()
    torch.testing.assert_close(copied(x), along(x))
    assert copied(x).is_contiguous()


@pytest.mark.parametrize("case", [Case(16, 64, 5), Case(4, 40, 5, inner=7)], ids=str)
def test_saved_bytes_are_y_and_one_bit(case):
    kept = measure.saved_bytes(rivals.build(OWN, case, CPU), case.input())
    assert kept == 4 * case.elements + case.bits
    assert case.bits == (5 * 128 if case.inner is None else 5 * 28 * 8)


def test_peak_of_a_process():
    """A stack of dense layers keeps every activation: 4 MB for each of 8 layers, and the reflections 1/32 of that."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux")
    case = Case(8192, 128, 8)
    (own,), (dense,) = (measure.peaks_on_cpu(name, [case]) for name in (OWN, DEEP))
    assert 4 * case.elements < own < dense
    assert dense > 8 * 4 * case.elements


@pytest.mark.parametrize("device", ["cpu", "cuda", "rehearsal"])
@pytest.mark.parametrize("suite", ["quick", "full"])
def test_groups_have_each_case_once(device, suite):
    groups = groups_of(device, suite, None)
    assert {"one layer", "depth", "width", "batch", "small networks", "groups", "tokens", "training step"} <= {
        group.name for group in groups
    }
    for group in groups:
        assert OWN in group.rivals
        assert len(set(group.cases)) == len(group.cases) > 0
        assert device == "cpu" or group.rivals[0] == COPY
    assert all(c.dtype == torch.float16 for g in groups_of(device, suite, torch.float16) for c in g.cases)


def test_rows_of_a_case():
    short, long = Case(8, 8, 2), Case(2**21, 64, 1)
    group = Group("a group", (short, long), (COPY, OWN, LINEAR), ("backward", "both"))
    plain = [(COPY, "forward"), (OWN, "backward"), (LINEAR, "backward"), (OWN, "both"), (LINEAR, "both")]
    assert group.rows(short, on_gpu=False) == group.rows(long, on_gpu=True) == plain
    graphs = {(COPY, f"forward{GRAPH}"), (OWN, f"both{GRAPH}"), (LINEAR, f"both{GRAPH}")}
    assert set(group.rows(short, on_gpu=True)) == {*plain, *graphs}


def test_slim_dense_layers_have_as_many_parameters():
    case = Case(3, 64, 20)
    own, slim = (sum(p.numel() for p in rivals.build(name, case, CPU).parameters()) for name in (OWN, SLIM))
    assert own == 2 * case.features * case.layers == slim - case.features - case.layers


class Gpu:
    """Stands for torch.cuda: events of 3 ms on tensors of the CPU, and what graphs capture."""

    type = "cuda"

    def __init__(self, monkeypatch: pytest.MonkeyPatch, l2: int) -> None:
        self.capturing: list[str] | None = None
        self.graphs: list[list[str]] = []
        stream = SimpleNamespace(wait_stream=lambda _: None)
        event = SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda _: 3.0)
        properties = SimpleNamespace(L2_cache_size=l2)
        replaced = {
            "Event": lambda enable_timing: event,
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "stream": lambda _: nullcontext(),
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
            "graph": self.capture,
            "synchronize": lambda: None,
            "memory_allocated": lambda: 100,
            "max_memory_allocated": lambda: 150,
            "reset_peak_memory_stats": lambda: None,
            "get_device_properties": lambda _: properties,
        }
        for name, value in replaced.items():
            monkeypatch.setattr(torch.cuda, name, value)
        on_cpu = Case.input
        monkeypatch.setattr(Case, "input", lambda self, grad=True, device=None: on_cpu(self, grad))
        run = hanops.HanStack.forward

        def recorded(module: hanops.HanStack, x: torch.Tensor) -> torch.Tensor:
            if self.capturing is not None:
                self.capturing.append(x.data_ptr())
            return run(module, x)

        monkeypatch.setattr(hanops.HanStack, "forward", recorded)

    @contextmanager
    def capture(self, _):
        self.capturing = []
        yield
        self.graphs.append(self.capturing)
        self.capturing = None


def test_a_case_on_a_gpu(monkeypatch):
    """Every rival that needs no compiler, and a graph of the calls on all inputs, whose time is that of one call."""
    case = Case(16, 32, 4)
    gpu = Gpu(monkeypatch, l2=2 * 4 * case.elements)  # four inputs are twice as much
    names = {name: None for name in gpu_groups(True)[2].rivals if "compile" not in name and f"{OWN}," not in name}
    ways = ("forward", f"forward{GRAPH}", "both", f"both{GRAPH}")
    found = measure.time_case(case, names, ways, gpu, 0.0)
    assert not found.failed
    rows = {f"{name}, {way}" for name in names if name != COPY for way in ways}
    assert set(found.samples) == rows | {f"{COPY}, {way}" for way in ways[:2]}
    own = [graph for graph in gpu.graphs if graph]
    assert [len(set(graph)) for graph in own] == [4, 4]
    assert all(found.samples[row][0] == pytest.approx(3e-3 / 4 if row.endswith(GRAPH) else 3e-3) for row in rows)
    assert set(found.peaks) == {row for row in found.samples if not row.endswith(GRAPH)}


@pytest.mark.parametrize(("l2", "elements", "sets"), [(50 << 20, 2**26, 1), (50 << 20, 2**24, 2), (50 << 20, 100, 16)])
def test_inputs_that_take_turns_are_twice_the_cache(monkeypatch, l2, elements, sets):
    assert measure.input_sets(Case(elements, 1, 1), Gpu(monkeypatch, l2)) == sets


def test_a_rival_that_fails_leaves_the_others(monkeypatch):
    def broken(name: str, case: Case, device: torch.device) -> torch.nn.Module:
        if name == EAGER:
            raise RuntimeError("no memory")
        return build(name, case, device)

    build = measure.build
    monkeypatch.setattr(measure, "build", broken)
    found = measure.time_case(Case(4, 8, 2), {OWN: None, EAGER: None}, ("forward",), CPU, 0.0)
    assert list(found.samples) == [f"{OWN}, forward"]
    assert "no memory" in found.failed[EAGER]


class Recorded:
    """Stands for the timings of a run: what it found of a case, and what was said of rivals that are missing."""

    def __init__(self, found: measure.Timed) -> None:
        self.found = found
        self.said: dict[str, str] = {}

    def __call__(self, name: str, _: object) -> measure.Timed:
        return self.found

    def left_out(self, row: str, why: str) -> None:
        self.said[row] = why


@pytest.mark.parametrize(
    ("rival", "failure", "outcome", "why"),
    [
        (
            EAGER,
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
            pytest.fail.Exception,
            "out of memory",
        ),
        (EAGER, "RuntimeError: no kernel image", pytest.fail.Exception, "it failed"),
        (LINEAR, None, pytest.skip.Exception, "over the memory limit"),
        (f"{OWN}, triton", None, pytest.skip.Exception, None),  # it is not there, or is the preferred one
    ],
)
def test_a_run_records_why_a_rival_is_missing(rival, failure, outcome, why):
    case = Case(4, 20000, 2)
    group = Group("width", (case,), (OWN, rival))
    timed = Recorded(measure.Timed(failed={rival: failure} if failure else {}))
    with pytest.raises(outcome):
        bench_han_stack.test_group(timed, None, None, None, None, CPU, False, group, case, rival, "both")
    assert timed.said == ({f"width: {case}, {rival}": why} if why else {})


def test_the_fastest_of_several_copies_is_the_roof_of_a_cache(monkeypatch):
    """On a CPU a call is a copy, on a GPU the replay of a graph of several."""
    replays: list[int] = []
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda count, device: ones(count))
    monkeypatch.setattr(ceilings, "replayed", lambda calls: replays.append(len(calls)))
    monkeypatch.setattr(ceilings, "timer", lambda call, measure, turn: lambda: 1e-3)
    monkeypatch.setattr(ceilings, "CACHED", {"cpu": [64, 1024, 256], "cuda": [64, 1024, 256]})
    assert ceilings.cached_copy_rate(CPU, 0.0) == pytest.approx(2 * 1024 / 1e-3)
    assert replays == []
    gpu = SimpleNamespace(type="cuda")
    assert ceilings.cached_copy_rate(gpu, 0.0) == pytest.approx(2 * 1024 * ceilings.COPIES / 1e-3)
    assert replays == [ceilings.COPIES] * 3


def test_a_copy_in_a_cache_is_measured():
    limits = ceilings.measured_ceilings(CPU)
    assert 1e8 < limits.cache_bytes_per_s < 1e14
    assert set(vars(limits)) == {"copy_bytes_per_s", "operations_per_s", "cache_bytes_per_s"}


def test_a_row_counts_copies_in_the_same_turns():
    case = Case(10, 20, 3)
    samples = {f"{OWN}, both": [6.0, 12.0], f"{COPY}, forward": [1.0, 2.0], f"{EAGER}, both": [12.0, 24.0]}
    limits = ceilings.Ceilings(copy_bytes_per_s=1e3, operations_per_s=1e4)
    own = bench_han_stack.figures(case, OWN, "both", samples, limits, "cuda")
    assert (own["copies"], own["share_of_instructions"]) == (6.0, pytest.approx((4 + 12) * 600 / 1e4 / 9))
    assert own["share_of_copy"] == pytest.approx(case.bytes_moved("both") / 1e3 / 9)
    wide = bench_han_stack.figures(replace(case, dtype=torch.float64), OWN, "both", samples, limits, "cuda")
    assert "share_of_copy" in wide
    assert "share_of_instructions" not in wide
    other = bench_han_stack.figures(case, EAGER, "both", samples, limits, "cuda")
    assert (other["ratio"], "copies" in other) == (2.0, False)


def test_a_replay_keeps_what_its_graph_reads(monkeypatch):
    """A CUDA graph knows addresses alone: the tensors of the calls that it captured must stay."""

    class Graph:
        def replay(self) -> None:
            replays.append(1)

    replays: list[int] = []
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext())

    def captured() -> tuple[measure.Call, weakref.ref[torch.Tensor]]:
        source = torch.ones(3)
        return measure.replayed([source.clone]), weakref.ref(source)

    replay, source = captured()
    gc.collect()
    replay()
    assert replays == [1]
    assert source() is not None
