"""Raw texts that `python -m alip.caption --rewrite` wrote again, by the sample's key and the digest of the old text."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from alip.build.table_rows import read_rows
from alip.build.text_hash import text_digest
from alip.errors import UserError
from alip.files import atomic_path


class RewriteTable:
    """Rewritten texts, indexed on the disk. A raw text that has changed since it was rewritten is not found.

    path: JSON lines or Parquet with key, text (the digest of the old text) and rewrite. database: where the index is
    kept; one that is there is taken as it is. found: how many look-ups succeeded. UserError: a file that is none.
    """

    def __init__(self, path: str, database: Path):
        self.found = 0
        if not database.exists():
            with atomic_path(database) as temporary:
                _fill(path, temporary)
        self._connection = sqlite3.connect(database, check_same_thread=False)

    def get(self, key: str, text: str) -> str | None:
        """What a raw text of a sample was rewritten to; None if it was not."""
        query = "SELECT rewrite FROM rewrites WHERE key = ? AND text = ?"
        row = self._connection.execute(query, (key, text_digest(text))).fetchone()
        self.found += row is not None
        return row[0] if row else None

    def example(self) -> str | None:
        """One of the keys, for a message."""
        row = self._connection.execute("SELECT key FROM rewrites LIMIT 1").fetchone()
        return row[0] if row else None


def _fill(path: str, database: Path) -> None:
    connection = sqlite3.connect(database)
    try:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            "CREATE TABLE rewrites (key TEXT, text TEXT, rewrite TEXT, PRIMARY KEY (key, text)) WITHOUT ROWID"
        )
        connection.executemany("INSERT OR REPLACE INTO rewrites VALUES (?, ?, ?)", _entries(path))
        connection.commit()
    except sqlite3.OperationalError as error:
        if "full" in str(error):
            raise OSError(28, str(error)) from None
        raise
    finally:
        connection.close()


def _entries(path: str) -> Iterator[tuple[str, str, str]]:
    for row in read_rows(path):
        values = row.values or {}
        found = tuple(values.get(name) for name in ("key", "text", "rewrite"))
        if not all(isinstance(value, str) for value in found):
            raise UserError(f"{path}, entry {row.number}: should have key, text (its digest) and rewrite, as strings")
        yield found
