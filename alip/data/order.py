"""In which order an epoch's samples come: a pure function of (seed, epoch), so a position in it is just a number.

Blocks of neighbouring records are put in a random order; then a window of many blocks is shuffled sample by sample.
So samples from all over the dataset meet in a batch, while the disk is read in pieces of a block.
"""

from __future__ import annotations

import numpy as np

BLOCK = 64  # records: about 2 MB, stored together
WINDOW = 256  # blocks: 16,384 samples are mixed at a time


class EpochOrder:
    """The order of one epoch.

    samples: of the dataset; seed, epoch: what the order depends on; shuffle=False: 0, 1, 2 …
    """

    def __init__(self, samples: int, seed: int, epoch: int, shuffle: bool = True):
        self.samples, self.seed, self.epoch, self.shuffle = samples, seed, epoch, shuffle
        count = -(-samples // BLOCK)
        self._blocks = np.random.default_rng([seed, epoch, 0]).permutation(count) if shuffle else np.arange(count)
        sizes = np.minimum(BLOCK, samples - self._blocks * BLOCK)
        per_window = np.add.reduceat(sizes, np.arange(0, count, WINDOW)) if count else np.zeros(0, dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(per_window)])
        self._windows: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.samples

    def slice(self, start: int, stop: int) -> np.ndarray:
        """The samples at positions start … stop-1 of the epoch, int64."""
        stop = min(stop, self.samples)
        if start >= stop:
            return np.zeros(0, dtype=np.int64)
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left")) - 1
        self._windows = {w: one for w, one in self._windows.items() if w >= first}
        joined = np.concatenate([self._window(w) for w in range(first, last + 1)])
        return joined[start - self._starts[first] : stop - self._starts[first]]

    def _window(self, window: int) -> np.ndarray:
        if window not in self._windows:
            blocks = self._blocks[window * WINDOW : (window + 1) * WINDOW]
            members = (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()
            members = members[members < self.samples]
            if self.shuffle:
                members = np.random.default_rng([self.seed, self.epoch, 1 + window]).permutation(members)
            self._windows[window] = members
        return self._windows[window]


def uniform(seed: int, epoch: int, index: np.ndarray, stream: int) -> np.ndarray:
    """float64 (n,) in [0, 1), one for each sample index: the same for the same (seed, epoch, index, stream), whichever
    rank, batch or thread computes it. Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    state = _mix(np.full(len(index), seed % 2**64, dtype=np.uint64))
    for value in (np.uint64(epoch), index.astype(np.uint64), np.uint64(stream)):
        state = _mix(state ^ value)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
