"""Files: written whole or not at all, read with one line on what is wrong, locked, hashed in blocks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import socket
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from alip.errors import UserError

_TEMPORARY = re.compile(r"\.(.+)\.\d+\.tmp", re.DOTALL)  # `.NAME.PID.tmp`: where NAME is written
_ERROR_NUMBER = re.compile(r"\(os error (\d+)\)")  # as Rust writes it, in safetensors
_REFUSED_WRITES = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS))
LARGEST_TEXT = 1 << 30  # bytes of a file that is read into memory in one piece; COCO's annotations are 0.5 GB at most
_MOST_DIGITS = 300  # of a whole number in JSON: as a float one of 309 is too large
_PIECE = 1 << 20  # bytes
_LONGEST_NAME = 200  # bytes of a name in it: file systems take 255
_MARK_WAIT_S = 5.0  # until another process has looked whether a temporary folder is in use


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path near `path`; when the block ends without an error the file or folder there becomes `path`.

    What was written is flushed to the disk, then renamed, and the new name is flushed too: after a crash at any moment
    readers see the old file or the whole new one. After an error nothing is left behind; what a killed process left of
    an earlier write of this path, with whatever temporary files its libraries made, is removed here. Raises OSError as
    the disk does, with the path in it, also where a library hides it in an error of its own.
    """
    path = Path(path) if Path(path).name else Path(path).absolute()  # "." has no name
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    folder = path.with_name(f".{_shortened(path.name)}.{os.getpid()}.tmp")
    lock = _create_locked(folder)
    try:
        with refusals_named(path):
            temporary = folder / path.name
            yield temporary
            for inner in temporary.rglob("*") if temporary.is_dir() else ():
                sync(inner)
            sync(temporary)
            os.replace(temporary, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            lock.close()
    sync(path.parent)


@contextlib.contextmanager
def refusals_named(path: str | Path) -> Iterator[None]:
    """What the block raises where the disk refuses to write `path` becomes an OSError with the path in it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or (number := _refusal(error)) is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _refusal(error: BaseException | None) -> int | None:
    """The number of the system's error if it refused to write; torch and safetensors raise others in its place."""
    while error is not None:
        number = getattr(error, "errno", None) if getattr(error, "filename", None) is None else None
        if number is None and (match := _ERROR_NUMBER.search(str(error))):
            number = int(match[1])
        if number in _REFUSED_WRITES:
            return number
        error = error.__cause__ or error.__context__
    return None


def _shortened(name: str) -> str:
    """The name, or a hash of it where a longer name made from it would be too long for a file system."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= _LONGEST_NAME else hashlib.sha256(encoded).hexdigest()


def _create_locked(folder: Path) -> FileLock | None:
    """Creates a temporary folder and locks it, so that it is no leftover to others; None on storage without locks."""
    while True:
        folder.mkdir(exist_ok=True)
        try:
            return FileLock(folder / "lock", wait=_MARK_WAIT_S)
        except FileNotFoundError:
            continue  # another process has just removed it as a leftover
        except (LockedError, OSError):
            return None


def remove_leftovers(folder: str | Path, name: str | None = None) -> None:
    """Removes what killed processes left of atomic writes in a folder: all of it, or of the file `name` alone."""
    shortened = None if name is None else _shortened(name)
    with os.scandir(folder) as entries:
        found = [(entry.path, match[1]) for entry in entries if (match := _TEMPORARY.fullmatch(entry.name))]
    for path, of in found:
        if shortened is None or of == shortened:
            _remove_unlocked(Path(path))


def _remove_unlocked(leftover: Path) -> None:
    with contextlib.suppress(LockedError, OSError):  # in use, already removed, or nobody can know
        if not leftover.is_dir():
            leftover.unlink()  # written by version 0.2 or before: a file
        elif not (leftover / "lock").exists():
            leftover.rmdir()  # killed before it was locked; a folder with content is another program's
        else:
            lock = FileLock(leftover / "lock")
            shutil.rmtree(leftover, ignore_errors=True)
            lock.close()


@contextlib.contextmanager
def atomic_write(path: str | Path, text: bool = False) -> Iterator[IO[Any]]:
    """An open file, bytes or UTF-8 text, that becomes `path` when the block ends without an error: see atomic_path."""
    with atomic_path(path) as temporary:
        mode, encoding, newline = ("w", "utf-8", "\n") if text else ("wb", None, None)
        with open(temporary, mode, encoding=encoding, newline=newline) as file:
            yield file


def write_json(path: str | Path, content: Any, **options: Any) -> None:
    """Writes a value as indented JSON, atomically; half characters only as escapes. options: of json.dumps."""
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1, **options) + "\n").encode("utf-8", "backslashreplace"))


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object from a file; UserError with the position of the mistake otherwise."""
    content = parse_json(read_text(path), str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a JSON {type(content).__name__}, not an object")
    return content


def read_json_lines(path: str | Path, keys: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The JSON objects of a file with one in each line, every one with the keys; UserError with the line otherwise."""
    rows = []
    for where, row in json_lines(read_text(path), path):
        if not isinstance(row, dict) or not row.keys() >= set(keys):
            raise UserError(f"{where}: not an object with {', '.join(keys)}; remove that line")
        rows.append(row)
    return rows


def json_lines(text: str, source: object) -> Iterator[tuple[str, Any]]:
    """("SOURCE, line N", value) of each line that is not empty; UserError with the line where it is no JSON.

    A line ends with a line feed only: JSON texts may hold the other characters that end lines elsewhere.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{source}, line {number}"
            yield where, parse_json(line, where)


def real_path(path: str | os.PathLike) -> Path:
    """The absolute path without links. One in a circle stays as it is, for the system to refuse: `Path.resolve` raises
    RuntimeError for it before Python 3.13."""
    return Path(os.path.realpath(path))


def check_regular(path: str | os.PathLike) -> None:
    """UserError for what is there and no regular file: opening a FIFO would wait for ever, a device never end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path}: is not a regular file; name a file")


def read_text(path: str | Path) -> str:
    """A file of at most LARGEST_TEXT bytes as UTF-8 text, with or without a byte-order mark; UserError otherwise."""
    path = Path(path)
    try:
        check_regular(path)
        if path.exists() and path.stat().st_size > LARGEST_TEXT:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes, more than any such file has; name another file")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}; check the path") from error


def parse_json(text: str, source: str) -> Any:
    """JSON text as Python values; UserError otherwise. source: the file, or file and line, for the message."""
    try:
        return json.loads(text, parse_int=_whole_number, object_pairs_hook=unique_names)
    except RecursionError as error:
        raise UserError(f"{source}: not valid JSON (nested too deeply)") from error
    except ValueError as error:
        raise UserError(f"{source}: not valid JSON ({error}); correct it there") from error


class RepeatedName(ValueError):
    """A JSON object names something twice: one of the two values would be dropped in silence."""


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json's `object_pairs_hook`: the object; RepeatedName where a name comes twice."""
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in content if names.count(name) > 1)
        raise RepeatedName(f"an object names {twice[:40]!r} twice")
    return content


def _whole_number(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def bounded_lines(file: IO[Any], longest: int) -> Iterator[Any]:
    """The lines of an open file from where it is, with their ends; of one of more than `longest` characters (or bytes)
    only so much, without an end: a file of gigabytes without line ends never is in memory."""
    while line := file.readline(longest):
        yield line
        if not line.endswith(b"\n" if isinstance(line, bytes) else "\n"):
            _skip_line(file)


def _skip_line(file: IO[Any]) -> None:
    """Moves an open file behind the next line end."""
    if isinstance(file, io.BufferedReader) and file.seekable():  # much faster than readline, which copies every byte
        block = bytearray(_PIECE)
        while count := file.readinto(block):
            end = block.find(b"\n", 0, count)
            if end >= 0:
                file.seek(end + 1 - count, os.SEEK_CUR)
                return
        return
    while (line := file.readline(_PIECE)) and not line.endswith(b"\n" if isinstance(line, bytes) else "\n"):
        pass


def parquet_path(path: str | os.PathLike) -> str:
    """The path as pyarrow has to be given it: a relative one such as `a:b.parquet` would be an address to it."""
    return os.path.abspath(path)


def sync(path: str | Path) -> None:
    """A file's content, or a folder's new and renamed files, are on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: str | Path) -> str:
    """The SHA-256 of a file's content, 64 hex digits; memory stays flat."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()  # Python 3.10 has no file_digest
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


_LOCK_PAUSE_S = 0.25  # between two attempts


class LockedError(Exception):
    """Another process holds the lock. holder: who that is, for a message."""

    def __init__(self, holder: str):
        super().__init__(holder)
        self.holder = holder


class FileLock:
    """An exclusive lock, held until `close` and released by the system when this process ends, however it ends.

    path: the lock file, created if needed (its folder must exist: FileNotFoundError). wait: seconds to wait for a
    holder, or a function of the holder's name ("process PID on HOST", "" while it is being written) that gives them;
    then LockedError. waiting: called once with the holder's name when the wait begins. Forked children do not hold the
    lock: an orphaned worker of a killed process must not block the next run. Raises OSError where the storage has no
    locks.
    """

    def __init__(
        self,
        path: str | Path,
        wait: float | Callable[[str], float] = 0.0,
        waiting: Callable[[str], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ):
        waited = 0.0
        while True:
            self._file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115 (held until close)
            while not self._try_lock():
                self._file.seek(0)
                holder = self._file.read(200).strip()
                if waited >= (wait(holder) if callable(wait) else wait):
                    self._file.close()
                    raise LockedError(holder or "another process")
                if waiting is not None and waited == 0.0:
                    waiting(holder or "another process")
                sleep(_LOCK_PAUSE_S)
                waited += _LOCK_PAUSE_S
            if self._is_at(path):
                break
            self._file.close()  # its last holder removed the file: this lock would exclude nobody
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same, without a name
            self._file.truncate(0)
            os.write(self._file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        _held.add(self)

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            self._file.close()
            raise
        return True

    def _is_at(self, path: str | Path) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(path))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Releases the lock. The file stays: removing it is safe only while the lock is held."""
        self._file.close()


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _release_in_child() -> None:
    """After a fork: the child's copies of the descriptors would keep the parent's locks alive after its death."""
    for lock in list(_held):
        lock.close()


os.register_at_fork(after_in_child=_release_in_child)
