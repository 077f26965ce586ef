"""The table of compositional benchmarks: each has metrics of its own."""

from __future__ import annotations

from collections.abc import Sequence

from alip.eval.results import Entry, with_interval
from alip.text_table import markdown_table

_COUNTS = ("images", "questions", "unreadable", "texts_cut", "groups", "primary")


def selection_table(entries: Sequence[Entry]) -> str:
    """A row per entry: the primary metric, what it is, and every other number of the benchmark."""
    header = ["selection", "questions", "primary", "which is", "numbers"]
    rows = []
    for entry in entries:
        numbers = entry["numbers"]
        others = ", ".join(f"{name} {with_interval(entry, name)}" for name in numbers if name not in _COUNTS)
        own = [entry["dataset"], f"{numbers['questions']:,}", with_interval(entry, "primary")]
        rows.append([*own, str(entry.get("primary_metric") or "–"), others])
    return markdown_table(header, rows)
