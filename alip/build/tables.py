"""Tables with one row per sample: CSV, TSV, JSON lines, Parquet. Images are files that the rows name or, in Parquet,
bytes in a column: alone, or as Hugging Face's `datasets` keeps them, in a struct of `bytes` and `path`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from alip.build.sources import MAX_IMAGE_BYTES, ByteRange, Fields, Sample, Source, as_text, as_texts
from alip.build.table_rows import TABLES, column_names, read_rows
from alip.errors import UserError
from alip.remote.urls import folder_of, join, name_of, redact

__all__ = ["TABLES", "TableSource"]

USUAL = {  # the names that are looked for, first one wins
    "key": ("key", "id", "image_id", "__key__"),
    "image": ("image", "image_path", "filepath", "file_path", "path", "file", "filename", "file_name", "img", "jpg"),
    "text": ("text", "raw_text", "title", "alt_text", "txt"),
    "caption": ("caption", "synthetic_caption"),
}


class TableSource(Source):
    """A table with columns for image, raw text and, perhaps, caption and key. Without a key the path is the key, and of
    an image in the table `FILE#ROW`, rows counted from 0: paths stored beside images are often the same in several
    files. Of files with the same name FILE is as much of the path as tells them apart.

    Rows of JSON lines may have different fields: each row is read by its own.
    """

    source_type = "table"
    divided_from = 1 << 23  # a row may be as short as a path, and its image costs milliseconds
    divided_at_urls = True

    def __init__(self, paths: list[str], fields: Fields, image_root: str | None):
        super().__init__(paths, fields)
        self.image_root = image_root
        self._labels = _distinct_names(paths)

    def read_unit(self, unit: int, position: tuple[int, ...] | None = None) -> Iterator[Sample]:
        path = self.units[unit]
        root = self.image_root if self.image_root is not None else folder_of(path)
        if position is None:
            self._check_columns(path)
        for row in read_rows(path, position):
            where = f"{redact(path)}, row {row.number}"
            progress = self.progress(unit, row.done)
            if row.values is None:
                reason = "broken-input" if row.lost_rest else "broken-row"
                error = f"{reason}: {where}: {row.fault}"
                sample = Sample(f"row {row.number}", where, error=error, progress=progress)
            else:
                sample = self._sample(row.values, root, where, f"{self._labels[unit]}#{row.number - 1}", progress)
            sample.position = row.position
            yield sample

    def positions(self, unit: int) -> Iterator[tuple[int, ...] | None]:
        self._check_columns(self.units[unit])
        return (row.position for row in read_rows(self.units[unit], with_bytes=False))

    def _check_columns(self, path: str) -> None:
        """UserError if a column that was named, or any for the image, is not there."""
        there = column_names(path)
        if not there:
            return
        has = ", ".join(map(str, there[:20]))[:200]
        path = redact(path)
        for what in USUAL:
            given = getattr(self.fields, what)
            if given is not None and given not in there:
                raise UserError(f"{path} has no column {given!r} for --{what}-field; it has {has}")
        if self.fields.image is None and not any(name in there for name in USUAL["image"]):
            raise UserError(f"{path} has no column for images or their paths: name it with --image-field; it has {has}")

    def _sample(self, row: dict, root: str, where: str, row_key: str, progress: float) -> Sample:
        names = {
            what: getattr(self.fields, what) or next((name for name in usual if name in row), None)
            for what, usual in USUAL.items()
        }
        if names["text"] == names["caption"]:
            names["caption"] = None
        sample = Sample(where, where, progress=progress)
        own_key = _take_texts(sample, row, names)
        taken = set(names.values())
        sample.metadata = {
            str(name): entry
            for name, entry in row.items()
            if name not in taken and entry not in (None, "") and not _holds_bytes(entry)
        }
        data, path, cell = None, None, row.get(names["image"])
        try:
            data, path = _image(cell)
            sample.image_data = ByteRange(join(root, path)) if data is None and path else data
        except _BadImage as error:
            sample.error = sample.error or f"{error.reason}: {where}: the column {names['image']}: {error}"
        except ValueError as error:
            sample.error = sample.error or f"foreign-url: {error}"
        sample.key = own_key or (row_key if isinstance(cell, dict | bytes) else path) or where
        sample.image_name = os.path.basename(path or "")
        return sample


def _take_texts(sample: Sample, row: dict, names: dict[str, str | None]) -> str | None:
    """Gives a sample the texts of a row, or an error; returns the row's key, if it has one."""
    key = None
    for what in ("key", "text", "caption"):
        name = names[what]
        if name is None:
            continue
        try:
            if what == "caption":
                sample.captions = as_texts(row.get(name))
            elif what == "text":
                sample.text = as_text(row.get(name))
            else:
                key = as_text(row.get(name))
        except ValueError as error:
            sample.error = f"bad-text: {sample.where}: the column {name}: {error}"
    return key and key.strip()


class _BadImage(ValueError):
    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def _image(cell: Any) -> tuple[bytes | None, str | None]:
    """An image's bytes, if the cell holds them, and its path, if it has one. _BadImage for what is neither."""
    data, path = None, cell
    if isinstance(cell, dict) and not cell.keys().isdisjoint(("bytes", "path")):
        data, path = cell.get("bytes"), cell.get("path")
    elif isinstance(cell, bytes):
        data, path = cell, None
    wrong = path if isinstance(path, bytes | list | tuple | dict) else None
    wrong = data if not isinstance(data, bytes | None) else wrong
    if wrong is not None:
        found = f"a value of type {type(wrong).__name__}"
        raise _BadImage("not-an-image", f"an image's path or its bytes should be here, not {found}")
    if data is not None and len(data) > MAX_IMAGE_BYTES:
        raise _BadImage("unreadable", f"{len(data):,} bytes, the limit is {MAX_IMAGE_BYTES:,}")
    path = as_text(path)
    return data, path and path.strip()


def _distinct_names(paths: list[str]) -> list[str]:
    """The files' names; of those that share one, with as many folders before it as it takes to tell them apart."""
    names = Counter(map(name_of, paths))
    alike = [redact(path).split("/") for path in paths if names[name_of(path)] > 1]
    counts = Counter("/".join(one[-depth:]) for one in alike for depth in range(1, len(one) + 1))

    def distinct(path: str) -> str:
        if names[name_of(path)] == 1:
            return name_of(path)
        parts = redact(path).split("/")
        longer = ("/".join(parts[-depth:]) for depth in range(2, len(parts)))
        return next((name for name in longer if counts[name] == 1), "/".join(parts))

    return list(map(distinct, paths))


def _holds_bytes(value: Any) -> bool:
    """Whether a value is bytes or holds some, such as another image."""
    if isinstance(value, dict):
        return any(map(_holds_bytes, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_bytes, value))
    return isinstance(value, bytes)
