"""Reading captions files: JSON lines, TSV, CSV, Parquet, one JSON list; one caption for each key, or several."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import IO, Any

from alip.build.sources import as_text
from alip.build.table_rows import LONGEST_FIELD, check_text_file, read_lines, read_rows
from alip.data.manifest_schema import MOST_CAPTIONS
from alip.errors import UserError
from alip.files import RepeatedName, unique_names
from alip.remote.reading import open_any
from alip.remote.urls import is_url, name_of, redact

_KEYS = ("key", "image_id", "id", "image")
_BLOCK = 1 << 20  # characters read at a time from a JSON list
_LONGEST_ENTRY = 1 << 24  # of it, in characters
_SPACE = re.compile(r"[ \t\n\r]*")


def read_captions(path: str, column: str = "caption") -> Iterator[tuple[str, str]]:
    """(key, caption) of every caption in a captions file. UserError names the entry that is not one."""
    for key, captions in read_entries(path, column):
        for caption in captions:
            yield key, caption


def read_entries(path: str, column: str = "caption") -> Iterator[tuple[str, list[str]]]:
    """(key, captions) of every entry of a captions file, in its order; empty captions and repeated ones are left out.

    An entry has its captions as `caption`, `caption_2`, `caption_3` …, or as a list `captions` (for another `column`:
    by its name), or both. UserError names the entry that has neither, or a list that is not one of texts.
    """
    if not is_url(path) and not os.path.exists(path):
        raise UserError(f"no captions file {path}")
    check_text_file(path)
    name = name_of(path).lower()
    if name.endswith((".tsv", ".txt")):
        yield from _tab_separated(path, column)
        return
    for number, row in _json_list(path) if name.endswith(".json") else _rows(path):
        where = f"{redact(path)}, entry {number}"
        key = None if not isinstance(row, dict) else next((row[name] for name in _KEYS if name in row), None)
        found = None if key is None else _captions(row, column, where)
        if found is None:
            raise UserError(f"{where}: should have a key (or image_id) and a {column}, or a list of {column}s")
        try:
            name_of_image = key.decode("utf-8") if isinstance(key, bytes) else str(key)  # as a table's key is read
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: its key is not UTF-8 ({error.reason})") from None
        yield from _checked(where, name_of_image, found)


def _captions(row: dict[str, Any], column: str, where: str) -> list[object] | None:
    """An entry's captions as they are; None if there is no such column."""
    names = [column] if column in row else []
    if len(row) > 2:
        numbered = [(name, name.removeprefix(f"{column}_")) for name in row if str(name).startswith(f"{column}_")]
        names += [name for name, rest in sorted(numbered, key=lambda one: (len(one[1]), one[1])) if rest.isdecimal()]
    found: list[object] = [row[name] for name in names]
    if f"{column}s" in row:
        found += _listed(row[f"{column}s"], f"{where}: {column}s")
    elif not names:
        return None
    if len(found) > MOST_CAPTIONS:
        raise UserError(f"{where}: {len(found):,} {column}s, the limit is {MOST_CAPTIONS:,}")
    return found


def _listed(value: object, where: str) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise UserError(f"{where} should be a list of texts, not {_short(value)}")
    if not value:
        raise UserError(f"{where} is an empty list: leave an entry without captions out")
    for number, one in enumerate(value):
        if one is not None and not isinstance(one, str):
            raise UserError(f"{where}[{number}] should be a text, not {_short(one)}")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _checked(where: str, key: str, captions: list[object]) -> Iterator[tuple[str, list[str]]]:
    """The entry, if one of its captions is not empty. UserError if key or caption is no text."""
    try:
        texts = list(dict.fromkeys(text for text in map(as_text, captions) if text is not None))
        for one in (key, *texts):
            one.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: it holds a lone surrogate, which is half a character") from None
    except ValueError as error:
        raise UserError(f"{where}: the caption: {error}") from None
    if texts:
        yield key, texts


def _rows(path: str) -> Iterator[tuple[int, dict]]:
    for row in read_rows(path):
        if row.values is None:
            raise UserError(f"{redact(path)}, entry {row.number}: {row.fault}")
        yield row.number, row.values


def _tab_separated(path: str, column: str) -> Iterator[tuple[str, list[str]]]:
    """Of key, tab, caption; or of the columns that a first line names, where it names more than two."""
    names: list[str] = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            key, tab, caption = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n").partition("\t")
        except UnicodeDecodeError as error:
            raise UserError(f"{redact(path)}, line {number}: not UTF-8 ({error.reason})") from None
        if len(line) >= LONGEST_FIELD:
            raise UserError(f"{redact(path)}, line {number}: longer than {LONGEST_FIELD:,} bytes")
        where = f"{redact(path)}, line {number}"
        if number == 1 and key in _KEYS:
            names = [key, *caption.split("\t")] if "\t" in caption else []
            if len(set(names)) != len(names) or (names and column not in names):
                raise UserError(f"{where}: should name each column once, and {column!r} among them")
        elif line.strip():
            if not tab:
                raise UserError(f"{where}: should be key, tab, caption")
            cells = [key, *caption.split("\t")] if names else []
            if len(cells) != len(names):
                raise UserError(f"{where}: {len(cells)} cells for {len(names)} columns")
            yield from _checked(where, key, _captions(dict(zip(names, cells)), column, where) if names else [caption])


def _json_list(path: str) -> Iterator[tuple[int, object]]:
    """The entries of one long JSON list, without holding it: a captions file of millions is over a GB."""
    decode = json.JSONDecoder(object_pairs_hook=unique_names).raw_decode
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
            except RepeatedName:
                raise
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
