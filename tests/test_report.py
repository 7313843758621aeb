"""The report: what a reader finds in its page, its plots, and its parts of the README and docs/performance.md."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

from benchmarks import (
    documents,
    dots,
    exponents,
    look,
    plots,
    report,
    rivals,
    roofline,
    runs,
    sections,
    table,
    tables,
    words,
)
from benchmarks.cases import BF16, DEEP, DENSE, EAGER, LINEAR, OWN, SLIM, TF32, TUNED, Case
from benchmarks.line_ends import Sweep

from .made_results import Result, results, written

ROOT = Path(__file__).parent.parent


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made, and their pictures are not: those take most of the time."""
    monkeypatch.setattr(sections, "picture", lambda figure: b"")


@pytest.fixture
def reported(tmp_path, monkeypatch, capsys) -> Callable[..., str]:
    """Makes the report of results by name, and returns what the program said."""

    def run(**results: Result | str) -> str:
        for name, made in results.items():
            if isinstance(made, str):
                (tmp_path / "results").mkdir(exist_ok=True)
                (tmp_path / "results" / f"{name}.json").write_text(made)
            else:
                written(tmp_path / "results", name.replace("_part", ".part"), made)
        (tmp_path / "docs").mkdir(exist_ok=True)
        for document in ("README.md", "docs/performance.md"):
            (tmp_path / document).write_text("before\n<!-- benchmark: begin -->\nold\n<!-- benchmark: end -->\nafter\n")
        options = ["--results", "results", "--out", "report", "--readme", "README.md", "--docs", "docs/performance.md"]
        monkeypatch.setattr("sys.argv", ["report.py", *options])
        monkeypatch.chdir(tmp_path)
        report.main()
        return capsys.readouterr().out

    return run


def sweep(made: Result, tmp_path: Path, group: str) -> Sweep:
    return plots.sweep_of(*runs.read(written(tmp_path / "sweep", "cpu", made)), group)


def only(made: Result, keep: Callable[[dict[str, Any]], bool]) -> Result:
    return made | {"benchmarks": [b for b in made["benchmarks"] if keep(b["extra_info"])]}


# ---- the page


def test_report(tmp_path, reported, monkeypatch):
    monkeypatch.setattr(look, "DPI", 30)
    said = reported(cpu=results(False), latest=results(False))
    assert "results/latest.json is of the machine of cpu.json" in said
    page = (tmp_path / "report" / "index.html").read_text()
    pictures = {file.name for file in (tmp_path / "report").glob("*.png")}
    assert pictures == {
        f"cpu-{n}.png" for n in ("width", "depth", "batch", "memory", "roofline", "small-networks", "overview")
    }
    assert page.count("<img") == page.count('src="data:image/png') == len(pictures) - 1
    assert "Not measured on a GPU" in page
    assert page.count("<h2") == 2  # the CPU, and that there is no GPU
    assert "http" not in page
    for document, folder in (("README.md", "report"), ("docs/performance.md", "../report")):
        text = (tmp_path / document).read_text()
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "old" not in text
        assert text.count("![") == text.count(f"({folder}/cpu-overview.png)") == 1
    links = re.findall(r"!\[[^\]]*\]\((.*?)\)", (tmp_path / "report" / "README.md").read_text())
    assert set(links) == pictures - {"cpu-overview.png"}


def test_report_of_a_gpu(tmp_path, reported, undrawn):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "old.png").touch()
    torn = json.dumps(results(True))[:-100]
    made = {"cpu": results(False), "nvidia-h100": results(True), "nvidia-a100_part": results(True)}
    said = reported(**made, **{"gpu-first": '{"parts": []}', "torn": torn})
    page = (tmp_path / "report" / "index.html").read_text()
    assert len(list((tmp_path / "report").glob("*.png"))) == page.count("<img") + 1 == 3 * 7
    assert "Not measured on a GPU" not in page
    assert '<h2 id="nvidia-h100">NVIDIA H100</h2><p' in page.replace("\n", "")
    assert "1755 of at most 1980 MHz, memory 2619 MHz, cap 700 W, driver 580.1, CUDA 13.0" in page
    assert "hanops 0 at 012345678; torch 2, Triton 3.6.0; 2026-01-02" in page
    assert '<h2 id="nvidia-h100-unfinished">NVIDIA H100, unfinished</h2>' in page
    assert page.count("This run was cut short") == 1
    assert (
        "Not in this run: Kernels on large inputs, Stacks, Training step, torch.compile, Groups, Tokens, Channels."
        in page
    )
    assert all(words.shown(name) in page for name in (SLIM, f"{DEEP}{BF16}", f"{LINEAR}{TF32}", TUNED))
    assert f"left out: {Path('results/gpu-first.json')} is no results file" in said
    assert f"left out: {Path('results/torn.json')} is no results file, or not a whole one" in said
    assert not (tmp_path / "report" / "old.png").exists()
    assert "H100" not in (tmp_path / "README.md").read_text()
    performance = (tmp_path / "docs" / "performance.md").read_text()
    assert performance.count("NVIDIA H100") == 1  # and nothing of what was cut short
    of_gpu = performance.split("NVIDIA H100")[1]
    assert re.search(r"\| +4,096 \| +256 \| +16 \| ", of_gpu)
    assert "HanStack on cuda" in of_gpu
    assert "copies of x" in of_gpu
    assert "eager Han" not in of_gpu


def test_the_report_in_git_is_of_its_results(tmp_path, monkeypatch, undrawn):
    """`make report` would change nothing of the texts; pictures depend on fonts."""
    texts = ["README.md", "docs/performance.md", "benchmarks/report/README.md"]
    for name in texts:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    options = [
        "--results",
        ROOT / "benchmarks/results",
        "--out",
        "benchmarks/report",
        "--readme",
        texts[0],
        "--docs",
        texts[1],
    ]
    monkeypatch.setattr("sys.argv", ["report.py", *map(str, options)])
    monkeypatch.chdir(tmp_path)
    report.main()
    for name in texts:
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), f"{name}: run make report"


def test_latest_is_no_second_machine(tmp_path):
    """`make bench` leaves its last run beside the results that are kept."""
    here, elsewhere = results(False), results(False)
    elsewhere["machine_info"]["cpu"]["brand_raw"] = "another processor"
    cpu, gpu, latest = (
        written(tmp_path, name, made) for name, made in (("cpu", here), ("gpu", results(True)), ("latest", here))
    )
    assert runs.shown_files([cpu, gpu, latest]) == ([cpu, gpu], [f"left out: {latest} is of the machine of cpu.json"])
    assert runs.shown_files([gpu, latest]) == ([gpu, latest], [])
    written(tmp_path, "latest", elsewhere)
    assert runs.shown_files([cpu, gpu, latest]) == ([cpu, gpu, latest], [])


def test_the_readme_needs_a_cpu_and_markers(tmp_path, reported, capsys, undrawn):
    with pytest.raises(SystemExit):
        reported(other=results(False))
    assert "--readme and --docs need cpu.json, got other.json" in capsys.readouterr().err
    (tmp_path / "README.md").write_text("no markers")
    with pytest.raises(ValueError, match=r"must have the lines .* once, got 0 of them"):
        documents.write_part(tmp_path / "README.md", "text")
    assert (tmp_path / "README.md").read_text() == "no markers"


def test_the_page_defines_its_words(tmp_path, undrawn):
    drawers = [sections.Drawer(written(tmp_path, "cpu", results(False)))]
    page = report.page_of(drawers)
    defined = dict(page.words)
    assert defined["N, d, L"].startswith("N rows")
    assert {"HanStack", "one Linear + ReLU", "L × (Linear + ReLU)", "eager Han", "ratio", "time"} <= set(defined)
    assert not {"graph", "TF32", "copy", "slim Linear + ReLU"} & set(defined)  # nothing of these was measured
    assert "whatever L is" in defined["one Linear + ReLU"]
    on_gpu = dict(report.page_of([sections.Drawer(written(tmp_path, "gpu", results(True)))]).words)
    assert {"graph", "TF32", "bf16", "copies of x", "slim Linear + ReLU"} <= set(on_gpu)
    for text in (page.html(), page.markdown()):
        assert all(table.escaped(text_of) in text or text_of in text for text_of in ("N rows (samples or tokens)",))


def test_every_plot_and_table_tells_its_dtype(tmp_path, undrawn):
    for name, made in (("cpu", results(False)), ("gpu", results(True))):
        drawer = sections.Drawer(written(tmp_path, name, made))
        parts = drawer.parts()
        for title, found in ((part.title, t) for part in parts for _, t in part.tables):
            told = found.about + "".join(found.rows[0]) + "".join(column.name for column in found.columns)
            assert re.search("float32|bfloat16|dtype", told), title
        figures = [plots.plot_sweep(drawer.result, drawer.frame, group) for group in plots.SWEEPS]
        figures += [dots.plot_small(drawer.result, drawer.frame), dots.plot_copies(drawer.result, drawer.frame)]
        figures += [plots.plot_memory(drawer.result, drawer.frame), roofline.plot_roofline(drawer.result, drawer.frame)]
        figures += [plots.plot_overview(drawer.result, drawer.frame)]
        drawn = [figure for figure in figures if figure]
        assert len(drawn) == len(figures) - (name == "cpu")
        for figure in drawn:
            axes = figure.axes
            told = [text.get_text() for text in figure.texts] + [one.get_title(loc="left") for one in axes]
            told += [label.get_text() for label in axes[0].get_yticklabels()]
            assert any("float" in text for text in told), told
            assert all(one.get_xlabel() for one in axes)
            assert axes[0].get_ylabel() or axes[0].get_yticklabels()[0].get_text()
            plots.close(figure)


# ---- tables


def test_one_table_for_each_sweep(tmp_path, undrawn):
    parts = {part.title: part for part in sections.Drawer(written(tmp_path, "cpu", results(False))).parts()}
    assert list(parts) == ["Width", "Depth", "Batch", "Small networks", "Memory", "Limits of the machine", "Growth"]
    for title, symbol, others in (("Width", "d", "N = 1,024, L = 16"), ("Depth", "L", "N = 4,096, d = 256")):
        ((_, found),) = parts[title].tables
        assert found.about == f"{others}, float32; HanStack on cpu"
        names = [column.name for column in found.columns]
        assert names[:2] == [symbol, "direction"]
        assert len(found.rows) == 10
        assert [row[1] for row in found.rows] == ["forward"] * 5 + ["forward + backward"] * 5
        assert [row[0] for row in found.rows[:5]] == [row[0] for row in found.rows[5:]]
        over = [column.over for column in found.columns]
        assert "HanStack, L layers" in over
    assert "one Linear + ReLU" in [column.over for column in parts["Width"].tables[0][1].columns]
    assert all(
        "L Han layers" in words.GROUPS[group][1] and "one Linear + ReLU" in words.GROUPS[group][1]
        for group in plots.SWEEPS
    )


def test_names_in_a_results_file_stay_text(tmp_path, undrawn):
    """A pipe, a tag or a link in a case, a rival or a backend: the documents and the page show it."""
    odd = "a | b <i>c</i> [d](http://e) `f`\n# g"
    made = results(False)
    for bench in made["benchmarks"]:
        if bench["extra_info"]["group"] == "small networks":
            bench["extra_info"] |= {"case": odd, "backend": odd}
            if bench["extra_info"]["rival"] == LINEAR:
                bench["extra_info"]["rival"] = odd
    made["machine_info"]["cpu"]["brand_raw"] = odd
    found = tables.times(tables.lines_of(made["benchmarks"], "small networks", ("both",)))
    about, _, header, rule, row = found.markdown().splitlines()
    shown = r"a \| b \<i\>c\</i\> \[d\](http://e) \`f\` \# g"
    assert all(len(re.findall(r"(?<!\\)\|", line)) == len(found.columns) + 1 for line in (header, rule, row))
    assert [text.count(shown) for text in (about, header, row)] == [1, 1, 1]
    drawer = sections.Drawer(written(tmp_path, "cpu", made))
    assert "<i>" not in found.html() + report.page_of([drawer]).html()
    for part in (documents.short_part(drawer, None, "report"), documents.long_part(drawer, [], None, "report")):
        assert shown in part
        assert not re.search(r"(?<!\\)[<`\[]", part.replace("[All plots", ""))


# ---- lines


def test_why_lines_end(tmp_path):
    """By what the run recorded, by the limits of rivals, by the suite."""
    made = only(results(False), lambda info: not (info["rival"] == DEEP and info["layers"] > 64))
    made["machine_info"]["suite"] = "quick"
    found = sweep(made, tmp_path, "depth")
    assert found.end(EAGER, found.sizes) == ""
    assert found.end(DEEP, [1, 4, 16, 64]) == rivals.OVER_TIME  # 4096 x 256 x 256 x 256 multiply-adds
    assert found.ends() == ["Over the time limit of 5 G multiply-adds forward: L × (Linear + ReLU) beyond L = 64."]
    made["left_out"] = {f"depth: {Case(4096, 256, 256)}, {DEEP}": rivals.OUT_OF_MEMORY}
    assert sweep(made, tmp_path, "depth").ends() == ["Out of memory: L × (Linear + ReLU) beyond L = 64."]
    assert "Not in the quick suite: compiled eager Han." in found.missing()
    assert found.last() == ["The quick suite ends at L = 256, the full one at 512."]
    made["machine_info"]["suite"] = "full"
    missing = sweep(made, tmp_path, "depth").missing()
    assert missing == ["Not measured in this run: one Linear + ReLU, compiled eager Han."]
    late = sweep(only(made, lambda info: info["rival"] != DEEP or info["layers"] > 1), tmp_path, "depth")
    assert "The same as one Linear + ReLU: L × (Linear + ReLU) at L = 1." in late.ends()


def test_plots_say_why_lines_end(tmp_path):
    made = only(results(False), lambda info: not (info["rival"] == DEEP and info["layers"] > 64))
    result, frame = runs.read(written(tmp_path, "cpu", made))
    figure = plots.plot_sweep(result, frame, "depth")
    for axes in figure.axes:
        assert [text.get_text() for text in axes.texts] == ["over the\ntime limit"]
        assert axes.texts[0].xy[0] == 64
    plots.close(figure)


@pytest.mark.parametrize(
    ("rival", "case", "device", "why"),
    [
        (LINEAR, Case(256, 8192, 8), "cpu", rivals.OVER_TIME),
        (LINEAR, Case(256, 4096, 8), "cpu", None),
        (DEEP, Case(256, 2048, 8), "cpu", rivals.OVER_TIME),
        (DEEP, Case(256, 64, 1), "cpu", "the same as one Linear + ReLU"),
        (DEEP, Case(1, 16384, 8), "cpu", rivals.OVER_MEMORY),
        (DEEP, Case(128, 65536, 16, torch.bfloat16), "cuda", rivals.OVER_MEMORY),
        (EAGER, Case(1024, 256, 512), "cpu", rivals.OVER_TIME),
        (EAGER, Case(1024, 256, 512), "cuda", None),
        (f"{DENSE[0]}{TF32}", Case(8, 8, 1), "cpu", "only for float32 on a GPU"),
        (f"{DENSE[0]}{BF16}", Case(8, 8, 1, torch.bfloat16), "cuda", "only for float32 on a GPU"),
        (SLIM, Case(128, 65536, 16), "cuda", None),
        (OWN, Case(1024, 256, 10**6), "cpu", None),
    ],
)
def test_rivals_that_are_left_out(rival, case, device, why):
    assert rivals.unfit(rival, case, device) == why


def test_where_a_stack_is_faster(tmp_path):
    """One dense layer costs d / (9 x 64) of the 16 Han layers."""
    said = plots.faster(sweep(results(False), tmp_path, "width"))
    both = "forward, and forward + backward, at all d from 64 to 16,384 but 64 and 256"
    assert said == [f"HanStack is faster than one Linear + ReLU: {both}."]
    assert plots.faster(sweep(results(False), tmp_path, "batch")) == []  # no dense layer there
    slow = results(False)
    for bench in slow["benchmarks"]:
        bench["stats"]["median"] *= 1e3 if bench["extra_info"]["rival"] == OWN else 1
    assert "at none of d from 64 to 16,384" in plots.faster(sweep(slow, tmp_path, "width"))[0]


def test_growth_of_known_laws(tmp_path):
    _, frame = runs.read(written(tmp_path, "cpu", results(False)))
    fits = exponents.time_fits(frame)
    assert set(fits["time over"]) == {"rows", "features", "layers"}
    assert fits["exponent"].to_list() == pytest.approx([1.0] * len(fits))
    memory = exponents.memory_fits(frame)
    assert memory["of N d / 8"].to_list() == pytest.approx([1.0] * 3)


# ---- roofs


def test_roofline_has_the_roofs_that_are_known(tmp_path):
    made = results(False)
    for cache in (None, 8e10, float("nan")):
        if cache is not None:
            made["machine_info"]["ceilings"]["cache_bytes_per_s"] = cache
        drawer = sections.Drawer(written(tmp_path, "cpu", made))
        has_cache = cache == 8e10
        figure = roofline.plot_roofline(drawer.result, drawer.frame)
        for axes in figure.axes:
            told = [text.get_text() for text in axes.texts]
            assert {"instructions, 100 Gop/s", "memory, 10.0 GB/s"} <= set(told)
            assert ("cache, 80.0 GB/s" in told) is has_cache
            assert {text.split(",")[0] for text in told} >= {"depth", "width", "batch"}  # named where they are
            assert axes.get_legend() is None
        plots.close(figure)
        assert ("did not measure a cache" in sections.limits_caption(drawer.result)) is not has_cache
    del made["machine_info"]["ceilings"]
    assert roofline.plot_roofline(*runs.read(written(tmp_path, "cpu", made))) is None
