import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys

import pytest

from alip.distributed import World
from alip.errors import UserError
from alip.folder_lock import FolderLock, lock_folder
from alip.train.check import check_free
from tests.helpers.train_runs import ROOT, train_here

HOLD = """
import sys, time
from pathlib import Path
from alip.folder_lock import FolderLock, lock_folder
lock = FolderLock(Path(sys.argv[1]), print)
print("held", flush=True)
time.sleep(120)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_second_run_is_refused_with_the_holders_name(holder, tmp_path):
    begun = []
    with pytest.raises(UserError, match=f"in use by process {holder.pid} on {socket.gethostname()}"):
        FolderLock(tmp_path / "run", begun.append)
    assert begun == []  # at once


def test_train_is_refused_too(flags, holder, tmp_path):
    with pytest.raises(UserError, match=f"in use by process {holder.pid}"):
        train_here(*flags, "--steps", "1", "--output", tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_killed_holder_does_not_block(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    FolderLock(tmp_path / "run", pytest.fail).release()


def test_a_child_does_not_keep_its_parents_lock(tmp_path):
    """A data worker that outlives the run it was forked from."""
    held = FolderLock(tmp_path / "run", pytest.fail)
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(UserError):
        FolderLock(tmp_path / "run", pytest.fail)  # the parent's own is not lost by the fork
    held.release()
    FolderLock(tmp_path / "run", pytest.fail).release()
    os.write(done[1], b"x")
    os.waitpid(child, 0)


@pytest.mark.parametrize(
    "name, seconds",
    [("process 77 on elsewhere", 100), (f"process 999999999 on {socket.gethostname()}", 5), ("", 5)],
)
def test_how_long_it_waits(tmp_path, name, seconds):
    held = FolderLock(tmp_path, pytest.fail)
    (tmp_path / ".lock").write_text(name)
    slept, warnings = [], []
    with pytest.raises(UserError, match="in use by"):
        FolderLock(tmp_path, warnings.append, slept.append)
    assert sum(slept) == seconds and len(warnings) == 1

    FolderLock(tmp_path, warnings.append, lambda _: held.release()).release()  # released while waiting


def test_storage_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    warnings = []
    FolderLock(tmp_path, warnings.append).release()
    assert len(warnings) == 1 and "without file locks" in warnings[0]


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write there"):
        FolderLock(tmp_path / "file" / "run", pytest.fail)


def test_the_same_process_can_resume(flags, tmp_path):
    options = [*flags, "--steps", "1", "--output", tmp_path / "run"]
    assert train_here(*options) == 0
    assert train_here(*options, "--resume", "auto") == 0
    assert (tmp_path / "run" / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    FolderLock(tmp_path / "run", pytest.fail).release()  # it is free again


def test_a_lock_can_leave_no_file(tmp_path):
    with lock_folder(tmp_path, World(), remove=True):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"), lock_folder(tmp_path, World()):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert not list(tmp_path.iterdir())


def test_a_check_of_a_folder_in_use(tmp_path):
    check_free(tmp_path / "new", World())
    assert not (tmp_path / "new").exists()
    with lock_folder(tmp_path, World()), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        check_free(tmp_path, World())
    check_free(tmp_path, World())
