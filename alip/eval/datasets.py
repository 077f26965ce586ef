"""The evaluation datasets by name, and any file or folder in the same form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torchvision.datasets import ImageFolder

from alip.build.images import OTHER_IMAGES
from alip.distributed import note
from alip.errors import UserError
from alip.eval import wds, wds_download
from alip.eval.caption_files import RetrievalDataset, read_caption_file
from alip.eval.classification import ClassificationDataset
from alip.eval.classnames import check_order
from alip.eval.dataset_records import CLASSIFICATION, DEMO_CLASSIFICATION, RETRIEVAL
from alip.eval.image_readers import ImageFiles, Images, TorchvisionImages
from alip.eval.labelled_rows import (
    SHARDS,
    USUAL_FIELDS,
    RowFields,
    in_order,
    numbers_of,
    open_shards,
    open_table,
    own_templates,
    spoken,
)
from alip.eval.layouts import IMAGE_SUFFIXES
from alip.eval.prompts import canonical_protocol, check_templates, read_lists
from alip.eval.record_types import ClassificationRecord, Opener
from alip.eval.records_selection import SELECTION, open_selection
from alip.eval.selection import SelectionDataset
from alip.files import real_path
from alip.remote.urls import is_url

__all__ = ["ClassificationDataset", "RetrievalDataset", "open_classification", "open_imagenet", "open_retrieval"]

_HELP = "see docs/evaluation.md, or `bash scripts/quickstart.sh` for the demo's datasets"


def open_retrieval(name_or_path: str | Path, data_root: str | Path | None = None) -> RetrievalDataset:
    """A retrieval dataset: a name of the table, or a caption file of any form in `alip.eval.caption_files`.

    data_root: the folder that holds the datasets; for a file, a further folder where its images may be.
    A file is named after itself and its folder (`coco/my`), `captions.jsonl` after its folder alone.
    """
    name = str(name_or_path)
    root = Path(data_root) if data_root is not None else Path("data")
    if name.startswith(wds.PREFIX):
        return wds.open_wds_retrieval(wds_folder(name, root))
    record = RETRIEVAL.get(name)
    if record is not None:
        found = next((root / file for file in record.files if (root / file).exists()), None)
        if found is None:
            expected = f"; expected: {record.layout}" if record.layout else ""
            raise UserError(f"{name} needs {' or '.join(str(root / file) for file in record.files)}{expected}; {_HELP}")
        if record.read is not None:
            with _archive(name, found, record.layout):
                dataset = record.read(name, found)
        else:
            dataset = read_caption_file(found, [root / folder for folder in record.folders], name)
        return replace(dataset, benchmark=name, expected_images=record.images)
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "captions.jsonl"
    if not path.is_file():
        known = ", ".join(one for one in RETRIEVAL if not one.startswith(("xtd10-", "xm3600-")))
        raise UserError(
            f"no such retrieval dataset or caption file: {name} (datasets: {known}, xtd10-LANGUAGE, "
            f"xm3600-LANGUAGE, {', '.join(SELECTION)})"
        )
    folder = real_path(path).parent.name
    own_name = folder if path.name == "captions.jsonl" and folder else f"{folder}/{path.stem}"
    return read_caption_file(path, [root] if data_root is not None else [], own_name)


def open_texts(name_or_path: str, data_root: str | Path | None = None) -> RetrievalDataset | SelectionDataset:
    """A retrieval dataset, or a compositional benchmark by its name."""
    if name_or_path in SELECTION:
        return open_selection(name_or_path, Path(data_root) if data_root is not None else Path("data"))
    return open_retrieval(name_or_path, data_root)


def open_classification(
    name_or_path: str | Path,
    data_root: str | Path | None = None,
    *,
    protocol: str = "standard",
    classnames: str | Path | None = None,
    prompts: str | Path | None = None,
    fields: RowFields = USUAL_FIELDS,
) -> ClassificationDataset:
    """A zero-shot dataset: a name of the table, wds:FOLDER, a folder with one folder per class, a table with a row per
    image, or shards:NAME, rec shards.

    classnames, prompts: JSON files in SLIP's form, {dataset: [text, …]}, that replace the dataset's own lists.
    fields: the columns of a table, or of the shards' source.
    """
    protocol = canonical_protocol(protocol)
    given = {name: str(file) for name, file in (("classnames", classnames), ("prompts", prompts)) if file}
    dataset = _open_classification(str(name_or_path), data_root, protocol, classnames, prompts, fields)
    return replace(dataset, given=given)


def has_fields(name: str) -> bool:
    """Whether what `name` names has columns of image and label: a table, or shards."""
    return name.startswith(SHARDS) or Path(name).is_file() or (Path(name) / "classes.jsonl").is_file()


def _open_classification(
    name: str,
    data_root: str | Path | None,
    protocol: str,
    classnames: str | Path | None,
    prompts: str | Path | None,
    fields: RowFields,
) -> ClassificationDataset:
    root = Path(data_root) if data_root is not None else Path("data")
    if name.startswith(wds.PREFIX):
        return _with_lists(wds.open_wds_classification(wds_folder(name, root)), classnames, prompts)
    if name.startswith(SHARDS):
        given = Path(name.removeprefix(SHARDS))
        there = given.exists() or given.with_name(f"{given.name}.json").exists()
        return open_shards(given if there or given.is_absolute() else root / given, fields, classnames, prompts)
    if name in CLASSIFICATION:
        return _from_table(name, root, protocol, classnames, prompts)
    if name in DEMO_CLASSIFICATION:
        folder = root / DEMO_CLASSIFICATION[name]
        lines = folder / "classes.jsonl"
        if not lines.is_file():
            raise UserError(f"{name} needs {lines}; {_HELP}")
        names = classnames or folder.parent / "classnames.json"
        dataset = open_table(lines, name, USUAL_FIELDS, names, prompts or folder.parent / "templates.json")
        return replace(dataset, benchmark=name)
    path = Path(name)
    if path.suffix in (".rec", ".json") and path.is_file():
        raise UserError(f"{name}: rec shards are given as {SHARDS}{path.with_suffix('')}; a list of images is .jsonl")
    if path.is_dir() and (path / "classes.jsonl").is_file():
        path = path / "classes.jsonl"
    if path.is_file():
        folder = real_path(path).parent.name
        own_name = folder if path.name == "classes.jsonl" and folder else f"{folder}/{path.stem}"
        return open_table(path, own_name, fields, classnames, prompts)
    test = next((path / part for part in ("test", "val") if (path / part).is_dir()), None)
    if test is not None and (path / "train").is_dir():
        return _from_parts(path, test, classnames, prompts)
    if path.is_dir():
        return _from_folder(path, classnames, prompts)
    known = ", ".join([*CLASSIFICATION, *DEMO_CLASSIFICATION])
    raise UserError(f"no such zero-shot dataset, folder or table: {name} (datasets: {known})")


def wds_folder(name: str, root: Path) -> Path:
    """The folder of wds:FOLDER; a relative one may be under the data root. wds:https://… is downloaded to it first."""
    if is_url(name.removeprefix(wds.PREFIX)):
        return wds_download.download(name.removeprefix(wds.PREFIX), root)
    given = Path(name.removeprefix(wds.PREFIX))
    found = next((folder for folder in (given, root / given) if folder.is_dir()), None)
    if found is None:
        tried = " or ".join(map(str, dict.fromkeys((given, root / given))))
        raise UserError(f"{name}: no folder {tried}")
    return found


def _with_lists(
    dataset: ClassificationDataset, classnames: str | Path | None, prompts: str | Path | None
) -> ClassificationDataset:
    """The dataset with the lists of these files in place of its own."""
    if classnames:
        dataset = replace(dataset, classnames=_replaced(dataset.classnames, classnames, dataset.name))
    if prompts:
        templates = check_templates(read_lists(prompts, dataset.name, "templates"), dataset.name)
        dataset = replace(dataset, templates=templates)
    return dataset


def open_imagenet(folder: str | Path) -> ClassificationDataset:
    """ImageNet's validation images in one folder per synset, wherever it is; names and templates as of `imagenet`."""
    record = CLASSIFICATION["imagenet"]
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; one with a folder per ImageNet class (n01440764, …) is expected")
    try:
        images = TorchvisionImages(ImageFolder(path))
    except (FileNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: {reason} One folder per ImageNet class (n01440764, …) is expected there") from error
    names = record.class_names("standard")
    check_order(str(path), names, list(record.own(images)))
    return ClassificationDataset(
        "imagenet",
        images,
        names,
        check_templates(list(record.templates), "imagenet"),
        record.metric,
        benchmark="imagenet",
        image_counts=record.image_counts("standard"),
    )


def _from_table(
    name: str, root: Path, protocol: str, classnames: str | Path | None, prompts: str | Path | None
) -> ClassificationDataset:
    record = CLASSIFICATION[name]
    images = _opened(name, root, record, record.test, protocol)
    names, templates = record.class_names(protocol), list(record.templates)
    if record.own is not None:
        with _archive(name, record.location(root), record.layout):
            own = list(record.own(images))
        check_order(name, names, own)
    if classnames:
        names = _replaced(names, classnames, name)
    if prompts:
        templates = read_lists(prompts, name, "templates")
    return ClassificationDataset(
        name,
        images,
        names,
        check_templates(templates, name),
        record.metric,
        None if record.train is None else partial(_opened, name, root, record, record.train, protocol),
        benchmark=name,
        image_counts=record.image_counts(protocol),
        transform=record.alip_transform if protocol == "alip" else None,
    )


def _replaced(names: list[str], path: str | Path, name: str) -> list[str]:
    """The class names of a file in place of the dataset's own; UserError for another number, and another order."""
    given = read_lists(path, name, "class names")
    if len(given) != len(names):
        raise UserError(f"{path}: {len(given)} class names for {name}, which has {len(names)} classes")
    if given != names and sorted(given) == sorted(names):  # SLIP's kitti, kinetics700: made for folders of its own
        raise UserError(f"{path}: the class names of {name} are the dataset's, but in another order than its classes")
    return given


class _archive:
    """Errors of the parsers of a dataset's own files as one line.

    What torchvision, SciPy and the like raise for files that are missing, cut or malformed is no fixed list of types.
    """

    def __init__(self, name: str, location: Path, layout: str):
        self.name, self.location, self.layout = name, location, layout

    def __enter__(self) -> None:
        if not self.location.exists():
            raise UserError(
                f"{self.name} needs {self.location}, which does not exist; expected: {self.layout}; {_HELP}"
            )

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            text = str(error).replace("You can use download=True to download it", "")  # torchvision's; no flag here
            detail = " ".join(f"{type(error).__name__}: {text}".split())[:300]
            raise UserError(
                f"{self.name}: the files under {self.location} are not complete: {detail}; expected: "
                f"{self.layout}; {_HELP}"
            ) from error


def _opened(name: str, root: Path, record: ClassificationRecord, opener: Opener, protocol: str) -> Images:
    with _archive(name, record.location(root), record.layout):
        images = opener(root, protocol)
        count = len(images)
    if count == 0:
        raise UserError(f"{name}: no images under {record.location(root)}; expected: {record.layout}; {_HELP}")
    return images


def _from_parts(
    path: Path, test: Path, classnames: str | Path | None, prompts: str | Path | None
) -> ClassificationDataset:
    """FOLDER/test (or val) and FOLDER/train, each with a folder per class: the second is for a probe."""
    dataset = _from_folder(test, classnames, prompts, real_path(path).name)
    folders = sorted(entry.name for entry in test.iterdir() if entry.is_dir())
    label_of = {
        file.relative_to(test).parts[0]: label for file, label in zip(dataset.images.paths, dataset.images.labels)
    }

    def train() -> Images:
        own = _from_folder(path / "train", None, None, in_prompts=False)
        names = [file.relative_to(path / "train").parts[0] for file in own.images.paths]
        unknown = next((name for name in names if name not in label_of), None)
        if unknown is not None:
            raise UserError(f"{path / 'train' / unknown}: {test} has no such class ({', '.join(folders[:5])[:200]}, …)")
        return ImageFiles(own.images.paths, [label_of[name] for name in names])

    return replace(dataset, train=train)


def _note_other_images(path: Path, folders: Sequence[Path]) -> None:
    """Says what is left out, because it is an image of a format that is not read."""
    found = [file for folder in folders for file in folder.rglob("*") if file.suffix.lower()[1:] in OTHER_IMAGES]
    other = [file for file in found if file.suffix.lower() not in IMAGE_SUFFIXES]
    if other:
        note(f"{path}: {len(other):,} images of other formats are left out; the first: {other[0]}")


def _from_folder(
    path: Path,
    classnames: str | Path | None,
    prompts: str | Path | None,
    name: str | None = None,
    in_prompts: bool = True,
) -> ClassificationDataset:
    """A folder with one folder per class; the class names are the folders' names, or the list given (sorted order)."""
    folders = [path / name for name in in_order(entry.name for entry in path.iterdir() if entry.is_dir())]
    if not folders:
        raise UserError(
            f"{path} has no folders; a class per folder is expected, or a classes.jsonl; rec shards are {SHARDS}{path}"
        )
    files, labels = [], []
    for folder in folders:
        inside = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not inside:
            raise UserError(f"{folder} has no images")
        files += inside
        labels += [folder.name] * len(inside)
    _note_other_images(path, folders)
    own = [folder.name for folder in folders]
    name = name or real_path(path).name
    names = read_lists(classnames, name, "class names") if classnames else spoken(own, path) if in_prompts else own
    if len(names) != len(own):
        raise UserError(f"{path} has {len(own)} class folders, but {classnames} names {len(names)} classes")
    # Folders such as n01440764: the list gives their words, in the folders' sorted order.
    number = numbers_of(own, names, path, classnames) if classnames else {label: i for i, label in enumerate(own)}
    images = ImageFiles(files, [number[label] for label in labels])
    return ClassificationDataset(name, images, names, own_templates(prompts, name))
