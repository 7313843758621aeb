"""A file that is replaced is the old one or the new one, whatever ends the writing."""

import os
import resource
import signal
import stat
import subprocess
import sys
import time

import pytest

from hanops.profiling.files import write_bytes, write_text


def test_a_file_is_replaced_with_its_mode(tmp_path):
    file = tmp_path / "results.json"
    write_text(file, "äöü")
    assert file.read_bytes() == "äöü".encode()
    file.chmod(0o640)
    write_text(file, "new")
    assert file.read_text() == "new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_link_stays_a_link(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("old")
    link.symlink_to(file)
    write_text(link, "new")
    assert link.is_symlink()
    assert file.read_text() == "new"


def test_what_is_no_file_is_written_to():
    code = "import pathlib, hanops.profiling.files as f; f.write_text(pathlib.Path('/dev/stdout'), 'text')"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("text", 0), done.stderr


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A limit of a file's size stands for the disk: writing stops in the middle."""
    file = tmp_path / "results.json"
    file.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            write_bytes(file, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_folder_in_its_place_is_an_error(tmp_path):
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path, "text")
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "no" / "file", "text")


def test_a_kill_leaves_a_whole_file(tmp_path):
    """At times of its own: each time the file is one of those that were written, from its first to its last byte."""
    file = tmp_path / "results.json"
    code = (
        "import sys, pathlib, itertools\nfrom hanops.profiling.files import write_bytes\n"
        "for i in itertools.count():\n    write_bytes(pathlib.Path(sys.argv[1]), b'%d,' % (i % 10) * 500_000)\n"
    )
    for wait in (0.0, 0.013, 0.029):
        file.unlink(missing_ok=True)
        with subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(file)]) as process:
            while not file.exists():
                time.sleep(0.002)
            time.sleep(wait)
            process.kill()
        found = file.read_bytes()
        assert len(found) == 1_000_000
        assert found == found[:2] * 500_000
