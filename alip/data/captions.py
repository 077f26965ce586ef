"""Which of a sample's captions a training step takes: one for each epoch, a pure function of (seed, epoch, sample)."""

from __future__ import annotations

import numpy as np

from alip.data.order import uniform

SAMPLING = ("random", "first", "round-robin")
_STREAM = 100  # of order.uniform; augmentation uses those below


def choose_captions(sampling: str, counts: np.ndarray, seed: int, epoch: int, index: np.ndarray) -> np.ndarray:
    """The number of the caption that each of n samples has in an epoch, int64 (n,), from 0 to counts - 1.

    sampling: `random`: any, each with the same probability; `first`; `round-robin`: one after the other, starting at a
    random one, so that a sample with k captions has had each once after k epochs. counts: (n,) captions of each sample;
    index: (n,) the samples' positions in the dataset. The same on any number of ranks, from any position on.
    """
    if sampling == "first":
        return np.zeros(len(index), np.int64)
    if sampling == "random":
        return (uniform(seed, epoch, index, _STREAM) * counts).astype(np.int64)
    if sampling == "round-robin":
        return ((uniform(seed, 0, index, _STREAM) * counts).astype(np.int64) + epoch) % counts
    raise ValueError(f"unknown caption sampling {sampling!r}: one of {', '.join(SAMPLING)}")


def count_captions(words: np.ndarray, start: np.ndarray, sizes: np.ndarray, length: int, most: int) -> np.ndarray:
    """The number of captions in each of n labels of alip.tokens.pack_label, int64 (n,); 0 for a label of another
    layout, or with more than `most`.

    words: float32, a buffer; start, sizes: (n,) where each label starts in it and how many numbers it has; length: of a
    text, padded. tokens.unpack_captions does the same for one label.
    """
    released = 2 * length
    counts = (sizes == released).astype(np.int64)
    rows = np.flatnonzero(sizes > released + 1)
    more = words[start[rows] + released]
    sound = (more >= 1) & (more < np.minimum(most, sizes[rows] - released)) & (more == np.floor(more))
    rows, more = rows[sound], more[sound].astype(np.int64)
    if not len(rows):
        return counts
    lengths = _lengths(words, start[rows] + released + 1, more)
    sound = ((lengths >= 0) & (lengths <= length) & (lengths == np.floor(lengths))).all(axis=1)
    sound &= (lengths > 0).sum(axis=1) == more
    sound &= released + 1 + more + lengths.sum(axis=1) == sizes[rows]
    counts[rows[sound]] = 1 + more[sound]
    return counts


def take_texts(words: np.ndarray, start: np.ndarray, numbers: np.ndarray, length: int) -> np.ndarray:
    """Raw text and one caption, `numbers` (n,), of labels that `count_captions` found sound: float32 (n, 2·length), the
    padded tokens of the text, then of the caption."""
    released = 2 * length
    texts = words[start[:, None] + np.arange(released)]
    rows = np.flatnonzero(numbers)
    if len(rows):
        first, number = start[rows] + released, numbers[rows]
        more = words[first].astype(np.int64)
        lengths = _lengths(words, first + 1, number).astype(np.int64)
        size = lengths[np.arange(len(rows)), number - 1]
        begin = first + 1 + more + lengths.sum(axis=1) - size
        at = np.minimum(begin[:, None] + np.arange(length), len(words) - 1)
        texts[rows, length:] = np.where(np.arange(length) < size[:, None], words[at], 0)
    return texts


def _lengths(words: np.ndarray, start: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """words[start : start + counts] of each of n rows, behind it 0: float32 (n, largest of counts)."""
    offsets = np.arange(counts.max())
    at = np.minimum(start[:, None] + offsets, len(words) - 1)
    return np.where(offsets < counts[:, None], words[at], 0)
