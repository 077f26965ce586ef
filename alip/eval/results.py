"""results.json: what was measured, and on what. An entry is identified by everything that its numbers depend on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import torchvision

from alip import __version__
from alip.errors import UserError
from alip.eval.prompts import ACCEPTED_PROTOCOLS, canonical_protocol
from alip.files import FileLock, LockedError, read_json, write_json
from alip.schema import check

FILE_NAME = "results.json"
_LOCK_WAIT_S = 60.0  # another evaluation holds the lock for milliseconds
_NAMED_AT_MOST = 100  # unreadable images that are listed by name

Entry = dict[str, Any]

# Two measurements are the same one when all of these are equal; results.json keeps the newest of them.
# Names that not every task has are left out of the hash where an entry has none.
IDENTITY = (
    "task",
    "dataset",
    "dataset_hash",
    "protocol",
    "weights_hash",
    "weights",
    "precision",
    "prompts_hash",
    "classnames_hash",
)
OPTIONAL_IDENTITY = ("shots", "seeds")

TASKS = ("retrieval", "zeroshot", "probe", "few-shot", "selection")

_NAME = {"type": "string", "minLength": 1}
_INTERVAL = {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "number"}}
_OPTIONAL_NAME = {"type": ["string", "null"]}
_SCHEMA = {
    "type": "object",
    "required": ["format", "version", "entries"],
    "properties": {
        "format": {"const": "alip-results"},
        "version": {"enum": [1, 2]},
        "entries": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["task", "dataset", "protocol", "numbers"],
                "properties": {
                    "task": {"enum": list(TASKS)},
                    "dataset": _NAME,
                    "protocol": {"enum": list(ACCEPTED_PROTOCOLS)},
                    "numbers": {
                        "type": "object",
                        "required": ["images", "unreadable"],
                        "additionalProperties": {"type": "number"},
                    },
                    **{
                        name: _OPTIONAL_NAME
                        for name in (*IDENTITY[2:], "benchmark", "checkpoint")
                        if name != "protocol"
                    },
                    "intervals": {"type": "object", "additionalProperties": _INTERVAL},
                    "shots": {"type": "integer", "minimum": 1},
                    "seeds": {"type": "integer", "minimum": 1},
                    "step": {"type": ["integer", "null"]},
                    "expected_images": {"type": "array", "items": {"type": "integer"}},
                    "expected_questions": {"type": "array", "items": {"type": "integer"}},
                    "questions": {"type": "integer", "minimum": 0},
                    "given": {"type": "object", "additionalProperties": {"type": "string"}},
                },
            },
        },
    },
}
# The numbers that tables need.
_NUMBERS = {
    "retrieval": [
        f"{way}_{n}" for way in ("image_to_text", "text_to_image") for n in ("R@1", "R@5", "R@10", "median_rank")
    ],
    "zeroshot": ["primary", "top1", "classes"],
    "probe": ["primary", "top1", "mean_per_class", "classes"],
    "few-shot": ["primary", "top1", "mean_per_class", "classes"],
    "selection": ["primary", "questions"],
}


def entry(task: str, protocol: str, numbers: dict[str, float], unreadable: Sequence, **about: Any) -> Entry:
    """One measurement. task: one of TASKS. about: the rest of IDENTITY, and what readers want to know (checkpoint,
    step, given files, expected_images, benchmark, primary_metric, intervals and how they were made).
    """
    one = {
        "task": task,
        "protocol": canonical_protocol(protocol),
        **about,
        "numbers": numbers,
        "unreadable": [f"{name}: {reason}" for name, reason in unreadable[:_NAMED_AT_MOST]],
        "versions": {
            "alip": __version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "open_clip": open_clip.__version__,
            "python": platform.python_version(),
        },
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    return {"id": identity(one), **one}


def identity(one: Entry) -> str:
    """A short hash of everything that an entry's numbers depend on."""
    optional = [f"{name} {one[name]}" for name in OPTIONAL_IDENTITY if one.get(name) is not None]
    return text_hash([*(str(one.get(name)) for name in IDENTITY), *optional])[:12]


def text_hash(texts: Sequence[str]) -> str:
    """A short hash of texts in their order (prompts, class names, captions)."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]


def mark_of(one: Entry) -> str:
    """Why the number is not the benchmark's own (a wrong number of images, unreadable ones), or an empty string."""
    numbers, expected = one["numbers"], one.get("expected_images") or []
    marks = []
    if expected and numbers["images"] + numbers["unreadable"] not in expected:
        marks.append(f"{numbers['images'] + numbers['unreadable']:,} images where {one['dataset']} has {expected[0]:,}")
    questions = one.get("expected_questions") or []
    if questions and one.get("questions") not in questions:
        marks.append(f"{one.get('questions', 0):,} questions where {one['dataset']} has {questions[0]:,}")
    if numbers["unreadable"]:
        marks.append(f"{numbers['unreadable']:,} unreadable images left out")
    return ", ".join(marks)


def model_name(one: Entry) -> str:
    """What an entry's model is called: its run folder, or the file, folder or name that it was loaded from."""
    path = Path(one.get("checkpoint") or "unknown")
    return path.parent.parent.name if path.parent.name == "checkpoints" and path.parent.parent.name else path.name


def with_interval(entry: Entry, name: str, digits: int = 2) -> str:
    """A number with its 95 % interval, where the entry has one: 46.80 (45.42–48.18)."""
    value = f"{entry['numbers'][name]:.{digits}f}"
    ends = entry.get("intervals", {}).get(name)
    return value if ends is None else f"{value} ({ends[0]:.{digits}f}–{ends[1]:.{digits}f})"


def save(folder: Path, new: Sequence[Entry]) -> Path:
    """Adds entries to the folder's results.json; one of the same identity is replaced. Atomic, and safe beside others
    that do the same."""
    path, lock_path = folder / FILE_NAME, folder / f".{FILE_NAME}.lock"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(lock_path, wait=_LOCK_WAIT_S)
    except LockedError as error:
        raise UserError(f"{error.holder} is writing {path}: end it, or choose another --output") from None
    except OSError:  # storage without locks
        lock = None
    try:
        old = load(path) if path.exists() else []
        replaced = {identity(one) for one in new}
        entries = [one for one in old if identity(one) not in replaced] + list(new)
        write_json(path, {"format": "alip-results", "version": 2, "entries": entries})
    finally:
        if lock is not None:
            lock_path.unlink(missing_ok=True)
            lock.close()
    return path


def check_folder(folder: Path) -> None:
    """Raises UserError unless results can be added there: checked before anything is measured."""
    check_writable(folder)
    if (folder / FILE_NAME).exists():
        load(folder)


def check_writable(folder: Path) -> None:
    """Makes the folder; UserError unless files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; name another folder with --output") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: cannot be written; name another folder with --output")


def folder_of(path: Path) -> Path:
    """The folder that holds the results.json of a run: path is that folder, the run's, or the file itself."""
    for candidate in (path, path / FILE_NAME, path / "results" / FILE_NAME):
        if candidate.is_file():
            return candidate.parent
    raise UserError(f"{path} has no {FILE_NAME}; run run_retrieval.sh or run_zeroshot.sh on that checkpoint first")


def load(path: Path) -> list[Entry]:
    """The entries of a results.json (or of its folder, or of a run folder); UserError for other files."""
    file = folder_of(path) / FILE_NAME
    data = read_json(file)
    if data.get("format") != "alip-results":
        raise UserError(f"{file}: not a results file of this project; delete it and evaluate again")
    if data.get("version") == 1 and isinstance(data.get("entries"), list):
        data["entries"] = [_from_version_1(one) for one in data["entries"]]
    check(data, _SCHEMA, file, "delete the file and evaluate again")
    for number, one in enumerate(data["entries"]):
        one["protocol"] = canonical_protocol(one["protocol"])
        missing = [name for name in _NUMBERS[one["task"]] if name not in one["numbers"]]
        if missing:
            raise UserError(f"{file}: entries[{number}].numbers: {missing[0]} missing; delete the file, evaluate again")
    return data["entries"]


def _from_version_1(one: Any) -> Any:
    """Other words, and nothing on content, prompts and EMA: these stay unknown, and match nothing."""
    if not isinstance(one, dict):
        return one
    names = {"kind": "task", "metric": "primary_metric"}
    one = {names.get(name, name): value for name, value in one.items()}
    if isinstance(one.get("numbers"), dict):
        words = (("headline_truncated", "primary_truncated"), ("headline", "primary"))
        numbers = dict(one["numbers"])
        for old, new in words:
            if old in numbers:
                numbers[new] = numbers.pop(old)
        one["numbers"] = numbers
    return one


def file_slug(name: str) -> str:
    """The name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "dataset"
