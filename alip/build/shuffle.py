"""An exact shuffle of more than fits in memory: samples into many buckets, then each bucket in a drawn order."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from alip.build.prepare import PreparedSample

BUCKETS = 128  # files open at once; a bucket of 15 million samples then has 120,000, a few GB
_FRAME = struct.Struct("<III")  # lengths of label, row and image, in bytes


class Buckets:
    """The bucket files of a build.

    seed: of the shuffle. lengths: bytes of each bucket at the last commit (what lies behind was not promised and is
    cut off), or None for a new build.
    """

    def __init__(self, folder: Path, seed: int, lengths: list[int] | None = None):
        self.seed = seed
        self.paths = [folder / f"bucket-{i:03d}" for i in range(BUCKETS)]
        self.lengths = list(lengths or [0] * BUCKETS)
        self._files: dict = {}
        for path, length in zip(self.paths, self.lengths):
            if path.exists() and path.stat().st_size > length:
                os.truncate(path, length)

    def add(self, number: int, sample: PreparedSample) -> None:
        """Puts accepted sample `number` of the build into its bucket."""
        digest = hashlib.blake2b(f"{self.seed}/{number}".encode(), digest_size=8).digest()
        bucket = int.from_bytes(digest, "little") % BUCKETS
        file = self._files.get(bucket)
        if file is None:
            file = self._files[bucket] = open(self.paths[bucket], "ab", buffering=1 << 18)  # noqa: SIM115
        label, row = sample.label.tobytes(), json.dumps(sample.row).encode()
        frame = _FRAME.pack(len(label), len(row), len(sample.image))
        file.write(b"".join((frame, label, row, sample.image)))
        self.lengths[bucket] += _FRAME.size + len(label) + len(row) + len(sample.image)

    def sync(self) -> list[int]:
        """The lengths of all buckets, now on the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return list(self.lengths)

    def read(self, bucket: int, number: int) -> Iterator[tuple[int, int, PreparedSample]]:
        """(bucket, number in its drawn order, sample), from the given place on."""
        for b in range(bucket, BUCKETS):
            if self.lengths[b]:
                start = number if b == bucket else 0
                with open(self.paths[b], "rb") as file:
                    offsets = _offsets(file, self.lengths[b])
                    order = np.random.default_rng([self.seed, b]).permutation(len(offsets))
                    for i in range(start, len(order)):
                        yield b, i, _read(file, offsets[order[i]])

    def drop_before(self, bucket: int) -> None:
        """Removes the buckets before this one: their samples are safe in shards."""
        for path in self.paths[:bucket]:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a full disk was already reported
                file.close()
        self._files = {}


def _offsets(file, length: int) -> list[int]:
    """Where each sample of a bucket starts."""
    offsets = []
    at = 0
    while at < length:
        offsets.append(at)
        file.seek(at)
        at += _FRAME.size + sum(_FRAME.unpack(file.read(_FRAME.size)))
    return offsets


def _read(file, offset: int) -> PreparedSample:
    file.seek(offset)
    label, row, image = (file.read(n) for n in _FRAME.unpack(file.read(_FRAME.size)))
    return PreparedSample(np.frombuffer(label, np.float32), image, tuple(json.loads(row)), False, 0, 0, None)
