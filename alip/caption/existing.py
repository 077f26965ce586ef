"""Captions that exist already, such as the paper's own from OFA, as a captioner: looked up by key, no image is read."""

from __future__ import annotations

import tempfile
from pathlib import Path

from alip.build.caption_table import CaptionTable
from alip.errors import UserError


class ExistingCaptions:
    """Captions from a file that `data2rec.py --captions` takes: JSON lines, TSV, CSV, Parquet or OFA's JSON list.

    The file is indexed on the disk, in the system's temporary folder, for as long as this object lives.
    """

    reads = "keys"

    def __init__(self, path: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="alip-captions-")
        self._table = CaptionTable([str(path)], Path(self._folder.name) / "captions.sqlite")
        if self._table.example() is None:
            raise UserError(f"{path} holds no caption")
        self.metadata = {"file": str(path), "size": path.stat().st_size}

    def caption(self, batch: list[str]) -> list[str | None]:
        """batch: n keys. Returns their captions, None where the file has none."""
        return [(self._table.get(key) or [None])[0] for key in batch]
