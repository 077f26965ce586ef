"""The usual record, read many at a time: one part, a label of the expected length, a JPEG. NumPy does what a loop over
records would cost microseconds each for; every record that is not like that is left to the slow, general path."""

from __future__ import annotations

import os

import numpy as np

from alip.data.recordio import HEADER_BYTES, MAGIC, MAX_PART, PART_BYTES

_LONGEST = 1 << 24  # bytes of a usual record; a damaged index may promise gigabytes
_MARKERS = 32  # steps through a JPEG's segments before its frame header
_HEAD = 4096  # bytes of an image in which the frame header is looked for
_NO_LENGTH = np.zeros(256, bool)  # markers without a length field
_NO_LENGTH[[0x01, *range(0xD0, 0xD8)]] = True
_FRAME = np.zeros(256, bool)
_FRAME[[marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC)]] = True


def read_spans(
    descriptors: list[int], starts: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Byte ranges of files in one buffer: (bytes (total,) uint8, positions (n,), multiples of 4, bytes read (n,)).

    A range has fewer bytes than asked for at its file's end, and at most _LONGEST.
    """
    lengths = np.minimum(lengths, _LONGEST)
    positions = np.concatenate([[0], np.cumsum((lengths + 3) & ~3)])
    buffer = np.empty(int(positions[-1]), np.uint8)
    view = memoryview(buffer)
    got = [
        os.preadv(descriptor, [view[at : at + length]], start)
        for descriptor, start, at, length in zip(
            descriptors, starts.tolist(), positions.tolist(), lengths.tolist(), strict=False
        )
    ]
    return buffer, positions[:-1], np.array(got, np.int64)


def parse(buffer: np.ndarray, at: np.ndarray, spans: np.ndarray, least: int, most: int) -> dict[str, np.ndarray]:
    """Headers of the records at positions `at` (multiples of 4) of a buffer, each in `spans` bytes.

    usual: (n,) bool: whole, one part, a label of `least` to `most` numbers. Where it is: id, id2; labels: how many
    numbers; label, start, end: where they, the image and its end are in the buffer, in bytes.
    """
    words = buffer.view("<u4")
    first = at // 4
    take = np.minimum(first[:, None] + np.arange((PART_BYTES + HEADER_BYTES) // 4), len(words) - 1)
    magic, part, flag, _, id_low, id_high, id2_low, id2_high = words[take].T.astype(np.int64)
    length = part & MAX_PART
    usual = (magic == MAGIC) & (part >> 29 == 0) & (least <= flag) & (flag <= most)
    usual &= (length >= HEADER_BYTES + 4 * flag) & (PART_BYTES + length <= spans)
    label = at + PART_BYTES + HEADER_BYTES
    usual &= (id_high < 2**31) & (id2_high < 2**31)
    return {
        "usual": usual,
        "id": id_low | id_high << 32,
        "id2": id2_low | id2_high << 32,
        "labels": flag,
        "label": label,
        "start": label + 4 * flag,
        "end": at + PART_BYTES + length,
    }


def jpeg_sizes(buffer: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(n, 2) int64, width and height of the JPEGs at start … end of a buffer, as jpeg.jpeg_size finds them in their
    first _HEAD bytes; 0 where it is not that simple."""
    sizes = np.zeros((len(start), 2), np.int64)
    end = np.minimum(end, start + _HEAD)
    rows = np.flatnonzero(end - start >= 4)
    rows = rows[(buffer[start[rows]] == 0xFF) & (buffer[start[rows] + 1] == 0xD8)]
    at = start[rows] + 2
    for _ in range(_MARKERS):
        inside = at + 9 < end[rows]
        rows, at = rows[inside], at[inside]
        if not len(rows):
            break
        marker = buffer[at + 1]
        known = buffer[at] == 0xFF
        found = known & _FRAME[marker]
        frame = at[found]
        sizes[rows[found], 0] = buffer[frame + 7].astype(np.int64) << 8 | buffer[frame + 8]
        sizes[rows[found], 1] = buffer[frame + 5].astype(np.int64) << 8 | buffer[frame + 6]
        step = 2 + np.where(_NO_LENGTH[marker], 0, buffer[at + 2].astype(np.int64) << 8 | buffer[at + 3])
        step[marker == 0xFF] = 1  # a fill byte
        going = known & ~found
        rows, at = rows[going], (at + step)[going]
    return sizes
