"""Labelled images of one's own, a row each: a table (CSV, TSV, JSON lines, Parquet), or rec shards by their sidecars.

A row has an image and a label, and may have a split: rows of `train` are for probes, those of `test` (else `val` and
the like) are measured. A split that all rows have divides nothing.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from alip.build.table_rows import read_rows
from alip.distributed import note
from alip.errors import UserError
from alip.eval.classification import ClassificationDataset
from alip.eval.image_readers import ImageFiles, Images, read_rgb, short_hash, stat_key
from alip.eval.prompts import PLAIN_TEMPLATES, check_templates, read_lists
from alip.files import real_path
from alip.remote.urls import is_url

SHARDS = "shards:"  # the prefix of a dataset's name
_USUAL = {
    "image": ("image", "image_path", "filepath", "file_path", "path", "file", "filename", "file_name"),
    "label": ("label", "class", "class_name", "classname", "category"),
}
_OPEN_SHARDS = 64  # files that stay open; a system may allow 1,024 in all
_MOST_DIGITS = 9  # of a label that is a number
_SPLIT = "split"
_TEST_SPLITS = ("test", "val", "valid", "validation", "dev")  # the first that there is


@dataclass(frozen=True)
class RowFields:
    """The columns of image and label; None: the first of the usual names."""

    image: str | None = None
    label: str | None = None


USUAL_FIELDS = RowFields()


class _Row(NamedTuple):
    where: str
    image: Any  # a path, or a record's number
    label: str
    split: str | None


def open_table(
    path: Path, name: str, fields: RowFields, classnames: str | Path | None = None, prompts: str | Path | None = None
) -> ClassificationDataset:
    """Images by their paths, from the table's folder. classnames, prompts: files with this dataset's lists."""
    rows = list(_table_rows(path, fields))
    if not rows:
        raise UserError(f"{path} lists no images")
    return _dataset(rows, ImageFiles, path, name, classnames, prompts)


def open_shards(
    path: str | Path, fields: RowFields, classnames: str | Path | None = None, prompts: str | Path | None = None
) -> ClassificationDataset:
    """The records of rec shards that data2rec.py built, by a field that the source's rows had: the sidecar has it."""
    from alip.data.shards import load_manifest

    manifest = load_manifest(path)
    name = f"{real_path(manifest.folder).name}/{manifest.name}"
    rows = list(_sidecar_rows(manifest, fields))
    return _dataset(rows, lambda *some: ShardImages(manifest, *some), Path(path), name, classnames, prompts)


def spoken(names: Sequence[str], source: object) -> list[str]:
    """Names of folders and labels as words for a prompt; UserError for two that become one: the first would win."""
    words = [name.replace("_", " ").replace("-", " ") for name in names]
    if len(set(words)) < len(words):
        same = next(word for word in words if words.count(word) > 1)
        both = " and ".join(repr(name) for name, word in zip(names, words) if word == same)
        raise UserError(f"{source}: the classes {both} are both {same!r} in a prompt; join them, or give --classnames")
    return words


def numbers_of(own: Sequence[str], names: Sequence[str], source: object, classnames: object) -> dict[str, int]:
    """own: a dataset's labels, sorted → label → class number: its place in the list, where that has all of them, else
    its place in the sorted order. UserError where it cannot be told."""
    places = {name: number for number, name in enumerate(names)}
    if set(own) <= places.keys():
        return {label: places[label] for label in own}
    if len(names) != len(own):
        unknown = next(label for label in own if label not in places)
        raise UserError(
            f"{source} has {len(own)} classes, but {classnames} names {len(names)}, {unknown[:80]!r} not among them: "
            "list all by their own names, or a name for each in their sorted order"
        )
    moved = next((label for number, label in enumerate(own) if places.get(label, number) != number), None)
    if moved is not None:
        raise UserError(
            f"{classnames} has {moved[:80]!r} at another place than {source}, whose classes are in sorted order: list "
            "all by their own names, or a name for each in that order"
        )
    return {label: number for number, label in enumerate(own)}


def in_order(labels: Iterable[str]) -> list[str]:
    """Sorted; numbers by their value."""
    labels = list(labels)
    # `1` and `01` are two labels: without the second key their order would be that of a set.
    return sorted(labels, key=lambda label: (int(label), label)) if all(map(_is_number, labels)) else sorted(labels)


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdigit() and len(label) <= _MOST_DIGITS


def own_templates(prompts: str | Path | None, name: str) -> list[str]:
    """The templates of a file, else the plain one."""
    return check_templates(read_lists(prompts, name, "templates") if prompts else PLAIN_TEMPLATES, name)


def _dataset(
    rows: Sequence[_Row],
    images_of: Callable[[list, list[int]], Images],
    path: Path,
    name: str,
    classnames: str | Path | None,
    prompts: str | Path | None,
) -> ClassificationDataset:
    names, number = _classes(rows, path, name, classnames)
    splits = {row.split for row in rows}
    if None in splits and len(splits) > 1:  # such rows would be in no part
        where = next(row.where for row in rows if row.split is None)
        raise UserError(f"{where}: no {_SPLIT}, which other rows have; name one, or remove the rows")
    if len(splits) == 1:
        if splits == {"train"}:
            note(f"{path}: all rows are of the split train; they are taken as they are")
        rows, splits = [row._replace(split=None) for row in rows], {None}
    test = next((split for split in _TEST_SPLITS if split in splits), None)
    if splits != {None} and test is None:
        known = ", ".join(sorted(str(split)[:40] for split in splits)[:5])
        raise UserError(f"{path}: no row has the split test, val, valid, validation or dev; there are {known}")

    def part(split: str | None) -> Images:
        own = [row for row in rows if row.split == split]
        return images_of([row.image for row in own], [number[row.label] for row in own])

    dataset = ClassificationDataset(name, part(test), names, own_templates(prompts, name))
    return replace(dataset, train=lambda: part("train")) if "train" in splits else dataset


def _classes(
    rows: Sequence[_Row], path: Path, name: str, classnames: str | Path | None
) -> tuple[list[str], dict[str, int]]:
    """(names, label → class number). Labels that are numbers may be positions in the given list."""
    labels = {row.label for row in rows}
    numeric = all(map(_is_number, labels))
    if not classnames:
        own = in_order(labels)
        return spoken(own, path), {label: number for number, label in enumerate(own)}
    names = read_lists(classnames, name, "class names")
    if numeric and not labels <= set(names):
        last = max(map(int, labels))
        if last >= len(names):
            raise UserError(f"{path}: the label {last} is not in the class list: {classnames} names {len(names)}")
        return names, {label: int(label) for label in labels}
    if len(set(names)) < len(names):
        raise UserError(f"{classnames}: a class name of {name} is listed twice, so that labels are ambiguous")
    return names, numbers_of(sorted(labels), names, path, classnames)


# Rows --------------------------------------------------------------------------------------------------------------


def _table_rows(path: Path, fields: RowFields) -> Iterator[_Row]:
    for row in read_rows(str(path)):
        where = f"{path}, {'line' if path.suffix.lower() in ('.jsonl', '.ndjson') else 'row'} {row.number}"
        if row.values is None:
            raise UserError(f"{where}: {row.fault}")
        label = _label(row.values, fields.label, where)
        column = _column(row.values, "image", fields.image, where)
        image = row.values[column]
        if not isinstance(image, str) or not image.strip() or "\0" in image:
            raise UserError(f"{where}: {column} is {str(image)[:80]!r}, the path of an image is expected")
        if is_url(image):
            raise UserError(f"{where}: {image[:80]} is an address; images are read from files, or from shards:")
        yield _Row(where, path.parent / image, label, _split(row.values, where))


def _sidecar_rows(manifest: Any, fields: RowFields) -> Iterator[_Row]:
    from alip.data.shards import read_texts, row_metadata

    for number, row in enumerate(read_texts(manifest)):
        where = f"{manifest.name}: sample {row['key']}"
        values = {**row, **row_metadata(row, manifest.name)}
        yield _Row(where, number, _label(values, fields.label, where), _split(values, where))


def _column(values: dict[str, Any], what: str, given: str | None, where: str) -> str:
    column = given or next((name for name in _USUAL[what] if name in values), None)
    if column is None or column not in values:
        has = ", ".join(map(str, list(values)[:20]))[:200]
        missing = f"{what} missing" if given is None else f"no field {given!r}"
        raise UserError(f"{where}: {missing}; it has {has or 'nothing'}: name the field with --{what}-field")
    return column


def _label(values: dict[str, Any], given: str | None, where: str) -> str:
    column = _column(values, "label", given, where)
    value = values[column]
    if isinstance(value, float) and value.is_integer() and abs(value) < 10**_MOST_DIGITS:
        value = int(value)  # a column of numbers that had a gap
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        shown = repr(value if isinstance(value, bool) else str(value)[:80])
        raise UserError(
            f"{where}: {column} is {shown}, where a class name or a whole number belongs: correct it, or name another "
            "field with --label-field"
        )
    if any("\ud800" <= letter <= "\udfff" for letter in str(value)):
        raise UserError(f"{where}: {column} is {str(value)[:80]!r}, which holds half a character")
    return str(value).strip()


def _split(values: dict[str, Any], where: str) -> str | None:
    if _SPLIT not in values:
        return None
    if not isinstance(values[_SPLIT], str) or not values[_SPLIT].strip():
        raise UserError(f"{where}: {_SPLIT} is {str(values[_SPLIT])[:80]!r}, a name such as train or test is expected")
    return values[_SPLIT].strip().lower()


# Records -----------------------------------------------------------------------------------------------------------


class ShardImages:
    """Some records of rec shards, by their numbers, with labels of their own."""

    def __init__(self, manifest: Any, records: Sequence[int], labels: Sequence[int]):
        self.manifest, self.records, self.labels = manifest, list(records), list(labels)
        self._open: tuple[int, Any] = (0, None)  # the process, and its open shards

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": (0, None)}

    def __len__(self) -> int:
        return len(self.records)

    def data(self, index: int) -> bytes:
        """The encoded image."""
        from alip.data.recordio import unpack
        from alip.data.shards import record_fault

        shard, number = self.manifest.locate(self.records[index])
        payload = self._shards()[shard][number]
        fault = record_fault(self.manifest.shards[shard], number, payload)
        if fault is not None:
            raise OSError(fault)
        return unpack(payload)[1]

    def _shards(self) -> Any:
        """Of this process: a lock that the parent held at the fork would never be given back."""
        from alip.data.open_shards import OpenShards

        process, shards = self._open
        if process != os.getpid():  # if two threads do this at once, each has its own for one image
            shards = OpenShards(self.manifest, _OPEN_SHARDS)
            self._open = (os.getpid(), shards)
        return shards

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_rgb(io.BytesIO(self.data(index))), self.labels[index]

    def name(self, index: int) -> str:
        shard, number = self.manifest.locate(self.records[index])
        return f"{self.manifest.path(self.manifest.shards[shard].rec)} record {number}"

    def cache_key(self) -> str:
        paths = [self.manifest.path(shard.rec) for shard in self.manifest.shards]
        return stat_key(paths, [self.records, self.labels])

    def content_hash(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for index in range(len(self)):
            try:
                digest.update(hashlib.blake2b(self.data(index), digest_size=16).digest())
            except (OSError, ValueError, UserError):
                digest.update(b"unreadable")
        return short_hash([digest.hexdigest(), str(self.labels)])
