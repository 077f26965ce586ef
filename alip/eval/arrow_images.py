"""Datasets of the Hub with their images inside: Parquet files as they are downloaded, and the Arrow files that Hugging
Face's `datasets` library leaves in its cache. Both are read without that library.

An image is a struct of `bytes` and `path`; a script of the Hub stores paths into the cache's own `downloads` folder.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from alip.errors import UserError
from alip.eval.image_readers import NO_LABEL, read_rgb, short_hash, stat_key


def arrow_files(cache: Path, owner: str, name: str, split: str = "test") -> list[Path]:
    """The Arrow files of a dataset of the Hub in the cache, in order; the newest version's; none where it is not."""
    found = sorted(cache.glob(f"{owner}___{name}/**/{name}-{split}*.arrow"))
    if not found:
        return []
    newest = max(found, key=lambda path: path.stat().st_mtime).parent
    return [path for path in found if path.parent == newest]


def read_table(paths: Sequence[Path], columns: Sequence[str]) -> pa.Table:
    """The files' rows: these columns of .parquet files, in memory; others are Arrow files, memory-mapped whole.

    UserError for another file, and for columns that are missing.
    """
    tables = []
    for path in paths:
        parquet = path.suffix == ".parquet"
        try:
            if parquet:
                file = pq.ParquetFile(path)
                tables.append(file.read([name for name in columns if name in file.schema_arrow.names]))
            else:
                with pa.memory_map(str(path)) as source:
                    tables.append(pa.ipc.open_stream(source).read_all())
        except (pa.ArrowException, OSError) as error:
            form = "Parquet file" if parquet else "Arrow file of the datasets library"
            raise UserError(f"{path} is no {form}: {' '.join(str(error).split())[:120]}") from error
        missing = [name for name in columns if name not in tables[-1].column_names]
        if missing:
            raise UserError(f"{path} has no column {missing[0]}; it has {', '.join(tables[-1].column_names)[:200]}")
    return pa.concat_tables(tables)


class ArrowImages:
    """Images of a column. positions: (n, 2) rows and items of the lists in them; item -1: the row itself."""

    def __init__(self, paths: Sequence[Path], cache: Path, column: str, positions: np.ndarray):
        self.paths, self.cache, self.column, self.positions = list(paths), cache, column, positions
        self._values: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_values": None}

    def __len__(self) -> int:
        return len(self.positions)

    def _item(self, index: int) -> Any:
        if self._values is None:
            self._values = read_table(self.paths, [self.column]).column(self.column)
        row, item = (int(number) for number in self.positions[index])
        value = self._values[row] if item < 0 else self._values[row][item]
        return value.as_py()

    def data(self, index: int) -> bytes:
        """The encoded image."""
        item = self._item(index)
        if not isinstance(item, dict):
            raise OSError("no image in this row")
        if item.get("bytes"):
            return item["bytes"]
        return self._file(item.get("path") or "").read_bytes()

    def _file(self, path: str) -> Path:
        """The file, also where the cache was moved: paths in it are absolute."""
        if Path(path).is_file():
            return Path(path)
        below = path.partition("/downloads/")[2]
        return self.cache / "downloads" / below if below else Path(path)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_rgb(io.BytesIO(self.data(index))), NO_LABEL

    def name(self, index: int) -> str:
        row, item = (int(number) for number in self.positions[index])
        return f"{self.paths[0]} row {row}{f', image {item}' if item >= 0 else ''}"

    def cache_key(self) -> str:
        return stat_key(self.paths, [self.column, self.positions.tolist()])

    def content_hash(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for index in range(len(self)):
            try:
                digest.update(hashlib.blake2b(self.data(index), digest_size=16).digest())
            except OSError:
                digest.update(b"unreadable")
        return short_hash([digest.hexdigest()])
