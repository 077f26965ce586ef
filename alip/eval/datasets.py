"""The evaluation sets by name, and any file or folder in the same form."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from alip.errors import UserError
from alip.eval.caption_files import RetrievalSet, read_caption_file
from alip.eval.classnames import check_order
from alip.eval.dataset_records import CLASSIFICATION, DEMO_CLASSIFICATION, RETRIEVAL, ClassificationRecord, Opener
from alip.eval.image_readers import ImageFiles, Images
from alip.eval.prompts import PLAIN_TEMPLATES, check_protocol, check_templates, read_lists

__all__ = ["ClassificationSet", "RetrievalSet", "open_classification", "open_retrieval"]

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}


@dataclass(frozen=True)
class ClassificationSet:
    """Labelled images, and what is needed to classify them from words.

    classnames: class number → name. templates: texts with one {}. metric: the headline, "top1" or "mean_per_class".
    train: opens the labelled images of the linear probe; None where there are none.
    """

    name: str
    images: Images
    classnames: list[str]
    templates: list[str]
    metric: str = "top1"
    train: Callable[[], Images] | None = None


def open_retrieval(name_or_path: str | Path, data_root: str | Path | None = None) -> RetrievalSet:
    """A retrieval set: a name of the table, or a caption file of any form in `alip.eval.caption_files`.

    data_root: the folder under which the sets lie; for a file, a further place to look for its images.
    """
    name = str(name_or_path)
    root = Path(data_root) if data_root is not None else Path("data")
    record = RETRIEVAL.get(name)
    if record is not None:
        found = next((root / file for file in record.files if (root / file).is_file()), None)
        if found is None:
            raise UserError(f"{name} needs {' or '.join(str(root / file) for file in record.files)}; {_HELP}")
        return read_caption_file(found, [root / folder for folder in record.images], name)
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "captions.jsonl"
    if not path.is_file():
        raise UserError(f"no such retrieval set or caption file: {name} (sets: {', '.join(RETRIEVAL)})")
    return read_caption_file(path, [root] if data_root is not None else [], path.resolve().parent.name or path.stem)


_HELP = "see docs/evaluation.md, or `bash scripts/quickstart.sh` for the demo's sets"


def open_classification(
    name_or_path: str | Path,
    data_root: str | Path | None = None,
    *,
    protocol: str = "field",
    classnames: str | Path | None = None,
    prompts: str | Path | None = None,
) -> ClassificationSet:
    """A zero-shot set: a name of the table, a folder with one folder per class, or a classes.jsonl.

    classnames, prompts: JSON files in SLIP's form, {set: [names]} and {set: [templates]}, in place of the set's own.
    """
    check_protocol(protocol)
    name = str(name_or_path)
    root = Path(data_root) if data_root is not None else Path("data")
    if name in CLASSIFICATION:
        return _from_table(name, root, protocol, classnames, prompts)
    if name in DEMO_CLASSIFICATION:
        folder = root / DEMO_CLASSIFICATION[name]
        lines = folder / "classes.jsonl"
        if not lines.is_file():
            raise UserError(f"{name} needs {lines}; {_HELP}")
        names = classnames or folder.parent / "classnames.json"
        return _from_lines(lines, name, names, prompts or folder.parent / "templates.json")
    path = Path(name_or_path)
    if path.is_dir() and (path / "classes.jsonl").is_file():
        path = path / "classes.jsonl"
    if path.is_file():
        return _from_lines(path, path.resolve().parent.name, classnames, prompts)
    if path.is_dir():
        return _from_folder(path, classnames, prompts)
    known = ", ".join([*CLASSIFICATION, *DEMO_CLASSIFICATION])
    raise UserError(f"no such zero-shot set, folder or classes.jsonl: {name} (sets: {known})")


def _from_table(
    name: str, root: Path, protocol: str, classnames: str | Path | None, prompts: str | Path | None
) -> ClassificationSet:
    record = CLASSIFICATION[name]
    images = _opened(name, root, record, record.test, protocol)
    check_order(name, record.names, record.own(images))
    names, templates = list(record.names), list(record.templates)
    if classnames:
        names = read_lists(classnames, name, "class names")
        if len(names) != len(record.names):
            raise UserError(f"{classnames}: {len(names)} class names for {name}, which has {len(record.names)} classes")
    if prompts:
        templates = read_lists(prompts, name, "templates")
    train = None
    if record.train is not None:
        train = partial(_opened, name, root, record, record.train, protocol)
    return ClassificationSet(name, images, names, check_templates(templates, name), record.metric, train)


def _opened(name: str, root: Path, record: ClassificationRecord, opener: Opener, protocol: str) -> Images:
    place = root / record.place
    if not place.exists():
        raise UserError(f"{name} needs {place}, which does not exist; {_HELP}")
    try:
        images = opener(root, protocol)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        # torchvision's way to say that files are missing or are not the published ones.
        raise UserError(f"{name}: the files under {place} are not complete: {error}; {_HELP}") from error
    if len(images) == 0:
        raise UserError(f"{name}: no images under {place}; {_HELP}")
    return images


def _from_lines(path: Path, name: str, classnames: str | Path | None, prompts: str | Path | None) -> ClassificationSet:
    """Lines {"image": path from the file's folder, "label": class name}."""
    files, labels = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            files.append(path.parent / row["image"])
            labels.append(str(row["label"]))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f'{path}, line {number}: expected {{"image": path, "label": class name}}') from error
    if not files:
        raise UserError(f"{path} lists no images")
    names = read_lists(classnames, name, "class names") if classnames else sorted(set(labels))
    if len(set(names)) < len(names):
        raise UserError(f"{classnames}: a class name of {name} stands twice, so that labels are ambiguous")
    number = {class_name: i for i, class_name in enumerate(names)}
    unknown = next((label for label in labels if label not in number), None)
    if unknown is not None:
        raise UserError(f"{path}: the label {unknown!r} is not in the class list ({', '.join(names[:5])}, …)")
    images = ImageFiles(files, [number[label] for label in labels])
    return ClassificationSet(name, images, names if classnames else _spoken(names), _templates(prompts, name))


def _from_folder(path: Path, classnames: str | Path | None, prompts: str | Path | None) -> ClassificationSet:
    """A folder with one folder per class; the class names are the folders' names, or the list given (sorted order)."""
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    if not folders:
        raise UserError(f"{path} has no folders; a class per folder is expected, or a classes.jsonl")
    files, labels = [], []
    for folder in folders:
        inside = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _IMAGE_SUFFIXES)
        if not inside:
            raise UserError(f"{folder} has no images")
        files += inside
        labels += [folder.name] * len(inside)
    own = [folder.name for folder in folders]
    name = path.resolve().name
    names = read_lists(classnames, name, "class names") if classnames else _spoken(own)
    if len(names) != len(own):
        raise UserError(f"{path} has {len(own)} class folders, but {classnames} names {len(names)} classes")
    if set(names) == set(own):
        number = {label: names.index(label) for label in own}
    else:  # folders such as n01440764: the list gives their words, in the folders' sorted order
        number = {label: i for i, label in enumerate(own)}
    images = ImageFiles(files, [number[label] for label in labels])
    return ClassificationSet(name, images, names, _templates(prompts, name))


def _spoken(names: Sequence[str]) -> list[str]:
    """Names of folders as words for a prompt."""
    return [name.replace("_", " ").replace("-", " ") for name in names]


def _templates(prompts: str | Path | None, name: str) -> list[str]:
    return check_templates(read_lists(prompts, name, "templates") if prompts else PLAIN_TEMPLATES, name)
