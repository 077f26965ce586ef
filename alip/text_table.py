"""Tables as text: Markdown for pages, plain columns for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: int, noun: str) -> str:
    """ "1 shard", "2 shards", "1,000 shards"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text (left), the others are numbers (right)."""
    header, *rows = [[_cell(cell) for cell in row] for row in (header, *rows)]
    widths = _widths(header, rows)
    rule = "|" + "-" * (widths[0] + 2) + "|" + "".join("-" * (width + 1) + ":|" for width in widths[1:])
    lines = ["| " + " | ".join(_aligned(row, widths)) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]])


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns for a terminal, two spaces apart; the first is text (left), the others are numbers (right)."""
    header, *rows = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = _widths(header, rows)
    return "\n".join("  ".join(_aligned(row, widths)).rstrip() for row in (header, *rows))


def _cell(value: object) -> str:
    """A bar or a line break in a name would break the table."""
    return " ".join(str(value).replace("|", "\\|").split())


def _widths(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [row[0].ljust(widths[0]), *[cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]]
