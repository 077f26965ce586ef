"""Locks: exclusive, free after any death of their holder, not kept by its children. Atomic writes: whole or nothing."""

import argparse
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from alip.caption.lines import read_lines
from alip.command import file_path
from alip.data.score_table import ScoreTable
from alip.errors import UserError, run_command
from alip.files import (
    FileLock,
    LockedError,
    atomic_path,
    atomic_write,
    bounded_lines,
    check_regular,
    read_json,
    read_text,
    real_path,
    remove_leftovers,
    write_json,
)
from alip.remote.reading import open_any
from tests.helpers.shards import ROOT

HOLD = """
import os, sys, time
from alip.files import FileLock
lock = FileLock(sys.argv[1])
child = os.fork() if sys.argv[2] == "fork" else 1
print(os.getpid(), flush=True)
time.sleep(60)
"""


def hold(path, fork: bool = False) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLD, str(path), "fork" if fork else "alone"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
    for _ in range(2 if fork else 1):
        process.stdout.readline()
    return process


def test_a_lock_is_exclusive_and_names_its_holder(tmp_path):
    process = hold(tmp_path / "lock")
    try:
        with pytest.raises(LockedError, match=f"process {process.pid} on "):
            FileLock(tmp_path / "lock")
        process.kill()
        FileLock(tmp_path / "lock", wait=10).close()
        first = FileLock(tmp_path / "lock")
        with pytest.raises(LockedError, match=f"process {os.getpid()} on "):
            FileLock(tmp_path / "lock")
        first.close()
        FileLock(tmp_path / "lock").close()
    finally:
        process.kill()
        process.communicate()


def test_children_of_a_killed_holder_do_not_keep_the_lock(tmp_path):
    process = hold(tmp_path / "lock", fork=True)
    try:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        start = time.monotonic()
        FileLock(tmp_path / "lock").close()
        assert time.monotonic() - start < 1
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the child, which outlived its parent
        process.stdout.close()


def test_a_lock_on_a_removed_file_is_not_a_lock(tmp_path):
    """Its holder may remove the file: who waited for it gets a lock on the new file."""
    path = tmp_path / "lock"
    first = FileLock(path)
    waiting = threading.Thread(target=lambda: locks.append(FileLock(path, wait=20)))
    locks: list[FileLock] = []
    waiting.start()
    time.sleep(0.2)  # it has opened the file that is about to be removed
    path.unlink()
    first.close()
    waiting.join()
    with pytest.raises(LockedError):
        FileLock(path)
    locks[0].close()
    FileLock(path).close()
    with pytest.raises(FileNotFoundError):
        FileLock(tmp_path / "nowhere" / "lock")


KILLED = """
import os, signal, sys
from pathlib import Path
from alip.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    (temporary.parent / ".library-made-this").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["results.json", "a%s{}\n$\udcff", "x" * 255, "日" * 85])
def test_what_a_killed_write_left_is_removed_by_the_next_one(tmp_path, name):
    path = tmp_path / name
    with atomic_write(path, text=True) as file:
        file.write("old")
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", KILLED, path], cwd=ROOT).returncode == -signal.SIGKILL
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    with atomic_write(tmp_path / "other", text=True) as file:
        file.write("another file's leftovers stay")
    assert len(list(tmp_path.iterdir())) == 3
    with atomic_write(path, text=True) as file:
        file.write("new")
    assert path.read_text() == "new" and sorted(tmp_path.iterdir()) == sorted([path, tmp_path / "other"])


def test_a_write_in_progress_is_not_a_leftover(tmp_path):
    with atomic_path(tmp_path / "x") as temporary:
        temporary.write_text("whole")
        remove_leftovers(tmp_path)
    assert (tmp_path / "x").read_text() == "whole"


def test_after_an_error_nothing_is_left(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "x") as temporary:
        temporary.mkdir()
        (temporary / "inner").write_text("")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_older_versions_are_files(tmp_path):
    (tmp_path / ".x.77.tmp").write_text("half")
    (tmp_path / ".x.rank0.tmp").write_text("not an atomic write's")
    (tmp_path / ".x.78.tmp").mkdir()  # killed before it was locked
    (tmp_path / ".y.79.tmp").mkdir()
    (tmp_path / ".y.79.tmp" / "mine").touch()  # another program's
    remove_leftovers(tmp_path, "x")
    remove_leftovers(tmp_path, "y")
    (tmp_path / ".y.79.tmp" / "mine").unlink()
    (tmp_path / ".y.79.tmp").rmdir()
    assert [path.name for path in tmp_path.iterdir()] == [".x.rank0.tmp"]


def test_a_text_of_ten_gigabytes_is_not_read(tmp_path):
    with open(tmp_path / "x.json", "wb") as file:
        file.truncate(10 << 30)
    with pytest.raises(UserError, match=r"x\.json: 10,737,418,240 bytes"):
        read_text(tmp_path / "x.json")


def test_a_name_that_comes_twice_is_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"a": {"b": 1, "b": 2}}')
    with pytest.raises(UserError, match=r"x\.json: not valid JSON \(an object names 'b' twice\)"):
        read_json(tmp_path / "x.json")


def refused_by_the_system(number):
    raise OSError(number, os.strerror(number))


def refused_in_a_library():
    try:
        refused_by_the_system(errno.ENOSPC)
    except OSError as error:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0") from error


def refused_in_rust():
    raise ValueError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("refuse", [lambda: refused_by_the_system(errno.ENOSPC), refused_in_a_library, refused_in_rust])
def test_a_full_disk_names_the_file_whatever_the_library_raises(tmp_path, capsys, refuse):
    def write():
        with atomic_path(tmp_path / "features"):
            refuse()

    with pytest.raises(SystemExit) as end:
        run_command(write)
    line = f"error: {tmp_path / 'features'}: No space left on device; free some space, and run the command again\n"
    assert (end.value.code, capsys.readouterr().err) == (2, line) and not list(tmp_path.iterdir())


def test_other_errors_in_a_write_stay_what_they_are(tmp_path):
    for error in (ValueError("a bug"), FileNotFoundError(2, "no such file", "input"), UserError("line (os error 28)")):
        with pytest.raises(type(error)) as found, atomic_path(tmp_path / "x"):
            raise error
        assert found.value is error


def test_the_folder_that_a_command_stands_in_is_written_too(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    with atomic_path(".") as draft:
        draft.mkdir()
        (draft / "weights").touch()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["weights"]


@pytest.mark.parametrize("read", [ScoreTable, open_any, lambda path: list(read_lines(path)), check_regular])
def test_a_fifo_is_refused(tmp_path, read):
    """Opening it would wait for a writer for ever."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match="fifo: is not a regular file"):
        read(tmp_path / "fifo")


def test_half_characters_are_written_as_escapes(tmp_path):
    """As an edited record of a run may hold them."""
    write_json(tmp_path / "a.json", {"é": "\ud800"}, ensure_ascii=False)
    assert read_json(tmp_path / "a.json") == {"é": "\ud800"} and "é" in (tmp_path / "a.json").read_text()


def test_bounded_lines_are_the_beginnings_of_lines(tmp_path, monkeypatch):
    """From a file, where the rest of a line is skipped in blocks, and from others."""
    monkeypatch.setattr("alip.files._PIECE", 7)
    rng = random.Random(0)
    for _ in range(300):
        content = bytes(rng.choices(b"ab\n", (8, 8, 1), k=rng.randrange(80)))
        longest = rng.randrange(1, 12)
        (tmp_path / "lines").write_bytes(content)
        expected = [line[:longest] for line in content.splitlines(keepends=True)]
        with (tmp_path / "lines").open("rb") as file:
            assert list(bounded_lines(file, longest)) == expected
        with (tmp_path / "lines").open(newline="") as text:
            assert [line.encode() for line in bounded_lines(text, longest)] == expected


def test_a_link_in_a_circle_is_the_systems_to_refuse(tmp_path):
    """Path.resolve() raises RuntimeError for it before Python 3.13, so nothing that users name goes through it."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert real_path(loop).name == "loop"
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    assert real_path(tmp_path / "link" / ".." / "x") == Path(os.path.realpath(tmp_path)) / "x"
    sources = [path for folder in ("alip", "benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")]
    lines = [(path.name, line) for path in sources for line in path.read_text().splitlines() if ".resolve()" in line]
    assert [line for line in lines if "__file__" not in line[1]] == []


def test_a_file_to_write_has_a_name():
    assert file_path("plots/step") == Path("plots/step")
    for nameless in ("", ".", "/", "plots/.."):
        with pytest.raises(argparse.ArgumentTypeError, match="should end in the name of a file"):
            file_path(nameless)
