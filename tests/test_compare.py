"""make bench-compare: its statistics, its workers in turns, the base's worktree, and when it refuses."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hanops
from benchmarks import compare
from benchmarks.cases import Case
from hanops.backends.native import native

PACKAGE = Path(hanops.__file__).parent
MAKEFILE = Path(__file__).parent.parent / "Makefile"

# Stands in for the real build: counts how often it runs, fails where the revision says so.
SETUP = """
import pathlib, sys
pathlib.Path("hanops").mkdir(exist_ok=True)
with open("../../builds", "a") as builds:
    builds.write("built ")
print("[1/1] Building")
if pathlib.Path("broken").exists():
    sys.exit("kernels.cpp: no such thing")
pathlib.Path("hanops/_C.so").touch()
"""


def samples(this: float, base: float, again: float, rounds: int = 60) -> list[compare.Samples]:
    """Returns three sittings around these times: 2 % of noise, on a clock that drifts by a half."""
    sittings = []
    for _ in range(3):
        drift = [1 + 0.5 * i / rounds for i in range(rounds)]
        means = {"this": this, "base": base, "base again": again}
        sittings.append({name: [mean * d * random.gauss(1, 0.02) for d in drift] for name, mean in means.items()})
    return sittings


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    random.seed(0)  # 5 % of the samples may fall outside of a 95 % interval


def test_equal_times_are_the_same():
    found = compare.compared(samples(1e-3, 1e-3, 1e-3))
    assert found.verdict == "same"
    assert found.ratio == pytest.approx(1, abs=0.01)
    assert found.noise < 0.02


@pytest.mark.parametrize(("factor", "verdict"), [(0.94, "faster"), (1.06, "slower")])
def test_shifted_times_are_found(factor, verdict):
    found = compare.compared(samples(factor * 1e-3, 1e-3, 1e-3))
    assert found.verdict == verdict
    assert found.ratio == pytest.approx(factor, abs=0.01)


def test_shift_between_runs_of_the_base_is_noise():
    """What differs that much between two workers of one build is no gain."""
    found = compare.compared(samples(0.94e-3, 1e-3, 1.08e-3))
    assert found.verdict == "same"
    assert found.base_to_base == pytest.approx(1.08, abs=0.01)


def test_half_interval_holds_the_median():
    """About 95 % of the intervals hold the true median; few samples give the whole range."""
    hits = 0
    for _ in range(400):
        values = [random.gauss(3, 1) for _ in range(50)]
        middle = sorted(values)[25]
        hits += abs(middle - 3) <= compare.half_interval(values)
    assert 370 <= hits <= 400
    assert compare.half_interval([1.0, 2.0, 4.0]) == 2.0
    assert compare.half_interval([2.0]) == 0.0


def test_table():
    found = {compare.Timed(Case(4, 8, 2), "forward"): compare.compared(samples(2e-3, 1e-3, 1e-3))}
    head, line, row = compare.markdown(found).splitlines()
    assert row.startswith("| N=4, d=8, L=2 | forward | ")
    assert "| slower |" in row
    assert head.count("|") == line.count("|") == row.count("|")


needs_native = pytest.mark.skipif(native is None, reason="compares native builds")


@needs_native
def test_workers_take_turns():
    """Each direction and a half type, at tiny sizes, this package against itself."""
    directions = ("forward", "forward with bits", "backward", "forward + backward")
    rows = [compare.Timed(Case(4, 8, 2), direction) for direction in directions]
    rows.append(compare.Timed(Case(3, 5, 1, torch.bfloat16), "forward + backward"))
    about, times = compare.measure(PACKAGE.parent, PACKAGE.parent, rows, 0.01, sittings=1)
    assert about["torch"] == torch.__version__
    assert list(times) == rows
    for (sitting,) in times.values():
        assert list(sitting) == ["this", "base", "base again"]
        assert len({len(s) for s in sitting.values()}) == 1
        assert all(0 < seconds < 1 for s in sitting.values() for seconds in s)
        compare.compared([sitting])


@needs_native
def test_worker_that_fails():
    worker = compare.Worker("this", PACKAGE.parent)
    try:
        worker.started()
        with pytest.raises(compare.ComparisonError, match=r"the worker of this: .*features"):
            compare.time_row({"this": worker}, compare.Timed(Case(4, 0, 2), "forward"), 0.01)
        worker.process.kill()
        with pytest.raises(compare.ComparisonError, match="ended with status -9"):
            worker.ask(do="time", calls=1)
    finally:
        worker.close()


def test_worker_of_another_package(tmp_path):
    """A tree without a package must not be answered for by the hanops that is installed."""
    worker = compare.Worker("base", tmp_path)
    try:
        with pytest.raises(compare.ComparisonError, match=r"not the hanops of|No module named 'hanops'"):
            worker.started()
    finally:
        worker.close()


def test_worker_needs_no_new_module(tmp_path):
    """The base may be of any revision, with none of this tree's newer modules."""
    (tmp_path / "hanops").mkdir()
    (tmp_path / "hanops" / "__init__.py").touch()
    script = (
        f"import runpy, sys; runpy.run_path({str(compare.WORKER)!r});"
        "print([name for name in sys.modules if name.startswith(('hanops.', 'benchmarks'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


# ---- the base's worktree


def git(at: Path, *arguments: str) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", at, *settings, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A repository of two commits: the first builds, by the setup.py above, and the second does not."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "--quiet")
    (root / ".gitignore").write_text("build/\n*.so\n")
    (root / "setup.py").write_text(SETUP)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "builds")
    (root / "broken").touch()
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "does not build")
    monkeypatch.setattr(compare, "ROOT", root)
    return root


def builds(root: Path) -> int:
    return len((root / "build" / "builds").read_text().split())


def worktrees(root: Path) -> list[str]:
    lines = git(root, "worktree", "list", "--porcelain").splitlines()
    return [line.removeprefix("worktree ") for line in lines if line.startswith("worktree ")]


def test_base_is_built_once(repository):
    commit = compare.commit_of("HEAD~1")
    folder = compare.build(commit)
    assert worktrees(repository) == [str(repository), str(folder)]
    git(repository, "worktree", "prune")
    assert compare.build(commit) == folder
    assert builds(repository) == 1


def test_base_that_was_changed_or_deleted_is_built_again(repository):
    commit = compare.commit_of("HEAD~1")
    folder = compare.build(commit)
    (folder / "setup.py").write_text(SETUP + "# changed\n")
    compare.build(commit)
    assert (folder / "setup.py").read_text() == SETUP
    shutil.rmtree(folder)
    compare.build(commit)
    assert builds(repository) == 3
    (folder / ".git").unlink()  # git then takes the folder for a part of this tree
    compare.build(commit)
    assert builds(repository) == 4
    assert worktrees(repository) == [str(repository), str(folder)]


def test_table_and_file(repository, monkeypatch, capsys):
    row = compare.Timed(Case(4, 8, 2), "backward")
    (repository / "hanops").mkdir()
    (repository / "hanops" / "_C.so").touch()
    monkeypatch.setattr(compare, "check_tests", lambda arguments: None)
    about = {"threads": 2, "torch": "2"}
    monkeypatch.setattr(compare, "measure", lambda *arguments: (about, {row: samples(1e-3, 2e-3, 2e-3)}))
    file = repository / "build" / "results" / "compare.json"
    assert compare.main(["HEAD~1", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert f"against HEAD~1 ({compare.commit_of('HEAD~1')[:10]})" in out
    assert "| faster |" in out
    (written,) = json.loads(file.read_text())["rows"]
    assert written["row"] == str(row)
    assert written["verdict"] == "faster"
    assert [len(sitting["base again"]) for sitting in written["sittings"]] == [60, 60, 60]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("deleted_before", [False, True])
def test_make_clean_leaves_no_worktree(repository, deleted_before):
    folder = compare.build(compare.commit_of("HEAD~1"))
    other = repository.parent / "build" / "compare" / "other"
    git(repository, "worktree", "add", "--quiet", "--detach", str(other))
    if deleted_before:
        shutil.rmtree(folder)
    shutil.copy(MAKEFILE, repository)
    for path in ("csrc", "tests"):
        (repository / path).mkdir()
    subprocess.run(["make", "clean"], cwd=repository, check=True)
    assert worktrees(repository) == [str(repository), str(other)]
    assert not (repository / "build").exists()


# ---- refusals: nothing is built, nothing is printed where the table goes


@pytest.fixture
def no_build(monkeypatch) -> None:
    def build(commit: str) -> Path:
        raise AssertionError("built")

    monkeypatch.setattr(compare, "build", build)


def test_unknown_revision(repository, no_build, capsys):
    assert compare.main(["nowhere"]) == 1
    assert compare.main(["--", "--all"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "there is no revision 'nowhere'" in err


def test_base_not_given(no_build, capsys):
    assert compare.main([]) == 1
    assert "make bench-compare BASE=<rev>" in capsys.readouterr().err


def test_not_a_repository(tmp_path, monkeypatch, no_build, capsys):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    assert compare.main(["HEAD"]) == 1
    assert "not a git repository" in capsys.readouterr().err


def test_failing_tests(repository, no_build, monkeypatch, capfd):
    (repository / "hanops").mkdir()
    (repository / "hanops" / "_C.so").touch()
    (repository / "test_wrong.py").write_text("def test_wrong():\n    assert 1 == 2\n")
    monkeypatch.setitem(compare.TESTS, "quick", ["test_wrong.py"])
    assert compare.main(["HEAD"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "assert 1 == 2" in err
    assert "the tests of this tree do not pass, so no ratio is shown" in err


def test_base_that_does_not_build(repository):
    with pytest.raises(compare.ComparisonError, match=r"does not build; its last lines were:\n(.*\n)*kernels.cpp: no"):
        compare.build(compare.commit_of("HEAD"))
