"""The papers' experiments: programs take the commands and run, and the page says what the results do."""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from examples import paper, results, sines, variability
from examples.checkerboard import mesh
from hanops.models import FCNet

ROOT = Path(__file__).parent.parent


def run(monkeypatch: pytest.MonkeyPatch, program: str, *words: object) -> None:
    """Runs an example in this process."""
    monkeypatch.setattr(sys, "argv", [f"examples/{program}.py", *map(str, words)])
    importlib.import_module(f"examples.{program}").main()


@pytest.mark.parametrize("kind", ["reduced", "full"])
@pytest.mark.parametrize("experiment", paper.EXPERIMENTS, ids=lambda experiment: experiment.stem)
def test_a_program_takes_its_options(experiment, kind, monkeypatch):
    """Each command gets past the parser of its program."""
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

    real = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    words = [*options.split(), *(["--data", "somewhere"] if experiment.data else [])]
    with pytest.raises(ParsedError):
        run(monkeypatch, experiment.program, *words, "--out", "elsewhere")
    assert taken[0].out == Path("elsewhere")


def test_what_runs():
    """An experiment runs where it has options and its data; both sets of names are without repetitions."""
    folders = paper.data_folders(None)
    left_out = [e.stem for e in paper.EXPERIMENTS if e.words(True, folders) is None]
    assert {stem.split("-")[0] for stem in left_out} == {"regression", "images"}
    assert not any(stem.startswith("images-made") for stem in left_out)
    stems = [experiment.stem for experiment in paper.EXPERIMENTS]
    assert len(stems) == len(set(stems))


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


def test_done_experiments_are_not_run_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paper, "EXPERIMENTS", [paper.Experiment("one", "one", "--rates 1", None)])
    monkeypatch.setattr(paper, "page", lambda folder: "page")
    calls, status = [], 0

    def program(command: list[str], env: dict[str, str], **options: bool) -> SimpleNamespace:
        calls.append(command[1:])
        assert 1 <= int(env["OMP_NUM_THREADS"]) < max(2, os.cpu_count())
        out = Path(command[command.index("--out") + 1])
        out.mkdir(parents=True, exist_ok=True)
        (out / "one.json").write_text(json.dumps({"command": "python -m examples.one --rates 1"}))
        return SimpleNamespace(returncode=status, stdout="one\n", stderr="a reason")

    monkeypatch.setattr(paper.subprocess, "run", program)
    words = ["--results", tmp_path, "--page", tmp_path / "page.md"]
    run(monkeypatch, "paper", *words)
    assert calls == [["-m", "examples.one", "--rates", "1", "--out", str(tmp_path / "reduced")]]
    run(monkeypatch, "paper", *words)
    assert len(calls) == 1
    assert "done before" in capsys.readouterr().out
    run(monkeypatch, "paper", *words, "--fresh")
    assert calls[1][-1] == "--fresh"
    assert (tmp_path / "page.md").read_text() == "page"
    status = 1
    with pytest.raises(ValueError, match=r"examples\.one --rates 1 failed:\na reason"):
        run(monkeypatch, "paper", *words, "--fresh")


def test_the_page_is_of_the_results():
    """docs/results.md is what the JSON files say."""
    assert (ROOT / "docs" / "results.md").read_text() == results.page(paper.RESULTS)


@pytest.mark.parametrize(
    "file", sorted(paper.RESULTS.glob("*/*.json")), ids=lambda file: f"{file.parent.name}-{file.stem}"
)
def test_a_result_is_of_its_command(file):
    """A committed result was made by the command that `make paper` would run now."""
    (experiment,) = (e for e in paper.EXPERIMENTS if e.stem == file.stem)
    folders = dict.fromkeys(paper.data_folders(None), Path("somewhere"))
    told = json.loads(file.read_text())["command"]
    wanted = paper.command(experiment.program, experiment.words(file.parent.name == "full", folders))
    assert told.replace(" --data DIR", "") == wanted.replace(" --data DIR", "")


def test_full_results_come_first(tmp_path):
    for kind in ("reduced", "full"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "x.json").write_text(json.dumps({"command": kind, "seconds": 1.5}))
    found = results.Results(tmp_path)
    assert found.get("x")["command"] == "full"
    assert found.commands() == "- `full` (full, 2 s)\n"
    assert found.commands() == "\n"
    assert found.get("y") is None


def test_ablation(tmp_path, monkeypatch):
    words = ["--seeds", 2, "--rates", 0.05, "--iterations", 10, "--out", tmp_path]
    run(monkeypatch, "ablation", *words, "--models", "hannet", "orth-abs")
    found = json.loads((tmp_path / "ablation.json").read_text())["models"]
    assert [found[model]["parameters"] for model in found] == [3032, 17822]
    assert (tmp_path / "ablation.png").exists()


def test_heatmap(tmp_path, monkeypatch):
    words = ["--seeds", 2, "--rates", 0.05, "--iterations", 5, "--out", tmp_path]
    run(monkeypatch, "heatmap", *words, "--widths", 20, 30, "--depths", 2, 4)
    cells = json.loads((tmp_path / "heatmap.json").read_text())["cells"]
    assert [(c["depth"], c["width"]) for c in cells["hannet"]] == [(2, 20), (2, 30), (4, 20), (4, 30)]
    assert cells["fcnet"][3]["parameters"] == sum(p.numel() for p in FCNet(2, 30, 4, 2).parameters())
    assert (tmp_path / "heatmap.png").exists()


def test_sines(tmp_path, monkeypatch):
    x = mesh()
    assert x.shape == (6561, 2)
    torch.testing.assert_close(
        sines.target(torch.tensor([[0.5, 0.5], [0.0625, 0.0625]])), torch.tensor([[1.0], [0.5381]]), rtol=0, atol=1e-3
    )
    run(
        monkeypatch,
        "sines",
        "--width",
        20,
        "--depth",
        3,
        "--seeds",
        2,
        "--rates",
        0.01,
        "--iterations",
        20,
        "--out",
        tmp_path,
    )
    found = json.loads((tmp_path / "sines.json").read_text())["models"]
    assert found["fcnet"]["parameters"] == 60 + 2 * 420 + 21
    assert len(found["hannet"]["best setting of each seed"]["test, best"]) == 2
    assert (tmp_path / "sines.png").exists()


@pytest.mark.parametrize("kind", list(variability.KINDS))
def test_width_for(kind):
    """No other width brings the parameters closer."""
    width = variability.width_for(kind, 12, 3200)
    off = [abs(variability.size(variability.KINDS[kind](w, 12)) - 3200) for w in range(2, 2 * width)]
    assert off[width - 2] == min(off)


def test_collapse(monkeypatch):
    """A deep dense network of ReLU has collapsed to a constant from its start; a HanNet and a shallow one have not."""
    monkeypatch.setattr(variability, "STARTS", 20)
    deep = variability.before_training("fc-relu", 30, 4000)
    assert deep["collapsed to a constant, %"] > 90
    for other in (variability.before_training("hannet", 30, 800), variability.before_training("fc-relu", 3, 4000)):
        assert other["collapsed to a constant, %"] == 0
        assert other["variability, median"] > 1


def test_variability(tmp_path, monkeypatch):
    monkeypatch.setattr(variability, "STARTS", 3)
    words = ["--seeds", 2, "--rates", 0.01, 0.02, "--iterations", 5, "--depths", 2, 4, "--out", tmp_path]
    run(monkeypatch, "variability", *words)
    found = json.loads((tmp_path / "variability.json").read_text())
    assert [row["depth"] for row in found["before training"]["hannet"]] == [2, 4]
    assert all(abs(row["parameters"] - 3200) < 120 for row in found["learnt"]["fc-relu"])
    assert (tmp_path / "variability.png").exists()


def test_speed(tmp_path, monkeypatch):
    """The eager and the fused network are the same one: after the same batches they score alike."""
    run(monkeypatch, "speed", "--seeds", 1, "--iterations", 100, "--out", tmp_path)
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["networks"] == 50
    assert found["eager"]["test, last"] == pytest.approx(found["hanops"]["test, last"], abs=0.5)
    assert found["grouped"]["test, last"] == pytest.approx(found["hanops"]["test, last"], abs=0.5)
    assert found["times faster, one network"] == pytest.approx(
        found["eager"]["seconds"][0] / found["hanops"]["seconds"][0]
    )
