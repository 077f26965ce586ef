"""The table of caption scores that `python -m alip.caption.score` writes, and what data2rec.py's --keep makes of it.

A Parquet file with a row for each caption: `key`, `number` (which of the image's captions), `caption`, and the scores.
Its schema metadata holds, under `alip-caption-scores`, a JSON object with the version and how the scores were made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alip.build.expression import Expression, column_types, evaluate_all, parse_condition
from alip.build.table_rows import read_rows
from alip.build.text_hash import number
from alip.errors import UserError
from alip.files import check_regular, parquet_path

METADATA_KEY = b"alip-caption-scores"
VERSION = 1
SUFFIX = "-scores.parquet"
ROWS = 8192  # of a row group: what is in memory at a time


def scores_path(captions: str | Path) -> Path:
    """Where the scores of a captions file are by default: captions.jsonl → captions-scores.parquet."""
    path = Path(captions)
    return path.with_name(path.stem + SUFFIX)


def caption_number(key: str, caption: str) -> int:
    """A 64-bit hash of one caption of one image."""
    return number(f"{key}\0{caption}")


class CaptionScores:
    """An open table. metadata: how the scores were made. UserError if it is none."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        check_regular(self.path)
        try:
            self._file = pq.ParquetFile(parquet_path(self.path), page_checksum_verification=True)
        except FileNotFoundError:
            raise UserError(f"no caption scores {self.path}: write them with `python -m alip.caption.score`") from None
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{self.path} cannot be read as Parquet ({_one_line(error)}): write it again") from None
        schema = self._file.schema_arrow
        try:
            self.metadata: dict[str, Any] = json.loads((schema.metadata or {})[METADATA_KEY])
            version = self.metadata["version"]
        except (KeyError, ValueError, TypeError):
            raise UserError(
                f"{self.path} is no table of `python -m alip.caption.score`, or a tool wrote it again without its "
                "schema metadata: give the table as it was written"
            ) from None
        if version != VERSION:
            raise UserError(f"{self.path} has version {version}, this code reads version {VERSION}: write it again")
        self.columns = {field.name: field.type for field in schema}
        self.rows: int = self._file.metadata.num_rows

    def batches(self, columns: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """{column: (rows,) array} of some rows at a time; `index` counts the rows."""
        at = 0
        wanted = [name for name in columns if name != "index"]
        try:
            for batch in self._file.iter_batches(batch_size=ROWS, columns=wanted or ["number"]):
                values = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in wanted}
                yield values | {"index": np.arange(at, at + batch.num_rows)}
                at += batch.num_rows
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self.path} is damaged ({_one_line(error)}): write it again") from None


class KeptCaptions:
    """Which captions an expression over their scores keeps: 9 bytes for each caption.

    scores: the table's path. keep: the expression (alip.build.expression) over its columns.
    UserError: no such table, an expression that is wrong or true for no caption.
    """

    def __init__(self, scores: str | Path, keep: str):
        table = CaptionScores(scores)
        self.path = table.path
        condition = parse_condition(keep, column_types(table.columns), "--keep")
        numbers, kept = np.empty(table.rows, np.uint64), np.empty(table.rows, bool)
        at = 0
        for batch, values in zip(table.batches(["key", "caption"]), self._values(condition, table), strict=True):
            for i, (key, caption) in enumerate(zip(batch["key"], batch["caption"])):
                numbers[at + i] = caption_number(key, caption)
            kept[at : at + len(values)] = values
            at += len(values)
        if not kept.any():
            raise UserError(f"--keep {keep!r} is true for none of the {table.rows:,} captions in {table.path}")
        order = np.argsort(numbers, kind="stable")
        self._numbers, self._kept = numbers[order], kept[order]
        self._failed = _failed_keys(self.path)

    @staticmethod
    def _values(condition: Expression, table: CaptionScores) -> Iterator[np.ndarray]:
        for (values,) in evaluate_all([condition], table.batches):
            yield values

    def __call__(self, key: str, caption: str) -> bool | None:
        """Whether to keep a caption; None if it has no scores. One of an image that could not be scored is not kept."""
        wanted = np.uint64(caption_number(key, caption))
        position = int(np.searchsorted(self._numbers, wanted))
        if position == len(self._numbers) or self._numbers[position] != wanted:
            return False if key in self._failed else None
        return bool(self._kept[position])


def _failed_keys(scores: Path) -> set[str]:
    """The images whose captions could not be scored: `alip.caption.score` lists them beside its table."""
    failures = scores.with_name(scores.stem + "-failures.jsonl")
    if not failures.is_file():
        return set()
    return {str((row.values or {}).get("key")) for row in read_rows(str(failures))}


def _one_line(error: Exception) -> str:
    line = " ".join(str(error).split())
    return line if len(line) <= 200 else line[:199] + "…"
