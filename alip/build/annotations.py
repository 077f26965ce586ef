"""Annotation files: COCO captions and Karpathy's splits, one sample per sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from alip.build.sources import ByteRange, Fields, Sample, Source, clean
from alip.errors import UserError


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

    def read_unit(self, unit: int) -> Iterator[Sample]:
        path = self.units[unit]
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            rows = list(_karpathy(content, self.splits) if self.source_type == "karpathy" else _coco(content))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not {self.source_type} JSON: {type(error).__name__} {error}") from None
        root = self.image_root if self.image_root is not None else os.path.dirname(path)
        for number, (key, file_name, text, metadata) in enumerate(rows):
            yield Sample(
                key=key,
                where=f"{path}, {key}",
                image_data=ByteRange(os.path.join(root, file_name)) if file_name else None,
                image_name=os.path.basename(file_name or ""),
                text=clean(text),
                metadata=metadata,
                progress=self.progress(unit, self.sizes[unit] * (number + 1) / len(rows)),
            )


def _karpathy(content: dict, splits: tuple[str, ...]) -> Iterator[tuple[str, str, str | None, dict]]:
    for image in content["images"]:
        if splits and image.get("split") not in splits:
            continue
        key = str(image.get("cocoid", image.get("imgid", image["filename"])))
        name = os.path.join(image.get("filepath", ""), image["filename"])
        for k, sentence in enumerate(image["sentences"] or [{"raw": None}]):
            yield f"{key}#{k}", name, sentence["raw"], {"image_id": key, "split": image.get("split")}


def _coco(content: dict) -> Iterator[tuple[str, str | None, str | None, dict]]:
    names = {image["id"]: image["file_name"] for image in content["images"]}
    count: dict = {}
    for annotation in content.get("annotations", []):
        key = annotation["image_id"]
        k = count.get(key, 0)
        count[key] = k + 1
        yield f"{key}#{k}", names.get(key), annotation["caption"], {"image_id": str(key)}
    for key, name in names.items():
        if key not in count:
            yield f"{key}#0", name, None, {"image_id": str(key)}
