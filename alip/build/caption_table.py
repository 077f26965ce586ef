"""A captions file joined to a source by key, through an index on the disk: memory stays flat."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from alip.build.sources import clean
from alip.build.tables import read_rows
from alip.errors import UserError
from alip.files import atomic_path

_KEYS = ("key", "image_id", "id", "image")
_BLOCK = 1 << 20  # characters read at a time from a JSON list


class CaptionTable:
    """Captions by key.

    path: JSON lines ({"key", "caption"}), TSV (key, caption; with or without a line that names the columns), CSV or
    Parquet with such columns, or one JSON list of {"image_id", "caption"} as OFA's captioning script writes it.
    database: where the index is kept; it is taken as it is if it is there. found: how many look-ups succeeded.
    """

    def __init__(self, path: str, database: Path):
        self.found = 0
        if not database.exists():
            with atomic_path(database) as temporary:
                _fill(path, temporary)
        self._connection = sqlite3.connect(database, check_same_thread=False)

    def get(self, key: str) -> str | None:
        """The caption of a key; of IMAGE#3 also the one of IMAGE; None if there is none."""
        caption = self._get(key)
        if caption is None and "#" in key:
            caption = self._get(key.rpartition("#")[0])
        self.found += caption is not None
        return caption

    def _get(self, key: str) -> str | None:
        row = self._connection.execute("SELECT caption FROM captions WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def example(self) -> str | None:
        """One of the keys, for a message."""
        row = self._connection.execute("SELECT key FROM captions LIMIT 1").fetchone()
        return row[0] if row else None


def _fill(path: str, database: Path) -> None:
    connection = sqlite3.connect(database)
    try:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("CREATE TABLE captions (key TEXT PRIMARY KEY, caption TEXT) WITHOUT ROWID")
        # A key that comes twice: the later line holds, as in a captioning run that was repeated.
        connection.executemany("INSERT OR REPLACE INTO captions VALUES (?, ?)", read_captions(path))
        connection.commit()
    except sqlite3.OperationalError as error:
        if "full" in str(error):
            raise OSError(28, str(error)) from None
        raise
    finally:
        connection.close()


def read_captions(path: str) -> Iterator[tuple[str, str]]:
    """(key, caption) of every line of a captions file. UserError names the line that is not one."""
    if not os.path.isfile(path):
        raise UserError(f"no captions file {path}")
    name = path.lower()
    if name.endswith((".tsv", ".txt")):
        yield from _pairs(path)
        return
    rows = _json_list(path) if name.endswith(".json") else (row[:2] for row in read_rows(path))
    for number, row in rows:
        key = None if not isinstance(row, dict) else next((row[name] for name in _KEYS if name in row), None)
        if key is None or "caption" not in row:
            raise UserError(f"{path}, entry {number}: should have a key (or image_id) and a caption")
        caption = clean(row["caption"])
        if caption is not None:
            yield str(key), caption


def _pairs(path: str) -> Iterator[tuple[str, str]]:
    with open(path, encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            key, tab, caption = line.rstrip("\r\n").partition("\t")
            if number == 1 and key in _KEYS:
                continue
            if line.strip():
                if not tab:
                    raise UserError(f"{path}, line {number}: should be key, tab, caption")
                if clean(caption):
                    yield key, clean(caption)


def _json_list(path: str) -> Iterator[tuple[int, object]]:
    """The entries of one long JSON list, without holding it: a caption file of millions is over a GB."""
    decoder = json.JSONDecoder()
    with open(path, encoding="utf-8") as file:
        text = file.read(_BLOCK).lstrip()
        if not text.startswith("["):
            raise UserError(f"{path} should hold one JSON list of image_id, caption pairs")
        text = text[1:]
        number = 0
        ended = False
        while True:
            text = text.lstrip().removeprefix(",").lstrip() if number else text.lstrip()
            if text.startswith("]"):
                return
            try:
                entry, end = decoder.raw_decode(text)
                if end == len(text) and not ended:
                    raise ValueError("a number may go on in the next block")
            except ValueError:
                more = file.read(_BLOCK)
                ended = not more
                if ended:
                    raise UserError(f"{path}: broken JSON after entry {number}") from None
                text += more
                continue
            number += 1
            yield number, entry
            text = text[end:]
