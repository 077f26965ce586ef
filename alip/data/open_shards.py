"""The shards of a manifest that are open: a bounded number of files, shared by threads."""

from __future__ import annotations

import threading

from alip.data.recordio import IndexedReader
from alip.data.shards import Manifest


class OpenShards:
    """Readers of a manifest's shards, opened when they are asked for; of more than `most` the first one is closed.

    Safe to share between threads: a file is closed when nobody reads from it any more.
    """

    def __init__(self, manifest: Manifest, most: int):
        self.manifest, self.most = manifest, most
        self._readers: dict[int, IndexedReader] = {}
        self._opening = threading.Lock()

    def __len__(self) -> int:
        return len(self._readers)

    def __getitem__(self, shard: int) -> IndexedReader:
        reader = self._readers.get(shard)
        if reader is None:
            with self._opening:
                reader = self._readers.get(shard) or self.manifest.open_shard(shard)
                self._readers[shard] = reader
                while len(self._readers) > self.most:
                    self._readers.pop(next(iter(self._readers)))
        return reader

    def drop(self, shards: list[int]) -> None:
        """Closes the files of some shards, as soon as nobody reads them any more."""
        for shard in shards:
            self._readers.pop(shard, None)
