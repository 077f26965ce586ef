"""A captions file joined to a source by key, through an index on the disk: memory stays flat."""

from __future__ import annotations

import io
import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from alip.build.sources import as_text
from alip.build.table_rows import LONGEST_FIELD, check_text_file, read_lines, read_rows
from alip.errors import UserError
from alip.files import atomic_path
from alip.remote.reading import open_any
from alip.remote.urls import is_url, name_of, redact

_KEYS = ("key", "image_id", "id", "image")
_BLOCK = 1 << 20  # characters read at a time from a JSON list
_LONGEST_ENTRY = 1 << 24  # of it, in characters
_SPACE = re.compile(r"[ \t\n\r]*")
Keep = Callable[[str, str], bool]


class CaptionTable:
    """Captions by key.

    path: JSON lines ({"key", "caption"}), TSV (key, caption; with or without a line that names the columns), CSV or
    Parquet with such columns, or one JSON list of {"image_id", "caption"} as OFA's captioning script writes it.
    database: where the index is kept; it is taken as it is if it is there. found: how many look-ups succeeded.
    keep(key, caption): whether to keep a caption; None: all. column: the name of the captions' column.
    """

    def __init__(self, path: str, database: Path, keep: Keep | None = None, column: str = "caption"):
        self.found = 0
        if not database.exists():
            with atomic_path(database) as temporary:
                _fill(path, temporary, keep, column)
        self._connection = sqlite3.connect(database, check_same_thread=False)

    def get(self, key: str, default: str | None = None) -> str | None:
        """The caption of a key; of IMAGE#3 also the one of IMAGE; None if `keep` dropped it; else the default."""
        row = self._row(key)
        if row is None and "#" in key:
            row = self._row(key.rpartition("#")[0])
        self.found += row is not None
        return row[0] if row else default

    def _row(self, key: str) -> tuple[str | None] | None:
        return self._connection.execute("SELECT caption FROM captions WHERE key = ?", (key,)).fetchone()

    def dropped(self) -> int:
        """How many keys have a caption in the file, and none that `keep` kept."""
        return self._connection.execute("SELECT COUNT(*) FROM captions WHERE caption IS NULL").fetchone()[0]

    def example(self) -> str | None:
        """One of the keys, for a message."""
        row = self._connection.execute("SELECT key FROM captions LIMIT 1").fetchone()
        return row[0] if row else None


def _fill(path: str, database: Path, keep: Keep | None, column: str) -> None:
    connection = sqlite3.connect(database)
    try:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("CREATE TABLE captions (key TEXT PRIMARY KEY, caption TEXT) WITHOUT ROWID")
        # A key that comes twice: the later line holds, as in a captioning run that was repeated.
        pairs: Iterator[tuple[str, str | None]] = read_captions(path, column)
        if keep is not None:
            pairs = ((key, caption if keep(key, caption) else None) for key, caption in pairs)
        connection.executemany("INSERT OR REPLACE INTO captions VALUES (?, ?)", pairs)
        connection.commit()
    except sqlite3.OperationalError as error:
        if "full" in str(error):
            raise OSError(28, str(error)) from None
        raise
    finally:
        connection.close()


def read_captions(path: str, column: str = "caption") -> Iterator[tuple[str, str]]:
    """(key, caption) of every line of a captions file. UserError names the line that is not one."""
    if not is_url(path) and not os.path.exists(path):
        raise UserError(f"no captions file {path}")
    check_text_file(path)
    name = name_of(path).lower()
    if name.endswith((".tsv", ".txt")):
        yield from _pairs(path)
        return
    for number, row in _json_list(path) if name.endswith(".json") else _rows(path):
        key = None if not isinstance(row, dict) else next((row[name] for name in _KEYS if name in row), None)
        if key is None or column not in row:
            raise UserError(f"{redact(path)}, entry {number}: should have a key (or image_id) and a {column}")
        yield from _checked(redact(path), f"entry {number}", str(key), row[column])


def _checked(path: str, where: str, key: str, caption: object) -> Iterator[tuple[str, str]]:
    """The pair, if its caption is not empty. UserError if one of the two is no text."""
    try:
        text = as_text(caption)
        for one in (key, text or ""):
            one.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{redact(path)}, {where}: it holds a lone surrogate, which is half a character") from None
    except ValueError as error:
        raise UserError(f"{redact(path)}, {where}: the caption: {error}") from None
    if text is not None:
        yield key, text


def _rows(path: str) -> Iterator[tuple[int, dict]]:
    for row in read_rows(path):
        if row.values is None:
            raise UserError(f"{redact(path)}, entry {row.number}: {row.fault}")
        yield row.number, row.values


def _pairs(path: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_lines(path), 1):
        try:
            key, tab, caption = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n").partition("\t")
        except UnicodeDecodeError as error:
            raise UserError(f"{redact(path)}, line {number}: not UTF-8 ({error.reason})") from None
        if len(line) >= LONGEST_FIELD:
            raise UserError(f"{redact(path)}, line {number}: longer than {LONGEST_FIELD:,} bytes")
        if number == 1 and key in _KEYS:
            continue
        if line.strip():
            if not tab:
                raise UserError(f"{redact(path)}, line {number}: should be key, tab, caption")
            yield from _checked(path, f"line {number}", key, caption)


def _json_list(path: str) -> Iterator[tuple[int, object]]:
    """The entries of one long JSON list, without holding it: a captions file of millions is over a GB."""
    decode = json.JSONDecoder().raw_decode
    number = 0
    try:
        with io.TextIOWrapper(open_any(path), encoding="utf-8-sig") as file:
            window = _Window(file)
            if window.next_sign() != "[":
                raise UserError(f"{redact(path)} should hold one JSON list of image_id, caption pairs")
            window.at += 1
            sign = window.next_sign()
            while sign != "]":
                entry = window.decode(decode)
                number += 1
                yield number, entry
                sign = window.next_sign()
                if sign == ",":
                    window.at += 1
                    if window.next_sign() == "]":
                        raise ValueError("a comma before the end of the list")
                elif sign != "]":
                    raise ValueError("a comma is missing")
            window.at += 1
            if window.next_sign():
                raise ValueError("something follows the list")
    except RecursionError:
        raise UserError(f"{redact(path)}: entry {number + 1} is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{redact(path)}: not UTF-8 after entry {number} ({error.reason})") from None
    except ValueError as error:
        raise UserError(f"{redact(path)}: broken JSON after entry {number}: {error}") from None


class _Window:
    """The part of a long text that is looked at. at: the position in it."""

    def __init__(self, file: IO[str]):
        self._file = file
        self._text = ""
        self._ended = False
        self.at = 0

    def next_sign(self) -> str:
        """The next character that is no white space, at `at`; "" at the end."""
        while True:
            self.at = _SPACE.match(self._text, self.at).end()
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._more():
                return ""

    def decode(self, decode: Callable[[str, int], tuple[object, int]]) -> object:
        """The JSON value at `at`. An entry that is cut off by the window's end is tried again with twice as much text,
        so its length counts only once over. ValueError."""
        while True:
            try:
                entry, end = decode(self._text, self.at)
                if end < len(self._text) or not self._more():  # a number may continue behind the window
                    self.at = end
                    return entry
            except ValueError:
                if len(self._text) - self.at > _LONGEST_ENTRY:
                    raise ValueError(f"an entry is broken, or longer than {_LONGEST_ENTRY:,} characters") from None
                if not self._more():
                    raise

    def _more(self) -> bool:
        rest = self._text[self.at :]
        added = "" if self._ended else self._file.read(max(_BLOCK, len(rest)))
        self._ended = not added
        if added:
            self._text, self.at = rest + added, 0
        return bool(added)
