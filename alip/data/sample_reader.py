"""The samples of a manifest by index: tokens, encoded image and its size, all checked."""

from __future__ import annotations

import os
import resource
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from alip.data.batch_parse import jpeg_sizes, parse, read_spans
from alip.data.captions import count_captions, take_texts
from alip.data.image_file import open_image
from alip.data.jpeg import jpeg_size
from alip.data.open_shards import OpenShards
from alip.data.recordio import IndexedReader, RecordError, unpack_label
from alip.data.shards import Manifest, record_fault
from alip.errors import UserError
from alip.tokens import unpack_captions

OPEN_SHARDS = 1024  # files that stay open; of more shards the one opened first is closed
_CHECKED_SHARDS = 64  # of which first and last record are looked at before a run starts
Choose = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (captions of each sample, samples) → number of one caption


def _first(counts: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.zeros(len(index), np.int64)


class Records:
    """Random access to samples; safe to share between threads.

    manifest: the dataset; vocab_size: token ids must be below it. Every error names the file and the record.
    """

    def __init__(self, manifest: Manifest, vocab_size: int):
        self.manifest, self.vocab_size = manifest, vocab_size
        self._captions, length = manifest.captions_per_image, manifest.context_length
        self._longest_label = 2 * length + (self._captions > 1) + (self._captions - 1) * (1 + length)
        self._readers = OpenShards(manifest, OPEN_SHARDS)
        self._flags = np.array([(shard.sha256 is not None, shard.crc32) for shard in manifest.shards])
        self._advice = f" (`python data2rec.py --verify {manifest.folder / manifest.name}` checks everything)"
        _allow_open_files(2 * min(OPEN_SHARDS, len(manifest.shards)) + 256)  # the file, and the map of its offsets

    def check_tokens(self) -> None:
        """Looks at the manifest's largest token of each shard."""
        for shard in self.manifest.shards:
            if shard.max_token is not None and shard.max_token >= self.vocab_size:
                raise UserError(
                    f"{self.manifest.path(shard.rec)} holds the token id {shard.max_token}, the model's vocabulary "
                    f"ends at {self.vocab_size - 1}: the shards are of another tokenizer"
                )

    def check(self) -> None:
        """Looks for the shards' files, and at some records of some of them: what is wrong with one is mostly wrong with
        all, and should be known before a run starts."""
        self.check_tokens()
        there = set(os.listdir(self.manifest.folder)) if os.path.isdir(self.manifest.folder) else ()
        for shard in self.manifest.shards:
            if shard.rec not in there:
                raise UserError(f"no such rec file: {self.manifest.path(shard.rec)}")
        step = max(1, len(self.manifest.shards) // _CHECKED_SHARDS)
        starts = self.manifest.starts
        for number in range(0, len(self.manifest.shards), step):
            if starts[number] < starts[number + 1]:
                self.read(np.array([starts[number], starts[number + 1] - 1]))

    def where(self, index: int) -> str:
        """Where a sample is, for people: file, record, byte offset."""
        shard, number = self.manifest.locate(index)
        try:
            return f"{self._readers[shard].path}, record {number} (byte {self._readers[shard].span(number)[0]})"
        except UserError:  # it has left the cache meanwhile
            return f"{self.manifest.path(self.manifest.shards[shard].rec)}, record {number}"

    def read(self, index: np.ndarray, choose: Choose = _first) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """(n, 2·context_length) int64 tokens, n encoded images (uint8 arrays), (n, 2) sizes as width, height.

        choose: which caption's tokens these are; alip.data.captions.choose_captions.
        """
        length = self.manifest.context_length
        order = np.argsort(index)  # the order of the disk
        shards = np.searchsorted(self.manifest.starts, index[order], side="right") - 1
        numbers = index[order] - self.manifest.starts[shards]
        readers, starts, ends = self._spans(shards, numbers)
        descriptors = [reader.fileno() for reader in readers]
        buffer, at, spans = read_spans(descriptors, starts, ends - starts)
        found = parse(buffer, at, spans, 2 * length, self._longest_label)
        sound = found["usual"]
        rows = np.flatnonzero(sound)
        sound[rows] = self._are_sound(
            buffer, {name: values[rows] for name, values in found.items()}, shards[rows], numbers[rows]
        )
        words, counts = buffer.view("<f4"), np.zeros(len(index), np.int64)
        rows = np.flatnonzero(sound)
        label = found["label"] // 4
        counts[rows] = count_captions(words, label[rows], found["labels"][rows], length, self._captions)
        sound &= counts > 0
        rows = np.flatnonzero(sound)
        first, last = found["start"][rows], found["end"][rows]
        labels, sizes = np.empty((len(index), 2 * length), np.float32), np.zeros((len(index), 2), np.int64)
        labels[order[rows]] = take_texts(words, label[rows], choose(counts[rows], index[order[rows]]), length)
        sizes[order[rows]] = jpeg_sizes(buffer, first, last)
        encoded: list[np.ndarray] = [None] * len(index)
        for i, start, end in zip(order[rows].tolist(), first.tolist(), last.tolist()):
            encoded[i] = buffer[start:end]
        for i in order[~sound | ~sizes[order].any(axis=1)].tolist():
            label, encoded[i], sizes[i] = self._read_one(int(index[i]))
            labels[i] = self._take_texts(label, int(index[i]), choose)
        return self._tokens(labels, index), encoded, sizes

    def _spans(self, shards: np.ndarray, numbers: np.ndarray) -> tuple[list[IndexedReader], np.ndarray, np.ndarray]:
        """For each record its file, and start and end in it. shards: ascending. A file is open as long as somebody
        holds its reader."""
        readers: list[IndexedReader] = []
        starts, ends = np.empty(len(shards), np.int64), np.empty(len(shards), np.int64)
        for shard in np.unique(shards).tolist():
            one = slice(*np.searchsorted(shards, [shard, shard + 1]).tolist())
            reader = self._readers[shard]
            starts[one], ends[one] = reader.spans(numbers[one])
            readers += [reader] * (one.stop - one.start)
        return readers, starts, ends

    def _are_sound(self, buffer: np.ndarray, found: dict, shards: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """(n,) bool: the answer of `record_fault` for records of the usual form, for many of them."""
        numbered, has_crc32 = self._flags[shards].T
        sound = ~numbered | (found["id"] == numbers)
        view = memoryview(buffer)
        check = np.flatnonzero(has_crc32 | (found["id2"] != 0))
        ranges = zip(found["label"][check].tolist(), found["end"][check].tolist())
        sound[check] &= found["id2"][check] == [zlib.crc32(view[start:end]) for start, end in ranges]
        return sound

    def _read_one(self, index: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """Label, encoded image and its size of any record; UserError for one that is not sound."""
        shard, number = self.manifest.locate(index)
        payload = self._payload(shard, number)
        try:
            label, start = unpack_label(payload)
            fault = record_fault(self.manifest.shards[shard], number, payload)
        except RecordError as error:
            fault = str(error)
        if fault:
            raise UserError(f"{self.where(index)}: {fault}{self._advice}")
        self._check_label(label, index)
        size = jpeg_size(payload[start : start + 4096]) or self._size(payload[start:], index)
        return label, np.frombuffer(bytearray(payload), dtype=np.uint8, offset=start), size

    def _check_label(self, label: np.ndarray, index: int) -> None:
        """UserError unless a label has the layout of this dataset."""
        length = self.manifest.context_length
        if len(label) == 2 * length:
            return
        if self._captions == 1:
            raise UserError(
                f"{self.where(index)} has a label of {len(label)} numbers, not {2 * length} (two texts of "
                f"{length} tokens): these are shards of something else, or of several captions without their manifest"
            )
        try:
            count = len(unpack_captions(label, length)[1])
        except ValueError as error:
            raise UserError(f"{self.where(index)}: {error}{self._advice}") from None
        if count > self._captions:
            raise UserError(
                f"{self.where(index)} has {count} captions, the manifest at most {self._captions}{self._advice}"
            )

    def _take_texts(self, label: np.ndarray, index: int, choose: Choose) -> np.ndarray:
        """Raw text and one caption (2·context_length,) of a label that `_check_label` has passed."""
        if len(label) == 2 * self.manifest.context_length:
            return label
        text, captions = unpack_captions(label, self.manifest.context_length)
        (number,) = choose(np.array([len(captions)]), np.array([index]))
        return np.concatenate([text, captions[number]])

    def captions(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All captions of some samples: (n,) how many each has, and their tokens, int64 (total, context_length)."""
        length, counts, rows = self.manifest.context_length, [], []
        for i in index.tolist():
            label = self._read_one(i)[0]
            texts = label.reshape(2, -1)[1:] if len(label) == 2 * length else unpack_captions(label, length)[1]
            counts.append(len(texts))
            both = np.concatenate([np.tile(label[:length], (len(texts), 1)), texts], axis=1).astype(np.float32)
            rows.append(self._tokens(both, np.full(len(texts), i))[:, length:])
        return np.array(counts, np.int64), np.concatenate(rows)

    def byte_ranges(self, index: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For each shard that has some of the samples: its file's descriptor, and their starts and ends in it."""
        shards = np.searchsorted(self.manifest.starts, index, side="right") - 1
        for shard in np.unique(shards).tolist():
            reader = self._readers[shard]
            yield reader.fileno(), *reader.spans(index[shards == shard] - self.manifest.starts[shard])

    def _payload(self, shard: int, number: int) -> bytes:
        try:
            return self._readers[shard][number]
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
            with open_image(bytes(encoded)) as image:
                return image.size
        except Exception as error:
            raise UserError(f"{self.where(index)}: no image: {error}") from None

    def drop(self, shards: list[int]) -> None:
        """Closes the files of some shards, as soon as nobody reads them any more."""
        self._readers.drop(shards)


def _allow_open_files(count: int) -> None:
    """Systems that allow 1,024 files unasked allow many more to those who ask."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
