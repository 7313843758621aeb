"""`make paper`: what it runs, what it leaves alone, and what an interrupt, a failure or another page do to it."""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from examples import paper, paper_table
from examples.options import RefusedError

ROOT = Path(__file__).parent.parent


def run(monkeypatch: pytest.MonkeyPatch, program: str, *words: object) -> None:
    """Runs an example in this process."""
    monkeypatch.setattr(sys, "argv", [f"examples/{program}.py", *map(str, words)])
    importlib.import_module(f"examples.{program}").main()


# ---- the table of experiments


@pytest.mark.parametrize("kind", ["reduced", "full"])
@pytest.mark.parametrize("experiment", paper.EXPERIMENTS, ids=lambda experiment: experiment.stem)
def test_a_program_takes_its_options(experiment, kind, monkeypatch):
    """Each command gets past the parser of its program, with what the runner adds to it."""
    options = getattr(experiment, kind)
    if options is None:
        return
    if experiment.program in ("robustness",):
        pytest.importorskip("foolbox")
    taken = []

    class ParsedError(Exception):
        pass

    def parse(parser: argparse.ArgumentParser) -> None:
        taken.append(real(parser))
        raise ParsedError

    arguments = argparse.Namespace(full=kind == "full", fresh=False, results=Path("elsewhere"))
    folders = dict.fromkeys(paper.data_folders(None), Path("somewhere"))
    call = paper.to_run(experiment, arguments, folders)
    assert call.words[1:3] == ["-m", f"examples.{experiment.program}"]
    assert call.line == f"python -m examples.{experiment.program} {options}".strip() + (
        " --data DIR" if experiment.data else ""
    )
    real = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    with pytest.raises(ParsedError):
        run(monkeypatch, experiment.program, *call.words[3:])
    assert taken[0].out == Path("elsewhere") / kind
    assert taken[0].renew


def test_what_runs():
    """An experiment runs where it has options and its data; both sets of names are without repetitions."""
    folders = paper.data_folders(None)
    left_out = [e.stem for e in paper.EXPERIMENTS if e.words(True, folders) is None]
    assert {stem.split("-")[0] for stem in left_out} == {"regression", "images"}
    assert not any(stem.startswith("images-made") for stem in left_out)
    stems = [experiment.stem for experiment in paper.EXPERIMENTS]
    assert len(stems) == len(set(stems))


def test_no_sweep_runs_twice():
    """The ablation's HanNet is the board's: one experiment serves both."""
    stems = [experiment.stem for experiment in paper.EXPERIMENTS]
    assert "ablation-hannet" not in stems
    _, names = paper.SHARED["ablation"]
    assert set(names.values()) <= set(stems)
    assert names["hannet"] == "checkerboard-hannet"
    assert len(set(names.values())) == len(names) == 8


def test_parts(monkeypatch, capsys):
    """Each is listed with its experiments and about the time that it takes, two hours at most."""
    run(monkeypatch, "paper", "--parts")
    lines = capsys.readouterr().out.splitlines()
    for part, line in enumerate(lines, start=1):
        own = [experiment.stem for experiment in paper.EXPERIMENTS if experiment.part == part]
        head, _, listed = line.partition(": ")
        assert head == f"part {part}, about {paper_table.cost(part):,} s on 2 idle cores"
        assert listed.split(", ") == own
        assert paper_table.cost(part) <= 7_200
    assert len(lines) == len(paper_table.PARTS)
    for experiment in paper.EXPERIMENTS:
        assert (experiment.part is None) == (experiment.seconds is None)
        if experiment.part is not None:
            assert experiment.full is not None


def test_why_there_is_no_result():
    why = {experiment.stem: experiment.why_not() for experiment in paper.EXPERIMENTS}
    assert why["checkerboard-hannet"] == "part 1 has not run (`make paper-part PART=1`)"
    wanted = "part 2 has not run (`make paper-part PART=2`), which needs data that are not included"
    assert why["regression-skillcraft-0.2-whole"] == wanted
    assert why["images-stl10-han16"] == "data are not included"
    assert why["approximation-width40"] == why["digits"] == "in no part, left to `make paper`"
    assert why["approximation-sgd-width40"] == "in no part, left to `make paper-full`"


def test_ten_seeds():
    """But for the waves, whose ten would take a part beyond two hours; the page says so in their row."""
    for experiment in paper.EXPERIMENTS:
        if experiment.program in ("checkerboard", "ablation", "variability", "regression", "approximation"):
            assert "--seeds 10" in experiment.full


def test_cost_is_of_two_workers(monkeypatch):
    """Alone first, then each experiment on the core that is free first."""
    made = [("a", 10, True), ("b", 4, False), ("c", 3, False), ("d", 2, False)]
    experiments = [paper.Experiment(stem, stem, None, "", 1, seconds, alone=alone) for stem, seconds, alone in made]
    monkeypatch.setattr(paper_table, "EXPERIMENTS", experiments)
    assert paper_table.cost(1) == 10 + 5


def test_data_folders(tmp_path):
    with pytest.raises(ValueError, match="must have CSV tables"):
        paper.data_folders(tmp_path)
    (tmp_path / "mnist").mkdir()
    (tmp_path / "skillcraft.csv").write_text("1,2\n")
    found = paper.data_folders(tmp_path)
    assert found == {
        "tables": tmp_path,
        "mnist": tmp_path / "mnist",
        "cifar10": None,
        "cifar100": None,
        "stl10": None,
    }


# ---- calls, of programs that are two lines of Python


def python(name: str, text: str) -> paper.Call:
    return paper.Call(name, [sys.executable, "-c", f"import os, sys, time\nfrom pathlib import Path\n{text}"])


def wait_for(file: Path) -> str:
    return f"while not os.path.exists({str(file)!r}): time.sleep(0.01)\n"


def test_an_interrupt_ends_what_runs_and_starts_nothing(tmp_path):
    running, queued = tmp_path / "running", tmp_path / "queued"
    calls = [
        python("a", wait_for(running)),
        python("b", f"Path({str(running)!r} + '.part').write_text(str(os.getpid()))\n"
               f"os.rename({str(running)!r} + '.part', {str(running)!r})\ntime.sleep(60)"),
        python("c", f"Path({str(queued)!r}).touch()"),
    ]  # fmt: skip

    def interrupted() -> None:
        raise KeyboardInterrupt

    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        paper.run(calls, 2, interrupted)
    assert time.perf_counter() - started < 30
    assert not queued.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(running.read_text()), 0)


def test_sigterm_ends_what_runs(tmp_path):
    """As `kill` and batch systems send it."""
    file = tmp_path / "started"
    child = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    text = f"""
import sys
from examples import options, paper
options.run_program(lambda: paper.run([paper.Call("a", [sys.executable, "-c", {child!r}])], 1, lambda: None))
"""
    program = subprocess.Popen([sys.executable, "-c", text], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (file.exists() and file.read_text()):
        assert program.poll() is None
        time.sleep(0.01)
    program.terminate()
    _, told = program.communicate(timeout=30)
    assert program.returncode == 130
    assert "interrupted; the same command goes on" in told
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)


def test_a_failure_starts_nothing_and_lets_the_neighbour_end(tmp_path, capsys):
    slow, queued, done = tmp_path / "slow", tmp_path / "queued", []
    calls = [
        python("bad", f"{wait_for(slow)}print('some words'); sys.exit('a reason')"),
        python("good", f"Path({str(slow)!r}).touch(); time.sleep(0.5); print('well')"),
        python("queued", f"Path({str(queued)!r}).touch()"),
    ]
    with pytest.raises(RefusedError, match=r"^bad failed:\na reason\n$"):
        paper.run(calls, 2, lambda: done.append(1))
    assert done == [1]
    assert not queued.exists()
    printed = capsys.readouterr().out
    assert "==> bad\nsome words\n" in printed
    assert "==> good\nwell\n" in printed


def test_the_environment(monkeypatch):
    """Freed memory is kept, but where the user says otherwise; other systems than glibc get no such variable."""
    for name in paper.MALLOC:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(paper.platform, "libc_ver", lambda: ("glibc", "2.36"))
    found = paper.environment(2)
    assert found["MALLOC_MMAP_THRESHOLD_"] == "1073741824"
    assert found["MALLOC_TRIM_THRESHOLD_"] == "4294967296"
    assert 1 <= int(found["OMP_NUM_THREADS"]) < max(2, os.cpu_count())
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "7")
    assert paper.environment(2)["MALLOC_MMAP_THRESHOLD_"] == "7"
    for library in (("", ""), ("glibc", "2.31")):
        monkeypatch.setattr(paper.platform, "libc_ver", lambda library=library: library)
        assert "MALLOC_TRIM_THRESHOLD_" not in paper.environment(2)


# ---- the whole program, with others in the place of the experiments


class Programs:
    """What stands for the experiments' programs: each writes its JSON and its plot, and ends as `status` says."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.status: dict[str, int] = {}
        self.before: Callable[[Path, str], None] = lambda out, name: None

    def __call__(self, words: list[str], env: dict[str, str], **options: Any) -> SimpleNamespace:
        self.calls.append(words[1:])
        out, name = Path(words[words.index("--out") + 1]), words[2].split(".")[1]
        out.mkdir(parents=True, exist_ok=True)
        self.before(out, name)
        code = self.status.get(name, 0)
        if code == 0:
            (out / f"{name}.json").write_text(json.dumps({"command": paper.command(name, words[3:])}))
            (out / f"{name}.png").write_text(name)
        return SimpleNamespace(returncode=code, poll=lambda: code, wait=lambda: code, terminate=lambda: None)


@pytest.fixture
def programs(monkeypatch):
    found = Programs()
    monkeypatch.setattr(paper.subprocess, "Popen", found)
    monkeypatch.setattr(paper, "page", lambda folder: " ".join(sorted(f.stem for f in folder.glob("*/*.json"))))
    return found


def table(monkeypatch: pytest.MonkeyPatch, *experiments: paper.Experiment) -> None:
    monkeypatch.setattr(paper, "EXPERIMENTS", list(experiments))


@pytest.fixture
def words(tmp_path):
    return ["--results", tmp_path, "--page", tmp_path / "page.md"]


def test_done_experiments_are_not_run_again(tmp_path, monkeypatch, capsys, programs, words):
    one = paper.Experiment("one", "one", "--rates 1", "--rates 2", 1, 5)
    table(monkeypatch, one, paper.Experiment("two", "two", None, "--rates 3", 2, 5))
    run(monkeypatch, "paper", *words)
    assert programs.calls == [["-m", "examples.one", "--rates", "1", "--out", str(tmp_path / "reduced"), "--renew"]]
    run(monkeypatch, "paper", *words)
    assert len(programs.calls) == 1
    assert "done before" in capsys.readouterr().out
    run(monkeypatch, "paper", *words, "--fresh")
    assert programs.calls[1][-1] == "--fresh"
    assert (tmp_path / "page.md").read_text() == "one"
    run(monkeypatch, "paper", *words, "--part", "2")
    assert programs.calls[2][:6] == ["-m", "examples.two", "--rates", "3", "--out", str(tmp_path / "full")]
    assert (tmp_path / "reduced" / "one.png").exists()
    run(monkeypatch, "paper", *words, "--part", "1")
    assert not list((tmp_path / "reduced").iterdir())  # a full run replaces the reduced one
    run(monkeypatch, "paper", *words)
    assert len(programs.calls) == 4
    assert "done before with the full options" in capsys.readouterr().out
    programs.status["one"] = 1
    with pytest.raises(ValueError, match=r"examples\.one --rates 1 failed:\n"):
        run(monkeypatch, "paper", *words, "--fresh")


def test_a_missing_plot_is_drawn(tmp_path, monkeypatch, programs, words):
    """The program goes on from its checkpoint, and the JSON stays until it has. Some programs have no plot."""
    table(monkeypatch, paper.Experiment("one", "one", "", ""), paper.Experiment("speed", "speed", "", ""))
    run(monkeypatch, "paper", *words)
    for name in ("one", "speed"):
        (tmp_path / "reduced" / f"{name}.png").unlink()
    there = []
    programs.before = lambda out, name: there.append((out / "one.json").exists())
    run(monkeypatch, "paper", *words)
    assert [call[1] for call in programs.calls] == ["examples.one", "examples.speed", "examples.one"]
    assert there == [True]
    assert (tmp_path / "reduced" / "one.png").exists()


def test_a_result_of_other_options_goes_once(tmp_path, monkeypatch, capsys, programs, words):
    """When its own experiment starts, not before; after a cut the same call goes on from its checkpoints."""
    table(monkeypatch, *(paper.Experiment(stem, stem, "--rates 1", None) for stem in ("one", "two")))
    run(monkeypatch, "paper", *words)
    table(monkeypatch, *(paper.Experiment(stem, stem, "--rates 2", None) for stem in ("one", "two")))
    programs.status["one"] = 1
    with pytest.raises(RefusedError, match="one --rates 2 failed"):
        run(monkeypatch, "paper", *words, "--jobs", 1)
    assert f"{tmp_path / 'reduced' / 'one.json'} is removed" in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "reduced").iterdir()) == ["two.json", "two.png"]
    programs.status.clear()
    run(monkeypatch, "paper", *words)
    assert [call[1] for call in programs.calls[2:]] == ["examples.one", "examples.one", "examples.two"]
    assert not any("--fresh" in call for call in programs.calls)
    assert all("--renew" in call for call in programs.calls)
    assert "one.json is removed" not in capsys.readouterr().out


def test_a_changed_experiment_starts_anew_and_goes_on(tmp_path, monkeypatch, words):
    """With the real program: a checkpoint of other options, with its JSON or without, does not end the call."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(paper, "page", lambda folder: "page")
    stem, out = "checkerboard-hannet", tmp_path / "reduced"
    for iterations, left in ((10, ".json"), (20, ".json"), (30, ".pt")):
        options = f"--iterations {iterations} --seeds 1 --rates 0.05"
        table(monkeypatch, paper.Experiment(stem, "checkerboard", options, None))
        run(monkeypatch, "paper", *words)
        result = json.loads((out / f"{stem}.json").read_text())
        assert result["command"] == f"python -m examples.checkerboard {options}"
        assert {"renew", "fresh", "no_plot"}.isdisjoint(result["settings"])
        if left == ".pt" or iterations == 20:
            (out / f"{stem}.json").unlink()
    run(monkeypatch, "paper", *words)
    assert json.loads((out / f"{stem}.json").read_text())["seconds"] == result["seconds"]  # nothing was trained anew


def test_what_is_left_out_is_told(tmp_path, monkeypatch, capsys, programs, words):
    data = {"data": "tables", "needed": True}
    table(
        monkeypatch,
        paper.Experiment("one", "one", "", "", 1, 5, **data),
        paper.Experiment("two", "two", "", "", 2, 5, **data),
        paper.Experiment("three", "three", None, "", data="cifar10", needed=True),
        paper.Experiment("four", "four", None, ""),
    )

    def told(*more: object) -> list[str]:
        run(monkeypatch, "paper", *words, *more)
        return [line for line in capsys.readouterr().out.splitlines() if "page.md" not in line]

    assert told() == ["==> one, two: left out, as needing --data DIR with CSV tables"]
    assert told("--part", 2) == ["==> two: left out, as needing --data DIR with CSV tables"]
    assert told("--only", "three", "four") == ["==> three, four: no reduced run"]
    assert told("--full", "--only", "three") == ["==> three: left out, as needing --data DIR with a folder cifar10"]
    assert programs.calls == []


@pytest.mark.parametrize("first", [[], ["--full"]])
def test_no_result_with_data_gives_way_to_one_without(first, tmp_path, monkeypatch, capsys, programs, words):
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    table(monkeypatch, paper.Experiment("digits", "digits", "", "", data="mnist"))
    run(monkeypatch, "paper", *words, *first)  # stand-ins
    run(monkeypatch, "paper", *words, *first, "--data", tmp_path / "data")
    assert len(programs.calls) == 2
    for call in (first, ["--full"], [*first, "--fresh"]):
        run(monkeypatch, "paper", *words, *call)
        assert "left out, as there is a result with data" in capsys.readouterr().out
    assert len(programs.calls) == 2
    assert len(list(tmp_path.glob("*/digits.json"))) == 1


def test_an_error_of_the_page_ends_no_run(tmp_path, monkeypatch, capsys, programs, words):
    """It is told at the end, also after an interrupt; one that later calls mend is none."""
    table(monkeypatch, *(paper.Experiment(stem, stem, "", None) for stem in ("one", "two")))
    wrong = 4

    def page(folder: Path) -> str:
        nonlocal wrong
        wrong -= 1
        if wrong >= 0:
            raise KeyError("a row")
        return "page"

    monkeypatch.setattr(paper, "page", page)
    with pytest.raises(KeyError, match="a row"):
        run(monkeypatch, "paper", *words)
    assert len(programs.calls) == 2
    wrong = 2
    run(monkeypatch, "paper", *words, "--fresh")
    assert (tmp_path / "page.md").read_text() == "page"
    wrong, programs.status["two"] = 9, 1
    with pytest.raises(RefusedError, match="two failed"):
        run(monkeypatch, "paper", *words, "--fresh")
    assert "page.md is not up to date: KeyError('a row')" in capsys.readouterr().err


def test_the_page_after_an_interrupt(tmp_path, monkeypatch, programs, words):
    """It has what ended well."""
    table(monkeypatch, *(paper.Experiment(stem, stem, "", None) for stem in ("one", "two")))

    def interrupted(out: Path, name: str) -> None:
        if name == "two":
            raise KeyboardInterrupt

    programs.before = interrupted
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, "paper", *words)
    assert (tmp_path / "page.md").read_text() == "one"


# ---- plots that experiments share


def result(iterations: int) -> dict[str, Any]:
    """What the plots of the ablation, of the maps and of depth need."""
    each = {"test, best": [80.0, 90.0], "test, best, mean and spread": [85.0, 7.1]}
    rows = [{"depth": 2, "variability, geometric mean": 3.0, "collapsed to a constant, %": 0.0}]
    return {
        "command": "python",
        "settings": {"iterations": iterations, "widths": [20], "depths": [2]},
        "best setting of each seed": each,
        "cells": [each],
        "before training": rows,
        "learnt": [{"loss": [0.1, None, 0.3]}],
    }


def put(folder: Path, kind: str, *stems: str, iterations: int = 40_000) -> None:
    (folder / kind).mkdir(exist_ok=True)
    for stem in stems:
        (folder / kind / f"{stem}.json").write_text(json.dumps(result(iterations)))


def test_shared_plots_have_full_and_reduced_results(tmp_path, monkeypatch):
    """One plot of all of them, in `full` as soon as one is full; HanNet of the ablation is that of the board."""
    drawn = {}

    def drawing(program: str, real: Callable[..., None]) -> Callable[..., None]:
        def plot(path: Path, results: dict[str, Any]) -> None:
            drawn[program] = {name: found["settings"]["iterations"] for name, found in results.items()}
            real(path, results)

        return plot

    shared = {name: (drawing(name, plot), stems) for name, (plot, stems) in paper.SHARED.items()}
    monkeypatch.setattr(paper, "SHARED", shared)
    put(tmp_path, "reduced", "ablation-dense-abs", "ablation-orth-abs", "heatmap-hannet", iterations=20_000)
    put(tmp_path, "reduced", "ablation-hannet", "variability-hannet", iterations=20_000)
    paper.draw(tmp_path)
    assert drawn["ablation"] == {"dense-abs": 20_000, "orth-abs": 20_000}
    assert sorted(file.name for file in tmp_path.glob("*/*.png")) == ["ablation.png", "heatmap.png", "variability.png"]
    put(tmp_path, "full", "ablation-dense-abs", "checkerboard-hannet", "variability-fc-abs")
    monkeypatch.setattr(paper, "page", lambda folder: "page")
    paper.update(tmp_path, tmp_path / "page.md")
    assert drawn["ablation"] == {"hannet": 40_000, "dense-abs": 40_000, "orth-abs": 20_000}
    assert drawn["heatmap"] == {"hannet": 20_000}
    assert drawn["variability"] == {"hannet": 20_000, "fc-abs": 40_000}
    plots = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.glob("*/*.png"))
    assert plots == ["full/ablation.png", "full/variability.png", "reduced/heatmap.png"]
    left = sorted(file.stem for file in (tmp_path / "reduced").glob("*.json"))
    assert left == ["ablation-hannet", "ablation-orth-abs", "heatmap-hannet", "variability-hannet"]


def test_a_program_alone_draws_the_shared_plot(tmp_path, monkeypatch):
    """Of its folder; `make paper` asks it not to, as one writer draws what all have."""
    options = ["--seeds", 1, "--rates", 0.05, "--iterations", 5, "--out", tmp_path]
    run(monkeypatch, "ablation", *options, "--models", "dense-abs", "--no-plot")
    assert not list(tmp_path.glob("*.png"))
    found = json.loads((tmp_path / "ablation-dense-abs.json").read_text())
    assert "plot" not in found["command"] + " ".join(found["settings"])
    run(monkeypatch, "ablation", *options, "--models", "dense-abs")
    assert (tmp_path / "ablation.png").exists()
    shared = [e for e in paper.EXPERIMENTS if e.program in paper.SHARED]
    assert not any(experiment.has_plot for experiment in shared)
    arguments = argparse.Namespace(full=True, fresh=False, results=tmp_path)
    calls = [paper.to_run(experiment, arguments, paper.data_folders(None)) for experiment in shared]
    assert all("--no-plot" in call.words for call in calls)
