"""In which order an epoch's samples come: a pure function of (seed, epoch), so a position in it is just a number.

Three orders. Of each, a window of samples is shuffled sample by sample, and the windows are made of neighbours that are
stored together, in random order:

blocks   a window is 256 blocks of 64 records from anywhere, so samples from all over the dataset meet in a batch, while
         the disk is read in pieces of a block. The permutation of the blocks is stored: 8 bytes for 64 samples.
feistel  the same windows, with the permutation of the blocks computed where it is needed: no memory at any size.
shards   a window is a few whole shards, for data that comes shard by shard, such as from object storage.
"""

from __future__ import annotations

import numpy as np

BLOCK = 64  # records: about 2 MB, stored together
WINDOW = 256  # blocks: 16,384 samples are mixed at a time
WINDOW_SHARDS = 8  # the same for order `shards`: 160,000 samples of shards as data2rec.py builds them
ORDERS = ("blocks", "feistel", "shards")


class Windows:
    """What the orders have in common: windows of samples, one after the other.

    samples: of the dataset; seed, epoch: what the order depends on; shuffle=False: 0, 1, 2 …
    """

    def __init__(self, samples: int, seed: int, epoch: int, shuffle: bool):
        self.samples, self.seed, self.epoch, self.shuffle = samples, seed, epoch, shuffle
        self._windows: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.samples

    def slice(self, start: int, stop: int) -> np.ndarray:
        """The samples at positions start … stop-1 of the epoch, int64."""
        stop = min(stop, self.samples)
        if start >= stop:
            return np.zeros(0, dtype=np.int64)
        first, last = self.window_at(start), self.window_at(stop - 1)
        self._windows = {w: one for w, one in self._windows.items() if w >= first}
        joined = np.concatenate([self._window(w) for w in range(first, last + 1)])
        begin = self.start_of(first)
        return joined[start - begin : stop - begin]

    def window_at(self, position: int) -> int:
        """The number of the window that holds a position of the epoch."""
        raise NotImplementedError

    def start_of(self, window: int) -> int:
        """The position at which a window starts."""
        raise NotImplementedError

    def _members(self, window: int) -> np.ndarray:
        """The samples of a window, unshuffled."""
        raise NotImplementedError

    def _window(self, window: int) -> np.ndarray:
        if window not in self._windows:
            members = self._members(window)
            if self.shuffle:
                members = np.random.default_rng([self.seed, self.epoch, 1 + window]).permutation(members)
            self._windows[window] = members
        return self._windows[window]


class EpochOrder(Windows):
    """Order `blocks`."""

    def __init__(self, samples: int, seed: int, epoch: int, shuffle: bool = True):
        super().__init__(samples, seed, epoch, shuffle)
        count = -(-samples // BLOCK)
        self._blocks = np.random.default_rng([seed, epoch, 0]).permutation(count) if shuffle else np.arange(count)
        sizes = np.minimum(BLOCK, samples - self._blocks * BLOCK)
        per_window = np.add.reduceat(sizes, np.arange(0, count, WINDOW)) if count else np.zeros(0, dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(per_window)])

    def window_at(self, position: int) -> int:
        return int(np.searchsorted(self._starts, position, side="right")) - 1

    def start_of(self, window: int) -> int:
        return int(self._starts[window])

    def _members(self, window: int) -> np.ndarray:
        return _block_members(self._blocks[window * WINDOW : (window + 1) * WINDOW], self.samples)


class FeistelOrder(Windows):
    """Order `feistel`."""

    def __init__(self, samples: int, seed: int, epoch: int, shuffle: bool = True):
        super().__init__(samples, seed, epoch, shuffle)
        count = -(-samples // BLOCK)
        self._blocks = Permutation(count, seed, epoch) if shuffle else None
        # All blocks but the last are full, so where a window starts follows from where the last block is.
        self._missing = count * BLOCK - samples
        self._after = (self._blocks.inverse(count - 1) if self._blocks else count - 1) // WINDOW if count else 0

    def window_at(self, position: int) -> int:
        window = position // (BLOCK * WINDOW)
        return window + (self.start_of(window + 1) <= position)

    def start_of(self, window: int) -> int:
        return window * BLOCK * WINDOW - (self._missing if window > self._after else 0)

    def _members(self, window: int) -> np.ndarray:
        count = -(-self.samples // BLOCK)
        blocks = np.arange(window * WINDOW, min((window + 1) * WINDOW, count))
        return _block_members(self._blocks(blocks) if self._blocks else blocks, self.samples)


class ShardOrder(Windows):
    """Order `shards`. starts: (shards + 1,) the first sample of each shard, then the number of samples; window_shards:
    how many shards a window has."""

    def __init__(
        self, starts: np.ndarray, seed: int, epoch: int, shuffle: bool = True, window_shards: int | None = None
    ):
        super().__init__(int(starts[-1]), seed, epoch, shuffle)
        count = len(starts) - 1
        self._first, self.window_shards = starts, window_shards or WINDOW_SHARDS
        # Shards in their order; shards[k * window_shards : …] are those of window k.
        self.shards = np.random.default_rng([seed, epoch, 0]).permutation(count) if shuffle else np.arange(count)
        sizes = np.diff(starts)[self.shards]
        per_window = np.add.reduceat(sizes, np.arange(0, count, self.window_shards))
        self._starts = np.concatenate([[0], np.cumsum(per_window)])

    def window_at(self, position: int) -> int:
        return int(np.searchsorted(self._starts, position, side="right")) - 1

    def start_of(self, window: int) -> int:
        return int(self._starts[window])

    def shards_of(self, window: int) -> np.ndarray:
        """The numbers of a window's shards."""
        return self.shards[window * self.window_shards : (window + 1) * self.window_shards]

    def _members(self, window: int) -> np.ndarray:
        return np.concatenate([np.arange(*self._first[s : s + 2]) for s in self.shards_of(window).tolist()])


def create_order(
    kind: str, starts: np.ndarray, seed: int, epoch: int, shuffle: bool = True, window_shards: int | None = None
) -> Windows:
    """One of ORDERS for a dataset whose shards start at these samples (Manifest.starts)."""
    if kind == "shards":
        return ShardOrder(starts, seed, epoch, shuffle, window_shards)
    return {"blocks": EpochOrder, "feistel": FeistelOrder}[kind](int(starts[-1]), seed, epoch, shuffle)


def _block_members(blocks: np.ndarray, samples: int) -> np.ndarray:
    members = (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()
    return members[members < samples]


class Permutation:
    """A random permutation of 0 … count-1 that is computed, not stored: a Feistel network over the next power of four,
    applied again to what falls outside (cycle walking). Source: Black and Rogaway, Ciphers with Arbitrary Finite
    Domains, 2002."""

    _ROUNDS = 6

    def __init__(self, count: int, seed: int, epoch: int):
        self.count = count
        self._half = np.uint64(max(1, (max(count - 1, 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        keys = np.arange(self._ROUNDS)
        self._keys = (uniform(seed, epoch, keys, 1 << 32) * 2.0**53).astype(np.uint64)

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """The images of some numbers, int64."""
        return self._walk(np.asarray(numbers).astype(np.uint64), self._keys)

    def inverse(self, number: int) -> int:
        """The number whose image this is."""
        swapped = self._swap(self._walk(self._swap(np.array([number], np.uint64)), self._keys[::-1], swapped=True))
        return int(swapped[0])

    def _walk(self, values: np.ndarray, keys: np.ndarray, swapped: bool = False) -> np.ndarray:
        values = self._network(values, keys)
        while True:
            outside = (self._swap(values) if swapped else values) >= np.uint64(self.count)
            if not outside.any():
                return values.astype(np.int64)
            values[outside] = self._network(values[outside], keys)

    def _network(self, values: np.ndarray, keys: np.ndarray) -> np.ndarray:
        left, right = values >> self._half, values & self._mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & self._mask)
        return left << self._half | right

    def _swap(self, values: np.ndarray) -> np.ndarray:
        """Both halves exchanged: with it and the keys reversed, the network undoes itself."""
        values = values.astype(np.uint64)
        return (values & self._mask) << self._half | values >> self._half


def uniform(seed: int, epoch: int, index: np.ndarray, stream: int) -> np.ndarray:
    """float64 (n,) in [0, 1), one for each sample index: the same for the same (seed, epoch, index, stream), whichever
    rank, batch or thread computes it. Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    return uniform_of(sample_states(seed, epoch, index), stream)


def sample_states(seed: int, epoch: int, index: np.ndarray) -> np.ndarray:
    """(n,) uint64: what `uniform` makes of everything but the stream, for many streams of the same samples."""
    state = _mix(np.full(1, seed % 2**64, dtype=np.uint64))
    for value in (np.uint64(epoch), index.astype(np.uint64)):
        state = _mix(state ^ value)
    return state


def uniform_of(states: np.ndarray, stream: int) -> np.ndarray:
    """`uniform` of the samples with these `sample_states`."""
    return (_mix(states ^ np.uint64(stream)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
