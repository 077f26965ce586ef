"""Tables with one row per sample: CSV, TSV, JSON lines, Parquet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice

from alip.build.sources import ByteRange, Fields, Sample, Source, as_text, as_texts
from alip.build.table_rows import TABLES, read_rows
from alip.errors import UserError
from alip.remote.urls import folder_of, join, redact

__all__ = ["TABLES", "TableSource"]

USUAL = {  # the names that are looked for, first one wins
    "key": ("key", "id", "image_id"),
    "image": ("image", "image_path", "filepath", "file_path", "path", "file", "filename", "file_name"),
    "text": ("text", "raw_text", "title", "alt_text"),
    "caption": ("caption", "synthetic_caption"),
}
_LOOKED_AT = 1000  # rows in which a column that was asked for should appear


class TableSource(Source):
    """A table with columns for image path, raw text and, perhaps, caption and key (else the path is the key).

    Rows of JSON lines may have different fields: each row is read by its own.
    """

    source_type = "table"
    divided_from = 1 << 23  # a row may be as short as a path, and its image costs milliseconds
    divided_at_urls = True

    def __init__(self, paths: list[str], fields: Fields, image_root: str | None):
        super().__init__(paths, fields)
        self.image_root = image_root

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
                sample = self._sample(row.values, root, where, progress)
            sample.position = row.position
            yield sample

    def positions(self, unit: int) -> Iterator[tuple[int, ...] | None]:
        self._check_columns(self.units[unit])
        return (row.position for row in read_rows(self.units[unit]))

    def _check_columns(self, path: str) -> None:
        """UserError if a column that was named, or any for the image, is in none of the first rows."""
        there: dict[str, None] = {}
        for row in islice(read_rows(path), _LOOKED_AT):
            there.update(dict.fromkeys(row.values or ()))
        if not there:
            return
        has = ", ".join(map(str, list(there)[:20]))[:200]
        path = redact(path)
        for what in USUAL:
            given = getattr(self.fields, what)
            if given is not None and given not in there:
                raise UserError(f"{path} has no column {given!r} for --{what}-field; it has {has}")
        if self.fields.image is None and not any(name in there for name in USUAL["image"]):
            raise UserError(f"{path} has no column for the image's path: name it with --image-field; it has {has}")

    def _sample(self, row: dict, root: str, where: str, progress: float) -> Sample:
        names = {
            what: getattr(self.fields, what) or next((name for name in usual if name in row), None)
            for what, usual in USUAL.items()
        }
        if names["text"] == names["caption"]:
            names["caption"] = None
        sample = Sample(where, where, progress=progress)
        value: dict[str, str | None] = {}
        for what, name in names.items():
            try:
                if what == "caption":
                    sample.captions = as_texts(row.get(name)) if name else ()
                else:
                    value[what] = as_text(row.get(name)) if name else None
            except ValueError as error:
                value[what] = None
                fault = error if what != "image" else "an image's path should be here; images themselves: write tars"
                sample.error = f"bad-text: {where}: the column {name}: {fault}"
        taken = set(names.values())
        sample.metadata = {
            str(name): entry for name, entry in row.items() if name not in taken and entry not in (None, "")
        }
        image = value["image"] and value["image"].strip()
        sample.key = (value["key"] and value["key"].strip()) or image or where
        try:
            sample.image_data = ByteRange(join(root, image)) if image else None
        except ValueError as error:
            sample.error = sample.error or f"foreign-url: {error}"
        sample.image_name = os.path.basename(image or "")
        sample.text = value["text"]
        return sample
