"""Every member of a tar, also behind damage: tarfile takes a damaged header for the end, and reads on in silence."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from alip.errors import UserError
from alip.remote.reading import open_any
from alip.remote.urls import is_url

BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_LONGEST_HEADER = 1 << 24  # bytes of extended headers; a compressed tar could ask for gigabytes
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class Damage:
    """A part of a tar that cannot be read. message: what and where; members may be missing there."""

    message: str


class TarMembers:
    """Iterates over the members of a tar, plain or compressed: a TarInfo for each, a Damage where something is lost.

    After a TarInfo `read(info)` gives its content; only then, as a compressed tar is read once, in order. in_place: a
    member is in a local file, uncompressed, at `info.offset_data`. done: bytes of the file read so far. Tars that were
    concatenated are read one after the other. position: of the member that came last, from which another reader may
    begin; None in a compressed tar, at a URL, and behind a header that holds for all members that follow. at, start:
    such a position. OSError if the file cannot be opened.
    """

    def __init__(self, path: str, at: int = 0, start: int = 0):
        self._raw = open_any(path)
        head = self._raw.read(6)
        self._raw.seek(0)
        unpack = next((call for magic, call in _UNPACK.items() if head.startswith(magic)), None)
        plain = unpack is None
        self.in_place = plain and not is_url(path)
        self._size = self._raw.seek(0, os.SEEK_END) if plain else None
        self._raw.seek(0)
        self._stream = _Stream(unpack(self._raw) if unpack else self._raw, plain)
        # Made on an empty archive: opening the stream itself would read its first header, and stop at a damaged one.
        self._tar = tarfile.TarFile(fileobj=io.BytesIO(bytes(2 * BLOCK)))
        self._tar.fileobj = self._stream
        self._tar.offset = 0
        self._at = at
        self._start = start  # of the archive that is read, where several are concatenated
        self.position: tuple[int, int] | None = None

    @property
    def done(self) -> int:
        return self._raw.tell()

    def close(self) -> None:
        """Closes the file."""
        self._raw.close()

    def __iter__(self) -> Iterator[tarfile.TarInfo | Damage]:
        at: int | None = self._at
        while at is not None:
            try:
                self._stream.seek(at)
                info = tarfile.TarInfo.fromtarfile(self._tar)
                end = self._tar.offset
                if info.size < 0 or end <= at:
                    raise tarfile.ReadError(f"a member of {info.size:,} bytes")
                if self._size is not None and end > -(-self._size // BLOCK) * BLOCK:
                    yield Damage(f"it ends within {info.name}, {end - self._size:,} bytes before that member ends")
                    return
                self.position = (at, self._start) if self.in_place and not self._tar.pax_headers else None
                yield info
                at = end
            except READ_ERRORS as error:
                yield Damage(f"it cannot be read further than byte {self._stream.tell():,}: {error or 'it ends'}")
                return
            except tarfile.EOFHeaderError:
                at = yield from self._after_zeros(at)
            except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError):
                yield Damage(f"it ends at byte {self._stream.tell():,} without tar's end mark, so it was cut off there")
                return
            except UserError:  # the store, not the tar
                raise
            except Exception as error:  # a header that is none, or that tarfile stumbles over
                at = yield from self._after_damage(at, f"no header at byte {at:,} ({error})")

    def read(self, info: tarfile.TarInfo, most: int) -> bytes:
        """The content of the member that came last. ValueError if it is larger than `most` bytes or is not whole."""
        if info.size > most:
            raise ValueError(f"{info.size:,} bytes, the limit is {most:,}")
        if info.issparse():
            with self._tar.extractfile(info) as file:
                data = file.read()
        else:
            self._stream.seek(info.offset_data)
            data = self._stream.read_any(info.size)
        if len(data) != info.size:
            raise ValueError(f"{len(data):,} bytes of {info.size:,}")
        return data

    def _after_zeros(self, at: int) -> Iterator[Damage]:
        """A zero block at byte `at`: the end, if nothing follows. Returns where to continue, or None."""
        try:
            behind = self._stream.skip_zeros(at)
            if behind is None:
                return None
            block = self._stream.peek(behind)
        except READ_ERRORS as error:  # such as the checksum of a gzip file
            yield Damage(f"what is behind its end mark cannot be read: {error}")
            return None
        zeros = behind - at
        padded = (behind - self._start) % tarfile.RECORDSIZE == 0 and 2 * BLOCK <= zeros <= tarfile.RECORDSIZE + BLOCK
        if not padded or not _is_header(block):
            return (yield from self._after_damage(at, f"no header at byte {at:,}, but {zeros:,} zero bytes"))
        self._start = behind
        self._tar.pax_headers = {}
        return behind

    def _after_damage(self, at: int, what: str) -> Iterator[Damage]:
        """Looks for the next header. Returns where it is, or None."""
        try:
            found = self._stream.find_header(at + BLOCK)
        except READ_ERRORS as error:
            yield Damage(f"{what}; it cannot be read further: {error}")
            return None
        lost = "it is damaged from there to its end" if found is None else f"read again from byte {found:,} on"
        yield Damage(f"{what}: {lost}")
        return found


def _is_header(block: bytes) -> bool:
    """True for a block that is a member's header, by its checksum."""
    if len(block) < BLOCK or not block[0] or block[148:154].strip(b" 01234567\0"):
        return False
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except Exception:
        return False
    return True


class _Stream:
    """A file that is read forwards (also from a decompressor), and that can give back the blocks it has just read."""

    def __init__(self, file: IO[Any], seekable: bool):
        self._file, self._seekable = file, seekable
        self._at = 0
        self._ahead = b""  # bytes that were looked at, and belong at self._at
        self._error: Exception | None = None  # of the decompressor, which is not to be asked again

    def tell(self) -> int:
        return self._at

    def seek(self, to: int, whence: int = 0) -> int:
        """Forwards only, unless the file can seek."""
        if self._seekable:
            self._ahead = b""
            self._file.seek(to)
            self._at = to
            return to
        if to < self._at:
            raise tarfile.ReadError(f"a header leads back from byte {self._at:,} to byte {to:,}")
        while self._at < to:
            if not self.read_any(min(_CHUNK, to - self._at)):
                raise EOFError(f"it ends at byte {self._at:,}, within a member")
        return to

    def read(self, count: int = -1) -> bytes:
        """For tarfile, which reads headers with it."""
        if not 0 <= count <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {count:,} bytes")
        return self.read_any(count)

    def read_any(self, count: int) -> bytes:
        """Up to `count` bytes; fewer only at the end."""
        if self._error is not None:
            raise self._error
        parts, self._ahead = [self._ahead[:count]], self._ahead[count:]
        missing = count - len(parts[0])
        try:
            while missing and (more := self._file.read(missing)):
                parts.append(more)
                missing -= len(more)
        except READ_ERRORS as error:
            self._error = error
            raise
        self._at += count - missing
        return b"".join(parts)

    def peek(self, at: int) -> bytes:
        """The block at `at`, which is read again by whoever comes next."""
        self.seek(at)
        block = self.read_any(BLOCK)
        self._put_back(block)
        return block

    def skip_zeros(self, at: int) -> int | None:
        """The first block from `at` on that is not all zeros; None if there is none."""
        return self._find(at, lambda block: block.strip(b"\0") != b"")

    def find_header(self, at: int) -> int | None:
        """The first block from `at` on that is a header; None if there is none."""
        return self._find(at, _is_header)

    def _find(self, at: int, wanted) -> int | None:
        if not self._seekable and at < self._at:  # the header that failed was read already
            at = -(-self._at // BLOCK) * BLOCK
        self.seek(at)
        while chunk := self.read_any(_CHUNK):
            first = self._at - len(chunk)
            if wanted is not _is_header and not chunk.strip(b"\0"):
                continue
            for start in range(0, len(chunk), BLOCK):
                if wanted(chunk[start : start + BLOCK]):
                    self._put_back(chunk[start:])
                    return first + start
        return None

    def _put_back(self, data: bytes) -> None:
        self._ahead = data + self._ahead
        self._at -= len(data)
        if self._seekable:
            self._ahead = b""
            self._file.seek(self._at)


_UNPACK = {b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file), b"BZh": bz2.BZ2File, b"\xfd7zXZ": lzma.LZMAFile}
