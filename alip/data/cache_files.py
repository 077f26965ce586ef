"""The files of a shard cache, shared by all processes of a machine: locks, space, verification. See shard_cache.py.

A shard is in the cache when its rec and idx have their final names; they get them when they are whole, on the disk, and
have the checksum of the manifest. `locks/` has one file per shard: who uses a shard holds it shared, who downloads or
removes one holds it exclusively. Locks end with their process, so a kill leaves nothing that would have to be cleared.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from alip.data.recordio import MAGIC, RecordError
from alip.data.shards import Manifest
from alip.errors import UserError
from alip.files import sha256_of_file, sync
from alip.remote.reading import download
from alip.remote.urls import UrlPath

INDEX_BYTES = 24  # of a line, at most: key, offset and their separators


class CacheFiles:
    """The cache of one dataset in `folder`.

    remote: the manifest, its shards at a URL; local: the same manifest over the cache's own files. limit: bytes.
    """

    def __init__(self, remote: Manifest, folder: Path, limit: int):
        self.remote, self.folder, self.limit = remote, folder, limit
        self.local = replace(remote, folder=folder)
        self._numbers = {entry.rec: number for number, entry in enumerate(remote.shards)}
        with self._explained():
            (folder / "locks").mkdir(parents=True, exist_ok=True)

    def bytes_of(self, shard: int) -> int:
        """Room for a shard: of its index only the largest possible size is known."""
        entry = self.remote.shards[shard]
        return entry.bytes + INDEX_BYTES * entry.samples

    def _paths(self, shard: int) -> tuple[Path, Path, Path]:
        """rec, idx and the record of their verification."""
        entry = self.remote.shards[shard]
        return tuple(self.folder / name for name in (entry.rec, entry.idx, f"{entry.rec}.verified"))

    def hold(self, shard: int) -> int | None:
        """A shared lock on a shard that is in the cache: it stays until `release`. None if it is not there."""
        descriptor = self._lock(shard, fcntl.LOCK_SH)
        if descriptor is not None and self.is_there(shard):
            return descriptor
        release(descriptor)
        return None

    def is_there(self, shard: int) -> bool:
        """True for a shard that was verified, and has not been changed since."""
        rec, idx, verified = self._paths(shard)
        try:
            return verified.read_text() == _stamp(rec, idx)
        except OSError:
            return False

    def fetch(self, shard: int, next_use: Callable[[int], float]) -> bool:
        """Downloads a shard unless it is there. False if another process is about it, or there is no room now.

        next_use: when a shard will be needed next; those needed later than this one make room for it.
        """
        if self.is_there(shard):
            return True
        descriptor = self._lock(shard, fcntl.LOCK_EX)
        if descriptor is None:
            return False
        try:
            with self._explained():
                if self.is_there(shard) or self._verify(shard):
                    return True
                if not self._reserve(shard, next_use):
                    return False
                self._download(shard)
                return True
        finally:
            release(descriptor)

    def _download(self, shard: int) -> None:
        entry = self.remote.shards[shard]
        reserved = self._reservation(shard)
        rec, idx, _ = self._paths(shard)
        temporary = [path.with_name(f".{path.name}.tmp") for path in (rec, idx)]
        try:
            download(self._url(entry.rec), temporary[0], entry.bytes, entry.sha256)
            download(self._url(entry.idx), temporary[1])
            for path, final in zip(temporary, (rec, idx)):
                os.replace(path, final)
            self._check_index(shard)
            self._record(shard)
        finally:
            for path in (*temporary, reserved):
                path.unlink(missing_ok=True)

    def _url(self, name: str) -> str:
        folder = self.remote.folder / name
        return folder.url if isinstance(folder, UrlPath) else folder.as_uri()

    def _check_index(self, shard: int) -> None:
        """UserError unless every line of the index is the start of a record. (The manifest has no checksum of it.)"""
        try:
            with self.local.open_shard(shard) as reader:
                words = np.memmap(reader.path, "<u4", "r")  # records are padded to 4 bytes
                starts = reader.offsets
                whole = starts[0] == 0 and (np.diff(starts) > 0).all() and not (starts % 4).any()
                if not whole or (words[starts // 4] != MAGIC).any():
                    raise RecordError("its lines are not the starts of the records", self._url(reader.path.name))
        except (UserError, RecordError) as error:
            for path in self._paths(shard):
                path.unlink(missing_ok=True)
            index = self.remote.path(self.remote.shards[shard].idx)
            raise UserError(f"{index} is not the index of its rec file ({error}): upload it again") from None

    def _record(self, shard: int) -> None:
        rec, idx, verified = self._paths(shard)
        verified.write_text(_stamp(rec, idx))
        sync(self.folder)

    def _verify(self, shard: int) -> bool:
        """Files that are there without a record, or with another one (after a copy, say): kept if they are right."""
        rec, idx, _ = self._paths(shard)
        entry = self.remote.shards[shard]
        try:
            right = rec.stat().st_size == entry.bytes and idx.exists() and sha256_of_file(rec) == entry.sha256
            if right:
                self._check_index(shard)
                self._record(shard)
        except (FileNotFoundError, UserError):
            right = False
        if not right:
            self._remove_files(shard)
        return right

    def _remove_files(self, shard: int) -> None:
        for path in (*self._paths(shard)[::-1], self.folder / f"{self._paths(shard)[0].stem}.offsets"):
            path.unlink(missing_ok=True)

    def _reservation(self, shard: int) -> Path:
        return self.folder / f"{self.remote.shards[shard].rec}.reserved"

    def _reserve(self, shard: int, next_use: Callable[[int], float]) -> bool:
        """Room for a shard that this process is about to download, made by removing others where needed."""
        need = self.bytes_of(shard)
        with self._space():
            there, used = self._scan()
            free = self.limit - used - need
            for other in sorted(there, key=next_use, reverse=True):
                if free >= 0 or next_use(other) <= next_use(shard):
                    break
                free += self._remove(other)
            if free < 0:
                return False
            with open(self._reservation(shard), "wb") as file:
                file.truncate(need)  # takes no room on the disk; `_scan` counts it
            return True

    def _scan(self) -> tuple[list[int], int]:
        """The shards in the cache, and the bytes in use or reserved. Clears what a killed process has reserved."""
        there, used = [], 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                name = entry.name.removesuffix(".reserved")
                shard = self._numbers.get(name)
                if shard is not None and name == entry.name:
                    there.append(shard)
                    used += self.bytes_of(shard)
                elif shard is not None and not self._clear_abandoned(shard):
                    used += self.bytes_of(shard)
        return there, used

    def _clear_abandoned(self, shard: int) -> bool:
        descriptor = self._lock(shard, fcntl.LOCK_EX)
        if descriptor is None:
            return False  # its download is under way
        try:
            for path in (self._reservation(shard), *self.folder.glob(f".{self._paths(shard)[0].stem}.*.tmp")):
                path.unlink(missing_ok=True)
            return True
        finally:
            release(descriptor)

    def _remove(self, shard: int) -> int:
        """Removes a shard that nobody holds; the bytes that this gives."""
        descriptor = self._lock(shard, fcntl.LOCK_EX)
        if descriptor is None:
            return 0
        try:
            self._remove_files(shard)
            return self.bytes_of(shard)
        finally:
            release(descriptor)

    def _lock(self, shard: int, kind: int) -> int | None:
        """A lock on a shard, or None at once."""
        path = self.folder / "locks" / self.remote.shards[shard].rec
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None

    @contextlib.contextmanager
    def _space(self) -> Iterator[None]:
        """One process at a time counts and makes room; it takes milliseconds."""
        descriptor = os.open(self.folder / "locks" / "space", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"--cache-dir {self.folder}: its disk is full; free some space, or give a lower --cache-size"
                ) from None
            raise UserError(f"--cache-dir {self.folder}: {error.strerror or error}; check the folder") from None


def release(descriptor: int | None) -> None:
    """Gives a lock back."""
    if descriptor is not None:
        os.close(descriptor)


def _stamp(rec: Path, idx: Path) -> str:
    states = (rec.stat(), idx.stat())
    return " ".join(f"{state.st_size} {state.st_mtime_ns}" for state in states)
