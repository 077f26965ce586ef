"""Reading ahead: asks the system for the next bytes of the shards, so that the disk works while others compute."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from alip.data.order import BLOCK, WINDOW, Windows
from alip.data.sample_reader import Records

_GAP = 64 * 1024  # bytes between two records below which the gap is read too: one request instead of two
_REQUEST = 128 * 1024  # bytes: Linux reads no more than its read-ahead size (128 kB by default) for one advice
AVAILABLE = hasattr(os, "posix_fadvise")  # not on macOS


class ReadAhead:
    """Advises one rank's records of the next window while those of this one are consumed.

    A window (order.WINDOW) is read whole, in any order, so its records are requested sorted by their position in the
    files and merged: the disk sees long ascending requests although samples come at random. `batches` are the slices of
    the order, (first, last), in which this rank will ask for its samples. Records of other ranks are left out.
    """

    def __init__(self, records: Records, order: Windows, batches: Sequence[tuple[int, int]]):
        self._records, self._order, self._batches = records, order, batches
        rank_batch = max(1, batches[0][1] - batches[0][0]) if batches else 1
        spacing = max(1, batches[1][0] - batches[0][0]) if len(batches) > 1 else rank_batch
        self._chunk = max(1, BLOCK * WINDOW // spacing)  # batches in about a window
        self._advised = 0
        self._pool = ThreadPoolExecutor(1, "read-ahead")
        self._pending: Future | None = None
        self._stopped = threading.Event()

    def before(self, number: int, first: int = 0, last: int = 0) -> None:
        """Called before batch `number` is read (first, last: its slice of the order): requests what comes up to a
        window later, without waiting for it."""
        if not AVAILABLE or number + self._chunk < self._advised or self._advised >= len(self._batches):
            return
        if self._pending is not None:
            if not self._pending.done():
                return
            self._pending.result()  # its error, if it had one
        chunk = list(self._batches[self._advised : self._advised + self._chunk])
        self._advised += len(chunk)
        index = np.concatenate([self._order.slice(first, last) for first, last in chunk])
        self._pending = self._pool.submit(advise, self._records, index, self._stopped)

    def close(self) -> None:
        """Requests nothing more."""
        self._stopped.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


def advise(records: Records, index: np.ndarray, stopped: threading.Event | None = None) -> int:
    """Asks the system to read the records of some samples, until `stopped`; returns the number of requests.

    A request is queued, not awaited; it takes longer only where the disk's queue is full.
    """
    count = 0
    for descriptor, starts, ends in records.byte_ranges(index):
        starts, ends = merge_ranges(starts, ends, _GAP)
        for start, end in zip(starts.tolist(), ends.tolist()):
            if stopped is not None and stopped.is_set():
                return count
            for at in range(start, end, _REQUEST):
                os.posix_fadvise(descriptor, at, min(_REQUEST, end - at), os.POSIX_FADV_WILLNEED)
                count += 1
    return count


def merge_ranges(starts: np.ndarray, ends: np.ndarray, gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted byte ranges, neighbours that are less than `gap` bytes apart joined. Two int64 arrays each way."""
    order = np.argsort(starts)
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    first = np.concatenate([[True], starts[1:] - ends[:-1] >= gap])
    return starts[first], ends[np.concatenate([first[1:], [True]])]
