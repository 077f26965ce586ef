"""Locks: exclusive, free after any death of their holder, not kept by its children."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from alip.files import FileLock, LockedError
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
