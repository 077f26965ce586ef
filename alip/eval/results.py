"""results.json, and the tables made from it."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import torchvision

from alip import __version__
from alip.errors import UserError
from alip.files import write_json

FILE_NAME = "results.json"
_NAMED_AT_MOST = 100  # unreadable images that are listed by name

Entry = dict[str, Any]


def entry(
    kind: str, dataset: str, protocol: str, numbers: dict[str, float], facts: dict[str, Any], unreadable: Sequence
) -> Entry:
    """One measurement. kind: "retrieval", "zeroshot" or "probe". facts: checkpoint, precision and the like."""
    return {
        "kind": kind,
        "dataset": dataset,
        "protocol": protocol,
        "numbers": numbers,
        **facts,
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


def save(folder: Path, new: Sequence[Entry]) -> Path:
    """Adds entries to the folder's results.json; one of the same kind, set and protocol is replaced. Atomic."""
    path = folder / FILE_NAME
    old = load(path) if path.exists() else []
    replaced = {_identity(one) for one in new}
    entries = [one for one in old if _identity(one) not in replaced] + list(new)
    write_json(path, {"format": "alip-results", "version": 1, "entries": entries})
    return path


def _identity(one: Entry) -> tuple[str, str, str]:
    return one["kind"], one["dataset"], one["protocol"]


def folder_of(path: Path) -> Path:
    """The folder that holds the results.json of a run: path is that folder, the run's, or the file itself."""
    for candidate in (path, path / FILE_NAME, path / "results" / FILE_NAME):
        if candidate.is_file():
            return candidate.parent
    raise UserError(f"{path} has no {FILE_NAME}; run run_retrieval.sh or run_zeroshot.sh on that checkpoint first")


def load(path: Path) -> list[Entry]:
    """The entries of a results.json (or of the folder that holds one, or of a run folder)."""
    file = folder_of(path) / FILE_NAME
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); delete it and evaluate again") from error
    if not isinstance(data, dict) or data.get("format") != "alip-results":
        raise UserError(f"{file} is not a results file of this project")
    return data["entries"]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first = str(cells[0]).ljust(widths[0])
        return (
            " | ".join([f"| {first}", *[str(cell).rjust(width) for cell, width in zip(cells[1:], widths[1:])]]) + " |"
        )

    rule = "|" + "-" * (widths[0] + 2) + "|" + "".join("-" * (width + 1) + ":|" for width in widths[1:])
    return "\n".join([line(header), rule, *[line(row) for row in rows]])
