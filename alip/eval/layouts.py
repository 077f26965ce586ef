"""How datasets lay out their images on disk: a folder per class, lists of files, and splits where there are none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from alip.errors import UserError
from alip.eval.image_readers import ImageFiles
from alip.eval.record_types import needed
from alip.files import read_text

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
_SEED = 3072


def letters(name: str) -> str:
    """A name without its punctuation, for comparing: "Apply_Eye_Makeup" and "apply eye makeup" are equal."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def images_in(folder: Path) -> list[Path]:
    """The folder's image files, sorted; not those of its own folders."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)


def class_folders(folder: Path, expected: Sequence[str], *, more: bool = False) -> ImageFiles:
    """Images of a folder per class; the class numbers are the positions in `expected`, whatever the disk's order.

    expected: the folders' names, compared without punctuation. more: other folders are passed over.
    """
    number = {letters(name): label for label, name in enumerate(expected)}
    found: dict[int, Path] = {}
    for entry in sorted(needed(folder, f"it has a folder for each of {len(expected)} classes").iterdir()):
        if not entry.is_dir():
            continue
        label = number.get(letters(entry.name))
        if label in found:
            raise UserError(f"{entry}: {found[label].name} is a folder of that class, too; join them")
        if label is not None:
            found[label] = entry
        elif not more:
            raise UserError(f"{entry}: no such class; expected are {len(expected)}: {', '.join(expected[:3])}, …")
    missing = next((name for label, name in enumerate(expected) if label not in found), None)
    if missing is not None:
        raise UserError(f"{folder}: {len(found)} of {len(expected)} class folders; {missing!r} is missing")
    paths: list[Path] = []
    labels: list[int] = []
    for label in range(len(expected)):
        own = images_in(found[label])
        paths += own
        labels += [label] * len(own)
    return ImageFiles(paths, labels)


def lines_of(path: Path, what: str) -> list[str]:
    """The lines of a list that are not empty; UserError if the file is missing."""
    return [line for line in read_text(needed(path, what)).splitlines() if line.strip()]


def table_of(path: Path, what: str, columns: int) -> list[list[str]]:
    """The words of each line of a list; UserError for a line with too few."""
    rows = []
    for number, line in enumerate(lines_of(path, what), 1):
        rows.append(line.split())
        if len(rows[-1]) < columns:
            raise UserError(f"{path}, line {number}: {line[:80]!r}; {columns} words are expected ({what})")
    return rows


def fifths(images: ImageFiles, part: str, lists: Iterable[Path] = ()) -> ImageFiles:
    """A test part of a fifth and a training part of four fifths, as VTAB has them for datasets without a split.

    lists: a file of the test images' names that is used if it is there; without it the fifth is a random one from a
    fixed seed over the sorted files, so that it is the same everywhere (VTAB's own is in its wds: form).
    """
    listed = next((path for path in lists if path.is_file()), None)
    if listed is not None:
        stems = {Path(line.strip()).stem for line in lines_of(listed, "names of test images")}
        test = {number for number, path in enumerate(images.paths) if path.stem in stems}
        if len(test) != len(stems):
            raise UserError(f"{listed}: {len(stems)} images, {len(test)} of them are there")
    else:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(_SEED)).tolist()
        test = set(order[: len(images) // 5])
    chosen = [number for number in range(len(images)) if (number in test) == (part == "test")]
    return ImageFiles([images.paths[n] for n in chosen], [images.labels[n] for n in chosen])
