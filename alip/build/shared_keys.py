"""Samples that share a key, such as those of tars that each count from 0: what is joined by key goes to all of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow.parquet

from alip.data.shards import Shard
from alip.files import parquet_path
from alip.remote.reading import open_any
from alip.remote.urls import UrlPath


def count_shared_keys(options: dict, folder: Path | UrlPath, shards: Sequence[Shard]) -> int:
    """How many samples of a build with these options have the key of a sample before them, and so its captions. 0 where
    nothing is joined by key, and for tables, whose rows may be several texts of one image. Takes 8 bytes for each
    sample."""
    joined = options.get("captions") or options.get("rewrites")
    if not joined or options.get("source") not in ("webdataset", "folder"):
        return 0
    found = []
    for shard in shards:
        path = folder / shard.sidecar
        opened = open_any(path.url) if isinstance(path, UrlPath) else nullcontext(parquet_path(path))
        with opened as file, pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=65_536, columns=["key"]):
                found.append(np.fromiter(map(hash, batch.column(0).to_pylist()), np.int64, batch.num_rows))
    keys = np.sort(np.concatenate(found))
    return int((keys[1:] == keys[:-1]).sum())


def shared_keys_text(metadata: dict) -> list[str]:
    """The line about them for a summary; none where there are none. metadata: of the manifest."""
    count = metadata.get("shared_keys")
    return [f"{count:,} samples have the key of another one, and so the same captions"] if count else []
