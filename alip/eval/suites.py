"""Suites: lists of tasks with one average, read from folders as DataComp's download or CLIP_benchmark leave them.

A suite is complete when all of its tasks were measured on all of their images: only then its averages are printed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from alip.errors import UserError
from alip.eval import wds
from alip.eval.arrow_images import ArrowImages, arrow_files, read_table
from alip.eval.caption_files import RetrievalDataset
from alip.eval.classification import ClassificationDataset
from alip.eval.datasets import open_classification, open_retrieval
from alip.eval.selection import SelectionDataset, winogavil
from alip.eval.suite_tasks import SUITES, Task
from alip.text_table import markdown_table

Opened = ClassificationDataset | RetrievalDataset | SelectionDataset
HUB_OWNER = "nlphuji"  # whose retrieval datasets and WinoGAViL DataComp's download fetches into hf_cache
_NAMED_RETRIEVAL = {"Flickr": "flickr30k", "MSCOCO": "coco"}


@dataclass(frozen=True)
class OpenedSuite:
    """datasets: (task, dataset) of what is there. missing: the other tasks, with where they were looked for."""

    name: str
    datasets: list[tuple[Task, Opened]]
    missing: list[tuple[Task, str]]


def open_suite(name: str, data_root: str | Path, protocol: str = "standard") -> OpenedSuite:
    """Opens every task that is there. UserError when none is, and for one that is there but not whole."""
    root = Path(data_root)
    datasets: list[tuple[Task, Opened]] = []
    missing: list[tuple[Task, str]] = []
    for task in SUITES[name]:
        opened = _OPENERS[task.kind](task, root, protocol)
        if isinstance(opened, str):
            missing.append((task, opened))
        else:
            datasets.append((task, opened))
    if not datasets:
        first, location = missing[0]
        raise UserError(
            f"the suite {name}: none of its {len(missing)} datasets is there; {first.title} needs {location}"
        )
    return OpenedSuite(name, datasets, missing)


def folder_names(task: Task) -> list[str]:
    """Where a task's WebDataset may be under the data root; the first is what DataComp's download makes."""
    key = task.key.removeprefix("fairness/")
    flat = key.replace("/", "-")
    return [f"wds_{flat}_test", f"wds_{flat}", f"wds/{key}", f"wds/{flat}", f"wds-{flat}"]


def _wds_folder(task: Task, root: Path) -> Path | None:
    return next((root / name for name in folder_names(task) if (root / name / "test").is_dir()), None)


def _open_wds(task: Task, root: Path, protocol: str) -> Opened | str:
    folder = _wds_folder(task, root)
    if folder is None:
        return str(root / folder_names(task)[0])
    dataset = wds.open_wds_classification(folder, f"wds/{task.key}", metric=task.metric, groups=task.groups)
    return replace(dataset, image_counts=(task.size,) if task.size else ())


def _open_named(task: Task, root: Path, protocol: str) -> Opened | str:
    from alip.eval.dataset_records import CLASSIFICATION

    location = CLASSIFICATION[task.key].location(root)
    return open_classification(task.key, root, protocol=protocol) if location.exists() else str(location)


def _open_retrieval(task: Task, root: Path, protocol: str) -> Opened | str:
    """What the download left in hf_cache; else the same test images as our `flickr30k` or `coco`."""
    name = task.key.partition("/")[2]
    cache = root / "hf_cache"
    files = arrow_files(cache, HUB_OWNER, name)
    if files:
        captions = read_table(files, ["image", "caption"]).column("caption").to_pylist()
        positions = np.stack([np.arange(len(captions)), np.full(len(captions), -1)], 1)
        images = ArrowImages(files, cache, "image", positions)
        owner = [image for image, own in enumerate(captions) for _ in own]
        texts = [text for own in captions for text in own]
        names = [Path(images.name(index)) for index in range(len(images))]
        return RetrievalDataset(task.key, names, texts, owner, expected_images=task.size, reader=images)
    try:
        return open_retrieval(_NAMED_RETRIEVAL[task.title], root)
    except UserError as error:
        if " needs " not in str(error):  # it is there, and broken
            raise
    return f"{cache / (HUB_OWNER + '___' + name)}, or the dataset {_NAMED_RETRIEVAL[task.title]}"


_WINOGAVIL_COLUMNS = ("candidates", "candidate_images", "cue", "associations")


def cue_prompt(cue: str) -> str:
    """DataComp's prompt for a cue of WinoGAViL."""
    cue = cue.lower()
    return f"{'An' if cue[:1] in tuple('aeiou') else 'A'} {cue}"


def _open_winogavil(task: Task, root: Path, protocol: str) -> Opened | str:
    """Every image once: the candidates of the questions are some thousand images under their names."""
    cache = root / "hf_cache"
    files = arrow_files(cache, HUB_OWNER, "winogavil")
    if not files:
        return str(cache / f"{HUB_OWNER}___winogavil")
    table = read_table(files, _WINOGAVIL_COLUMNS)
    columns = {name: table.column(name).to_pylist() for name in ("candidates", "cue", "associations")}
    number: dict[str, int] = {}
    positions: list[tuple[int, int]] = []
    for row, names in enumerate(columns["candidates"]):
        for item, name in enumerate(names):
            if name not in number:
                number[name] = len(positions)
                positions.append((row, item))
    candidates = [[number[name] for name in own] for own in columns["candidates"]]
    right = [
        [number[name] for name in own if name in {*answers}]
        for own, answers in zip(columns["candidates"], columns["associations"])
    ]
    if any(not own for own in right):
        raise UserError(f"{files[0]}: a question without a right image")
    prompts = [cue_prompt(cue) for cue in columns["cue"]]
    return SelectionDataset(
        task.key,
        ArrowImages(files, cache, "candidate_images", np.array(positions)),
        prompts,
        winogavil(candidates, right),
        "mean Jaccard index of 10 and 12 candidates",
        len(prompts),
        [*prompts, str(candidates), str(right)],
        expected_questions=(task.size,),
    )


_OPENERS: Mapping[str, Callable[[Task, Path, str], Opened | str]] = {
    "wds": _open_wds,
    "named": _open_named,
    "retrieval": _open_retrieval,
    "winogavil": _open_winogavil,
}


def groups_of(name: str) -> dict[str, Sequence[Task]]:
    """{group: its tasks}: every part, and the whole suite as "average".

    DataComp's average is the plain mean of the 38 tasks, in which FairFace and UTKFace are not.
    """
    tasks = SUITES[name]
    parts = dict.fromkeys(task.part for task in tasks if task.part)
    return {**{part: [task for task in tasks if task.part == part] for part in parts}, "average": tasks}


def averages(name: str, values: Mapping[str, float]) -> dict[str, tuple[float | None, int, int]]:
    """{group: (mean or None, measured, all)}. values: by key of the task."""
    found = {}
    for group, own in groups_of(name).items():
        there = [values[task.key] for task in own if task.key in values]
        found[group] = (float(np.mean(there)) if len(there) == len(own) else None, len(there), len(own))
    return found


def table(
    suite: OpenedSuite, values: Mapping[str, float], marks: Mapping[str, str], ends: Mapping[str, Sequence[float]]
) -> str:
    """The suite's page: a row per task, averages, and what is missing. marks: key → why a number is not its own.

    ends: the 95 % intervals, by key of the task or name of the mean.
    """

    def shown(name: str, value: float) -> str:
        return f"{value:.2f}" + (f" ({ends[name][0]:.2f}–{ends[name][1]:.2f})" if name in ends else "")

    rows = []
    missing = {task.key: location for task, location in suite.missing}
    for task in SUITES[suite.name]:
        if task.key in values:
            rows.append([task.title, task.metric, shown(task.key, values[task.key]), marks.get(task.key, "")])
        else:
            rows.append([task.title, task.metric, "–", f"missing: {missing.get(task.key, 'not measured')}"])
    lines = [markdown_table([suite.name, "metric", "value", "note"], rows), ""]
    summary = []
    for group, (mean, measured, count) in averages(suite.name, values).items():
        partial = f"partial: {measured} of {count} tasks"
        own = [task.key for task in SUITES[suite.name] if group in (task.part, "average")]
        marked = [key for key in own if key in marks and key in values]
        note = partial if mean is None else f"with {len(marked)} incomplete datasets: not comparable" if marked else ""
        summary.append([group, "–" if mean is None else shown(group, mean), f"{count}", note])
    return "\n".join([*lines, markdown_table([f"{suite.name}: means", "value", "tasks", "note"], summary)])
