"""Shards of a dataset at a URL, where code wants local files: one shard at a time, in a temporary folder."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from alip.data.recordio import decode, read_index
from alip.data.shards import Manifest
from alip.errors import UserError
from alip.remote.reading import download, exists, read_range
from alip.remote.urls import UrlPath


@contextlib.contextmanager
def shard_at_hand(
    manifest: Manifest, number: int, scratch: Path | None = None, *, as_it_is: bool = False
) -> Iterator[Manifest]:
    """The manifest with one shard's files in a local folder: its own or, for a dataset at a URL, one in `scratch`
    (None: in the system's temporary folder) that is removed afterwards. UserError for files that are not the
    manifest's; as_it_is: these are copied too, and what is missing there is missing here.
    """
    if not isinstance(manifest.folder, UrlPath):
        yield manifest
        return
    shard = manifest.shards[number]
    with tempfile.TemporaryDirectory(prefix="alip-shard-", dir=scratch) as folder:
        sizes, hashes = {shard.rec: shard.bytes}, {shard.rec: shard.sha256, shard.sidecar: shard.sidecar_sha256}
        for name in filter(None, (shard.rec, shard.idx, shard.sidecar)):
            url = (manifest.folder / name).url
            if not as_it_is:
                download(url, Path(folder) / name, sizes.get(name), hashes.get(name))
            elif exists(url):
                download(url, Path(folder) / name)
        yield replace(manifest, folder=Path(folder))


def read_record(manifest: Manifest, index: int) -> bytes:
    """The payload of one sample. At a URL its index file and its own bytes are read, nothing else. UserError if the
    shard is not as the manifest has it; RecordError if the record is damaged."""
    number, record = manifest.locate(index)
    if not isinstance(manifest.folder, UrlPath):
        with manifest.open_shard(number) as reader:
            return reader[record]
    shard = manifest.shards[number]
    rec, idx = manifest.folder / shard.rec, manifest.folder / shard.idx
    with tempfile.TemporaryDirectory(prefix="alip-index-") as folder:
        download(idx.url, Path(folder) / "idx")
        offsets = read_index(Path(folder) / "idx")[1]
    if len(offsets) != shard.samples:
        raise UserError(f"{idx} has {len(offsets)} lines, the manifest {shard.samples} samples: upload it again")
    start = int(offsets[record])
    behind = offsets[offsets > start]
    end = int(np.min(behind)) if len(behind) else shard.bytes
    return decode(read_range(rec.url, start, end), str(rec), start)
