"""An external shuffle: exact, of more samples than fit in memory.

Two passes over the disk. The first appends every sample to one of FILES spill files, chosen by a hash of its number;
the second reads the spill files one after the other, each in a random order. Every permutation of the samples within
and across the files has the same chance as far as the hash is uniform.
"""

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

FILES = 128  # open at once; each of 15 million samples then has 120,000, a few GB
_FRAME = struct.Struct("<III")  # lengths of label, row and image, in bytes


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
        digest = hashlib.blake2b(f"{self.seed}/{number}".encode(), digest_size=8).digest()
        chosen = int.from_bytes(digest, "little") % FILES
        file = self._files.get(chosen)
        if file is None:
            file = self._files[chosen] = open(self.paths[chosen], "ab", buffering=1 << 18)  # noqa: SIM115
        label, row = sample.label.tobytes(), json.dumps(sample.row).encode()
        frame = _FRAME.pack(len(label), len(row), len(sample.image))
        file.write(b"".join((frame, label, row, sample.image)))
        self.lengths[chosen] += _FRAME.size + len(label) + len(row) + len(sample.image)

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
                order = np.random.default_rng([self.seed, number]).permutation(len(offsets))
                for i in range(start[1] if number == start[0] else 0, len(order)):
                    yield number, i, _read(file, offsets[order[i]])

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


def _read(file, offset: int) -> PreparedSample:
    file.seek(offset)
    label, row, image = (file.read(n) for n in _FRAME.unpack(file.read(_FRAME.size)))
    return PreparedSample(np.frombuffer(label, np.float32), image, tuple(json.loads(row)), False, 0, 0, None)
