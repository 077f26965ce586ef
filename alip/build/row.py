"""A row of a table, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One row. number: from 1, without the line that names the columns. values: None where it is broken, and then
    fault is the reason. done: bytes of the file read so far. lost_rest: more rows were lost with it. position: from
    which `read_rows` may begin with it; None where it cannot."""

    number: int
    values: dict[str, Any] | None
    done: float
    fault: str = ""
    lost_rest: bool = False
    position: tuple[int, int] | None = None
