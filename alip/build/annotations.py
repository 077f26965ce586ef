"""Annotation files: COCO captions and Karpathy's splits, one sample per sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import NoneType
from typing import Any

from alip.build.sources import ByteRange, Fields, Sample, Source, as_text, load_json_object
from alip.errors import UserError
from alip.remote.urls import folder_of, join, redact

_LARGEST = 1 << 31  # bytes of one file: it is read whole, and takes several times as much memory


class AnnotationSource(Source):
    """COCO captions or Karpathy's split file: one sample for each sentence of each image, the sentence as raw text.

    The keys are IMAGE#0, IMAGE#1, …; a captions file may speak of IMAGE or of IMAGE#0. The file is read whole: its
    size (COCO: 0.5 GB of memory for 600,000 sentences) is the memory that this takes.
    """

    def __init__(
        self, paths: list[str], fields: Fields, image_root: str | None, source_type: str, splits: tuple[str, ...]
    ):
        super().__init__(paths, fields)
        self.source_type = source_type
        self.image_root = image_root
        self.splits = splits

    def read_unit(self, unit: int, position: tuple[int, ...] | None = None) -> Iterator[Sample]:
        path = redact(self.units[unit])
        try:
            content = load_json_object(
                ByteRange(self.units[unit]).read(_LARGEST).removeprefix(b"\xef\xbb\xbf").decode("utf-8")
            )
            rows = list(_karpathy(content, self.splits) if self.source_type == "karpathy" else _coco(content))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; check the path") from None
        except ValueError as error:
            raise UserError(f"{path} is not {self.source_type} JSON: {error}") from None
        root = self.image_root if self.image_root is not None else folder_of(self.units[unit])
        for number, (key, file_name, text, metadata) in enumerate(rows):
            try:
                image, error = ByteRange(join(root, file_name)) if file_name else None, None
            except ValueError as outside:
                image, error = None, f"foreign-url: {outside}"
            yield Sample(
                key=key,
                image_key=key.rpartition("#")[0],
                where=f"{path}, {key}",
                image_data=image,
                error=error,
                image_name=os.path.basename(file_name or ""),
                text=as_text(text),
                metadata=metadata,
                progress=self.progress(unit, self.sizes[unit] * (number + 1) / len(rows)),
            )


def _karpathy(content: dict, splits: tuple[str, ...]) -> Iterator[tuple[str, str, str | None, dict]]:
    for number, image in enumerate(_entries(content, "images")):
        where = f"images[{number}]"
        split = _field(image, "split", where, str, None)
        if splits and split not in splits:
            continue
        file_name = _field(image, "filename", where, str)
        key = str(image.get("cocoid", image.get("imgid", file_name)))
        name = os.path.join(_field(image, "filepath", where, str, ""), file_name)
        for k, sentence in enumerate(_field(image, "sentences", where, list) or [{"raw": None}]):
            raw = _field(sentence, "raw", f"{where}.sentences[{k}]", (str, NoneType))
            yield f"{key}#{k}", name, raw, {"image_id": key, "split": split}


def _coco(content: dict) -> Iterator[tuple[str, str | None, str | None, dict]]:
    names = {}
    for number, image in enumerate(_entries(content, "images")):
        where = f"images[{number}]"
        name, key = _field(image, "file_name", where, str), _field(image, "id", where, (int, str))
        if names.setdefault(key, name) != name:
            raise ValueError(f"{where} has the id {key!r}, and so has another image: give each its own")
    count: dict = {}
    for number, annotation in enumerate(_entries(content, "annotations", [])):
        where = f"annotations[{number}]"
        key = _field(annotation, "image_id", where, (int, str))
        k = count.get(key, 0)
        count[key] = k + 1
        caption = _field(annotation, "caption", where, (str, NoneType))
        yield f"{key}#{k}", names.get(key), caption, {"image_id": str(key)}
    for key, name in names.items():
        if key not in count:
            yield f"{key}#0", name, None, {"image_id": str(key)}


_REQUIRED = object()


def _entries(content: dict, name: str, default: object = _REQUIRED) -> list:
    return _field(content, name, "the file", list, default)


def _field(entry: object, name: str, where: str, types: type | tuple[type, ...], default: Any = _REQUIRED) -> Any:
    """A field of an entry of the file; ValueError names what is missing or of another type."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where} should be an object with {name!r}, not {str(entry)[:40]!r}")
    value = entry.get(name, default)
    if value is _REQUIRED:
        has = ", ".join(map(repr, list(entry)[:10]))[:200]
        raise ValueError(f"{where} has no {name!r}; it has {has or 'nothing'}")
    if value is not default and (not isinstance(value, types) or isinstance(value, bool)):
        raise ValueError(f"{name!r} of {where} cannot be {str(value)[:40]!r}")
    return value
