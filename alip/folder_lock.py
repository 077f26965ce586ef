"""One run at a time in an output folder."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from alip.distributed import World, broadcast_object
from alip.errors import UserError
from alip.files import FileLock, LockedError

LOCK = ".lock"  # the file's name
_SAME_HOST_S, _OTHER_HOST_S = 5.0, 100.0
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class FolderLock:
    """An exclusive lock on an output folder, held until `release` or the end of this process, however it ends.

    It is a FileLock on FOLDER/.lock, which the kernel drops with the process, so a dead run never blocks the next one.
    On NFS, Linux makes a byte-range lock of it that all clients see; there the lock of a machine that crashed stays
    until the server's lease is over (90 s with NFSv4), so a lock of another machine is waited for a little longer than
    that. Where the storage has no locks, `warn` is called and the run continues without.

    Raises UserError that names who holds the lock, or why the folder cannot be written to.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None], sleep: Callable[[float], None] = time.sleep):
        self._path = folder / LOCK
        self._lock: FileLock | None = None

        def waiting(holder: str) -> None:
            warn(f"waiting for the lock of {folder}, held by {holder}")

        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._path, _patience, waiting, sleep)
        except LockedError as error:
            raise UserError(
                f"{folder} is in use by {error.holder}: wait for that run or stop it, or choose another --output"
            ) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise UserError(
                    f"{folder}: cannot write there ({error.strerror}); choose another --output, or make it writable"
                ) from error
            warn(f"{folder} is on storage without file locks: make sure that only one run uses it")

    def release(self, remove: bool = False) -> None:
        """Releases the lock. remove: its file too, first, while nobody else can hold it."""
        if self._lock is not None:
            if remove:
                self._path.unlink(missing_ok=True)
            self._lock.close()
            self._lock = None


@contextlib.contextmanager
def lock_folder(folder: Path, world: World, remove: bool = False) -> Iterator[None]:
    """Rank 0 holds the folder's lock while the block runs; UserError on all ranks if it cannot. All ranks call it.
    remove: leaves no file behind."""
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
            lock.release(remove)


def _patience(holder: str) -> float:
    """Seconds to wait for a holder, "process PID on HOST": none for a living process of this machine."""
    number, _, host = holder.removeprefix("process ").partition(" on ")
    if not number.isdecimal() or len(number) > 9 or not host:  # it is being written
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
