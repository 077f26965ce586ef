"""An external shuffle: exact, of more samples than fit in memory.

Two passes over the disk. The first appends every sample to one of FILES spill files, chosen by a hash of its number;
the second reads the spill files one after the other, each in a random order. Every permutation of the samples within
and across the files has the same chance as far as the hash is uniform.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from alip.build.prepare import PreparedSample

FILES = 128  # open at once; each of 15 million samples then has 120,000, a few GB
_FRAME = struct.Struct("<III")  # lengths of label, row and image, in bytes


def spill_file(seed: int, number: int) -> int:
    """The spill file of sample `number` of the build."""
    digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % FILES


def order_of(seed: int, file: int, count: int) -> np.ndarray:
    """The order in which the `count` samples of a spill file, sorted by number, are taken. int64 (count,)."""
    return np.random.default_rng([seed, file]).permutation(count)


def frame(label: np.ndarray, image: bytes, row: tuple) -> bytes:
    """A sample as bytes: lengths of label, row and image, then these. label: float32 (n,)."""
    parts = label.tobytes(), json.dumps(row).encode(), image
    return b"".join((_FRAME.pack(*map(len, parts)), *parts))


def sample_of(content: bytes) -> PreparedSample:
    """The sample of a frame."""
    return _read(io.BytesIO(content))


class ExternalShuffle:
    """The spill files of a build.

    folder: where they are. seed: of the shuffle. lengths: bytes of each file at the last commit (what follows was
    never committed and is cut off), or None for a new build.
    """

    def __init__(self, folder: Path, seed: int, lengths: list[int] | None = None):
        self.seed = seed
        self.paths = [folder / f"spill-{i:03d}" for i in range(FILES)]
        self.lengths = list(lengths or [0] * FILES)
        self._files: dict = {}
        for path, length in zip(self.paths, self.lengths):
            if path.exists() and path.stat().st_size > length:
                os.truncate(path, length)

    def add(self, number: int, sample: PreparedSample) -> None:
        """First pass: appends accepted sample `number` of the build to its spill file."""
        chosen = spill_file(self.seed, number)
        file = self._files.get(chosen)
        if file is None:
            file = self._files[chosen] = open(self.paths[chosen], "ab", buffering=1 << 18)  # noqa: SIM115
        self.lengths[chosen] += file.write(frame(sample.label, sample.image, sample.row))

    def sync(self) -> list[int]:
        """The lengths of all spill files, now on the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return list(self.lengths)

    def read(self, start: tuple[int, int]) -> Iterator[tuple[int, int, PreparedSample]]:
        """Second pass: (file, number in its random order, sample), from start = (file, number) on."""
        for number in range(start[0], FILES):
            if not self.lengths[number]:
                continue
            with open(self.paths[number], "rb") as file:
                offsets = _offsets(file, self.lengths[number])
                order = order_of(self.seed, number, len(offsets))
                for i in range(start[1] if number == start[0] else 0, len(order)):
                    file.seek(offsets[order[i]])
                    yield number, i, _read(file)

    def drop_before(self, number: int) -> None:
        """Removes the spill files before this one. Only after the journal has recorded that their samples are in
        shards: a build killed between the two would never find them again."""
        for path in self.paths[:number]:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a full disk was already reported
                file.close()
        self._files = {}


def _offsets(file, length: int) -> list[int]:
    """Where each sample of a spill file starts."""
    offsets = []
    at = 0
    while at < length:
        offsets.append(at)
        file.seek(at)
        at += _FRAME.size + sum(_FRAME.unpack(file.read(_FRAME.size)))
    return offsets


def _read(file) -> PreparedSample:
    label, row, image = (file.read(n) for n in _FRAME.unpack(file.read(_FRAME.size)))
    return PreparedSample(np.frombuffer(label, np.float32), image, tuple(json.loads(row)), False, 0, 0, None)
