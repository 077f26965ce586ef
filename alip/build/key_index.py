"""Tables that are looked up by a sample's key, in SQLite files on the disk: memory stays flat."""

from __future__ import annotations

import errno
import resource
import sqlite3
from collections.abc import Callable
from pathlib import Path

from alip.files import atomic_path


def open_index(database: Path, create: str, fill: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
    """A connection to `database`. One that is there is taken as it is; else it is made, whole or not at all.

    create: the SQL statement of its table. fill(connection): inserts the rows. OSError (ENOSPC) when the disk is full.
    """
    if not database.exists():
        with atomic_path(database) as temporary:
            _make(temporary, create, fill)
    return sqlite3.connect(database, check_same_thread=False)


def example_key(connection: sqlite3.Connection, table: str) -> str | None:
    """One of the keys of a table, for a message; None if it is empty."""
    row = connection.execute(f"SELECT key FROM {table} LIMIT 1").fetchone()
    return row[0] if row else None


def _make(path: Path, create: str, fill: Callable[[sqlite3.Connection], None]) -> None:
    connection = sqlite3.connect(path)
    try:
        # Nothing is lost without them: a file that was not finished is never given its name.
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(create)
        fill(connection)
        connection.commit()
    except sqlite3.OperationalError as error:
        if "full" in str(error):
            raise OSError(errno.ENOSPC, str(error), str(path)) from None
        if "disk I/O error" in str(error):  # how SQLite calls the limit on a file's size, too
            limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
            raise OSError(errno.EFBIG if limited else errno.EIO, str(error), str(path)) from None
        raise
    finally:
        connection.close()
