"""The rows of a Parquet file, piece by piece: a row group may hold gigabytes of images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from alip.build.row import Row
from alip.errors import UserError
from alip.files import parquet_path
from alip.remote.reading import open_any
from alip.remote.urls import is_url, redact

_BUFFER = 1 << 20  # bytes of a column that are read at a time
_ROWS_AT_ONCE = 1024
_ROWS_WITH_BYTES = 32


def parquet_columns(path: str) -> list[str]:
    """The names of the columns. UserError if the file cannot be read."""
    with _opened(path) as (file, _, _):
        return file.schema_arrow.names


def parquet_rows(path: str, first_group: int, number: int, with_bytes: bool = True) -> Iterator[Row]:
    """The rows from a row group on, before which there are `number` rows. UserError if the file cannot be read; a row
    group that is damaged costs its own rows. with_bytes: read also columns that hold bytes."""
    import pyarrow

    with _opened(path) as (file, rows, size):
        total = max(1, sum(rows))
        without = [field.name for field in file.schema_arrow if not _holds_bytes(field.type)]
        settings = {"batch_size": _ROWS_AT_ONCE, "columns": None if with_bytes else without}
        if with_bytes and len(without) < len(file.schema_arrow):
            settings["batch_size"] = _ROWS_WITH_BYTES
        for group, count in enumerate(rows[first_group:], first_group):
            end = number + count
            fault, position = "it ends too early", (group, number)
            try:
                for batch in file.iter_batches(row_groups=[group], **settings):
                    for values in _batch_rows(batch):
                        number += 1
                        yield Row(number, values, size * number / total, position=position)
                        position = None
            except (pyarrow.ArrowException, OSError, MemoryError, ValueError) as error:
                fault = _one_line(error)
            if number < end:
                fault = f"the rest of row group {group} ({end - number:,} rows) cannot be read: {fault}"
                yield Row(number + 1, None, size * end / total, fault, lost_rest=True, position=position)
            number = end


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, list[int], int]]:
    """The file, open; the number of rows of each row group; its size in bytes."""
    if not is_url(path) and not os.path.isfile(path):
        raise UserError(f"{path} is not a regular file: give a Parquet file")
    with open_any(path) if is_url(path) else nullcontext(parquet_path(path)) as source:
        size = source.seek(0, os.SEEK_END) if is_url(path) else os.path.getsize(path)
        file, rows = _read_footer(path, source)
        with file:
            yield file, rows, size


def _read_footer(path: str, source: Any) -> tuple[Any, list[int]]:
    import pyarrow.parquet

    settings = {"pre_buffer": False, "buffer_size": _BUFFER, "page_checksum_verification": True}
    try:
        file = pyarrow.parquet.ParquetFile(source, **settings)
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except Exception as error:  # pyarrow's own errors, and whatever a damaged footer makes of itself
        raise UserError(f"{redact(path)} cannot be read as Parquet: {_one_line(error)}") from None
    names = file.schema_arrow.names
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{redact(path)} has two columns {twice!r}: rename one of them")
    if sum(rows) != file.metadata.num_rows:
        raise UserError(
            f"{redact(path)} cannot be read as Parquet: {file.metadata.num_rows:,} rows, {sum(rows):,} in its groups"
        )
    return file, rows


def _holds_bytes(kind: Any) -> bool:
    """Whether values of a type of Arrow are bytes, or hold some."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    kind = getattr(kind, "storage_type", kind)  # of an extension
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return True
    return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))


def _batch_rows(batch: Any) -> Iterator[dict[str, Any]]:
    columns = {name: _values(column) for name, column in zip(batch.schema.names, batch.columns)}
    for i in range(batch.num_rows):
        yield {name: values[i] for name, values in columns.items()}


def _values(column: Any) -> list[Any]:
    """A column's values. Those that Python has no value for, such as dates after the year 9999, are given as text."""
    try:
        return column.to_pylist()
    except Exception:
        return [_value(entry) for entry in column]


def _value(entry: Any) -> Any:
    import pyarrow

    try:
        return entry.as_py()
    except Exception:
        try:
            return entry.cast(pyarrow.string()).as_py()
        except Exception:
            return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
