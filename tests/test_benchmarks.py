"""The benchmarks' own arithmetic, and that the report is made from a results file."""

import html
import json
import re
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parent.parent
pd = pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

import hanops  # noqa: E402
from benchmarks import bench_han_stack, ceilings, exponents, measure, plots, ratios, report, rivals, table  # noqa: E402
from benchmarks.cases import (  # noqa: E402
    BF16,
    COPY,
    DEEP,
    EAGER,
    GRAPH,
    HOUSEHOLDER,
    LINEAR,
    OWN,
    SLIM,
    TF32,
    TUNED,
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
    ratio, noise = ratios.ratio_interval(a, b)
    assert ratio == pytest.approx(2.0)
    assert noise == pytest.approx(0.0, abs=1e-12)


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


@pytest.mark.parametrize("name", [OWN, LINEAR, DEEP, SLIM, EAGER])
@pytest.mark.parametrize("case", [Case(3, 8, 2), Case(3, 8, 2, groups=2), Case(2, 6, 2, channels=5)], ids=str)
def test_rivals_take_every_case(name, case):
    x, dy = case.input(), case.input(grad=False)
    module = rivals.build(name, case, CPU)
    assert module(x).shape == x.shape
    for direction in ("forward", "backward", "both", "step"):
        measure.call_of(module, direction, x, dy)()


def test_saved_bytes_are_y_and_one_bit():
    case = Case(16, 64, 5)
    kept = measure.saved_bytes(rivals.build(OWN, case, CPU), case.input())
    assert kept == 4 * case.elements + case.bits == 4 * 1024 + 5 * 128


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


def results(gpu: bool) -> dict:
    """A results file as the benchmarks write it, of times that follow known laws."""
    benchmarks = []

    def add(group, rival, way, case, seconds, **info):
        moved, own = case.bytes_moved(way), rival.startswith(OWN)
        info |= {"bytes_moved": moved, "bytes_per_s": moved / seconds, "element_layers_per_s": 1e9, "backend": "cpu"}
        if own:
            info |= {"share_of_copy": 0.3, "share_of_instructions": 0.5, "bound_by": "instructions"}
        if own and gpu:
            info |= {"copies": 1.06 * moved / case.bytes_moved("forward"), "copies_noise": 0.02}
        info |= {"kind": "group", "group": group, "rival": rival, "way": way, "rows": case.rows, "case": str(case)}
        info |= {"features": case.features, "layers": case.layers, "dtype": case.dtype_name}
        info |= {"device": "cuda" if gpu else "cpu"} | ({} if rival == OWN else {"ratio": 2.0, "ratio_noise": 0.1})
        stats = {"median": seconds, "iqr": 0.1 * seconds, "data": [seconds]}
        name = f"test_group[{group}: {case}, {way}, {rival}]"
        benchmarks.append({"extra_info": info, "stats": stats, "group": group, "fullname": name})

    owns = (OWN, f"{OWN}, triton") if gpu else (OWN,)
    small = [name for name in gpu_groups(True)[2].rivals if name != COPY] if gpu else [OWN, LINEAR, EAGER]
    for way, factor in (("forward", 1e-9), ("both", 3e-9)):
        for n in (1, 4, 16, 64, 256):
            for rival, cost in ((OWN, 1.0), (DEEP, 20.0), (EAGER, 9.0)):
                kept = 4 * 2**20 + n * 2**17
                memory = {"saved_bytes": kept, "saved_least": kept, "peak_bytes": n * 10**6} if way == "both" else {}
                add("depth", rival, way, Case(4096, 256, n), cost * factor * 2**20 * n, **memory)
            add("batch", OWN, way, Case(4096 * n, 256, 16), factor * 2**24 * n)
            for own in owns:
                cost = 1.0 + 0.3 * owns.index(own)
                add("width", own, way, Case(2**20 // n if gpu else 1024, 64 * n, 16), cost * factor * 2**20 * n)
            add("width", LINEAR, way, Case(2**20 // n if gpu else 1024, 64 * n, 16), factor * 2**20 * n * n / 9)
        for case in (Case(100, 30, 20), Case(256, 784, 20)):
            for i, name in enumerate(small):
                add("small networks", name, way, case, 1e-4 * (1 + i) * case.features / 30)
        for features in (256, 1024, 4096) if gpu else ():
            for case in (Case(2**26 // features, features, 1, t) for t in (torch.float32, torch.bfloat16)):
                for own in owns:
                    add("one layer", own, way, case, case.bytes_moved(way) / 3e12)
    machine = {"cpu": {"brand_raw": "a processor"}, "threads": 2, "hanops": "0", "torch": "2"}
    machine |= {"ceilings": {"copy_bytes_per_s": 1e10, "operations_per_s": 1e11}}
    if gpu:
        machine |= {"gpu": "NVIDIA H100", "sm_mhz": 345.0, "most_sm_mhz": 1980.0, "power_cap_w": 700.0, "cuda": "13.0"}
        machine |= {"clocks": {"sm_mhz": 1755.0, "memory_mhz": 2619.0}, "triton": "3.6.0", "driver": "580.1"}
    commit = {"id": "0123456789", "dirty": False}
    return {"machine_info": machine, "commit_info": commit, "datetime": "2026-01-02T03", "benchmarks": benchmarks}


def test_report(tmp_path, monkeypatch):
    folder, out, readme = tmp_path / "results", tmp_path / "report", tmp_path / "README.md"
    folder.mkdir()
    (folder / "cpu.json").write_text(json.dumps(results(False)))
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    arguments = ["report.py", "--results", str(folder), "--out", str(out), "--readme", str(readme)]
    monkeypatch.setattr(sys, "argv", arguments)
    report.main()
    page = (out / "index.html").read_text()
    assert page.count("<img") == len(plots.PLOTS) - 1  # but those of one layer in copies
    assert "Not measured on a GPU" in page
    assert 'src="data:image/png' in page
    assert "http" not in page.split("<body>")[-1].replace("http://www.w3.org", "")
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.count("](report/cpu-") == 2
    assert all((tmp_path / name).exists() for name in ("report/cpu-width.png", "report/cpu-memory.png"))


def test_report_of_a_gpu(tmp_path, monkeypatch, capsys):
    folder, out = tmp_path / "results", tmp_path / "report"
    folder.mkdir()
    (folder / "cpu.json").write_text(json.dumps(results(False)))
    (folder / "nvidia-h100.json").write_text(json.dumps(results(True)))
    (folder / "nvidia-a100.part.json").write_text(json.dumps(results(True)))
    (folder / "gpu-first.json").write_text('{"parts": []}')
    (folder / "torn.json").write_text(json.dumps(results(True))[:-100])
    out.mkdir()
    (out / "old.png").touch()
    readme = tmp_path / "README.md"
    readme.write_text(f"{report.BEGIN}\n{report.END}\n")
    monkeypatch.setattr(
        sys, "argv", ["report.py", "--results", str(folder), "--out", str(out), "--readme", str(readme)]
    )
    report.main()
    assert "depth: N=4096, d=256, L=16" in readme.read_text()
    assert readme.read_text().count("NVIDIA H100, 1755") == 1  # and nothing of what was cut short
    assert EAGER not in readme.read_text().split("NVIDIA H100, 1755")[1]
    page, said = (out / "index.html").read_text(), capsys.readouterr().out
    assert page.count("<img") == len(list(out.iterdir())) - 1 == 3 * len(plots.PLOTS) - 1
    assert "Not measured" not in page
    assert (
        "<h2>nvidia-h100</h2><p class=about>NVIDIA H100, 1755 of at most 1980 MHz, memory 2619 MHz, cap 700 W" in page
    )
    assert "driver 580.1, CUDA 13.0; hanops 0 at 012345678; torch 2, Triton 3.6.0" in page
    assert "<h2>nvidia-a100, unfinished</h2>" in page
    assert page.count("This run was cut short") == 1
    assert page.count("<th>in copies of x</th>") == 4
    assert "<td>1.06 ± 0.02</td>" in page
    assert all(f"<th>{html.escape(name)}</th>" in page for name in (SLIM, f"{DEEP}{BF16}", f"{LINEAR}{TF32}", TUNED))
    assert f"left out: {folder / 'gpu-first.json'} is no results file" in said
    assert f"left out: {folder / 'torn.json'} is no results file, or not a whole one" in said


def test_names_in_a_results_file_stay_text(tmp_path):
    """A pipe, a tag or a link in a case, a rival or a backend: the README and the page show it."""
    odd = "a | b <i>c</i> [d](http://e) `f`\n# g"
    made = results(False)
    for bench in made["benchmarks"]:
        if bench["extra_info"]["group"] == "small networks":
            bench["extra_info"] |= {"case": odd, "backend": odd}
            if bench["extra_info"]["rival"] == LINEAR:
                bench["extra_info"]["rival"] = odd
    made["machine_info"]["cpu"]["brand_raw"] = odd
    found = table.rivals(made["benchmarks"], ("small networks",), ("both",))
    lines = found.markdown().splitlines()
    shown = r"a \| b \<i\>c\</i\> \[d\](http://e) \`f\` \# g"
    assert len(lines) == 3
    assert all(len(re.findall(r"(?<!\\)\|", line)) == len(found.header) + 1 for line in lines)
    assert lines[0].count(shown) == 1
    assert lines[2].count(shown) == 2
    assert "<i>" not in found.html()
    (tmp_path / "cpu.json").write_text(json.dumps(made))
    part = report.readme_part(tmp_path / "cpu.json", [], tmp_path / "report", tmp_path / "README.md")
    assert part.startswith(shown)
    assert not re.search(r"(?<!\\)[<`\[]", part.replace("![", ""))


def test_growth_of_known_laws(tmp_path):
    file = tmp_path / "cpu.json"
    file.write_text(json.dumps(results(False)))
    _, frame = plots.read(file)
    fits = exponents.time_fits(frame)
    assert set(fits["time over"]) == {"rows", "features", "layers"}
    assert fits["exponent"].to_list() == pytest.approx([1.0] * len(fits))
    memory = exponents.memory_fits(frame)
    assert memory["of N d / 8"].to_list() == pytest.approx([1.0] * 3)


def test_crossover_is_between_the_points(tmp_path):
    file = tmp_path / "cpu.json"
    file.write_text(json.dumps(results(False)))
    _, frame = plots.read(file)
    swept = frame[(frame["group"] == "width") & (frame["way"] == "both")]
    own, dense = (swept[swept["rival"] == name] for name in (OWN, LINEAR))
    assert plots.crossover(own, dense, "features") == pytest.approx(64 * 9, rel=1e-6)


def test_tables_are_markdown():
    text = table.rivals(results(False)["benchmarks"], ("small networks",), ("both",))
    header, line, row = str(text).splitlines()[:3]
    assert header.count("|") == line.count("|") == row.count("|")
    assert "100.0 us (cpu)" in row
    assert "2.00x ± 0.10" in row
    assert not table.Table(["a"], [])
    assert {COPY, HOUSEHOLDER}
