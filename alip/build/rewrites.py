"""Raw texts that `python -m alip.caption --rewrite` wrote again, by the sample's key and the digest of the old text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from alip.build.key_index import example_key, open_index
from alip.build.table_rows import read_rows
from alip.build.text_hash import text_digest
from alip.errors import UserError


class RewriteTable:
    """Rewritten texts, indexed on the disk. A raw text that has changed since it was rewritten is not found.

    path: JSON lines or Parquet with key, text (the digest of the old text) and rewrite. database: where the index is
    kept; one that is there is taken as it is. found: how many look-ups succeeded. UserError: a file that is none.
    """

    def __init__(self, path: str, database: Path):
        self.found = 0
        self._connection = open_index(
            database,
            "CREATE TABLE rewrites (key TEXT, text TEXT, rewrite TEXT, PRIMARY KEY (key, text)) WITHOUT ROWID",
            lambda new: new.executemany("INSERT OR REPLACE INTO rewrites VALUES (?, ?, ?)", _entries(path)),
        )

    def get(self, key: str, text: str) -> str | None:
        """What a raw text of a sample was rewritten to; None if it was not."""
        query = "SELECT rewrite FROM rewrites WHERE key = ? AND text = ?"
        row = self._connection.execute(query, (key, text_digest(text))).fetchone()
        self.found += row is not None
        return row[0] if row else None

    def example(self) -> str | None:
        """One of the keys, for a message."""
        return example_key(self._connection, "rewrites")


def keep_old(metadata: dict[str, Any], name: str, text: str) -> None:
    """Puts a replaced text into a sample's metadata: under `name`, or `name_2` … where something else is there."""
    free = (name if number == 1 else f"{name}_{number}" for number in count(1))
    metadata[next(one for one in free if one not in metadata)] = text


def _entries(path: str) -> Iterator[tuple[str, str, str]]:
    for row in read_rows(path):
        values = row.values or {}
        found = tuple(values.get(name) for name in ("key", "text", "rewrite"))
        if not all(isinstance(value, str) for value in found):
            raise UserError(f"{path}, entry {row.number}: should have key, text (its digest) and rewrite, as strings")
        yield found
