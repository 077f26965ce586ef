"""Which measurements may be in one row and one column of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from alip.eval import published, results
from alip.text_table import counted

Entry = results.Entry
Runs = Mapping[str, list[Entry]]  # a name for the run → its entries
Groups = Mapping[str, Sequence[str]]  # a name for the group → names of its runs
# A dataset's name, the hash of its content, shots of a few-shot probe, and what the primary metric is.
Column = tuple[str, str | None, int | None, str | None]
WAYS = (("image_to_text", "image → text"), ("text_to_image", "text → image"))


@dataclass
class Row:
    """Measurements that may be in one row: of the same protocol, precision and lists of prompts and names.

    name: of the run or the group. details: how the row differs from the others of its run. cells: of one run and one
    checkpoint, or of every run of a group; (run's name, entry) pairs. key: what the measurements have in common.
    """

    name: str
    details: list[str]
    key: tuple = ()
    cells: dict[Column, list[tuple[str, Entry]]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.name} ({', '.join(self.details)})"

    def entry(self, column: Column) -> Entry | None:
        """The first run's measurement, None where there is none."""
        found = self.cells.get(column)
        return found[0][1] if found else None

    def values(self, column: Column, name: str) -> list[float]:
        """The number of that name, of every run."""
        return [value_of(entry, name) for _, entry in self.cells.get(column, [])]


def value_of(entry: Entry, name: str) -> float:
    """A number of an entry; retrieval of version 0.1 has no `primary`."""
    numbers = entry["numbers"]
    if name == "primary" and name not in numbers:
        return (numbers["image_to_text_R@1"] + numbers["text_to_image_R@1"]) / 2
    return float(numbers[name])


def column_of(entry: Entry) -> Column:
    """The column that a measurement belongs to. Suites may differ in the primary metric of a dataset."""
    metric = None if entry["task"] == "retrieval" else entry.get("primary_metric")
    return entry["dataset"], entry.get("dataset_hash"), entry.get("shots"), metric


def rows_of(runs: Runs, task: str, groups: Groups | None = None) -> list[Row]:
    """The rows of a task's table; no row mixes two checkpoints of a run, two precisions or two lists of prompts.

    groups: runs that differ in their seed only, say; a run that is in none is a row by itself.
    """
    groups = groups or {}
    grouped = {run for members in groups.values() for run in members}
    rows = [row for name, members in groups.items() for row in _group_rows(name, members, runs, task)]
    return rows + [row for run in runs if run not in grouped for row in _run_rows(run, runs[run], task)]


def _run_rows(run: str, entries: Sequence[Entry], task: str) -> list[Row]:
    own = [entry for entry in entries if entry["task"] == task]
    rows: dict[tuple, Row] = {}
    for entry in own:
        given = tuple(sorted((entry.get("given") or {}).items()))
        key = (*(entry.get(name) for name in ("protocol", "weights", "precision", "seeds")), given)
        column = column_of(entry)
        attempt = 0
        while column in rows.get((*key, entry.get("weights_hash"), attempt), Row("", [])).cells:
            attempt += 1  # the same file of prompts with other content
        details = _details(entry, own, attempt)
        row = rows.setdefault((*key, entry.get("weights_hash"), attempt), Row(run, details, (*key, attempt)))
        row.cells[column] = [(run, entry)]
    return list(rows.values())


def _group_rows(name: str, members: Sequence[str], runs: Runs, task: str) -> list[Row]:
    """One run's rows are its own; of several runs those with the same key are joined, each at its newest checkpoint."""
    if len(members) == 1:
        return [replace(row, name=name) for row in _run_rows(members[0], runs[members[0]], task)]
    joined: dict[tuple, Row] = {}
    for run in members:
        newest: dict[tuple, Row] = {}
        for row in _run_rows(run, runs[run], task):
            if row.key not in newest or step_of(row) >= step_of(newest[row.key]):
                newest[row.key] = row
        for key, row in newest.items():
            own = joined.setdefault(key, Row(name, [row.details[0], *_shared_details(row)], key))
            for column, cells in row.cells.items():
                own.cells.setdefault(column, []).extend(cells)
    for row in joined.values():
        least, most = (choose(map(len, row.cells.values())) for choose in (min, max))
        if least < len(members):
            row.details.append(f"{least if least == most else f'{least} to {most}'} of {len(members)} runs")
    return list(joined.values())


def step_of(row: Row) -> int:
    """The newest step of a row's checkpoints, -1 where none is recorded."""
    return max(entry.get("step") or -1 for cells in row.cells.values() for _, entry in cells)


def _shared_details(row: Row) -> list[str]:
    """What all runs of a group have in common: not the step."""
    return [one for one in row.details[1:] if not one.startswith(("model ", "step ", "weights "))]


def _details(entry: Entry, entries: Sequence[Entry], attempt: int) -> list[str]:
    """The protocol always; the rest where the run's entries differ in it."""
    details = [entry["protocol"]]
    if len({one.get("weights_hash") for one in entries}) > 1:
        details += _which_weights(entry, entries)
    if entry.get("weights") == "ema":
        details.append("EMA")
    if len({one.get("precision") for one in entries}) > 1:
        details.append(str(entry.get("precision")))
    if len({one.get("seeds") for one in entries}) > 1:
        details.append(f"{entry.get('seeds')} seeds")
    given = entry.get("given") or {}
    details += [f"{name} from {Path(file).name}" for name, file in sorted(given.items())]
    if attempt:
        details.append(f"lists {results.identity(entry)[:6]}")
    return details


def _which_weights(entry: Entry, entries: Sequence[Entry]) -> list[str]:
    """The model's name where there are several, then the step or, where that does not tell them apart, the hash."""
    found = []
    if len({results.model_name(one) for one in entries}) > 1:
        found.append(f"model {results.model_name(entry)}")
    about = [(results.model_name(one), one.get("weights"), one.get("step")) for one in entries]
    own = (results.model_name(entry), entry.get("weights"), entry.get("step"))
    hashes = {one.get("weights_hash") for one, other in zip(entries, about) if other == own}
    if own[2] is not None and len(hashes) == 1:
        return [*found, f"step {own[2]:,}"]
    return found if found and len(hashes) == 1 else [*found, f"weights {entry.get('weights_hash') or 'unknown'}"]


def columns_of(rows: Sequence[Row], task: str) -> dict[Column, str]:
    """{column: its title} in the order of the published table, then as they came."""
    found = list(dict.fromkeys(column for row in rows for column in row.cells))
    known = list(published.RETRIEVAL) if task == "retrieval" else list(published.ZEROSHOT["ALIP"])
    found.sort(key=lambda column: known.index(column[0]) if column[0] in known else len(known))

    def title(column: Column) -> str:
        name, content, shots, metric = column
        alike = [other for other in found if (other[0], other[2]) == (name, shots)]
        about = [f"content {(content or 'unknown')[:7]}"] if len({other[1] for other in alike}) > 1 else []
        about += [str(metric or "unknown metric")] if len({other[3] for other in alike}) > 1 else []
        text = name if shots is None else f"{name}, {counted(shots, 'shot')}"
        return f"{text} [{', '.join(about)}]" if about else text

    return {column: title(column) for column in found}


def benchmark_of(rows: Sequence[Row], column: Column) -> str | None:
    """The benchmark's name, if the column is one: somebody's own file of the same name is not."""
    entry = next(row.entry(column) for row in rows if column in row.cells)
    # Version 1 of results.json does not record it; there the name must do.
    return entry["benchmark"] if "benchmark" in entry else column[0]
