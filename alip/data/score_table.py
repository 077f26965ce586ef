"""The table of gate scores: a Parquet file, row i of sample i, that `alip.eval.gates` writes and data2rec.py reads.

Of a dataset with several captions per image it has a row for each caption, the captions of a sample one after another;
`caption_index` counts them from 0.

Its schema metadata holds, under `alip-gates`, a JSON object that names the dataset by its fingerprint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alip.data.shards import Manifest
from alip.errors import UserError
from alip.files import check_regular, parquet_path

METADATA_KEY = b"alip-gates"
VERSION = 2  # the newest that this code reads; without several captions tables are written as version 1
ROWS = 8192  # of a row group: what is in memory at a time
SIMILARITIES = ("text_caption_similarity", "image_text_similarity", "image_caption_similarity")
WEIGHTS = ("sample_weight", "text_weight", "caption_weight")
PRODUCTS = ("sample_text_weight", "sample_caption_weight")
SCORES = (*SIMILARITIES, *WEIGHTS, *PRODUCTS)
LABELS = ("is_mismatched", "is_caption_mismatched")
CAPTION_INDEX = "caption_index"


def table_schema(labels: Sequence[str], metadata: dict[str, Any], several: bool = False) -> pa.Schema:
    """The columns: index (of the sample), key, shard (its rec file), record (number in it), texts, scores, labels.

    labels: those of LABELS that are known. metadata: plain values, with `data` (see `data_metadata`). several: a row
    for each caption.
    """
    fields = [("index", pa.int64()), ("key", pa.string()), ("shard", pa.string()), ("record", pa.int32())]
    fields += [(CAPTION_INDEX, pa.int32())] if several else []
    fields += [("text", pa.string()), ("caption", pa.string())]
    fields += [(name, pa.float32()) for name in SCORES] + [(name, pa.bool_()) for name in labels]
    content = {"version": 2 if several else 1, **metadata}
    return pa.schema(fields, metadata={METADATA_KEY: json.dumps(content)})


def data_metadata(manifest: Manifest) -> dict[str, Any]:
    """What ties a table to its dataset."""
    return {"name": manifest.name, "samples": manifest.samples, "fingerprint": manifest.fingerprint}


def one_line(error: Exception) -> str:
    """Arrow's message without its line breaks, cut short."""
    line = " ".join(str(error).split())
    return line if len(line) <= 200 else line[:199] + "…"


class ScoreTable:
    """An open table. metadata: what was scored, with what; columns: {name: type}. UserError if it is none."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        check_regular(self.path)
        try:
            self._file = pq.ParquetFile(parquet_path(self.path), page_checksum_verification=True)
        except FileNotFoundError:
            raise UserError(f"no score table {self.path}: write one with `python -m alip.eval.gates`") from None
        except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: names that are not UTF-8
            raise UserError(f"{self.path} cannot be read as Parquet ({one_line(error)}): write it again") from None
        schema = self._file.schema_arrow
        try:
            self.metadata = json.loads((schema.metadata or {})[METADATA_KEY])
            version = self.metadata["version"]
            self._data = {key: self.metadata["data"][key] for key in ("name", "samples", "fingerprint")}
        except (KeyError, ValueError, TypeError):
            self.close()
            raise UserError(
                f"{self.path} is no table of `python -m alip.eval.gates`, or a tool wrote it again without its schema "
                "metadata: give the table as it was written"
            ) from None
        if version not in range(1, VERSION + 1):
            self.close()
            raise UserError(f"{self.path} has version {version}, this code reads up to {VERSION}: write it again")
        self.columns = {field.name: field.type for field in schema}
        self.rows: int = self._file.metadata.num_rows

    def check_data(self, manifest: Manifest) -> None:
        """UserError unless the table is of this dataset and has all of its rows, in order."""
        name = manifest.folder / manifest.name
        if self._data["fingerprint"] != manifest.fingerprint:
            raise UserError(
                f"{self.path} is of other data: {self._data['name']} with {self._data['samples']} samples (fingerprint "
                f"{self._data['fingerprint']}), {name} has {manifest.samples} ({manifest.fingerprint}): score {name}"
            )
        if (CAPTION_INDEX in self.columns) != (manifest.captions_per_image > 1):
            raise UserError(f"{self.path} has no row for each caption of {name}, or too many: write the table again")
        if CAPTION_INDEX in self.columns:
            self._check_captions(manifest)
            return
        if self.rows != manifest.samples:
            raise UserError(
                f"{self.path} has {self.rows} rows, {name} has {manifest.samples} samples: rows are missing or double, "
                "write the table again"
            )
        at = 0
        for batch in self.batches(["index"]):
            index = np.asarray(batch["index"])
            displaced = np.flatnonzero(index != np.arange(at, at + len(index)))
            if len(displaced):
                row = at + int(displaced[0])
                raise UserError(
                    f"{self.path}: row {row} is of sample {index[displaced[0]]}: the rows are not in the order of "
                    f"{name}, write the table again"
                )
            at += len(index)

    def _check_captions(self, manifest: Manifest) -> None:
        """UserError unless samples are in order, none is missing, and each one's captions are numbered from 0."""
        row, before, number = 0, -1, 0  # the row before: of which sample, which caption
        for batch in self.batches(["index", CAPTION_INDEX]):
            index = np.concatenate([[before], batch["index"]])
            captions = np.concatenate([[number], batch[CAPTION_INDEX]])
            same = np.diff(index) == 0
            sound = np.where(same, np.diff(captions) == 1, (np.diff(index) == 1) & (captions[1:] == 0))
            if not sound.all():
                row += int(np.argmin(sound))
                break
            row, before, number = row + len(same), int(index[-1]), int(captions[-1])
        if row != self.rows or before != manifest.samples - 1:
            raise UserError(
                f"{self.path}: from row {row} on the rows are not those of {manifest.folder / manifest.name}: rows are "
                "missing, double or in another order, write the table again"
            )

    def batches(self, columns: Sequence[str], rows: int = ROWS) -> Iterator[dict[str, Any]]:
        """{column: array} of some rows at a time: numbers and booleans as numpy arrays, strings as object arrays."""
        at = 0
        try:
            for batch in self._file.iter_batches(batch_size=rows, columns=list(columns)):
                at += batch.num_rows
                yield {name: batch.column(name).to_numpy(zero_copy_only=False) for name in columns}
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self.path} is damaged ({one_line(error)}): write it again") from None
        if at != self.rows:
            raise UserError(f"{self.path} is damaged (it holds {at} of its {self.rows} rows): write it again")

    def value_range(self, name: str) -> tuple[float, float]:
        """Smallest and largest value of a column of numbers, from the file's statistics; (0, 0) of no rows."""
        metadata = self._file.metadata
        column = self._file.schema_arrow.get_field_index(name)
        groups = [metadata.row_group(i).column(column).statistics for i in range(metadata.num_row_groups)]
        known = [one for one in groups if one is not None and one.has_min_max]
        if not known:
            return 0.0, 0.0
        return float(min(one.min for one in known)), float(max(one.max for one in known))

    def column(self, name: str) -> np.ndarray:
        """One whole column, (rows,)."""
        parts = [batch[name] for batch in self.batches([name])]
        return np.concatenate(parts) if parts else np.zeros(0)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> ScoreTable:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
