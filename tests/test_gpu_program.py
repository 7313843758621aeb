"""`make gpu`: limits, order and failures of its parts, and what it does without a build."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import compare_programs, gpu, prepare
from benchmarks.parts import GRACE, Call, Part, longest, stages_of

ROOT = Path(__file__).parent.parent


def python(script: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", script)


def call_in(folder: Path, total: float = 60.0, lack=lambda need: None) -> Call:
    return Call("gpu-test", folder, total, lack)


def results(call: Call) -> dict[str, dict]:
    return {entry["part"]: entry for entry in json.loads(call.file.read_text())["parts"]}


# ---- the table


@pytest.mark.parametrize("rehearse", [False, True])
def test_limits_sum_to_less_than_the_calls(rehearse, tmp_path):
    calls = {"first": gpu.first(tmp_path, rehearse), "second": gpu.second(tmp_path, rehearse, ["A", "B"])}
    for name, parts in calls.items():
        assert len({part.name for part in parts}) == len(parts)
        assert 0.9 * gpu.TOTAL[name] < longest(parts) <= gpu.TOTAL[name] - 5
        for part in parts:
            assert part.service or part.limit <= gpu.TOTAL[name]
    assert gpu.TOTAL == {"first": 360, "second": 240}


def test_times_come_first_and_alone(tmp_path):
    stages = stages_of(gpu.first(tmp_path, False))
    assert [part.name for part in stages[0]] == ["times of the kernels"]
    assert stages[0][0].limit < 60
    alone = [part.name for stage in stages if len(stage) == 1 for part in stage]
    assert "one layer, kernels" in alone
    assert sum(name.startswith("ncu") for name in alone) == 4


def test_what_is_timed():
    assert {(d, layers, t) for d, _, layers, t in gpu.TIMED} == {
        *((d, n, t) for d in (256, 1024, 4096) for n in (1, 16) for t in ("bfloat16", "float32")),
        *((1024, 64, t) for t in ("bfloat16", "float32")),
    }
    assert all(d * rows == 2 ** (26 if layers == 1 else 25) for d, rows, layers, _ in gpu.TIMED)


# ---- parts


def test_side_by_side_counts_once():
    parts = [Part("a", (), 5), Part("b", (), 7, beside=True), Part("c", (), 3), Part("d", (), 99, background=True)]
    assert longest(parts) == 10


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_over_the_limit_everything_is_killed(tmp_path):
    """A command that ignores the request to stop, and its child, which would write a file later."""
    pids = tmp_path / "pids"
    script = f"""
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
print("so far", flush=True)
time.sleep(60)
"""
    call = call_in(tmp_path / "out")
    begin = time.monotonic()
    assert not call.run([Part("slow", python(script), 2), Part("next", python("print('here')"), 20)])
    assert time.monotonic() - begin < 30
    found = results(call)
    assert found["slow"]["status"] == "over its limit of 2 s"
    assert found["slow"]["lines"] == ["so far"]
    assert found["next"]["status"] == "passed"
    assert not any(alive(int(pid)) for pid in pids.read_text().split())


def test_a_child_left_behind_is_killed(tmp_path):
    child = "[sys.executable, '-S', '-c', 'import time; time.sleep(60)']"
    script = f"import subprocess, sys; print(subprocess.Popen({child}).pid)"
    call = call_in(tmp_path)
    assert call.run([Part("leaves a child", python(script), 20)])
    assert not alive(int(results(call)["leaves a child"]["lines"][0]))


def test_a_failure_shows_and_stops_nothing(tmp_path):
    call = call_in(tmp_path)
    seen = f"import json; print([p['status'] for p in json.load(open({str(call.file)!r}))['parts']])"
    parts = [
        Part("fails", python("import sys; print('why'); sys.exit(3)"), 20),
        Part("is no program", ("/no/such/program",), 20),
        Part("sees what is on disk", python(seen), 20),
    ]
    assert not call.run(parts)
    found = results(call)
    assert found["fails"]["status"] == "failed (3)"
    assert found["is no program"]["status"] == "failed (127)"
    assert found["sees what is on disk"]["status"] == "passed"
    assert found["sees what is on disk"]["lines"] == ["['failed (3)', 'failed (127)']"]
    assert "why" in call.log.read_text()
    assert "failed (3)" in call.summary()


def test_what_waits_lets_others_go_first(tmp_path):
    flag = tmp_path / "made"
    made = f"import time; time.sleep(1); open({str(flag)!r}, 'w')"

    def lack(need: str) -> str | None:
        return None if flag.exists() else "wait" if any(r.part.name == "make" for r in call.alive) else "not made"

    call = call_in(tmp_path / "out", lack=lack)
    parts = [Part("make", python(made), 20, background=True), Part("needs it", python(""), 20, ("it",))]
    assert call.run([*parts, Part("does not", python(""), 20)])
    assert list(results(call)) == ["does not", "make", "needs it"]


@pytest.mark.parametrize("optional", [False, True])
def test_what_lacks_is_skipped(tmp_path, optional):
    call = call_in(tmp_path, lack=lambda need: "no native code")
    assert call.run([Part("test", python(""), 20, ("native",), optional=optional)]) == optional
    assert results(call)["test"]["status"] == "skipped: no native code"


def test_the_call_ends_in_time(tmp_path):
    """The second part gets what the first has left, the third nothing."""
    sleep = python("import time; time.sleep(60)")
    call = call_in(tmp_path, total=GRACE + 3)
    begin = time.monotonic()
    assert not call.run([Part(name, sleep, 2 if name == "a" else 50) for name in "abc"])
    assert time.monotonic() - begin < GRACE + 9
    assert [entry["status"].split(" ")[0] for entry in results(call).values()] == ["over", "skipped:", "skipped:"]


def test_an_unreadable_output_fails_the_part_alone(tmp_path):
    call = call_in(tmp_path)
    parts = [Part("odd", python("print(1)"), 20, read=lambda output: 1 / 0), Part("next", python(""), 20)]
    assert not call.run(parts)
    assert results(call)["odd"]["status"].startswith("failed: its output cannot be read")
    assert results(call)["next"]["status"] == "passed"


def test_a_service_ends_with_the_call(tmp_path):
    call = call_in(tmp_path)
    watch = python("import time; print('sample', flush=True); time.sleep(60)")
    wait = python("import time; time.sleep(1)")
    assert call.run([Part("watch", watch, 0, service=True), Part("work", wait, 20)])
    assert results(call)["watch"]["lines"] == ["sample"]


# ---- native code


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The program's folders, empty, in a tree whose hash is known."""
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    (tmp_path / "csrc" / "cuda" / "kernel.cu").write_text("first")
    for name in ("hanops", "csrc/cpu"):
        (tmp_path / name).mkdir()
    for name in ("ROOT", "GPU", "READY", "BUILD"):
        folder = tmp_path / ("" if name == "ROOT" else name)
        folder.mkdir(exist_ok=True)
        monkeypatch.setattr(prepare, name, folder)
    monkeypatch.setattr(prepare, "PROGRAM", prepare.READY / "han_stack_profile")
    monkeypatch.setattr(prepare, "cmake", lambda target, *_, **__: False)
    return tmp_path


def program_at(file: Path, status: int = 0) -> None:
    file.write_text(f"#!{sys.executable} -S\nprint({file.name!r}); raise SystemExit({status})\n")
    file.chmod(0o755)


def test_a_shipped_program_of_these_sources_is_taken(folders):
    program_at(prepare.GPU / f"profile-{prepare.sources()}")
    assert prepare.prepare_program(build=False)
    assert prepare.lack("program", being_made=False) is None
    assert "of these sources" in (prepare.READY / "program").read_text()


@pytest.mark.parametrize("built", [False, True])
def test_a_shipped_program_of_other_sources_is_the_last_resort(folders, monkeypatch, built):
    program_at(prepare.GPU / f"profile-{prepare.sources()}")
    (folders / "csrc" / "cuda" / "kernel.cu").write_text("second")

    def cmake(target: str, *_: object) -> bool:
        if built:
            program_at(prepare.BUILD / target)
        return built

    monkeypatch.setattr(prepare, "cmake", cmake)
    assert not prepare.prepare_program(build=False)
    assert prepare.prepare_program(build=True)
    assert ("OF OTHER SOURCES" in (prepare.READY / "program").read_text()) != built


def test_without_any_program_or_module(folders, monkeypatch, capsys):
    program_at(prepare.GPU / f"profile-{prepare.sources()}", status=1)  # of another machine: it does not run here
    monkeypatch.setattr(sys, "argv", ["prepare.py"])
    assert prepare.main() == 1
    printed = capsys.readouterr().out
    assert "NO PROFILE PROGRAM" in printed
    assert "NO NATIVE CODE" in printed
    assert prepare.lack("native", being_made=False) == "no native code"
    assert prepare.lack("native", being_made=True) == "wait"


def test_a_shipped_module_that_does_not_import_goes(folders, monkeypatch):
    name = f"_C{prepare.SUFFIX}"
    (prepare.GPU / name).write_bytes(b"of another torch")
    (folders / "hanops" / "__init__.py").write_text("from hanops import _C\n")
    assert not prepare.prepare_module(build=True)
    assert not (folders / "hanops" / name).exists()
    assert not (prepare.READY / "native").exists()


FITS = """from pathlib import Path
class native:
 build_info = staticmethod(lambda: {"cuda_architectures": ["9.0"] * len(list(Path(__file__).parents[1].glob("_C*")))})
"""


def stand_in(folders: Path, native: str) -> None:
    """Puts a module in the place of the package's native one, in a package that has no other."""
    module = folders / "hanops" / "backends" / "native.py"
    module.parent.mkdir()
    for file in (module.parents[1] / "__init__.py", module.parent / "__init__.py"):
        file.touch()
    module.write_text(native)


@pytest.mark.parametrize("note", ["these", "others", "older", None])
def test_a_shipped_module_of_other_sources_is_the_last_resort(folders, note):
    """The stand-in for the package imports with any module in it."""
    stand_in(folders, FITS)
    (prepare.GPU / f"_C{prepare.SUFFIX}").write_bytes(b"a module")
    if note == "older":
        os.utime(prepare.GPU / f"_C{prepare.SUFFIX}", (1, 1))
    if note:
        assert prepare.note_module() == (note != "older")
    if note == "others":
        (folders / "csrc" / "cpu" / "kernel.h").write_text("changed")
    good = note in ("these", None)
    assert prepare.prepare_module(build=False) == good
    assert prepare.prepare_module(build=True)
    assert ("OF OTHER SOURCES" in (prepare.READY / "native").read_text()) != good


def test_a_module_without_cuda_kernels_is_none(folders):
    """A build that found no nvcc succeeds, and is no native code for a GPU."""
    stand_in(folders, "class native:\n build_info = staticmethod(lambda: {'cuda_architectures': []})\n")
    assert not prepare.module_loads("cuda")
    assert prepare.module_loads("cpu")


def test_commit_without_git(folders, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert prepare.commit() == "unknown"
    (prepare.GPU / "commit").write_text("abc\n")
    assert prepare.commit() == "abc"


# ---- two builds


def test_two_programs_in_turns(tmp_path, monkeypatch, capsys):
    for name, seconds in (("A", [2e-6, 4e-6, 6e-6]), ("B", [1e-6, 2e-6, 9e-6])):
        found = {"cases": [{"features": 8, "depth": 2, "dtype": "float32"}]}
        found["cases"][0]["kernels"] = [{"kernel": "forward", "seconds": seconds}]
        script = f"""#!{sys.executable} -S
import sys
open({str(tmp_path / "order")!r}, "a").write({name!r})
open(sys.argv[sys.argv.index("--json") + 1], "w").write({json.dumps(found)!r})
"""
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    file = tmp_path / "a-b.json"
    arguments = [str(tmp_path / "A"), str(tmp_path / "B"), "--case", "8,1,2,float32", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["compare_programs.py", *arguments])
    assert compare_programs.main() == 0
    assert (tmp_path / "order").read_text() == "ABAB"
    (row,) = json.loads(file.read_text())["rows"]
    assert (row["a"], row["b"], row["ratio"], row["ratios"]) == (4e-6, 2e-6, 2.0, [2.0, 2.0])
    assert "A / B 2.000" in capsys.readouterr().out


def test_wrong_arguments():
    command = [sys.executable, "-S", "-m", "benchmarks.gpu", "third", "--out", "x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "third" in done.stderr
