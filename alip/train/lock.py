"""One training run at a time in a run folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from alip.distributed import World, broadcast_object
from alip.errors import UserError

_SAME_HOST_S, _OTHER_HOST_S = 5.0, 100.0
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_open_locks: weakref.WeakSet[FolderLock] = weakref.WeakSet()


class FolderLock:
    """An exclusive lock on a folder, held until `release` or the end of this process, however it ends.

    It is a flock on FOLDER/.lock, which the kernel drops with the process, so a dead run never blocks the next one.
    On NFS, Linux makes a byte-range lock of it that all clients see; there the lock of a machine that crashed stays
    until the server's lease is over (90 s with NFSv4), so a lock of another machine is waited for a little longer than
    that. Where the storage has no locks, `warn` is called and the run continues without.

    Raises UserError that names who holds the lock, or why the folder cannot be written to.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None], sleep: Callable[[float], None] = time.sleep):
        path = folder / ".lock"
        self._descriptor: int | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot write there ({error.strerror}); choose another --output, or make it writable"
            ) from error
        _open_locks.add(self)
        try:
            self._acquire(folder, path, warn, sleep)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Lets others have the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _acquire(self, folder: Path, path: Path, warn: Callable[[str], None], sleep: Callable[[float], None]) -> None:
        waited = 0.0
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    warn(f"{folder} is on storage without file locks: make sure that only one run uses it")
                    return
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise UserError(f"{path}: cannot be locked ({error.strerror}); choose another --output") from error
            holder = path.read_text(errors="replace").strip()
            if waited >= _patience(holder):
                who = f"process {holder}" if holder else "another process"
                raise UserError(
                    f"{folder} is in use by {who}: wait for that run or stop it, or choose another --output"
                )
            if waited == 0.0:
                warn(f"waiting for the lock of {folder}, held by process {holder or '?'}")
            sleep(1.0)
            waited += 1.0
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode())


@contextlib.contextmanager
def lock_folder(folder: Path, world: World) -> Iterator[None]:
    """Rank 0 holds the folder's lock while the block runs; UserError on all ranks if it cannot. All ranks call it."""
    lock = problem = None
    if world.is_main:
        try:
            lock = FolderLock(folder, lambda text: print(f"warning: {text}", flush=True))
        except UserError as error:
            problem = str(error)
    problem = broadcast_object(problem, world)
    if problem is not None:
        raise UserError(problem)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _patience(holder: str) -> float:
    """Seconds to wait for a holder, "PID on HOST": none for a living process of this machine."""
    number, _, host = holder.partition(" on ")
    if not number.isdigit() or not host:  # it is being written
        return _SAME_HOST_S
    if host != socket.gethostname():
        return _OTHER_HOST_S
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:  # ended a moment ago
        return _SAME_HOST_S
    except PermissionError:
        pass
    return 0.0


def _close_in_child() -> None:
    """A forked child shares the lock, and would keep it beyond its parent's end."""
    for lock in list(_open_locks):
        lock.release()


os.register_at_fork(after_in_child=_close_in_child)
