"""Reading at URLs: a file as a stream of checked blocks, a whole small file, a copy on the disk, a listing."""

from __future__ import annotations

import hashlib
import io
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from alip.errors import UserError
from alip.files import check_regular
from alip.remote.access import RemoteError, ShortRead, attempt, filesystem
from alip.remote.urls import is_url, redact, scheme_of

BLOCK = 8 << 20  # bytes of one request
_AHEAD = 2  # blocks requested before they are needed, where a file is read in sequence
_HASH_ATTEMPTS = 3  # downloads of a file whose checksum is wrong
_MANY = 16  # requests at a time for the sizes of many files


@dataclass(frozen=True)
class RemoteInfo:
    """size in bytes; version: the store's mark of the content (ETag, generation, time), "" where it has none."""

    size: int
    version: str


def stat(url: str) -> RemoteInfo:
    """Size and version of a file, asked from the store now. FileNotFoundError if there is none."""

    def once() -> dict[str, Any]:
        files, path = filesystem(url)
        return files.info(path)

    found = attempt(url, "asking for its size", once)
    if found.get("type") == "directory":
        raise FileNotFoundError(f"{redact(url)} is a folder, not a file")
    if found.get("size") is None:
        raise RemoteError(f"{redact(url)}: the server names no length, so nothing would show that it was cut short")
    marks = ("ETag", "etag", "generation", "LastModified", "mtime", "ino")
    return RemoteInfo(int(found["size"]), " ".join(str(found[mark]) for mark in marks if found.get(mark) is not None))


def stat_all(urls: list[str]) -> list[RemoteInfo]:
    """The same for many files, several at a time. UserError names the first that does not exist."""

    def one(url: str) -> RemoteInfo:
        try:
            return stat(url)
        except FileNotFoundError:
            raise UserError(f"no such file: {redact(url)}") from None

    with ThreadPoolExecutor(_MANY) as pool:
        return list(pool.map(one, urls))


def exists(url: str) -> bool:
    """True if there is a file at the URL."""
    try:
        stat(url)
        return True
    except FileNotFoundError:
        return False


def glob(pattern: str) -> list[str]:
    """The files that a pattern with * finds, sorted, as URLs."""
    if scheme_of(pattern) in ("http", "https"):
        raise UserError(f"{redact(pattern)}: a web server lists no files; name them with {{000..099}}")

    def once() -> list[str]:
        files, path = filesystem(pattern)
        return sorted(files.unstrip_protocol(found) for found in files.glob(path))

    try:
        return attempt(pattern, "listing", once)
    except FileNotFoundError:  # not even the bucket
        return []


class RemoteFile(io.RawIOBase):
    """A file at a URL, read by blocks; wrap it in io.BufferedReader (see open_url).

    Every block has exactly the length asked for, or is asked for again; a file that changes under the reader is a
    RemoteError. Where it is read in sequence the next blocks are on their way. FileNotFoundError if there is none.
    """

    def __init__(self, url: str):
        self.url, self.name = url, redact(url)
        self.info = stat(url)
        self.size = self.info.size
        self._position = 0
        self._blocks: dict[int, Future] = {}
        self._last = -1
        self._file: Any = None
        self._opened = False
        self._pool = ThreadPoolExecutor(1, "remote")  # one: the open file has one position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = max(0, offset + (0, self._position, self.size)[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self.size or not len(buffer):
            return 0
        number, start = divmod(self._position, BLOCK)
        piece = memoryview(self._block(number))[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _block(self, number: int) -> bytes:
        ahead = _AHEAD if number in (self._last, self._last + 1) and number > 0 else 0
        wanted = range(number, min(number + ahead, (self.size - 1) // BLOCK) + 1)
        for one in [one for one in self._blocks if one not in wanted]:
            self._blocks.pop(one).cancel()
        for one in wanted:
            if one not in self._blocks:
                self._blocks[one] = self._pool.submit(self._fetch, one)
        self._last = number
        return self._blocks[number].result()

    def _fetch(self, number: int) -> bytes:
        start = number * BLOCK
        length = min(BLOCK, self.size - start)

        def once() -> bytes:
            if self._file is None:
                self._file = self._open()
            try:
                self._file.seek(start)
                data = self._file.read(length)
            except BaseException:
                self._file = None
                raise
            if len(data) != length:
                self._file = None
                raise ShortRead(f"{len(data):,} bytes came instead of {length:,}, from byte {start:,} on")
            return data

        try:
            data = attempt(self.url, "reading", once)
            if start + length == self.size and scheme_of(self.url) != "s3":  # S3 compares the ETag at each request
                self._check_version(stat(self.url))
        except FileNotFoundError:
            raise RemoteError(f"{self.name}: it was removed while it was read; put it back and run again") from None
        return data

    def _open(self) -> Any:
        files, path = filesystem(self.url)
        if self._opened:
            self._check_version(stat(self.url))
        self._opened = True
        return files.open(path, "rb", **({} if scheme_of(self.url) == "file" else {"cache_type": "none"}))

    def _check_version(self, now: RemoteInfo) -> None:
        if now != self.info:
            raise RemoteError(f"{self.name}: it was changed while it was read; run again when nobody writes it")

    def close(self) -> None:
        if not self.closed:
            self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()


def open_url(url: str) -> IO[bytes]:
    """A file at a URL to read and seek in. UserError if there is none."""
    try:
        return io.BufferedReader(RemoteFile(url), 1 << 20)
    except FileNotFoundError:
        raise UserError(f"no such file: {redact(url)}") from None


def open_any(path: str | os.PathLike) -> IO[bytes]:
    """A local file or one at a URL, opened to read bytes. UserError for a FIFO or a folder."""
    if is_url(path):
        return open_url(str(path))
    check_regular(path)
    return open(path, "rb")


def read_url(url: str, most: int) -> bytes:
    """A whole file, by one request. FileNotFoundError; ValueError if it has more than `most` bytes."""
    size = stat(url).size
    if size > most:
        raise ValueError(f"{size:,} bytes, the limit is {most:,}")

    def once() -> bytes:
        files, path = filesystem(url)
        data = files.cat_file(path, start=0, end=size) if size else b""
        if len(data) != size:
            raise ShortRead(f"{len(data):,} bytes came instead of {size:,}")
        return data

    return attempt(url, "reading", once)


def read_range(url: str, start: int, end: int) -> bytes:
    """The bytes of a file from start to before end, by one request. UserError if there is no such file."""

    def once() -> bytes:
        files, path = filesystem(url)
        data = files.cat_file(path, start=start, end=end)
        if len(data) != end - start:
            raise ShortRead(f"{len(data):,} bytes came instead of {end - start:,}, from byte {start:,} on")
        return data

    try:
        return attempt(url, "reading", once)
    except FileNotFoundError:
        raise UserError(f"no such file: {redact(url)}") from None


def download(url: str, path: Path, size: int | None = None, sha256: str | None = None) -> None:
    """Copies a file at a URL to `path` (overwritten), durably. size, sha256: what it must have, if known.

    UserError if there is none or it is another file; OSError as the disk raises it.
    """
    for _ in range(_HASH_ATTEMPTS):
        with open_url(url) as file:
            info = file.raw.info
            if size is not None and info.size != size:
                raise RemoteError(
                    f"{redact(url)} has {info.size:,} bytes, its manifest {size:,}: upload it again, or build it again"
                )
            digest = hashlib.sha256()
            with open(path, "wb") as out:
                while block := file.read(BLOCK):
                    digest.update(block)
                    out.write(block)
                out.flush()
                os.fsync(out.fileno())
                if out.tell() != info.size:
                    raise RemoteError(f"{redact(url)}: {out.tell():,} of {info.size:,} bytes came; run again")
        if sha256 is None or digest.hexdigest() == sha256:
            return
    raise RemoteError(
        f"{redact(url)}: its SHA-256 is not the manifest's, {_HASH_ATTEMPTS} times: it is damaged there or on the way; "
        "upload it again"
    )
