"""The bars of a report: measured rows beside the published methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from alip.eval import published, results
from alip.eval.metrics import chance_of
from alip.eval.plots.bars import Series, bars
from alip.eval.report.rows import WAYS, Column, Row, benchmark_of, columns_of

PUBLISHED = {"zeroshot": published.ZEROSHOT, "probe": published.PROBE}


def retrieval_bars(rows: Sequence[Row], column: Column, title: str, path: Path) -> None:
    """Recalls both ways of one dataset."""
    groups = [f"R@{k}\n{label if k == 5 else ''}" for _, label in WAYS for k in (1, 5, 10)]
    theirs = published.RETRIEVAL.get(benchmark_of(rows, column) or "", {})
    series = [Series(method, [value for way in ways for value in way], False) for method, ways in theirs.items()]
    measured = [row for row in rows if column in row.cells]
    for row in measured:
        series.append(_of_runs(row.label, [row.values(column, f"{way}_R@{k}") for way, _ in WAYS for k in (1, 5, 10)]))
    numbers = measured[0].entry(column)["numbers"]
    images = max(1.0, float(numbers["images"]))
    captions = max(images, float(numbers.get("captions", images)))
    chance = [chance_recall(captions, captions / images, k) for k in (1, 5, 10)]
    chance += [chance_recall(images, 1, k) for k in (1, 5, 10)]
    beside = ", beside published B/32 models (YFCC15M)" if theirs else ""
    name = _starred(title, rows, column)
    bars(groups, series, f"Retrieval on {name}{beside}{_footnote(name)}", "recall (%)", path, chance)


def chance_recall(answers: float, right: float, k: int) -> float:
    """The percentage of random orders of `answers` answers that have one of the `right` ones among the first k."""
    none = 1.0
    for taken in range(k):
        none *= max(0.0, (answers - right - taken) / max(1.0, answers - taken))
    return 100 * (1 - none)


def task_bars(rows: Sequence[Row], task: str, title: str, path: Path) -> None:
    """The primary metric of every dataset."""
    columns = columns_of(rows, task)
    names = [benchmark_of(rows, column) for column in columns]
    series = []
    for method, own in PUBLISHED.get(task, {}).items():
        values = [own.get(name or "") for name in names]
        if any(value is not None for value in values):
            series.append(Series(method, values, False))
    for row in rows:
        series.append(_of_runs(row.label, [row.values(column, "primary") for column in columns]))
    chance = []
    for column in columns:
        first = next(row.entry(column) for row in rows if column in row.cells)
        classes = first["numbers"].get("classes")
        chance.append(chance_of(first.get("primary_metric") or "top1", classes) if classes else None)
    groups = [_starred(title, rows, column) for column, title in columns.items()]
    heading = f"{title}: primary metric of each dataset{_footnote(*groups)}"
    bars(groups, series, heading, "primary metric (%)", path, chance)


def _of_runs(label: str, groups: Sequence[Sequence[float]]) -> Series:
    """A row's bars: of each group's runs the mean, and the standard deviation where there are several."""
    means = [fmean(runs) if runs else None for runs in groups]
    return Series(label, means, True, [stdev(runs) if len(runs) > 1 else None for runs in groups])


def _footnote(*names: str) -> str:
    return " (*: see report.md)" if any(name.endswith("*") for name in names) else ""


def _starred(title: str, rows: Sequence[Row], column: Column) -> str:
    """With a star where a number is not the benchmark's own; report.md has the reason as a footnote."""
    marked = (results.mark_of(entry) for row in rows for _, entry in row.cells.get(column, []))
    return title + "*" * any(mark != "" for mark in marked)
