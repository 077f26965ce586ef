"""Tables and bars of one or several runs, beside the published rows for the same datasets.

python -m alip.eval.report RUN [RUN …] [--output DIR]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alip.errors import UserError, run_command
from alip.eval import published, results
from alip.eval.plots.bars import bars
from alip.files import atomic_write
from alip.plot_style import plot_or_warn
from alip.text_table import markdown_table

Entry = results.Entry
Runs = dict[str, list[Entry]]  # a name for the run → its entries
Column = tuple[str, str | None]  # a dataset's name and the hash of its content
_WAYS = (("image_to_text", "image → text"), ("text_to_image", "text → image"))
_TITLES = {"zeroshot": "Zero-shot classification", "probe": "Linear probe"}
_PUBLISHED = {"zeroshot": published.ZEROSHOT, "probe": published.PROBE}
_PUBLISHED_MEAN = {"zeroshot": published.ZEROSHOT_MEAN, "probe": published.PROBE_MEAN}


@dataclass
class Row:
    """Measurements that may be in one row: of the same weights, protocol, precision and lists of prompts and names.

    details: how the row differs from the others of its run.
    """

    run: str
    details: list[str]
    cells: dict[Column, Entry] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.run} ({', '.join(self.details)})"


def rows_of(runs: Runs, task: str) -> list[Row]:
    """The rows of a task's table; no row mixes two checkpoints, two precisions or two lists of prompts."""
    rows = []
    for run, entries in runs.items():
        own = [entry for entry in entries if entry["task"] == task]
        grouped: dict[tuple, Row] = {}
        for entry in own:
            given = tuple(sorted((entry.get("given") or {}).items()))
            names = ("protocol", "weights_hash", "weights", "precision")
            key = (*(entry.get(name) for name in names), given)
            column = (entry["dataset"], entry.get("dataset_hash"))
            attempt = 0
            while (*key, attempt) in grouped and column in grouped[(*key, attempt)].cells:
                attempt += 1  # the same file of prompts with other content
            row = grouped.setdefault((*key, attempt), Row(run, _details(entry, own, attempt)))
            row.cells[column] = entry
        rows += grouped.values()
    return rows


def _details(entry: Entry, entries: Sequence[Entry], attempt: int) -> list[str]:
    """The protocol always; the rest where the run's entries differ in it."""
    details = [entry["protocol"]]
    if len({one.get("weights_hash") for one in entries}) > 1:
        step = entry.get("step")
        details.append(f"weights {entry.get('weights_hash') or 'unknown'}" if step is None else f"step {step:,}")
    if entry.get("weights") == "ema":
        details.append("EMA")
    if len({one.get("precision") for one in entries}) > 1:
        details.append(str(entry.get("precision")))
    given = entry.get("given") or {}
    details += [f"{name} from {Path(file).name}" for name, file in sorted(given.items())]
    if attempt:
        details.append(f"lists {results.identity(entry)[:6]}")
    return details


def columns_of(rows: Sequence[Row], task: str) -> dict[Column, str]:
    """{column: its title} in the order of the published table, then as they came."""
    found = list(dict.fromkeys(column for row in rows for column in row.cells))
    known = list(published.RETRIEVAL) if task == "retrieval" else list(published.ZEROSHOT["ALIP"])
    found.sort(key=lambda column: known.index(column[0]) if column[0] in known else len(known))
    names = [name for name, _ in found]

    def title(column: Column) -> str:
        name, content = column
        return name if names.count(name) == 1 else f"{name} [content {(content or 'unknown')[:7]}]"

    return {column: title(column) for column in found}


def _benchmark(rows: Sequence[Row], column: Column) -> str | None:
    """The benchmark's name, if the column is one: somebody's own file of the same name is not."""
    entries = [row.cells[column] for row in rows if column in row.cells]
    # Version 1 of results.json does not say; there the name must do.
    return entries[0]["benchmark"] if "benchmark" in entries[0] else column[0]


class _Marks:
    """Footnotes for numbers that are not the benchmark's own."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def on(self, text: str, entry: Entry | None) -> str:
        mark = results.mark_of(entry) if entry is not None else ""
        if not mark:
            return text
        if mark not in self.notes:
            self.notes.append(mark)
        return f"{text} [{self.notes.index(mark) + 1}]"

    def text(self) -> list[str]:
        return [f"[{number}]: {note}; not comparable." for number, note in enumerate(self.notes, 1)]


def write(runs: Runs, folder: Path) -> list[Path]:
    """Writes report.md and the bars against the published methods into folder; returns what it wrote."""
    page = folder / "report.md"
    with atomic_write(page, text=True) as file:
        # Names of files need not be UTF-8.
        file.write(markdown(runs).encode("utf-8", "backslashreplace").decode())
    written = [page]
    rows = rows_of(runs, "retrieval")
    for column, title in columns_of(rows, "retrieval").items():
        draw = lambda path, column=column, title=title: _retrieval_bars(rows, column, title, path)  # noqa: E731
        written += plot_or_warn(draw, folder / f"retrieval-{results.file_slug(title)}")
    for task, title in _TITLES.items():
        task_rows = rows_of(runs, task)
        if task_rows:
            draw = lambda path, rows=task_rows, task=task, title=title: _task_bars(rows, task, title, path)  # noqa: E731
            written += plot_or_warn(draw, folder / task)
    return written


def markdown(runs: Runs) -> str:
    """The page: a table for each retrieval dataset, one for zero-shot, one for the probe, and what was measured."""
    parts, marks = ["# Results", ""], _Marks()
    rows = rows_of(runs, "retrieval")
    for column, title in columns_of(rows, "retrieval").items():
        parts += [f"## Retrieval: {title}", "", _retrieval_table(rows, column, marks), ""]
    for task, title in _TITLES.items():
        task_rows = rows_of(runs, task)
        if task_rows:
            parts += [f"## {title}", "", _primary_table(task_rows, task, marks), ""]
    parts += ["## What was measured", "", _inventory(runs), "", *marks.text()]
    page = "\n".join(parts).rstrip() + "\n"
    if "[P]" in page:
        page += "\n[P]: published in the ALIP paper (ViT-B/32 on YFCC15M, the release's protocol), not measured here.\n"
    return page


def _inventory(runs: Runs) -> str:
    header = ["model", "dataset", "task", "protocol", "images", "unreadable", "content", "weights", "step", "precision"]
    rows = [
        [
            name,
            entry["dataset"],
            entry["task"],
            entry["protocol"],
            f"{entry['numbers']['images']:,}",
            str(entry["numbers"]["unreadable"]),
            str(entry.get("dataset_hash") or "unknown")[:7],
            f"{entry.get('weights_hash') or 'unknown'!s}{' (EMA)' if entry.get('weights') == 'ema' else ''}",
            "–" if entry.get("step") is None else f"{entry['step']:,}",
            str(entry.get("precision") or "unknown"),
        ]
        for name, entries in runs.items()
        for entry in entries
    ]
    return markdown_table(header, rows)


def _retrieval_table(rows: Sequence[Row], column: Column, marks: _Marks) -> str:
    header = ["model", *[f"{label} R@{k}" for _, label in _WAYS for k in (1, 5, 10)], "median rank"]
    cells = []
    for row in rows:
        entry = row.cells.get(column)
        if entry is None:
            continue
        numbers = entry["numbers"]
        values = [f"{numbers[f'{way}_R@{k}']:.1f}" for way, _ in _WAYS for k in (1, 5, 10)]
        medians = "/".join(f"{numbers[f'{way}_median_rank']:g}" for way, _ in _WAYS)
        cells.append([marks.on(f"**{row.run}** ({', '.join(row.details)})", entry), *values, medians])
    for method, ways in published.RETRIEVAL.get(_benchmark(rows, column) or "", {}).items():
        cells.append([f"{method} [P]", *[f"{value:.1f}" for way in ways for value in way], "–"])
    return markdown_table(header, cells)


def _primary_table(rows: Sequence[Row], task: str, marks: _Marks) -> str:
    """A column per dataset; the mean is given only where no dataset is missing, published means as published."""
    columns = columns_of(rows, task)
    cells = []
    for row in rows:
        entries = [row.cells.get(column) for column in columns]
        values = [None if entry is None else entry["numbers"]["primary"] for entry in entries]
        shown = [marks.on(_cell(value), entry) for value, entry in zip(values, entries)]
        cells.append([f"**{row.run}** ({', '.join(row.details)})", *shown, _cell(_mean(values))])
    names = [_benchmark(rows, column) for column in columns]
    all_there = len(names) == len(_PUBLISHED[task]["ALIP"]) and set(names) == set(_PUBLISHED[task]["ALIP"])
    for method in dict.fromkeys([*_PUBLISHED[task], *_PUBLISHED_MEAN[task]]):
        own = _PUBLISHED[task].get(method, {})
        values = [own.get(name or "") for name in names]
        mean = _PUBLISHED_MEAN[task].get(method) if all_there else _mean(values)
        if mean is not None or any(value is not None for value in values):
            cells.append([f"{method} [P]", *map(_cell, values), _cell(mean)])
    return markdown_table(["model", *columns.values(), "mean"], cells)


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else sum(values) / len(values)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _retrieval_bars(rows: Sequence[Row], column: Column, title: str, path: Path) -> None:
    groups = [f"R@{k}\n{label if k == 5 else ''}" for _, label in _WAYS for k in (1, 5, 10)]
    theirs = published.RETRIEVAL.get(_benchmark(rows, column) or "", {})
    series = [(method, [value for way in ways for value in way], False) for method, ways in theirs.items()]
    entries = [(row, row.cells[column]) for row in rows if column in row.cells]
    for row, entry in entries:
        values = [entry["numbers"][f"{way}_R@{k}"] for way, _ in _WAYS for k in (1, 5, 10)]
        series.append((row.label, values, True))
    numbers = entries[0][1]["numbers"]
    images = max(1.0, float(numbers["images"]))
    captions = max(images, float(numbers.get("captions", images)))
    chance = [chance_recall(captions, captions / images, k) for k in (1, 5, 10)]
    chance += [chance_recall(images, 1, k) for k in (1, 5, 10)]
    beside = ", beside published B/32 models (YFCC15M)" if theirs else ""
    bars(groups, series, f"Retrieval on {_starred(title, rows, column)}{beside}", "recall (%)", path, chance)


def chance_recall(answers: float, right: float, k: int) -> float:
    """The percentage of random orders of `answers` answers that have one of the `right` ones among the first k."""
    none = 1.0
    for taken in range(k):
        none *= max(0.0, (answers - right - taken) / max(1.0, answers - taken))
    return 100 * (1 - none)


def _task_bars(rows: Sequence[Row], task: str, title: str, path: Path) -> None:
    columns = columns_of(rows, task)
    names = [_benchmark(rows, column) for column in columns]
    series = []
    for method, own in _PUBLISHED[task].items():
        values = [own.get(name or "") for name in names]
        if any(value is not None for value in values):
            series.append((method, values, False))
    for row in rows:
        entries = [row.cells.get(column) for column in columns]
        series.append((row.label, [None if one is None else one["numbers"]["primary"] for one in entries], True))
    chance = []
    for column in columns:
        first = next(row.cells[column] for row in rows if column in row.cells)
        chance.append(100.0 / max(1.0, float(first["numbers"]["classes"])))
    groups = [_starred(title, rows, column) for column, title in columns.items()]
    bars(groups, series, f"{title}: primary metric of each dataset", "accuracy (%)", path, chance)


def _starred(title: str, rows: Sequence[Row], column: Column) -> str:
    """With a star where a number is not the benchmark's own; report.md has the reason as a footnote."""
    return title + "*" * any(results.mark_of(row.cells[column]) != "" for row in rows if column in row.cells)


def _names(paths: Sequence[str]) -> list[str]:
    """A short name for each run: the folder's, with as many parents as it takes to tell them apart."""
    parts = [[part for part in Path(path).resolve().parts if part != "results"] for path in paths]
    longest = max(len(part) for part in parts)
    for depth in range(1, longest + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("the same run is named twice")


def main(argv: list[str] | None = None, show: Callable[[str], None] = print) -> int:
    """The command: reads every run's results, prints the tables, plots the bars."""
    parser = argparse.ArgumentParser(
        description="Compares evaluated runs: tables, and bars beside the published numbers."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or folders with a results.json")
    parser.add_argument("--output", metavar="DIR", help="for report.md and plots (default: the first run's results)")
    args = parser.parse_args(argv)
    runs = {name: results.load(Path(path)) for name, path in zip(_names(args.runs), args.runs)}
    folder = Path(args.output) if args.output else results.folder_of(Path(args.runs[0]))
    written = write(runs, folder)
    show(written[0].read_text(encoding="utf-8"))
    show("written: " + ", ".join(str(path) for path in written))
    return 0


if __name__ == "__main__":
    run_command(main)
