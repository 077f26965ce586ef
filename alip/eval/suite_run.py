"""Measures a suite, and writes its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from alip.eval import bootstrap, outcomes, results
from alip.eval.classification import ClassificationDataset
from alip.eval.evaluate import Recorder, record_texts, record_zeroshot
from alip.eval.features import Encoding
from alip.eval.suites import OpenedSuite, averages, groups_of, table
from alip.files import atomic_write, write_json


def run_suite(
    model: nn.Module,
    suite: OpenedSuite,
    encoding: Encoding,
    *,
    protocol: str,
    source: str,
    folder: Path,
    plots: bool = True,
) -> int:
    """Measures every task that is there; writes suite-NAME.md and suite-NAME.json beside results.json.

    Returns the exit status: 1 when tasks are missing or images had to be left out, else 0.
    """
    recorder = Recorder(model, source, encoding, protocol, folder, plots)
    for _, dataset in suite.datasets:
        if isinstance(dataset, ClassificationDataset):
            record_zeroshot(recorder, model, dataset)
        else:
            record_texts(recorder, model, dataset)
    status = recorder.finish()
    if encoding.world.is_main:
        entries = {task.key: entry for (task, _), entry in zip(suite.datasets, recorder.entries)}
        values = {key: float(entry["numbers"]["primary"]) for key, entry in entries.items()}
        marks = {key: mark for key, entry in entries.items() if (mark := results.mark_of(entry))}
        ends = {key: entry["intervals"]["primary"] for key, entry in entries.items() if _has_interval(entry)}
        ends |= _ends_of_means(suite, entries, folder)
        page = table(suite, values, marks, ends)
        print(page)
        stem = f"suite-{results.file_slug(suite.name)}"
        with atomic_write(folder / f"{stem}.md", text=True) as file:
            file.write(f"# {suite.name}\n\n{page}\n")
        write_json(folder / f"{stem}.json", _content(suite, values, marks, ends, recorder.about))
        print(f"written: {folder / stem}.md and .json")
    return 1 if status or suite.missing else 0


def _has_interval(entry: results.Entry) -> bool:
    return "primary" in entry.get("intervals", {})


def _ends_of_means(suite: OpenedSuite, entries: dict[str, results.Entry], folder: Path) -> dict[str, list[float]]:
    """{group: [low, high]} of the suite's means whose tasks were all measured, from the outcomes of their items."""
    ends = {}
    for group, tasks in groups_of(suite.name).items():
        own = [entries[task.key] for task in tasks if task.key in entries and _has_interval(entries[task.key])]
        if len(own) == len(tasks):
            items = [outcomes.load(folder, entry["id"]) for entry in own]
            if None not in items:
                ends[group] = bootstrap.mean_interval(
                    [(one, entry["primary_metric"]) for one, entry in zip(items, own)]
                )
    return {group: one for group, one in ends.items() if one is not None}


def _content(
    suite: OpenedSuite,
    values: dict[str, float],
    marks: dict[str, str],
    ends: dict[str, list[float]],
    about: dict[str, Any],
) -> dict[str, Any]:
    found = averages(suite.name, values)
    return {
        "format": "alip-suite",
        "suite": suite.name,
        **about,
        "tasks": [
            {"key": task.key, "title": task.title, "metric": task.metric, "value": values[task.key]}
            | ({"mark": marks[task.key]} if task.key in marks else {})
            | ({"interval": ends[task.key]} if task.key in ends else {})
            for task, _ in suite.datasets
        ],
        "missing": [task.key for task, _ in suite.missing],
        "means": {
            group: {"value": mean, "measured": measured, "tasks": count}
            | ({"interval": ends[group]} if group in ends else {})
            for group, (mean, measured, count) in found.items()
        },
    }
