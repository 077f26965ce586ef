"""The samples of a manifest by index: tokens, encoded image and its size, all checked."""

from __future__ import annotations

import io
import resource
import threading
from collections.abc import Iterator

import numpy as np
from PIL import Image

from alip.data.jpeg import jpeg_size
from alip.data.recordio import IndexedReader, RecordError, unpack_label
from alip.data.shards import Manifest, record_fault
from alip.errors import UserError

_CHECKED_SHARDS = 64  # of which first and last record are looked at before a run starts


class Records:
    """Random access to samples; safe to share between threads.

    manifest: the dataset; vocab_size: token ids must be below it. Every error names the file and the record.
    """

    def __init__(self, manifest: Manifest, vocab_size: int):
        self.manifest, self.vocab_size = manifest, vocab_size
        self._readers: dict[int, IndexedReader] = {}
        self._opening = threading.Lock()
        self._advice = f" (`python data2rec.py --verify {manifest.folder / manifest.name}` checks everything)"
        _allow_open_files(len(manifest.shards) + 256)

    def check(self) -> None:
        """Looks at the manifest's largest token and at some records of some shards: what is wrong with one is mostly
        wrong with all, and should be known before a run starts."""
        for shard in self.manifest.shards:
            if shard.max_token is not None and shard.max_token >= self.vocab_size:
                raise UserError(
                    f"{self.manifest.path(shard.rec)} holds the token id {shard.max_token}, the model's vocabulary "
                    f"ends at {self.vocab_size - 1}: the shards are of another tokenizer"
                )
            if not self.manifest.path(shard.rec).exists():
                raise UserError(f"no such rec file: {self.manifest.path(shard.rec)}")
        step = max(1, len(self.manifest.shards) // _CHECKED_SHARDS)
        starts = self.manifest.starts
        for number in range(0, len(self.manifest.shards), step):
            if starts[number] < starts[number + 1]:
                self.read(np.array([starts[number], starts[number + 1] - 1]))

    def where(self, index: int) -> str:
        """Where a sample is, for people: file, record, byte offset."""
        shard, number = self.manifest.locate(index)
        return f"{self._reader(shard).path}, record {number} (byte {self._reader(shard).span(number)[0]})"

    def read(self, index: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """(n, 2·context_length) int64 tokens, n encoded images (uint8 arrays), (n, 2) sizes as width, height."""
        length = 2 * self.manifest.context_length
        labels = np.empty((len(index), length), dtype=np.float32)
        sizes = np.empty((len(index), 2), dtype=np.int64)
        encoded: list[np.ndarray] = [None] * len(index)
        shards = np.searchsorted(self.manifest.starts, index, side="right") - 1
        for i in np.argsort(index):  # in the order of the disk
            shard = int(shards[i])
            number = int(index[i] - self.manifest.starts[shard])
            payload = self._payload(shard, number)
            try:
                label, start = unpack_label(payload)
                fault = record_fault(self.manifest.shards[shard], number, payload)
            except RecordError as error:
                fault = str(error)
            if fault:
                raise UserError(f"{self.where(int(index[i]))}: {fault}{self._advice}")
            if len(label) != length:
                raise UserError(
                    f"{self.where(int(index[i]))} has a label of {len(label)} numbers, not {length} (two texts of "
                    f"{self.manifest.context_length} tokens): these are shards of something else"
                )
            labels[i] = label
            size = jpeg_size(payload[start : start + 4096]) or self._size(payload[start:], int(index[i]))
            sizes[i] = size
            encoded[i] = np.frombuffer(payload, dtype=np.uint8, offset=start)
        return self._tokens(labels, index), encoded, sizes

    def byte_ranges(self, index: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For each shard that has some of the samples: its file's descriptor, and their starts and ends in it."""
        shards = np.searchsorted(self.manifest.starts, index, side="right") - 1
        for shard in np.unique(shards).tolist():
            reader = self._reader(shard)
            yield reader.fileno(), *reader.spans(index[shards == shard] - self.manifest.starts[shard])

    def _payload(self, shard: int, number: int) -> bytes:
        try:
            return self._reader(shard)[number]
        except RecordError as error:
            raise UserError(f"record {number} of {error}") from None

    def _tokens(self, labels: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Whole numbers from 0 up to the vocabulary; NaN and fractions do not survive the round trip."""
        with np.errstate(invalid="ignore"):
            tokens = labels.astype(np.int64)
        bad = (tokens != labels) | (tokens < 0) | (tokens >= self.vocab_size)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise UserError(
                f"{self.where(int(index[row]))}: label {column} is {labels[row, column]}, no token id from 0 to "
                f"{self.vocab_size - 1}: the shards are of another tokenizer, or damaged"
            )
        return tokens

    def _size(self, encoded: bytes, index: int) -> tuple[int, int]:
        """Of images that are no JPEG, or whose header is far behind."""
        try:
            with Image.open(io.BytesIO(encoded)) as image:
                return image.size
        except Exception as error:
            raise UserError(f"{self.where(index)}: no image: {error}") from None

    def _reader(self, shard: int) -> IndexedReader:
        reader = self._readers.get(shard)
        if reader is None:
            with self._opening:
                reader = self._readers.get(shard) or self.manifest.open_shard(shard)
                self._readers[shard] = reader
        return reader


def _allow_open_files(count: int) -> None:
    """Every shard stays open. Systems that allow 1,024 files unasked allow many more to those who ask."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
