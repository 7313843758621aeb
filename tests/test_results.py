"""Results are replaced by a finished run alone: whatever ends one, nothing is lost and no torn file is read."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import results_file

ROOT = Path(__file__).parent.parent
ROWS = ["copy", "HanStack"]  # of 'one layer', forward


BENCH = ["benchmarks/bench_han_stack.py", "-q", "-p", "no:cacheprovider", "--benchmark-only", "--rehearse"]
TINY = [*BENCH, "--groups", "one layer", "-k", "forward and not cuda and not triton"]  # two rows of two cases
# Runs pytest with each of several lists of arguments, in one process; prints each one's status and output.
SEVERAL = """
import contextlib, io, json, sys
import pytest
found = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        status = int(pytest.main(arguments))
    found.append([status, out.getvalue()])
print(json.dumps(found))
"""


def start(*arguments: object, limit: int | None = None, **environment: str) -> subprocess.CompletedProcess:
    """Runs Python; limit: bytes of the largest file that it can write."""
    most = None if limit is None else (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    # Under pytest-xdist this process is a worker; the one that it starts is none.
    here = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    command, variables = [sys.executable, *map(str, arguments)], {**here, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, preexec_fn=most)


def run(*arguments: object, limit: int | None = None, **environment: str) -> subprocess.CompletedProcess:
    return start("-m", "pytest", *TINY, *arguments, limit=limit, **environment)


def run_each(several: list[list[str]]) -> list[tuple[int, str]]:
    done = start("-c", SEVERAL, json.dumps([[*TINY, *arguments] for arguments in several]))
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def bench(name: str) -> dict:
    return {"fullname": name, "extra_info": {"kind": "group"}, "stats": {"median": 1.0}}


def a_file(folder: Path, name: str = "rehearsal.json", rows: tuple[str, ...] = ("an earlier row",)) -> Path:
    file = folder / name
    file.write_text(json.dumps({"machine_info": {}, "benchmarks": [bench(row) for row in rows]}))
    return file


def names(file: Path) -> list[str]:
    return [row["fullname"].split("forward, ")[-1].rstrip("]") for row in results_file.read(file)["benchmarks"]]


def test_a_run_that_measures_nothing_leaves_the_file(tmp_path):
    file = a_file(tmp_path)
    before = file.read_text()
    nothing = [["--collect-only"], ["-k", "NOTHING"], ["-k", "HanStack and float64"], ["--seconds", "0"]]
    nothing += [[*more, "--benchmark-json", str(tmp_path / "json")] for more in nothing[:2]]
    for status, output in run_each([["--results", str(tmp_path), *arguments] for arguments in nothing]):
        assert status in (0, 5), output
        assert "Traceback" not in output
        assert file.read_text() == before
        assert os.listdir(tmp_path) == ["rehearsal.json"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_unfinished_run_is_gone_on_from(tmp_path, number):
    """Ctrl-C or a kill in the third row: what was measured stays beside the file; --resume measures the rest alone."""
    (tmp_path / "stop.py").write_text(
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "count = 0\ndef pytest_runtest_call(item):\n    global count\n    count += 1\n"
        f"    if count == 3:\n        os.kill(os.getpid(), {number:d})\n        time.sleep(60)\n"
    )
    folder = tmp_path / "results"
    folder.mkdir()
    file, part = a_file(folder), folder / "rehearsal.part.json"
    before = file.read_text()
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = run("-p", "stop", "--results", folder, PYTHONPATH=path)
    assert done.returncode == (2 if number == signal.SIGINT else -number), done.stdout
    assert file.read_text() == before
    if number == signal.SIGINT:
        assert names(part) == ROWS
        assert f"unfinished: what was measured is in {part}" in done.stdout
        return
    assert names(part) == ROWS[:1]  # it is written every five seconds
    done = run("--results", folder, "--resume")
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("...   ")
    assert names(file) == [*ROWS, *ROWS]
    assert not part.exists()


def test_a_full_disk_leaves_the_file(tmp_path):
    """A limit of a file's size stands for the disk. The run goes on, and its table is printed."""
    file = a_file(tmp_path)
    before = file.read_text()
    done = run("--results", tmp_path, "-s", limit=9000)
    assert done.returncode == 1, done.stdout
    assert f"{file} was not written, and is as it was" in done.stdout
    assert "INTERNALERROR" not in done.stdout
    assert "| HanStack" in done.stdout
    assert file.read_text() == before
    part = tmp_path / "rehearsal.part.json"  # of the first row, which had room
    assert not part.exists() or names(part) == ROWS[:1]
    assert set(os.listdir(tmp_path)) <= {file.name, part.name}


def config(**options: object) -> SimpleNamespace:
    given = {"--results": None, "--resume": False, "--device": "cpu", "--rehearse": True}
    given |= {f"--{name}": value for name, value in options.items()}
    return SimpleNamespace(getoption=given.__getitem__)


FOREIGN = {"machine_info": {}, "benchmarks": [{"fullname": "a", "extra_info": {}, "stats": {"median": 1.0}}]}


@pytest.mark.parametrize("name", ["rehearsal.json", "rehearsal.part.json"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no results file, or not a whole one: Expecting value"),
        (json.dumps(FOREIGN)[:-9], "no results file, or not a whole one: "),
        ("[1]", "no results file: it has no benchmarks"),
        ('{"benchmarks": []}', "no results file: it has no benchmarks"),
        (json.dumps(FOREIGN), "no results file of these benchmarks: it has rows of others"),
        ("\xff", "no results file, or not a whole one: 'utf-8' codec"),
    ],
)
def test_what_cannot_be_gone_on_from_is_named(tmp_path, name, text, message):
    file = tmp_path / name
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(pytest.UsageError) as error:
        results_file.results_of(config(results=tmp_path, resume=True))
    assert str(error.value).startswith(f"--resume: {file} is {message}")
    assert "\n" not in str(error.value)
    results_file.results_of(config(results=tmp_path))  # a new run reads nothing


def test_an_unfinished_run_comes_before_the_file(tmp_path):
    a_file(tmp_path)
    assert [row["fullname"] for row in results_file.results_of(config(results=tmp_path, resume=True)).earlier] == [
        "an earlier row"
    ]
    a_file(tmp_path, "rehearsal.part.json", ("a", "b"))
    found = results_file.results_of(config(results=tmp_path, resume=True))
    assert [row["fullname"] for row in found.earlier] == ["a", "b"]


def test_why_rivals_are_missing_is_kept(tmp_path):
    """It is in the file, and a run that goes on has it from there."""
    said = {"width: a case, a rival": "out of memory"}
    found = json.loads(a_file(tmp_path, "rehearsal.part.json").read_text()) | {"left_out": said}
    (tmp_path / "rehearsal.part.json").write_text(json.dumps(found))
    results = results_file.results_of(config(results=tmp_path, resume=True))
    results.machine = {"ceilings": 1}
    results.left_out["depth: a case, another"] = "over the time limit"
    assert results.finish(SimpleNamespace(), pytest.ExitCode.OK)
    left = results_file.read(tmp_path / "rehearsal.json")["left_out"]
    assert left == {**said, "depth: a case, another": "over the time limit"}


def test_a_part_with_all_rows_is_finished(tmp_path):
    """Killed after its last row, before the file was replaced."""
    a_file(tmp_path)
    a_file(tmp_path, "rehearsal.part.json", ("a", "b"))
    results = results_file.results_of(config(results=tmp_path, resume=True))
    results.machine = {"ceilings": 1}
    assert results.finish(SimpleNamespace(), pytest.ExitCode.OK)
    assert names(tmp_path / "rehearsal.json") == ["a", "b"]
    assert os.listdir(tmp_path) == ["rehearsal.json"]


ERRORS = [
    (["--results", "pyproject.toml"], "--results must be a folder, got pyproject.toml"),
    (["--results", "pyproject.toml/more"], "--results must be a folder, got pyproject.toml/more"),
    (["--seconds", "nan"], "argument --seconds: must be a number of seconds from 0, got 'nan'"),
    (["--seconds", "-1"], "argument --seconds: must be a number of seconds from 0, got '-1'"),
    (["--seconds", "soon"], "argument --seconds: must be a number of seconds from 0, got 'soon'"),
    (["--groups", "one layer,more"], "--groups must name some of one layer, kernels, "),
    (["--resume"], "--resume goes on from a file of --results"),
    (["--device", "cuda"], "--rehearse runs on the CPU, got --device cuda"),
]


def test_errors_of_options():
    found = run_each([["--collect-only", *arguments] for arguments, _ in ERRORS])
    for (_, message), (status, output) in zip(ERRORS, found, strict=True):
        assert status == 4
        assert message in output
        assert "Traceback" not in output
