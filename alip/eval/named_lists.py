"""Lists of words that go with datasets, as text files of one entry per line: lists/GROUP/NAME.txt.

classes: names in prompts, in the order of the class numbers (an empty line is an empty name).
templates: prompts with one {}.
folders: what the data itself calls its classes, where that is not the name with its punctuation removed.
relations, suites: other lists. Sources are in docs/evaluation.md; tests compare them with a second source.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "lists"


@lru_cache(maxsize=256)
def read_list(group: str, name: str) -> tuple[str, ...]:
    """The lines of lists/GROUP/NAME.txt, in their order."""
    return tuple((_FOLDER / group / f"{name}.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n"))


def classes(name: str) -> list[str]:
    """The names of a dataset's classes in prompts, in the order of its class numbers."""
    return list(read_list("classes", name))


def templates(name: str) -> list[str]:
    """A dataset's prompt templates, each with one {}."""
    return list(read_list("templates", name))


def folders(name: str) -> list[str]:
    """What the data calls its classes, in the order of the class numbers."""
    return list(read_list("folders", name))
