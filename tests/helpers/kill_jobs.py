"""What tests/soak_kill.py kills: a job, how its command starts, what it left."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

OFTEN_EARLY = (0.02, 0.3, 0.3, 1.1)  # a command that resumes: mostly a third of the way, now and then near its end
ANYWHERE = (0.02, 1.1, 1.1, 1.1)  # one that starts again


@dataclass(frozen=True)
class Job:
    """One command to be killed.

    start: given the output folder, runs the command in this (forked) process and returns its exit status.
    samples: the keys of what a finished output holds, to count what was lost or came twice.
    content: what must be equal, by name; the default is every file, byte by byte.
    prepare: puts into a new output folder what the command finds there. reach: fractions of the duration of a run
    without a kill, within which a kill comes.
    """

    start: Callable[[Path], int | None]
    samples: Callable[[Path], list[str]]
    content: Callable[[Path], dict[str, object]] = field(default=lambda folder: files(folder))
    prepare: Callable[[Path], None] = lambda folder: None
    reach: tuple[float, ...] = OFTEN_EARLY


def files(folder: Path, without: tuple[str, ...] = ()) -> dict[str, object]:
    """Every file's bytes by its name, left-over temporary files included; of those in `without` only that they are."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*"))}
    return {
        name: "a folder" if path.is_dir() else "there" if path.name in without else path.read_bytes()
        for name, path in found.items()
    }


def command(module: str, *arguments: object, output: str = "") -> Callable[[Path], int | None]:
    """A Job's start: `main` of a module with these arguments and `--output FOLDER/output`."""

    def start(folder: Path) -> int | None:
        sys.argv = [module, *map(str, arguments), "--output", str(folder / output)]
        return importlib.import_module(module).main()

    return start


def run_here(start: Callable[[Path], int | None], folder: Path) -> None:
    """Runs a start in a process of its own, so that this one never has threads; fails unless it ends well."""
    process = os.fork()
    if not process:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            status = start(folder) or 0
        finally:
            os._exit(status)
    if os.waitpid(process, 0)[1]:
        raise RuntimeError(f"the input in {folder} could not be made")
