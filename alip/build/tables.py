"""Tables with one row per sample: CSV, TSV, JSON lines, Parquet."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator

from alip.build.sources import ByteRange, Fields, Sample, Source, clean
from alip.errors import UserError

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
USUAL = {  # the names that are looked for, first one wins
    "key": ("key", "id", "image_id"),
    "image": ("image", "image_path", "filepath", "file_path", "path", "file", "filename", "file_name"),
    "text": ("text", "raw_text", "title", "alt_text"),
    "caption": ("caption", "synthetic_caption"),
}
_LONGEST_FIELD = 1 << 24  # characters of one CSV field


class TableSource(Source):
    """A table with columns for image path, raw text and, perhaps, caption and key (else the path is the key)."""

    source_type = "table"

    def __init__(self, paths: list[str], fields: Fields, image_root: str | None):
        super().__init__(paths, fields)
        self.image_root = image_root

    def read_unit(self, unit: int) -> Iterator[Sample]:
        path = self.units[unit]
        root = self.image_root if self.image_root is not None else os.path.dirname(path)
        names: dict[str, str | None] | None = None
        for number, row, done in read_rows(path):
            where = f"{path}, row {number}"
            if row is None:
                yield Sample(f"row {number}", where, error=f"broken-row: {where} cannot be read")
                continue
            names = names or self._names(row, path)
            yield self._sample(row, names, root, where, self.progress(unit, done))

    def _names(self, row: dict, path: str) -> dict[str, str | None]:
        names: dict[str, str | None] = {}
        for what, usual in USUAL.items():
            given = getattr(self.fields, what)
            if given is not None and given not in row:
                raise UserError(f"{path} has no column {given!r} for --{what}-field; it has {', '.join(map(str, row))}")
            names[what] = given or next((name for name in usual if name in row), None)
        if names["image"] is None:
            raise UserError(
                f"{path} has no column for the image's path: name it with --image-field; it has {', '.join(row)}"
            )
        if names["text"] == names["caption"]:
            names["caption"] = None
        return names

    @staticmethod
    def _sample(row: dict, names: dict[str, str | None], root: str, where: str, progress: float) -> Sample:
        value = {what: clean(row.pop(name, None)) if name else None for what, name in names.items()}
        image = value["image"]
        return Sample(
            key=value["key"] or image or where,
            where=where,
            image_data=ByteRange(os.path.join(root, image)) if image else None,
            image_name=os.path.basename(image or ""),
            text=value["text"],
            caption=value["caption"],
            metadata={str(name): entry for name, entry in row.items() if entry not in (None, "")},
            progress=progress,
        )


def read_rows(path: str) -> Iterator[tuple[int, dict | None, float]]:
    """(row number from 1, row or None where it is broken, bytes of the file done) of a table, streaming."""
    name = path.lower()
    if name.endswith((".jsonl", ".ndjson")):
        yield from _json_lines(path)
    elif name.endswith(".parquet"):
        yield from _parquet(path)
    elif name.endswith((".csv", ".tsv")):
        yield from _separated(path, "\t" if name.endswith(".tsv") else ",")
    else:
        raise UserError(f"cannot read {path} as a table: its name should end with one of {', '.join(TABLES)}")


def _json_lines(path: str) -> Iterator[tuple[int, dict | None, float]]:
    done = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            done += len(line)
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            yield number, row if isinstance(row, dict) else None, done


def _separated(path: str, delimiter: str) -> Iterator[tuple[int, dict | None, float]]:
    csv.field_size_limit(_LONGEST_FIELD)
    size = os.path.getsize(path)
    with open(path, "rb") as binary:
        lines = (line.decode("utf-8", errors="surrogateescape").replace("\0", "") for line in binary)
        # A tab-separated file quotes nothing: a lone quotation mark in a web text must not swallow the next rows.
        quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
        rows = csv.reader(lines, delimiter=delimiter, quoting=quoting)
        header = next(rows, None)
        if not header:
            raise UserError(f"{path} is empty: its first line should name the columns")
        header[0] = header[0].removeprefix("\ufeff")
        for number, cells in enumerate(rows, 1):
            if cells:
                good = len(cells) == len(header) and not any(_is_broken(cell) for cell in cells)
                yield number, dict(zip(header, cells)) if good else None, min(size, binary.tell())


def _is_broken(text: str) -> bool:
    """True if bytes that are no UTF-8 stand in a text that was read with surrogateescape."""
    return not text.isascii() and any("\udc80" <= letter <= "\udcff" for letter in text)


def _parquet(path: str) -> Iterator[tuple[int, dict | None, float]]:
    import pyarrow.parquet

    size = os.path.getsize(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            total = max(1, file.metadata.num_rows)
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row, size * number / total
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from None
