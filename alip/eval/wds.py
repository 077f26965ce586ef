"""Datasets in CLIP_benchmark's WebDataset layout, which its exporter, the Hub and DataComp's download have.

FOLDER/test/nshards.txt, FOLDER/test/0.tar …        samples of an image (.jpg, .jpeg, .png, .webp) and
                                                    .cls (a class number), .txt (captions, one a line), or .npy
FOLDER/classnames.txt, zeroshot_classification_templates.txt        one a line; templates with {c}
FOLDER/dataset_type.txt                             "retrieval" or "multilabel"; without it classification
FOLDER/train/                                       as test; for probes, where it is there
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from alip.errors import UserError
from alip.eval.caption_files import RetrievalDataset
from alip.eval.classification import ClassificationDataset
from alip.eval.tar_images import TarContent, TarImages, read_tars
from alip.files import read_text, real_path

PREFIX = "wds:"
TEMPLATES = "zeroshot_classification_templates.txt"
_MOST_SHARDS = 100_000


def name_of(folder: Path) -> str:
    """wds/NAME for a folder as DataComp and the Hub name it: wds_vtab-pets_test is wds/vtab-pets."""
    name = real_path(folder).name
    for prefix in ("wds_", "wds-"):
        name = name.removeprefix(prefix)
    return f"wds/{name.removesuffix('_test')}"


def dataset_type(folder: Path) -> str:
    """ "classification", "retrieval" or "multilabel". UserError if the folder is no such dataset."""
    if not (folder / "test" / "nshards.txt").is_file():
        raise UserError(
            f"{folder} is no WebDataset benchmark: test/nshards.txt is missing; expected: test/nshards.txt, "
            f"test/0.tar …, classnames.txt, {TEMPLATES} (docs/evaluation.md)"
        )
    path = folder / "dataset_type.txt"
    kind = read_text(path).strip().lower() if path.is_file() else "classification"
    if kind not in ("classification", "retrieval", "multilabel"):
        raise UserError(f"{path}: {kind[:40]!r}; retrieval, multilabel or classification is expected")
    return kind


def tars_of(folder: Path, split: str) -> list[Path]:
    """The split's tars, which nshards.txt counts; UserError names the first that is missing."""
    path = folder / split / "nshards.txt"
    tars = [folder / split / f"{number}.tar" for number in range(number_of_tars(read_text(path), path))]
    missing = next((tar for tar in tars if not tar.is_file()), None)
    if missing is not None:
        raise UserError(f"{missing} is missing: {path} counts {len(tars)} tars, 0.tar to {len(tars) - 1}.tar")
    return tars


def number_of_tars(text: str, source: object) -> int:
    """The content of an nshards.txt; UserError, which names the source, for anything but a number from 1 on."""
    text = text.strip()
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 0 < int(text) <= _MOST_SHARDS:
        raise UserError(f"{source}: {text[:40]!r}; a number of tars is expected")
    return int(text)


def open_wds_classification(
    folder: Path, name: str | None = None, *, metric: str = "top1", groups: bool = False
) -> ClassificationDataset:
    """A classification benchmark. name: what results call it. groups: its samples have a .npy with their groups."""
    kind = dataset_type(folder)
    if kind == "retrieval":
        raise UserError(f"{folder} is a retrieval dataset: use eval_retrieval.py")
    name = name or name_of(folder)
    names = [line.strip() for line in read_text(_needed(folder / "classnames.txt")).rstrip().splitlines()]
    if "" in names:
        raise UserError(
            f"{folder / 'classnames.txt'}: line {names.index('') + 1} is empty; a name of a class is expected"
        )
    templates = [line.strip() for line in read_text(_needed(folder / TEMPLATES)).splitlines() if line.strip()]
    for template in templates:
        if template.count("{c}") != 1 or "{}" in template:
            raise UserError(f"{folder / TEMPLATES}: {template[:80]!r} needs exactly one {{c}} for the class name")
    if not names or not templates:
        raise UserError(f"{folder}: classnames.txt and {TEMPLATES} must not be empty")
    several = kind == "multilabel"
    content = read_tars(tars_of(folder, "test"), None if several else "cls", array=several or groups)
    return ClassificationDataset(
        name,
        content.images,
        names,
        [template.replace("{c}", "{}") for template in templates],
        "mean_ap" if several else metric,
        train=partial(_train, folder) if not several and (folder / "train" / "nshards.txt").is_file() else None,
        groups=_groups(folder, content) if groups and not several else None,
        targets=_targets(folder, content, len(names)) if several else None,
    )


def _train(folder: Path) -> TarImages:
    return read_tars(tars_of(folder, "train"), "cls").images


def _groups(folder: Path, content: TarContent) -> np.ndarray:
    arrays = content.arrays.reshape(len(content.images), -1)
    if (
        not arrays.size
        or not np.issubdtype(arrays.dtype, np.number)
        or not np.isfinite(arrays[:, 0]).all()
        or (arrays[:, 0] < 0).any()
    ):
        raise UserError(f"{folder}: the first number of a .npy must be a group, 0 or higher")
    return arrays.astype(np.int64)


def _targets(folder: Path, content: TarContent, classes: int) -> np.ndarray:
    if content.arrays.shape[1:] != (classes,):
        raise UserError(f"{folder}: .npy members of shape {content.arrays.shape[1:]}, but there are {classes} classes")
    return (content.arrays > 0).astype(np.uint8)


def open_wds_retrieval(folder: Path, name: str | None = None) -> RetrievalDataset:
    """A retrieval benchmark: dataset_type.txt is "retrieval", and a line of a .txt is a caption."""
    if dataset_type(folder) != "retrieval":
        raise UserError(f"{folder} is a classification dataset (no dataset_type.txt names retrieval): eval_zeroshot.py")
    content = read_tars(tars_of(folder, "test"), "txt")
    captions, owner = [], []
    for image, text in enumerate(content.texts):
        own = [line for line in text.splitlines() if line.strip()]
        captions += own
        owner += [image] * len(own)
    if not captions:
        raise UserError(f"{folder}: its .txt members hold no caption")
    images = [Path(content.images.name(index)) for index in range(len(content.images))]
    return RetrievalDataset(name or name_of(folder), images, captions, owner, reader=content.images)


def _needed(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path} is missing; a benchmark's class names and templates are files beside its test folder")
    return path
