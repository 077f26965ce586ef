"""Captions files joined to a source by key, through an index on the disk: memory stays flat."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from alip.build.caption_files import read_entries
from alip.build.key_index import example_key, open_index
from alip.data.manifest_schema import MOST_CAPTIONS
from alip.errors import UserError
from alip.remote.urls import redact

Keep = Callable[[str, str], bool | None]
_Stored = str | bytes | None
_Row = tuple[int, int, _Stored]  # file, number, caption
_ENTRY = 1024  # a caption's number is its entry's, times this, plus its number in the entry: above MOST_CAPTIONS


class CaptionTable:
    """Captions by key.

    paths: captions files (alip.build.caption_files). database: where the index is kept; one that is there is taken as
    it is. keeps: for each file keep(key, caption), whether to keep a caption, None if that is unknown; no keeps:
    all. column: the name of the
    captions' column. several: all captions of a key, in the order of the files and of their entries; else those of the
    first file that has some, and of its later entry if a key comes twice, as in a captioning run that was repeated.
    found: how many look-ups succeeded.
    """

    def __init__(
        self,
        paths: Sequence[str],
        database: Path,
        keeps: Sequence[Keep] | None = None,
        column: str = "caption",
        several: bool = False,
    ):
        self.found, self.several, self._paths = 0, several, paths
        self._connection = open_index(
            database,
            "CREATE TABLE captions (key TEXT, file INTEGER, number INTEGER, caption TEXT, "
            "PRIMARY KEY (key, file, number)) WITHOUT ROWID",
            lambda new: _fill(new, paths, keeps, column, several),
        )

    def get(self, key: str, image_key: str | None = None) -> list[str] | None:
        """The captions of a sample's key or, where there are none, of its image's. None: no file has the key; []: none
        is kept.

        UserError if it is unknown whether one of them is kept: captions of other images may lack scores.
        """
        rows = self._rows(key)
        if not rows and image_key is not None:
            rows = self._rows(image_key)
        if not rows:
            return None
        self.found += 1
        if self.several:
            return self._kept(key, rows)
        for _, group in groupby(rows, key=lambda row: row[0]):
            of_file = list(group)
            last = of_file[-1][1] // _ENTRY
            if kept := self._kept(key, [row for row in of_file if row[1] // _ENTRY == last]):
                return kept
        return []

    def _kept(self, key: str, rows: Sequence[_Row]) -> list[str]:
        for file, _, caption in rows:
            if isinstance(caption, bytes):
                raise UserError(
                    f"there are no scores for the caption {caption.decode()[:80]!r} of {key!r} in "
                    f"{redact(self._paths[file])}: score the captions again (`python -m alip.caption.score` scores "
                    "what is new)"
                )
        return [caption for _, _, caption in rows if isinstance(caption, str)]

    def _rows(self, key: str) -> list[_Row]:
        query = "SELECT file, number, caption FROM captions WHERE key = ? ORDER BY file, number"
        return self._connection.execute(query, (key,)).fetchall()

    def dropped(self) -> int:
        """How many keys have captions in the files, and none that was kept."""
        query = "SELECT COUNT(*) FROM (SELECT key FROM captions GROUP BY key HAVING COUNT(caption) = 0)"
        return self._connection.execute(query).fetchone()[0]

    def key_with_several(self) -> str | None:
        """A key with captions that differ, in one entry or in several; None if there is none."""
        query = "SELECT key FROM captions GROUP BY key HAVING COUNT(DISTINCT caption) > 1 LIMIT 1"
        found = self._connection.execute(query).fetchone()
        return found[0] if found else None

    def example(self) -> str | None:
        """One of the keys, for a message."""
        return example_key(self._connection, "captions")


def _fill(
    connection: sqlite3.Connection, paths: Sequence[str], keeps: Sequence[Keep] | None, column: str, several: bool
) -> None:
    for file, path in enumerate(paths):
        rows = _rows_of(path, file, keeps[file] if keeps else None, column)
        connection.executemany("INSERT INTO captions VALUES (?, ?, ?, ?)", rows)
    if several:
        _check_several(connection, paths)


def _rows_of(path: str, file: int, keep: Keep | None, column: str) -> Iterator[tuple[str, int, int, _Stored]]:
    """A row for each caption; NULL for one that is not kept, so that its key is known, bytes for one without scores."""
    for entry, (key, captions) in enumerate(read_entries(path, column)):
        for number, caption in enumerate(captions):
            kept = keep is None or keep(key, caption)
            stored = caption if kept else caption.encode("utf-8", "replace") if kept is None else None
            yield key, file, entry * _ENTRY + number, stored


def _check_several(connection: sqlite3.Connection, paths: Sequence[str]) -> None:
    """UserError for too many captions of a key, and for a list of captions whose key comes a second time: added to it,
    or instead of it?"""
    query = (
        f"SELECT key, file, COUNT(*) FROM captions GROUP BY key, file HAVING COUNT(*) > {MOST_CAPTIONS} OR "
        f"(MAX(number % {_ENTRY}) > 0 AND MAX(number / {_ENTRY}) > MIN(number / {_ENTRY})) LIMIT 1"
    )
    found = connection.execute(query).fetchone()
    if found is None:
        return
    key, file, count = found
    if count > MOST_CAPTIONS:
        raise UserError(f"{redact(paths[file])}: {count:,} captions of {key!r}, the limit is {MOST_CAPTIONS:,}")
    raise UserError(
        f"{redact(paths[file])}: {key!r} comes twice, and one of its entries has several captions: make them one entry"
    )
