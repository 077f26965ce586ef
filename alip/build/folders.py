"""Folders of images with their texts beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from alip.build.images import EXTENSIONS
from alip.build.sources import ByteRange, Fields, Sample, Source, take_texts


class FolderSource(Source):
    """A folder of images, at any depth, each with its raw text in a .txt of the same name beside it.

    A .json beside it gives further fields (`caption`, …). The key is the path without its extension.
    """

    source_type = "folder"

    def __init__(self, folder: str, fields: Fields):
        self.folder = folder
        super().__init__([folder], fields)

    def read_unit(self, unit: int) -> Iterator[Sample]:
        for folder, folders, names in os.walk(self.folder):
            folders.sort()
            present = set(names)
            for name in sorted(names):
                stem, _, extension = name.rpartition(".")
                if stem and extension.lower() in EXTENSIONS:
                    yield self._sample(folder, name, stem, present)

    def _sample(self, folder: str, name: str, stem: str, present: set[str]) -> Sample:
        path = os.path.join(folder, name)
        key = os.path.relpath(os.path.join(folder, stem), self.folder)
        sample = Sample(key, path, ByteRange(path), name)
        text_file = None
        try:
            if f"{stem}.json" in present:
                content = json.loads(Path(folder, f"{stem}.json").read_text(encoding="utf-8"))
                if not isinstance(content, dict):
                    raise ValueError("no object")
                sample.metadata = content
            if f"{stem}.txt" in present:
                text_file = Path(folder, f"{stem}.txt").read_text(encoding="utf-8")
        except (ValueError, OSError) as error:
            sample.error = f"bad-text: beside {path}: {error}"
        take_texts(sample, self.fields, text_file)
        return sample

    def describe(self) -> list[list]:
        return [[os.path.basename(os.path.abspath(self.folder)), 0]]
