"""What an example cannot go on with, an option or a file, is refused at once and in one line."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from hanops.models import FCNet, Network

for package in ("tqdm", "matplotlib", "sklearn", "foolbox"):
    pytest.importorskip(package)

from examples import checkpoints, experiment, regression  # noqa: E402
from examples.checkpoints import Checkpoint  # noqa: E402
from examples.images import Training  # noqa: E402
from examples.options import RefusedError, run_program  # noqa: E402
from examples.robustness import Finished  # noqa: E402
from examples.sweep import Data, Recipe, Run, mean_squared_error, train  # noqa: E402


def refused(monkeypatch, capsys, program: str, *words: object) -> str:
    """Returns what a program prints as an error that ends it, but for its usage."""
    monkeypatch.setattr(sys, "argv", [f"examples/{program}.py", *map(str, words)])
    with pytest.raises(SystemExit) as exit:
        run_program(importlib.import_module(f"examples.{program}").main)
    assert exit.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("program", "words", "message"),
    [
        ("checkerboard", ["--seeds", 0], "argument --seeds: must be a whole number from 1, got '0'"),
        ("checkerboard", ["--iterations", 0], "argument --iterations: must be a whole number from 1, got '0'"),
        ("checkerboard", ["--noise", 7], "argument --noise: must be a part from 0 to 1, got '7'"),
        ("checkerboard", ["--rates", "nan"], "argument --rates: must be a number above 0, got 'nan'"),
        ("checkerboard", ["--penalty", -1], "argument --penalty: must be a number from 0, got '-1'"),
        ("checkerboard", ["--device", "tpu"], "argument --device: must be one of cpu"),
        ("ablation", ["--seeds", -1], "argument --seeds: must be a whole number from 1, got '-1'"),
        ("approximation", ["--every", 0], "argument --every: must be a whole number from 1, got '0'"),
        ("approximation", ["--epochs", 0], "argument --epochs: must be a whole number from 1, got '0'"),
        ("digits", ["--epochs", 0], "argument --epochs: must be a whole number from 1, got '0'"),
        ("digits", ["--train", 5], "argument --train: must be from 256, a batch, to 1796, all images but one, got 5"),
        ("head", ["--batch", 0], "argument --batch: must be a whole number from 1, got '0'"),
        ("heatmap", ["--depths", 1], "argument --depths: must be a whole number from 2, got '1'"),
        ("images", ["--epochs", 0], "argument --epochs: must be a whole number from 1, got '0'"),
        ("images", ["--workers", -1], "argument --workers: must be a whole number from 0, got '-1'"),
        ("images", ["--made", 100, "--batch", 101], "argument --batch: must be at most 100, the number of images"),
        ("paper", ["--jobs", 0], "argument --jobs: must be a whole number from 1, got '0'"),
        ("regression", ["--every", 0], "argument --every: must be a whole number from 1, got '0'"),
        ("regression", ["--part", 1.5], "argument --part: must be a part from 0 to 1, got '1.5'"),
        ("regression", ["--table", "nope"], "argument --table: there is no table nope; there is diabetes, of scikit"),
        ("robustness", ["--pgd-steps", 0], "argument --pgd-steps: must be a whole number from 1, got '0'"),
        ("sines", ["--width", 0], "argument --width: must be a whole number from 1, got '0'"),
        ("speed", ["--iterations", 150], "argument --iterations: must be a multiple of 100, got 150"),
        ("train_ddp", ["--every", 0], "argument --every: must be a whole number from 1, got '0'"),
        ("variability", ["--depths", 0], "argument --depths: must be a whole number from 1, got '0'"),
    ],
)
def test_options(monkeypatch, capsys, tmp_path, program, words, message):
    error = refused(monkeypatch, capsys, program, *words, *([] if program == "paper" else ["--out", tmp_path / "new"]))
    assert message in error
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(monkeypatch, capsys):
    message = "argument --device: must be one of cpu, which torch sees here, got 'cuda'"
    assert message in refused(monkeypatch, capsys, "checkerboard", "--device", "cuda")


# ---- tables


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3\n4,5\n", r"line 2: a line must have 3 numbers, got 2"),
        ("1,2\n\n3,x\n", r"line 3: could not convert string to float: 'x'"),
        ("1,2\n3,nan\n", r"line 2: a number must be finite"),
        ("1\n2\n", r"line 1: a line must have two or more numbers, got 1"),
        ("a,b\n1,2\n", r"line 1: could not convert"),
        ("", r"a table must have rows of numbers, got none"),
        ("1,2\n3,2\n", r"the target, the last column, must vary, got 2 in all rows"),
    ],
)
def test_a_table_that_is_none(tmp_path, text, message):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(RefusedError, match=message) as error:
        regression.read(tmp_path, None)
    assert "bad" in str(error.value)


def test_a_table_of_other_bytes(tmp_path):
    (tmp_path / "bad.csv").write_bytes(b"1,2\n3,\xff\xfe\n")
    with pytest.raises(RefusedError, match=r"bad\.csv, line 2: could not convert"):
        regression.read(tmp_path, None)
    (tmp_path / "bad.csv").unlink()
    (tmp_path / "bad.csv").mkdir()
    with pytest.raises(RefusedError, match=r"bad\.csv: Is a directory"):
        regression.read(tmp_path, None)


def test_tables_do_not_leave_their_folder(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    for place in (folder / "inside.csv", tmp_path / "outside.csv"):
        place.write_text("1,2\n3,4\n5,7\n")
    assert list(regression.read(folder, "inside")) == ["inside"]
    for name in ("../outside", "*", "ins?de", str(tmp_path / "outside"), ""):
        assert "there is inside, in" in refused(monkeypatch, capsys, "regression", "--data", folder, "--table", name)


# ---- JSON files


def test_json_has_no_infinities(tmp_path):
    """A diverged network's score and the R2 of a constant target have no number in JSON: null."""
    points = regression.data(torch.tensor([[0.0, 1], [1, 1], [2, 1], [3, 5], [4, 1], [5, 1]]), 0.5, 2, False, "cpu")
    state = train(
        lambda: FCNet(1, 4, 1, 1),
        [Run(0, 0.01), Run(1, 0.01)],
        points,
        Recipe(2, batch=3, every=1),
        regression.root_mean_squared_error,
    )
    found = regression.figures(state, points)
    assert -torch.inf in found["test R2, last"]
    experiment.write(tmp_path / "file.json", found | {"diverged": [float("nan"), (float("inf"), 1.5)]})

    def never(constant: str) -> None:
        raise AssertionError(constant)

    read = json.loads((tmp_path / "file.json").read_text(), parse_constant=never)
    assert None in read["test R2, last"]
    assert read["diverged"] == [None, [None, 1.5]]


def test_a_result_that_is_no_result(monkeypatch, capsys, tmp_path):
    """The page is left as it was."""
    folder, page = tmp_path / "results" / "reduced", tmp_path / "page.md"
    folder.mkdir(parents=True)
    page.write_text("as it was")
    for text in ('{"command": "py', "[]", ""):
        (folder / "speed.json").write_text(text)
        words = ["--results", tmp_path / "results", "--page", page, "--only", "speed"]
        assert f"{folder / 'speed.json'} is " in refused(monkeypatch, capsys, "paper", *words)
    assert page.read_text() == "as it was"


def test_the_page_is_replaced_whole(monkeypatch, tmp_path):
    from examples import paper

    def broken(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    page = tmp_path / "page.md"
    page.write_text("as it was")
    monkeypatch.setattr("hanops.profiling.files.write_bytes", broken)
    monkeypatch.setattr(paper, "EXPERIMENTS", [])
    monkeypatch.setattr(paper, "page", lambda folder: "a new one")
    monkeypatch.setattr(sys, "argv", ["paper.py", "--results", str(tmp_path), "--page", str(page)])
    with pytest.raises(OSError, match="No space left"):
        paper.main()
    assert page.read_text() == "as it was"


# ---- checkpoints


def small() -> Network:
    return FCNet(1, 4, 1, 1)


def sweep(path: Path, iterations: int = 4) -> None:
    points = Data(*(torch.linspace(-1, 1, 8).view(1, 8, 1) for _ in range(4)))
    train(small, [Run(0, 0.01)], points, Recipe(iterations, batch=2, every=2), mean_squared_error, Checkpoint(path))


def image_training(path: Path) -> None:
    model = small()
    state = Training({"epochs": 3}, model, torch.optim.AdamW(model.parameters()))
    state.load(Checkpoint(path), "cpu") if path.exists() else state.save(path)


def attacks(path: Path) -> None:
    finished = Finished(Checkpoint(path), {"images": 3})
    if not path.exists():
        finished.add("one", [1.0])


@pytest.mark.parametrize("program", [sweep, image_training, attacks])
def test_a_damaged_checkpoint(tmp_path, program):
    """Whichever byte differs or is missing, or where it is one of a program without checksums."""
    path = tmp_path / "state.pt"
    program(path)
    program(path)  # which goes on from it
    data = path.read_bytes()
    places = [0, len(data) // 3, len(data) // 2, len(data) - 40, len(data) - 1]
    changed = [data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] for place in places]
    changed += [b"", data[:10], data[: len(data) // 2], data[:-1], data[:-32], data + b"\0"]
    for content in changed:
        path.write_bytes(content)
        with pytest.raises(RefusedError, match=f"{path} is damaged, .* start --fresh"):
            program(path)
    torch.save({"settings": {}}, path)
    with pytest.raises(RefusedError, match=f"{path} is damaged, .* start --fresh"):
        program(path)
    checkpoints.save(path, {"settings": {}})
    with pytest.raises(RefusedError, match=f"{path} is no .*: start --fresh"):
        program(path)


def test_a_damaged_checkpoint_is_renewed(tmp_path, capsys):
    """Where the caller says so, with a line."""
    path = tmp_path / "state.pt"
    sweep(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert Checkpoint(path, renew=True).load({}, (), "cpu", "sweep") is None
    assert f"{path} is damaged" in capsys.readouterr().out
    assert not path.exists()


@pytest.mark.parametrize("iteration", [-5, 10**9, 5, 1.5, "2"])
def test_a_step_that_cannot_be(tmp_path, iteration):
    path = tmp_path / "state.pt"
    sweep(path)
    checkpoints.save(path, torch.load(path) | {"iteration": iteration})
    with pytest.raises(RefusedError, match=f"{path} must be at a step from 0 to 4, got {iteration!r}: start --fresh"):
        sweep(path)


def test_more_epochs_than_there_are(tmp_path):
    path = tmp_path / "state.pt"
    image_training(path)
    checkpoints.save(path, torch.load(path) | {"history": [{}] * 4})
    with pytest.raises(RefusedError, match=f"{path} must be at a step from 0 to 3, got 4: start --fresh"):
        image_training(path)


def test_a_program_says_so_in_one_line(monkeypatch, capsys, tmp_path):
    words = ["--iterations", 1, "--seeds", 1, "--rates", 0.1, "--out", tmp_path]
    (tmp_path / "checkerboard-hannet.pt").write_bytes(b"")
    error = refused(monkeypatch, capsys, "checkerboard", *words)
    assert error == (
        f"checkerboard.py: error: {tmp_path / 'checkerboard-hannet.pt'} is damaged,"
        " or of another version of this program: start --fresh"
    )
