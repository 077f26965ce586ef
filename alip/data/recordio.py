"""RecordIO, the container of `.rec` files, and the image record inside it, byte for byte as dmlc and MXNet write them.

A file is a run of parts: magic (uint32), a word whose top 3 bits are the continue flag and whose lower 29 bits are
the length of the part, the part itself, zeros up to a multiple of 4 bytes; all little-endian. A payload that holds
the magic at a multiple of 4 bytes is cut there (the magic itself is left out): its parts carry the flags 1, 2 … 2, 3,
and a reader puts the magic back between them. A payload without it is one part with flag 0.

An image record's payload is a header (flag: uint32, label: float32, id: uint64, id2: uint64), then `flag` float32
labels, then the encoded image. With flag 0 the header's own label is the only one.

The index (`.idx`) is text, one line a record: key, tab, byte offset of the record's first part.

Source: dmlc-core `recordio.h` and `recordio.cc`, MXNet `recordio.py`.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
MAX_PART = (1 << 29) - 1  # the length has 29 bits
_PART = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
PART_BYTES, HEADER_BYTES = _PART.size, _HEADER.size
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")  # by length modulo 4
_INDEX_BLOCK = 1 << 20  # bytes of an index parsed at a time
_MOST_PARTS = 1 << 20  # a run of continued parts longer than this is not a record


class RecordError(ValueError):
    """A file that breaks the format; the message names the file and the byte offset.

    path: the file; offset: the byte where the trouble starts (None where no byte is to blame).
    """

    def __init__(self, message: str, path: str | os.PathLike | None = None, offset: int | None = None):
        where = "" if path is None else f"{path}: " if offset is None else f"{path}, byte {offset}: "
        super().__init__(where + message)
        self.path = path
        self.offset = offset


def pack(label: np.ndarray | list[float] | float, image_bytes: bytes, id: int = 0, id2: int = 0) -> bytes:
    """One image record's payload. label: (n,) floats, n > 0, stored as float32; or one number, stored in the header."""
    if np.ndim(label) == 0:
        return _HEADER.pack(0, float(label), id, id2) + image_bytes
    values = np.ascontiguousarray(label, dtype="<f4")
    if values.ndim != 1 or not len(values):
        raise RecordError(f"a label is one row of one or more numbers, not of shape {values.shape}")
    return b"".join((_HEADER.pack(len(values), 0.0, id, id2), values.tobytes(), image_bytes))


def unpack(payload: bytes | memoryview) -> tuple[np.ndarray, bytes]:
    """The label, float32 (n,), and the encoded image of an image record's payload. RecordError if it is cut short."""
    label, start = unpack_label(payload)
    return label, bytes(memoryview(payload)[start:])


def unpack_label(payload: bytes | memoryview) -> tuple[np.ndarray, int]:
    """The label, float32 (n,), a view into `payload`, and the position at which the image starts."""
    if len(payload) < _HEADER.size:
        raise RecordError(f"an image record needs a header of {_HEADER.size} bytes, this has {len(payload)}")
    flag, label, _, _ = _HEADER.unpack_from(payload)
    if flag == 0:
        return np.array([label], dtype=np.float32), _HEADER.size
    start = _HEADER.size + 4 * flag
    if start > len(payload):
        raise RecordError(f"the header promises {flag} labels, the record ends before them")
    return np.frombuffer(payload, dtype="<f4", count=flag, offset=_HEADER.size), start


def record_id(payload: bytes | memoryview) -> int:
    """The `id` of an image record's header."""
    return record_ids(payload)[0]


def record_ids(payload: bytes | memoryview) -> tuple[int, int]:
    """`id` and `id2` of an image record's header. Ours hold the record's number in its file and payload_crc32; MXNet
    and the released files leave `id2` 0."""
    return _HEADER.unpack_from(payload)[2:]


def payload_crc32(payload: bytes | memoryview) -> int:
    """The CRC-32 (zlib's) of all that follows an image record's header: labels and image, as stored."""
    return zlib.crc32(memoryview(payload)[_HEADER.size :])


def stamp(payload: bytes, id: int) -> bytes:
    """The same image record with this `id`, and its CRC-32 as `id2`."""
    flag, label, _, _ = _HEADER.unpack_from(payload)
    return _HEADER.pack(flag, label, id, payload_crc32(payload)) + payload[_HEADER.size :]


def encode(payload: bytes) -> bytes:
    """The record as it stands in the file: one part, or several where the payload holds the magic; padded."""
    if len(payload) > MAX_PART:
        raise RecordError(f"a record holds at most {MAX_PART} bytes, this has {len(payload)}")
    cuts = _magic_positions(payload)
    if not cuts:
        return b"".join((_PART.pack(MAGIC, len(payload)), payload, _PADDING[len(payload) & 3]))
    pieces = []
    start = 0
    for cut in cuts:
        pieces += (_PART.pack(MAGIC, (1 if start == 0 else 2) << 29 | cut - start), payload[start:cut])
        start = cut + 4
    rest = len(payload) - start
    pieces += (_PART.pack(MAGIC, 3 << 29 | rest), payload[start:], _PADDING[rest & 3])
    return b"".join(pieces)


def _magic_positions(payload: bytes) -> list[int]:
    """Where the magic stands at a multiple of 4 bytes. (Two of them cannot overlap.)"""
    found = []
    at = payload.find(MAGIC_BYTES)
    while at >= 0:
        if at % 4 == 0:
            found.append(at)
        at = payload.find(MAGIC_BYTES, at + 1)
    return found


class Writer:
    """Writes a `.rec` and its `.idx`.

    rec, idx: the two files, overwritten. Use as a context manager, or call `close()`; `OSError` if the disk is full.
    """

    def __init__(self, rec: str | os.PathLike, idx: str | os.PathLike):
        self.offset = 0  # bytes written so far: where the next record starts
        self.count = 0
        self._rec = open(rec, "wb", buffering=1 << 20)  # noqa: SIM115 (held until close)
        try:
            self._idx = open(idx, "w", encoding="ascii", newline="\n")  # noqa: SIM115
        except OSError:
            self._rec.close()
            raise

    def write(self, payload: bytes, key: int | None = None) -> bytes:
        """Appends one record and returns its bytes as they stand in the file. key: its name in the index,
        its number in the file if None."""
        record = encode(payload)
        self._rec.write(record)
        self._idx.write(f"{self.count if key is None else key}\t{self.offset}\n")
        self.offset += len(record)
        self.count += 1
        return record

    def sync(self) -> None:
        """Everything written so far is on the disk when this returns."""
        for file in (self._rec, self._idx):
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Flushes and closes both files."""
        try:
            self._rec.close()
        finally:
            self._idx.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_file(path: str | os.PathLike) -> io.FileIO:
    """A file to read, unbuffered. RecordError if it is no ordinary one: a pipe or a device would be read for ever."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # which a pipe answers at once
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RecordError("not an ordinary file", path)
    return io.FileIO(descriptor)


def read_index(idx: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Keys and byte offsets of an index, two int64 arrays (n,), in the order of the file.

    Read in blocks: memory is that of the two arrays, 16 bytes a line. RecordError if a line is not two whole numbers.
    """
    path = Path(idx)
    try:
        with open_file(path) as file:
            count = sum(block.count(b"\n") for block in iter(lambda: file.read(_INDEX_BLOCK), b""))
            keys, offsets = np.empty(count + 1, np.int64), np.empty(count + 1, np.int64)
            file.seek(0)
            lines = 0
            for block in _whole_lines(file):
                numbers = _parse_numbers(block, path, lines)
                end = lines + len(numbers) // 2
                keys[lines:end], offsets[lines:end] = numbers[0::2], numbers[1::2]
                lines = end
    except FileNotFoundError:
        raise RecordError("no such index file", path) from None
    except OSError as error:
        raise RecordError(f"cannot be read: {error.strerror}", path) from None
    return keys[:lines], offsets[:lines]


def _whole_lines(file) -> Iterator[bytes]:
    """A file in blocks that end with a line's end."""
    rest = b""
    while block := file.read(_INDEX_BLOCK):
        cut = block.rfind(b"\n") + 1
        if cut:
            yield rest + block[:cut]
            rest = block[cut:]
        else:
            rest += block
            if len(rest) > _INDEX_BLOCK:
                break  # a line of a megabyte: reported by who parses it
    if rest:
        yield rest + b"\n"


def _parse_numbers(block: bytes, path: Path, before: int) -> np.ndarray:
    """The numbers of some lines, int64 (2 · lines,)."""
    lines = block.count(b"\n")
    if block.translate(None, b"0123456789\t\n\r "):
        raise RecordError(
            f"not an index: every line should be two whole numbers, key and byte offset (line {before + 1} or later)",
            path,
        )
    numbers = np.fromstring(block, dtype=np.int64, sep=" ")
    if len(numbers) != 2 * lines:
        raise RecordError(
            f"not an index: lines {before + 1} to {before + lines} hold {len(numbers)} numbers, not two each", path
        )
    return numbers


class IndexedReader:
    """Random access to the records of a `.rec` file. Safe to share between threads (it holds no file position).

    rec, idx: the two files. Item i is the payload of line i of the index. RecordError names the file and byte.
    read_offsets: how to get the offsets of the index; None: parse it.
    """

    def __init__(
        self,
        rec: str | os.PathLike,
        idx: str | os.PathLike,
        read_offsets: Callable[[str | os.PathLike], np.ndarray] | None = None,
    ):
        self.path = Path(rec)
        self.offsets = read_index(idx)[1] if read_offsets is None else read_offsets(idx)
        try:
            self._file = open_file(self.path)
        except FileNotFoundError:
            raise RecordError("no such rec file", self.path) from None
        self.size = os.fstat(self._file.fileno()).st_size
        outside = self.offsets[(self.offsets < 0) | (self.offsets > self.size - _PART.size)]
        if len(outside):
            self.close()
            raise RecordError(f"the index {idx} points outside the file of {self.size} bytes", self.path, outside[0])
        # A record ends where the next one starts: so one read fetches it whole. (Most indexes are in order, and
        # then this is a view: at 15 million records memory counts.)
        in_order = bool((self.offsets[1:] > self.offsets[:-1]).all())
        self._sorted = self.offsets if in_order else np.unique(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, i: int) -> bytes:
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.path} holds {len(self)} records, asked for number {i}")
        start, end = self.span(i)
        return decode(os.pread(self._file.fileno(), end - start, start), self.path, start)

    def __iter__(self) -> Iterator[bytes]:
        return (self[i] for i in range(len(self)))

    def span(self, i: int) -> tuple[int, int]:
        """Start and end of record i in the file, in bytes."""
        start = int(self.offsets[i])
        following = i % len(self) + 1
        if self._sorted is not self.offsets:
            following = int(np.searchsorted(self._sorted, start)) + 1
        return start, int(self._sorted[following]) if following < len(self._sorted) else self.size

    def spans(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Starts and ends of many records, int64 (n,) each."""
        starts = self.offsets[records]
        following = (records if self._sorted is self.offsets else np.searchsorted(self._sorted, starts)) + 1
        ends = self._sorted[np.minimum(following, len(self._sorted) - 1)]
        return starts, np.where(following < len(self._sorted), ends, self.size)

    def fileno(self) -> int:
        """The file's descriptor, for read-ahead advice to the system."""
        return self._file.fileno()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> IndexedReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def decode(record: bytes, path: str | os.PathLike, offset: int) -> bytes:
    """The payload of the record with which `record` starts. path, offset: where it came from, for the message."""
    pieces: list[bytes] = []
    at = 0
    while True:
        if len(record) - at < _PART.size:
            raise RecordError("the record is cut short", path, offset + at)
        magic, word = _PART.unpack_from(record, at)
        if magic != MAGIC:
            raise RecordError(f"no record starts here (0x{magic:08x} instead of 0x{MAGIC:08x})", path, offset + at)
        flag, length = word >> 29, word & MAX_PART
        if flag not in ((0, 1) if not pieces else (2, 3)):
            raise RecordError(f"a part with continue flag {flag} is not expected here", path, offset + at)
        start = at + _PART.size
        if start + length > len(record):
            raise RecordError(f"the record is cut short: {length} bytes promised", path, offset + at)
        pieces.append(record[start : start + length])
        if flag in (0, 3):
            return pieces[0] if flag == 0 else MAGIC_BYTES.join(pieces)
        at = start + (length + 3) // 4 * 4


def scan(rec: str | os.PathLike) -> Iterator[tuple[int, bytes]]:
    """Byte offset and payload of each record from the first byte to the last, without an index."""
    path = Path(rec)
    with io.BufferedReader(open_file(path), 1 << 20) as file:
        size = os.fstat(file.fileno()).st_size
        offset = 0
        while offset < size:
            record = _read_record(file, path, offset)
            yield offset, decode(record, path, offset)
            offset += len(record)


def _read_record(file, path: Path, offset: int) -> bytes:
    """The bytes of the record at the file's position, all parts and padding."""
    pieces: list[bytes] = []
    while len(pieces) < _MOST_PARTS:
        head = file.read(_PART.size)
        pieces.append(head)
        if len(head) < _PART.size:
            break
        magic, word = _PART.unpack(head)
        if magic != MAGIC:
            break
        pieces.append(file.read((word & MAX_PART) + 3 & ~3))
        if word >> 29 in (0, 3):
            break
    return b"".join(pieces)
