"""report.md, report.csv, report.tex and the bars, from the entries of one or several runs."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from alip.eval import bootstrap, outcomes, published, results
from alip.eval.report import significance
from alip.eval.report.plots import PUBLISHED, retrieval_bars, task_bars
from alip.eval.report.rows import (
    WAYS,
    Column,
    Entry,
    Groups,
    Row,
    Runs,
    benchmark_of,
    columns_of,
    rows_of,
    step_of,
    value_of,
)
from alip.eval.report.significance import Difference
from alip.eval.report.tables import Cell, Table, TableRow, to_csv, to_latex, to_markdown
from alip.files import atomic_write
from alip.plot_style import plot_or_warn
from alip.text_table import counted, markdown_table

_TITLES = {"zeroshot": "Zero-shot classification", "probe": "Linear probe", "few-shot": "Few-shot probe"}
_MEDIAN_RANKS = f"median ranks ({' / '.join(label for _, label in WAYS)})"
_PUBLISHED_MEAN = {"zeroshot": published.ZEROSHOT_MEAN, "probe": published.PROBE_MEAN}
FORMATS = ("markdown", "csv", "latex")


@dataclass
class Report:
    """Everything that is written. differences: corrected together. notes: footnotes, numbered from 1."""

    runs: Runs
    tables: list[Table] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def mark(self, entries: Sequence[Entry]) -> int | None:
        """The number of the footnote for numbers that are not the benchmark's own, None for those that are."""
        mark = "; ".join(dict.fromkeys(mark for mark in map(results.mark_of, entries) if mark))
        if not mark:
            return None
        if mark not in self.notes:
            self.notes.append(mark)
        return self.notes.index(mark) + 1


def build(
    runs: Runs,
    groups: Groups | None = None,
    folders: Mapping[str, Path] | None = None,
    seeds: Mapping[str, int | None] | None = None,
) -> Report:
    """All tables. groups: runs to be averaged, by the group's name; the first group, or run, is what others are tested
    against. folders: of the runs' results.json, whose outcomes the tests of single runs need. seeds: of the runs.
    """
    report = Report(runs)
    lookup = _Outcomes(folders or {})
    for task in dict.fromkeys(["retrieval", *_TITLES, *(entry["task"] for one in runs.values() for entry in one)]):
        rows = rows_of(runs, task, groups)
        if not rows:
            continue
        columns = columns_of(rows, task)
        if task == "retrieval":
            report.tables += [_retrieval_table(rows, column, title, report) for column, title in columns.items()]
        else:
            report.tables.append(_primary_table(rows, columns, task, report, lookup))
        report.differences += _differences(rows, columns, task, lookup, seeds or {})
    report.differences = significance.holm(report.differences)
    return report


class _Outcomes:
    """What happened to the items of a run's entry, read when it is needed."""

    def __init__(self, folders: Mapping[str, Path]):
        self.folders = folders

    def of(self, run: str, entry: Entry) -> outcomes.Outcomes | None:
        return outcomes.load(self.folders[run], results.identity(entry)) if run in self.folders else None


def title_of(task: str) -> str:
    """A task's name in headings."""
    return _TITLES.get(task, task.replace("-", " ").capitalize())


def _cell(row: Row, column: Column, name: str, report: Report) -> Cell:
    entries = [entry for _, entry in row.cells.get(column, [])]
    if not entries or (name != "primary" and any(name not in entry["numbers"] for entry in entries)):
        return Cell(metric=name)
    ends = entries[0].get("intervals", {}).get(name) if len(entries) == 1 else None
    values = tuple(value_of(entry, name) for entry in entries)
    return Cell(values, tuple(ends) if ends else None, report.mark(entries), metric=name)


def _retrieval_table(rows: Sequence[Row], column: Column, title: str, report: Report) -> Table:
    table = Table(f"Retrieval: {title}", [f"{label} R@{k}" for _, label in WAYS for k in (1, 5, 10)] + [_MEDIAN_RANKS])
    for row in rows:
        if column in row.cells:
            cells = [_cell(row, column, f"{way}_R@{k}", report) for way, _ in WAYS for k in (1, 5, 10)]
            medians = "/".join(f"{fmean(row.values(column, f'{way}_median_rank')):g}" for way, _ in WAYS)
            table.rows.append(TableRow(row.label, [*cells, Cell(text=medians)]))
    for method, ways in published.RETRIEVAL.get(benchmark_of(rows, column) or "", {}).items():
        cells = [Cell((value,)) for way in ways for value in way]
        table.rows.append(TableRow(method, [*cells, Cell()], published=True))
    return table


def _primary_table(
    rows: Sequence[Row], columns: Mapping[Column, str], task: str, report: Report, lookup: _Outcomes
) -> Table:
    """A column per dataset; the mean is given only where no dataset is missing, published means as published, and not
    over different numbers of shots."""
    averaged = len({shots for _, _, shots, _ in columns}) == 1
    table = Table(title_of(task), [*columns.values(), "mean"])
    for row in rows:
        cells = [_cell(row, column, "primary", report) for column in columns]
        means = tuple(_means_by_run(row, columns))
        entries = [entry for column in columns for _, entry in row.cells.get(column, [])]
        mark = report.mark(entries) if means else None
        mean = Cell(means, _ends_of_mean(row, columns, lookup), mark, metric="mean")
        table.rows.append(TableRow(row.label, [*cells, mean]))
    names = [benchmark_of(rows, column) for column in columns]
    theirs, their_means = PUBLISHED.get(task, {}), _PUBLISHED_MEAN.get(task, {})
    all_there = bool(theirs) and len(names) == len(theirs["ALIP"]) and set(names) == set(theirs["ALIP"])
    for method in dict.fromkeys([*theirs, *their_means]):
        values = [theirs.get(method, {}).get(name or "") for name in names]
        mean = their_means.get(method) if all_there else None if None in values else fmean(values)
        if mean is not None or any(value is not None for value in values):
            cells = [Cell(() if value is None else (value,)) for value in (*values, mean)]
            table.rows.append(TableRow(method, cells, published=True))
    if not averaged:
        table.header.pop()
        for shown in table.rows:
            shown.cells.pop()
    return table


def _ends_of_mean(row: Row, columns: Mapping[Column, str], lookup: _Outcomes) -> tuple[float, float] | None:
    """Of the mean over the columns of one run; None for several runs, or without outcomes of all."""
    cells = [row.cells.get(column, []) for column in columns]
    if any(len(own) != 1 for own in cells) or len({run for ((run, _),) in cells}) > 1:
        return None
    parts = [(lookup.of(run, entry), entry.get("primary_metric") or "top1") for ((run, entry),) in cells]
    if any(items is None for items, _ in parts):
        return None
    ends = bootstrap.mean_interval(parts)
    return None if ends is None else (ends[0], ends[1])


def _means_by_run(row: Row, columns: Mapping[Column, str]) -> list[float]:
    """The mean over the columns, for each run that has all of them; none if a run lacks one."""
    by_run: dict[str, list[float]] = {}
    for column in columns:
        for run, entry in row.cells.get(column, []):
            by_run.setdefault(run, []).append(value_of(entry, "primary"))
    return [fmean(one) for one in by_run.values()] if all(len(one) == len(columns) for one in by_run.values()) else []


# Differences ---------------------------------------------------------------------------------------------------


def _differences(
    rows: Sequence[Row],
    columns: Mapping[Column, str],
    task: str,
    lookup: _Outcomes,
    seeds: Mapping[str, int | None],
) -> list[Difference]:
    """Every other row against the first name's row of the same protocol, precision and lists, at its newest checkpoint.

    A row is called by its whole label where its name has several.
    """
    base: dict[tuple, Row] = {}
    for row in rows:
        if row.name == rows[0].name and (row.key not in base or step_of(row) > step_of(base[row.key])):
            base[row.key] = row
    count = Counter(row.name for row in rows)
    called = {id(row): row.label if count[row.name] > 1 else row.name for row in rows}
    found = []
    for row in rows:
        first = base.get(row.key)
        if row.name == rows[0].name or first is None:
            continue
        shared = [column for column in columns if column in row.cells and column in first.cells]
        for column in shared:
            names = (called[id(row)], called[id(first)], f"{title_of(task)}: {columns[column]}")
            found.append(_difference(names, row, first, column, lookup, seeds))
        if len(shared) == len(columns) > 1 and task != "retrieval":
            names = (called[id(row)], called[id(first)], f"{title_of(task)}: mean of {len(columns)}")
            found += _mean_difference(names, row, first, columns, lookup, seeds)
    return found


def _difference(
    names: tuple[str, str, str],
    row: Row,
    first: Row,
    column: Column,
    lookup: _Outcomes,
    seeds: Mapping[str, int | None],
) -> Difference:
    pairs = (row.cells[column], first.cells[column])
    if max(map(len, pairs)) > 1:
        values = tuple([value_of(entry, "primary") for _, entry in one] for one in pairs)
        return significance.between_runs(names, values, tuple([seeds.get(run) for run, _ in one] for one in pairs))
    (one,), (other,) = pairs
    values = (value_of(one[1], "primary"), value_of(other[1], "primary"))
    metric = one[1].get("primary_metric") or "top1"
    return significance.between_items(names, lookup.of(*one), lookup.of(*other), values, metric)


def _mean_difference(
    names: tuple[str, str, str],
    row: Row,
    first: Row,
    columns: Mapping[Column, str],
    lookup: _Outcomes,
    seeds: Mapping[str, int | None],
) -> list[Difference]:
    means = (_means_by_run(row, columns), _means_by_run(first, columns))
    if not all(means):
        return []
    runs = [list(dict.fromkeys(run for column in columns for run, _ in one.cells[column])) for one in (row, first)]
    if max(map(len, means)) > 1:
        return [significance.between_runs(names, means, tuple([seeds.get(run) for run in one] for one in runs))]
    parts = []
    for column in columns:
        one, other = row.cells[column][0], first.cells[column][0]
        items = lookup.of(*one), lookup.of(*other)
        metric = one[1].get("primary_metric") or "top1"
        if None in items or not outcomes.same_items(*items):
            return []
        parts.append((*items, metric))
    return [significance.mean_over_datasets(names, parts, means[0][0] - means[1][0])]


_DIFFERENCES_HEADER = ("second", "measured", "difference", "95 % interval", "p", "p, Holm", "test")


def _difference_table(differences: Sequence[Difference]) -> Table:
    table = Table("Differences", list(_DIFFERENCES_HEADER), first="first", compared=False)
    for one in differences:
        ends = "–" if one.interval is None else f"{one.interval[0]:+.2f} to {one.interval[1]:+.2f}"
        p = ["–" if value is None else _p(value) for value in (one.p, one.adjusted)]
        texts = [one.second, one.what, f"{one.value:+.2f}", ends, *p, one.test]
        table.rows.append(TableRow(one.first, [Cell(text=text) for text in texts]))
    return table


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def _about_differences(differences: Sequence[Difference]) -> str:
    count = sum(one.p is not None for one in differences)
    if not count:
        return "first − second of the primary metric, in points. No difference could be tested."
    return (
        f'first − second of the primary metric, in points. {counted(count, "test")}, two-sided; "p, Holm" is '
        "corrected for all of them together. A test of single runs is about the test items alone: another seed of "
        "training may differ by more."
    )


# Documents -----------------------------------------------------------------------------------------------------


def markdown(runs: Runs, groups: Groups | None = None, **about: Mapping) -> str:
    """The page as Markdown; see `build` for what else it takes."""
    return as_markdown(build(runs, groups, **about))


def as_markdown(report: Report, intervals: bool = True) -> str:
    """All tables with titles, the differences, what was measured, and the notes."""
    parts = ["# Results", ""]
    for table in report.tables:
        parts += [f"## {table.title}", "", to_markdown(table, intervals), ""]
    if report.differences:
        parts += ["## Differences", "", to_markdown(_difference_table(report.differences)), ""]
        parts += [_about_differences(report.differences), ""]
    parts += ["## What was measured", "", _inventory(report.runs), ""]
    parts += [f"[{number}]: {note}; not comparable." for number, note in enumerate(report.notes, 1)]
    page = "\n".join(parts).rstrip() + "\n"
    cells = [cell for table in report.tables for row in table.rows if not row.published for cell in row.cells]
    if intervals and any(cell.ends for cell in cells):
        page += "\n(a–b): 95 % interval, bootstrap over the test items (docs/evaluation.md).\n"
    if any(cell.deviation is not None for cell in cells):
        page += "\n±: standard deviation over the runs of a group.\n"
    if any(row.published for table in report.tables for row in table.rows):
        page += "\n[P]: published in the ALIP paper (ViT-B/32 on YFCC15M, the release's protocol), not measured here.\n"
    return page


def as_latex(report: Report, intervals: bool = True) -> str:
    """A table environment for each table; needs \\usepackage{booktabs}."""
    parts = ["% needs \\usepackage{booktabs}"]
    parts += [to_latex(table, intervals) for table in report.tables]
    if report.differences:
        parts.append(to_latex(_difference_table(report.differences)))
    parts += [f"% {number}: {' '.join(note.split())}; not comparable." for number, note in enumerate(report.notes, 1)]
    if any(row.published for table in report.tables for row in table.rows):
        parts.append("% P: published in the ALIP paper, not measured here.")
    return "\n\n".join(parts) + "\n"


def differences_csv(differences: Sequence[Difference]) -> str:
    """One line for each difference, in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["first", "second", "measured", "difference", "low", "high", "p", "p_holm", "test"])
    for one in differences:
        low, high = one.interval or ("", "")
        p = ["" if value is None else value for value in (one.p, one.adjusted)]
        writer.writerow([one.first, one.second, one.what, one.value, low, high, *p, one.test])
    return out.getvalue()


def write(
    runs: Runs,
    folder: Path,
    groups: Groups | None = None,
    *,
    formats: Sequence[str] = ("markdown",),
    intervals: bool = True,
    plots: bool = True,
    **about: Mapping,
) -> list[Path]:
    """Writes report.md (and .csv, .tex) and the bars against the published methods into folder; what it wrote."""
    report = build(runs, groups, **about)
    written = []
    texts = {
        "markdown": lambda: {"report.md": as_markdown(report, intervals)},
        "csv": lambda: {
            "report.csv": to_csv(report.tables, report.notes),
            "differences.csv": differences_csv(report.differences),
        },
        "latex": lambda: {"report.tex": as_latex(report, intervals)},
    }
    for name in formats:
        for file_name, text in texts[name]().items():
            with atomic_write(folder / file_name, text=True) as file:
                # Names of files need not be UTF-8.
                file.write(text.encode("utf-8", "backslashreplace").decode())
            written.append(folder / file_name)
    return written + (_plots(runs, folder, groups) if plots else [])


def _plots(runs: Runs, folder: Path, groups: Groups | None) -> list[Path]:
    written: list[Path] = []
    rows = rows_of(runs, "retrieval", groups)
    draw: Callable[[Path], None]
    for column, title in columns_of(rows, "retrieval").items():
        draw = lambda path, column=column, title=title: retrieval_bars(rows, column, title, path)  # noqa: E731
        written += plot_or_warn(draw, folder / f"retrieval-{results.file_slug(title)}")
    for task, title in _TITLES.items():
        task_rows = rows_of(runs, task, groups)
        if task_rows:
            draw = lambda path, rows=task_rows, task=task, title=title: task_bars(rows, task, title, path)  # noqa: E731
            written += plot_or_warn(draw, folder / task)
    return written


def _inventory(runs: Runs) -> str:
    header = ["model", "dataset", "task", "protocol", "images", "unreadable", "content", "weights", "step", "precision"]
    rows = [
        [
            name,
            entry["dataset"],
            entry["task"] if entry.get("shots") is None else f"{entry['task']} {entry['shots']}",
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
