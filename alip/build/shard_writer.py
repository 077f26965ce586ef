"""One shard in the making: rec, index and sidecar under temporary names until all of it is on the disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from alip.build.prepare import PreparedSample
from alip.data.recordio import Writer, pack, stamp
from alip.data.shards import CAPTIONS_COLUMN, SIDECAR_COLUMNS, Shard
from alip.files import parquet_path, sha256_of_file, sync

_ROWS = 4096  # of a sidecar's row group
_FIELDS = [(name, pyarrow.string()) for name in SIDECAR_COLUMNS]
_CAPTIONS = (CAPTIONS_COLUMN, pyarrow.list_(pyarrow.string()))


class ShardWriter:
    """Writes one shard in the work folder; `commit` moves it to `folder` under its name.

    several: its records may have several captions, and its rows end with a list of them.
    """

    def __init__(self, folder: Path, name: str, work: Path, several: bool = False):
        self.names = {kind: f"{name}.{kind}" for kind in ("rec", "idx", "parquet")}
        self.folder = folder
        self.paths = {kind: work / file for kind, file in self.names.items()}
        self.samples = 0
        self.max_token = 0
        self._records = Writer(self.paths["rec"], self.paths["idx"])
        self._schema = pyarrow.schema([*_FIELDS, _CAPTIONS] if several else _FIELDS)
        sidecar = parquet_path(self.paths["parquet"])
        self._sidecar = pyarrow.parquet.ParquetWriter(sidecar, self._schema, compression="zstd")
        self._rows: list[tuple] = []
        self._sha256 = hashlib.sha256()

    def add(self, sample: PreparedSample) -> None:
        """Appends one sample."""
        self.add_record(pack(sample.label, sample.image), sample.label, sample.row)

    def add_record(self, payload: bytes, label: np.ndarray, row: tuple) -> None:
        """Appends an image record; its `id` becomes its number in the shard, its `id2` the CRC-32 of labels and image.

        payload: as recordio.pack makes it; label: float32, the one in it; row: as PreparedSample has it.
        """
        self._sha256.update(self._records.write(stamp(payload, self.samples)))
        self.max_token = max(self.max_token, int(label.max()))
        self._rows.append(row)
        self.samples += 1
        if len(self._rows) == _ROWS:
            self._flush_rows()

    def _flush_rows(self) -> None:
        columns = [pyarrow.array(column, field.type) for column, field in zip(zip(*self._rows), self._schema)]
        self._sidecar.write_table(pyarrow.Table.from_arrays(columns, schema=self._schema))
        self._rows = []

    def commit(self) -> Shard:
        """The shard's entry in the manifest; all of it is on the disk, under its final names."""
        if self._rows:
            self._flush_rows()
        self._sidecar.close()
        self._records.sync()
        self._records.close()
        sidecar_sha256 = sha256_of_file(self.paths["parquet"])
        sync(self.paths["parquet"])
        for kind, path in self.paths.items():
            os.replace(path, self.folder / self.names[kind])
        sync(self.folder)
        return Shard(
            rec=self.names["rec"],
            idx=self.names["idx"],
            sidecar=self.names["parquet"],
            samples=self.samples,
            bytes=self._records.offset,
            sha256=self._sha256.hexdigest(),
            max_token=self.max_token,
            sidecar_sha256=sidecar_sha256,
            crc32=True,
        )

    def abandon(self) -> None:
        """Closes the files of a shard that will not be finished; on a full disk even that may complain."""
        for close in (self._records.close, self._sidecar.close):
            with contextlib.suppress(OSError, pyarrow.ArrowException):
                close()
