"""Captions that exist already, such as the paper's own from OFA, as a captioner: looked up by key, no image is read."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from alip.build.caption_table import CaptionTable
from alip.build.sources import Sample
from alip.build.text_hash import texts_digest
from alip.caption.work import CaptionWork, Failed, Item, Result
from alip.errors import UserError


class ExistingCaptions:
    """Captions from a file that `data2rec.py --captions` takes: JSON lines, TSV, CSV, Parquet or OFA's JSON list.

    The file is indexed on the disk, in the system's temporary folder, for as long as this object lives.
    per_image: the most captions of an image, read as `data2rec.py --captions-per-image` reads them: of 1 the first of a
    list, and the last of several rows. None: one, and UserError if an image has several, since the user is to choose.
    """

    reads = "keys"

    def __init__(self, path: Path, per_image: int | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="alip-captions-")
        self._per_image = per_image or 1
        index = Path(self._folder.name) / "captions.sqlite"
        self._table = CaptionTable([str(path)], index, several=self._per_image > 1)
        if self._table.example() is None:
            raise UserError(f"{path} holds no caption")
        if per_image is None and (key := self._table.key_with_several()) is not None:
            raise UserError(
                f"{path} has several captions of {key!r}: give --captions-per-image K for the first K of each image, "
                "or --captions-per-image 1 for one (the first of a list, the last of several rows)"
            )
        self.metadata = {"file": str(path), "size": path.stat().st_size}

    def captions(self, sample: Sample) -> list[str]:
        """The captions of a sample, each once; none if the file has none."""
        return list(dict.fromkeys(self._table.get(sample.key, sample.image_key) or []))[: self._per_image]


class ExistingWork(CaptionWork):
    """Writes existing captions as a captioner's; `captioner` is an ExistingCaptions."""

    def run(self, items: list[Item]) -> list[Result]:
        """The lines of a batch."""
        return [self._line(item, self.captioner.captions(item.sample)) for item in items]

    def digest(self, sample: Sample) -> str:
        """Of the captions that a sample's line would have."""
        line = self._line(Item(sample, None), self.captioner.captions(sample))
        return "" if isinstance(line, Failed) else line_digest(line)


def line_digest(line: dict[str, Any]) -> str:
    """16 hex digits that change when one of a line's captions does."""
    return texts_digest(line.get("captions") or [line.get("caption", "")])
