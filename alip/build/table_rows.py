"""The rows of a table, one after the other: CSV, TSV, JSON lines, Parquet. A broken row is named and passed over."""

from __future__ import annotations

import csv
import os
from collections import deque
from collections.abc import Iterator
from itertools import islice

from alip.build.parquet_rows import parquet_columns, parquet_rows
from alip.build.row import Row
from alip.build.sources import load_json_object
from alip.errors import UserError
from alip.files import bounded_lines
from alip.remote.reading import open_any
from alip.remote.urls import is_url, name_of, redact

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
LONGEST_FIELD = 1 << 24  # characters of one CSV field, bytes of one line
_LOOKED_AT = 1000  # rows in which a column that was asked for should appear
_LONE_CR = "\ud800"  # its placeholder, which no UTF-8 text contains
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_rows(path: str, position: tuple[int, ...] | None = None, with_bytes: bool = True) -> Iterator[Row]:
    """The rows of a table by its extension, streaming, from a position on. UserError if it cannot be read as one at
    all. with_bytes: read also those columns of a Parquet file that hold bytes, such as images."""
    name = name_of(path).lower()
    if name.endswith((".jsonl", ".ndjson")):
        return _json_lines(path, *(position or (0, 0)))
    if name.endswith(".parquet"):
        return parquet_rows(path, *(position or (0, 0)), with_bytes)
    if name.endswith((".csv", ".tsv")):
        return _separated(path, "\t" if name.endswith(".tsv") else ",", *(position or (0, 0)))
    raise UserError(f"cannot read {redact(path)} as a table: its name should end with one of {', '.join(TABLES)}")


def column_names(path: str) -> list[str]:
    """The names of a table's columns; of JSON lines, whose rows differ, those of the first rows. Reads no images."""
    if name_of(path).lower().endswith(".parquet"):
        return parquet_columns(path)
    found: dict[str, None] = {}
    for row in islice(read_rows(path), _LOOKED_AT):
        found.update(dict.fromkeys(row.values or ()))
    return list(found)


def check_text_file(path: str) -> None:
    """UserError unless `path` is a regular file that may be UTF-8."""
    if not is_url(path) and not os.path.isfile(path):
        what = "is not a regular file" if os.path.exists(path) else "does not exist"
        raise UserError(f"{path} {what}: give a file with one row per line")
    try:
        with open_any(path) as file:
            head = file.read(4)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check its permissions") from None
    if head.startswith(_UTF16):
        raise UserError(f"{redact(path)} is UTF-16: convert it first, as with `iconv -f UTF-16 -t UTF-8`")


def read_lines(path: str, start: int = 0) -> Iterator[bytes]:
    """The lines of a file from a byte on, with their ends; of a line longer than LONGEST_FIELD only its first part,
    without an end."""
    check_text_file(path)
    with open_any(path) as file:
        file.seek(start)
        yield from bounded_lines(file, LONGEST_FIELD)


def _json_lines(path: str, start: int, rows_before: int) -> Iterator[Row]:
    done, cut_off = start, False
    for number, line in enumerate(read_lines(path, start), rows_before + 1):
        position = None if cut_off else (done, number - 1)
        done += len(line)
        cut_off |= len(line) >= LONGEST_FIELD  # its rest is not counted
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            if len(line) >= LONGEST_FIELD:
                raise ValueError(f"the line is longer than {LONGEST_FIELD:,} bytes")
            yield Row(number, load_json_object(line.decode("utf-8")), done, position=position)
        except ValueError as error:
            yield Row(number, None, done, f"not a JSON object: {error}", position=position)


def _separated(path: str, delimiter: str, start: int, rows_before: int) -> Iterator[Row]:
    rows = _CsvRows(path, delimiter)
    header = rows.header()
    if start:
        rows.begin_at(start)
    for number, (cells, fault) in enumerate(rows, rows_before + 1):
        if not fault and cells is not None and len(cells) != len(header):
            fault = f"{len(cells)} cells for {len(header)} columns"
        position = None if rows.begun is None else (rows.begun, number - 1)
        yield Row(number, None if fault else dict(zip(header, cells or ())), rows.done, fault, position=position)


class _CsvRows:
    """The cells of each row of a CSV or TSV file, or why it is broken.

    A quotation mark that is opened and never closed swallows all that follows; so a row over several lines that does
    not end well is given up at its first line, and the others are read again, each for itself.

    done: bytes read. begun: the byte at which the last row began; None if reading from there on would not give the same
    rows: within lines that are read again, and behind a line of which only a part was read.
    """

    def __init__(self, path: str, delimiter: str):
        csv.field_size_limit(LONGEST_FIELD)
        self._source = path
        self.begun: int | None = 0
        self._cut_off = False
        self._lines = read_lines(path)
        self._again: deque[str] = deque()
        self._used: list[str] = []
        self.path, self.delimiter, self.done = redact(path), delimiter, 0
        self._columns = 0

    def begin_at(self, start: int) -> None:
        """Goes to a byte at which a row begins."""
        self._lines.close()
        self._lines, self.done = read_lines(self._source, start), start

    def header(self) -> list[str]:
        """The names of the columns. UserError if there are none."""
        found = self._read()
        if found is None:
            raise UserError(f"{self.path} is empty: its first line should name the columns")
        cells, fault = found
        if fault or not cells:
            raise UserError(f"{self.path}: its first line should name the columns ({fault or 'it is empty'})")
        if len(set(cells)) != len(cells):
            twice = next(name for name in cells if cells.count(name) > 1)
            raise UserError(f"{self.path} has two columns {twice!r}: rename one of them")
        self._columns = len(cells)
        return cells

    def __iter__(self) -> Iterator[tuple[list[str] | None, str]]:
        while (found := self._read()) is not None:
            if found[0] != []:
                yield found

    def _read(self) -> tuple[list[str] | None, str] | None:
        self._used = []
        self.begun = None if self._again or self._cut_off else self.done
        quoted = self.delimiter == ","
        # A tab-separated file quotes nothing: a lone quotation mark in a web text must not swallow the next rows.
        quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        try:
            cells = next(csv.reader(self._feed(), delimiter=self.delimiter, quoting=quoting, strict=quoted), None)
        except csv.Error as error:
            return self._second_try(str(error), quoting)
        if cells is None:
            return None
        if len(self._used) > 1 and self._columns and len(cells) != self._columns:
            return self._second_try(f"{len(cells)} cells for {self._columns} columns", quoting)
        return self._checked(cells)

    def _second_try(self, fault: str, quoting: int) -> tuple[list[str] | None, str]:
        """Strictly read it is broken: one line may be well all the same, such as with a blank behind a quotation."""
        first, *others = self._used
        self._again.extendleft(reversed(others))
        if not others:
            try:
                cells = next(csv.reader([first], delimiter=self.delimiter, quoting=quoting), [])
                if len(cells) == self._columns and first.count('"') % 2 == 0:
                    return self._checked(cells)
            except csv.Error as error:
                fault = str(error)
        return None, fault

    def _checked(self, cells: list[str]) -> tuple[list[str] | None, str]:
        if all(cell.isascii() for cell in cells):
            return cells, ""
        if any("\udc80" <= letter <= "\udcff" for cell in cells for letter in cell):
            return None, "not UTF-8"
        return [cell.replace(_LONE_CR, "\r") for cell in cells], ""

    def _feed(self) -> Iterator[str]:
        """Lines for csv.reader. A lone carriage return within a text would be an error there, so it is hidden."""
        while True:
            if self._again:
                line = self._again.popleft()
            else:
                raw = next(self._lines, None)
                if raw is None:
                    return
                is_first, self.done = not self.done, self.done + len(raw)
                if is_first:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                    if raw.count(b"\r") > 1 and b"\r\n" not in raw:
                        raise UserError(f"{self.path}: its lines end with a lone carriage return; convert them to \\n")
                if len(raw) >= LONGEST_FIELD and not raw.endswith(b"\n"):
                    self._cut_off = True
                    self._used.append("")
                    raise csv.Error(f"a line of more than {LONGEST_FIELD:,} bytes")
                line = raw.decode("utf-8", errors="surrogateescape").replace("\0", "")
                if "\r" in line:
                    body, end = line.removesuffix("\n").removesuffix("\r"), "\r\n" if line.endswith("\r\n") else "\n"
                    line = body.replace("\r", _LONE_CR) + end  # within quotation marks the end is part of the text
            self._used.append(line)
            yield line
