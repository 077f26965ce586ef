"""Byte offsets of a shard's records as a memory-mapped file beside its index: `NAME.offsets`.

Parsing the text costs milliseconds, and the parsed numbers are memory of every process. The mapped file costs neither:
its pages are the system's, and all ranks of a machine share them. It is made when an index is first read and the folder
can be written; without it everything works as well.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np

from alip.data.recordio import read_index
from alip.files import sha256_of_file

LEAST_BYTES = 1 << 16  # of an index; a shorter one (4,000 records) is parsed each time
_HEADER = struct.Struct("<8sQQ32sI4x")  # magic, size and time of the index, its SHA-256; CRC-32 of what follows
_MAGIC = b"ALIPOFF1"


def read_offsets(idx: str | os.PathLike) -> np.ndarray:
    """The offsets of `read_index`, int64 (n,): memory-mapped where the index is long. RecordError as there."""
    idx = Path(idx)
    try:
        state = os.stat(idx)
    except OSError:
        return read_index(idx)[1]  # which reports it
    if state.st_size < LEAST_BYTES:
        return read_index(idx)[1]
    path = idx.with_name(f"{idx.name.removesuffix('.idx')}.offsets")
    found = _load(path, idx, state)
    if found is not None:
        return found
    offsets = read_index(idx)[1]
    with contextlib.suppress(OSError):  # a folder that cannot be written, or a full disk
        _save(path, offsets, state, bytes.fromhex(sha256_of_file(idx)))
        found = _load(path, idx, state)
    return offsets if found is None else found


def _save(path: Path, offsets: np.ndarray, state: os.stat_result, sha256: bytes) -> None:
    """Neither flushed to the disk nor written by atomic_write, which lists the folder each time: there may be 300,000
    files in it, and this is done for hundreds of shards in a row. A torn file has another CRC-32 and is made again."""
    content = np.ascontiguousarray(offsets, "<i8").tobytes()
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(_HEADER.pack(_MAGIC, state.st_size, state.st_mtime_ns, sha256, zlib.crc32(content)))
            file.write(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _load(path: Path, idx: Path, state: os.stat_result) -> np.ndarray | None:
    """The offsets, if they are of this very index: by its size and time, or else by its SHA-256."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEADER.size)
            size = os.fstat(file.fileno()).st_size
            magic, length, time, sha256, crc32 = _HEADER.unpack(head)
            if magic != _MAGIC or length != state.st_size or (size - _HEADER.size) % 8:
                return None
            offsets = np.memmap(file, "<i8", "r", offset=_HEADER.size)
            if zlib.crc32(offsets) != crc32:
                return None
        if time != state.st_mtime_ns:  # as after a copy
            if sha256.hex() != sha256_of_file(idx):
                return None
            with contextlib.suppress(OSError):
                _save(path, offsets, state, sha256)
        return offsets
    except (OSError, ValueError, struct.error):  # ValueError: nothing behind the header
        return None
