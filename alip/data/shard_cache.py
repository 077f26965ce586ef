"""Shards from object storage on the local disk: fetched before they are needed, kept while they are, removed when what
is needed sooner needs the room. Which ones come next is known, since an epoch's order is a pure function."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from alip.data.cache_files import CacheFiles, release
from alip.data.order import ShardOrder
from alip.data.shards import Manifest
from alip.errors import UserError

CACHE_SIZE = 100 * 10**9  # bytes
THREADS = 4  # downloads at a time, in each rank; ranks of a machine divide the shards among themselves
PATIENCE_S = 600.0  # without the shard that is needed: somebody else holds what should make room
_PAUSE_S = 0.02
_PATIENT_PAUSE_S = 0.2
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_size(text: str) -> int:
    """Bytes of "100GB", "1.5TB", "500 MiB" or a plain number. ValueError otherwise."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?I?)B?\s*", text.upper(), re.ASCII)
    if not match or match.group(2) not in _UNITS or len(match.group(1)) > 18:
        raise ValueError(f"{text[:80]!r} is no size: write 100GB")
    return int(float(match.group(1)) * _UNITS[match.group(2)])


class ShardCache:
    """A local cache of a dataset at a URL.

    folder: of the cache, shared by all ranks of a machine and by later runs; size: bytes it may take. order(epoch): an
    epoch's ShardOrder. ahead: samples that are read before a step uses them; batch: samples that are read at once.
    UserError if the cache is too small. local: the manifest over the cache's files.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        size: int,
        order: Callable[[int], ShardOrder],
        ahead: int = 0,
        batch: int = 1,
    ):
        self.files = CacheFiles(manifest, folder, size)
        self.local, self._order = self.files.local, order
        self._check_size(size, ahead, batch)

    def _check_size(self, size: int, ahead: int, batch: int) -> None:
        """A batch may lie across the border of two windows, and of more where it is larger than one; ranks are a few
        batches apart."""
        order = self._order(0)
        count = order.window_at(len(order) - 1) + 1
        sizes = np.array([self.files.bytes_of(shard) for shard in range(len(order.shards))])
        largest = np.sort(sizes)[::-1]  # whatever the order of an epoch brings together
        shortest = max(1, int(np.diff(self.local.starts).min()) * order.window_shards)
        windows = min(count, 2 + max(0, batch - 2) // shortest + ahead // shortest)
        least = int(largest[: windows * order.window_shards].sum())
        if size < least:
            raise UserError(
                f"--cache-size {size / 1e9:.3g}GB is too small: {windows} windows of {order.window_shards} shards take "
                f"up to {least / 1e9:.3g}GB; raise it, or lower --window-shards"
            )

    def follow(self, epoch: int, position: int, released: Callable[[list[int]], None]) -> Follower:
        """Begins to fetch what an epoch needs from a position on. released(shards): they are not needed any more."""
        return Follower(self.files, self._order(epoch), self._order(epoch + 1), position, released)


class Follower:
    """Follows a rank through an epoch. `before` waits for the shards of a batch; `close` ends it."""

    def __init__(
        self,
        files: CacheFiles,
        order: ShardOrder,
        following: ShardOrder,
        position: int,
        released: Callable[[list[int]], None],
    ):
        self._files, self._order, self._released = files, order, released
        self._held: dict[int, tuple[int, int]] = {}  # shard: (window, lock)
        self._window = order.window_at(position) if position < len(order) else 0
        count = len(order.shards)
        # When each shard is needed: in this epoch; and, behind all of these, in the next one.
        self._turn, self._next_turn = np.empty(count, np.int64), np.empty(count, np.int64)
        self._turn[order.shards] = np.arange(count)
        self._next_turn[following.shards] = count + np.arange(count)
        self._queue = self._upcoming(order, following)
        self._taking = threading.Lock()
        self._stopped = threading.Event()
        for _ in range(THREADS):
            threading.Thread(target=self._fetch_ahead, name="fetch-ahead", daemon=True).start()

    def _upcoming(self, order: ShardOrder, following: ShardOrder) -> Iterator[int]:
        """Shards in the order in which they are needed; at the end the first window of the next epoch."""
        yield from order.shards[self._window * order.window_shards :].tolist()
        yield from following.shards_of(0).tolist()

    def _next_use(self, shard: int) -> float:
        done = self._turn[shard] < self._window * self._order.window_shards
        return float(self._next_turn[shard] if done else self._turn[shard])

    def _fetch_ahead(self) -> None:
        while not self._stopped.is_set():
            with self._taking:
                shard = next(self._queue, None)
            if shard is None:
                return
            try:
                # Until there is room, or another process has fetched it, or its time is over.
                while not self._files.fetch(shard, self._next_use) and not self._is_past(shard):
                    if self._stopped.wait(_PATIENT_PAUSE_S):
                        return
            except UserError:
                continue  # `before` meets it again, if it stays, and reports it

    def _is_past(self, shard: int) -> bool:
        return self._turn[shard] < self._window * self._order.window_shards

    def before(self, number: int, first: int, last: int) -> None:
        """Called before a batch is read, as ReadAhead.before: waits until the samples at positions first … last-1 of
        the epoch are on the disk, where they stay until a later call needs others. UserError if they cannot be had."""
        windows = range(self._order.window_at(first), self._order.window_at(last - 1) + 1)
        if windows[0] != self._window:
            self._window = windows[0]
            over = [shard for shard, (window, _) in self._held.items() if window < windows[0]]
            self._released(over)
            for shard in over:
                release(self._held.pop(shard)[1])
        for window in windows:
            for shard in self._order.shards_of(window).tolist():
                if shard not in self._held:
                    self._held[shard] = (window, self._hold(shard))

    def _hold(self, shard: int) -> int:
        begun = time.monotonic()
        while True:
            lock = self._files.hold(shard)
            if lock is not None:
                return lock
            if not self._files.fetch(shard, self._next_use):
                if time.monotonic() - begun > PATIENCE_S:
                    raise UserError(
                        f"--cache-dir {self._files.folder}: no room for {self._files.remote.shards[shard].rec} in "
                        f"{PATIENCE_S / 60:.0f} minutes: other runs use this cache; give it a larger --cache-size, or "
                        "each run its own folder"
                    )
                time.sleep(_PAUSE_S)

    def close(self) -> None:
        """Begins no further download, and holds nothing. (What is on its way is finished: it will be needed.)"""
        self._stopped.set()
        self._released(list(self._held))
        for _, lock in self._held.values():
            release(lock)
        self._held.clear()
