"""The table of named sets: one small record each.

A classification record says how to open the test and training images with torchvision's own class, what the data calls
its classes, and which templates and headline metric go with it. Adding a set is adding a record; deleting one is
deleting its line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision import datasets as torchvision_sets

from alip.errors import UserError
from alip.eval import classnames
from alip.eval.image_readers import Images, JoinedImages, RecordImages, TorchvisionImages, file_of
from alip.eval.prompts import TEMPLATES

Opener = Callable[[Path, str], Images]  # (data root, protocol) → images


@dataclass(frozen=True)
class RetrievalRecord:
    """files: caption files looked for under the data root, first match wins. images: where their images may lie."""

    files: tuple[str, ...]
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassificationRecord:
    """place: what must exist under the data root. test, train: openers; train is None where no probe is defined.

    own: reads the data's own class names from the opened test images, to be checked against `names`.
    """

    place: str
    names: Sequence[str]
    templates: Sequence[str]
    metric: str
    test: Opener
    train: Opener | None
    own: Callable[[Images], Sequence[str]]


RETRIEVAL: dict[str, RetrievalRecord] = {
    "coco": RetrievalRecord(
        ("coco/dataset_coco.json", "coco/coco_karpathy_test.json", "dataset_coco.json", "coco_karpathy_test.json"),
        ("coco", "coco/images", "", "coco/val2014", "val2014"),
    ),
    "flickr30k": RetrievalRecord(
        ("flickr30k/dataset_flickr30k.json", "flickr30k/flickr30k_test.json", "dataset_flickr30k.json"),
        ("flickr30k", "flickr30k/flickr30k-images", "flickr30k/images", "", "flickr30k-images"),
    ),
    "demo-style": RetrievalRecord(("demo/eval/held-out-style/captions.jsonl",)),
    "demo-concept": RetrievalRecord(("demo/eval/held-out-concept/captions.jsonl",)),
}


def _simple(kind: Callable[..., Any], **arguments: Any) -> Opener:
    return lambda root, protocol: TorchvisionImages(kind(root, **arguments))


def _joined(kind: Callable[..., Any], *splits: str) -> Opener:
    return lambda root, protocol: JoinedImages([TorchvisionImages(kind(root, split=split)) for split in splits])


def _classes(images: Images) -> Sequence[str]:
    return images.dataset.classes


def _seeded_parts(count: int, test: float, train: float, seed: int) -> tuple[list[int], list[int]]:
    """(train, test) numbers as the release draws them: torch's permutation from the seed, train part first."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    first, second = round(count * train), round(count * test)
    return order[:first], order[first : first + second]


_RELEASE_SEED = 3072


def _caltech(part: str) -> Opener:
    """Caltech-101 has no split of its own.

    field: 30 images a class for training, drawn by a hash of the file's name (at least one is left for the test); the
    rest, 5,647, is the test part. released: 3,000 and 5,677 of the 8,677 images at random, with the release's seed.
    """

    def open_part(root: Path, protocol: str) -> Images:
        dataset = torchvision_sets.Caltech101(root)
        if protocol == "released":
            train, test = _seeded_parts(len(dataset), 5677 / 8677, 3000 / 8677, _RELEASE_SEED)
        else:
            train, test = [], []
            for number in range(len(dataset.categories)):
                own = [place for place, label in enumerate(dataset.y) if label == number]
                own.sort(key=lambda place: hashlib.sha256(_tail(file_of(dataset, place))).digest())
                cut = min(30, len(own) - 1)
                train += own[:cut]
                test += own[cut:]
        return TorchvisionImages(dataset, sorted(train if part == "train" else test))

    return open_part


def _tail(path: Path) -> bytes:
    return "/".join(path.parts[-2:]).encode()


def _sun(part: str) -> Opener:
    """SUN397: field takes the official first partition (Training_01.txt, Testing_01.txt: 50 images a class each).

    released: 19,850 images each, at random. The release seeds that with Python's hash of a text, which differs from
    one process to the next; here the seed is fixed and the files are sorted first.
    """

    def open_part(root: Path, protocol: str) -> Images:
        dataset = torchvision_sets.SUN397(root)
        folder = Path(dataset.root) / "SUN397"
        # torchvision lists the files in the disk's own order, which differs between machines.
        order = sorted(range(len(dataset)), key=lambda place: str(file_of(dataset, place)))
        if protocol == "released":
            train, test = _seeded_parts(len(order), 19850 / 108754, 19850 / 108754, _RELEASE_SEED)
            return TorchvisionImages(dataset, sorted(order[n] for n in (train if part == "train" else test)))
        name = "Training_01.txt" if part == "train" else "Testing_01.txt"
        places = [folder / "Partitions" / name, folder / name, Path(root) / "Partitions" / name]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise UserError(f"sun397 needs {places[0]} (Partitions.zip of the dataset's page), or --protocol released")
        number = {"/" + file_of(dataset, place).relative_to(folder).as_posix(): place for place in order}
        wanted = found.read_text().split()
        missing = [line for line in wanted if line not in number]
        if missing:
            raise UserError(
                f"sun397: {len(missing)} images of {found.name} are not under {folder}; the first: {missing[0]}"
            )
        return TorchvisionImages(dataset, [number[line] for line in wanted])

    return open_part


def _imagenet_test(root: Path, protocol: str) -> Images:
    rec = root / "imagenet" / "val.rec"
    if rec.is_file():
        return RecordImages(rec)
    return TorchvisionImages(torchvision_sets.ImageFolder(root / "imagenet" / "val"))


def _imagenet_own(images: Images) -> Sequence[str]:
    """Folders must be the 1,000 synsets; a rec file holds numbers only, whose range is checked when they are read."""
    if isinstance(images, RecordImages):
        return classnames.IMAGENET
    from timm.data import ImageNetInfo  # the list of synsets, in the order of the class numbers

    synsets = ImageNetInfo().label_names()
    names = dict(zip(synsets, classnames.IMAGENET))
    return [names.get(folder, folder) for folder in images.dataset.classes]


def _record(
    place: str, names: Sequence[str], templates: str, metric: str, test: Opener, train: Opener | None, own=None
):
    return ClassificationRecord(place, names, TEMPLATES[templates], metric, test, train, own or _classes)


_tv = torchvision_sets
CLASSIFICATION: dict[str, ClassificationRecord] = {
    "cifar10": _record(
        "cifar-10-batches-py",
        classnames.CIFAR10,
        "cifar",
        "top1",
        _simple(_tv.CIFAR10, train=False),
        _simple(_tv.CIFAR10, train=True),
    ),
    "cifar100": _record(
        "cifar-100-python",
        classnames.CIFAR100,
        "cifar",
        "top1",
        _simple(_tv.CIFAR100, train=False),
        _simple(_tv.CIFAR100, train=True),
    ),
    "food101": _record(
        "food-101",
        classnames.FOOD101,
        "food101",
        "top1",
        _simple(_tv.Food101, split="test"),
        _simple(_tv.Food101, split="train"),
    ),
    "pets": _record(
        "oxford-iiit-pet",
        classnames.PETS,
        "pets",
        "mean_per_class",
        _simple(_tv.OxfordIIITPet, split="test"),
        _simple(_tv.OxfordIIITPet, split="trainval"),
    ),
    "flowers": _record(
        "flowers-102",
        classnames.FLOWERS,
        "flowers",
        "mean_per_class",
        _simple(_tv.Flowers102, split="test"),
        _joined(_tv.Flowers102, "train", "val"),
        # The archive has no names at all, only numbers; torchvision's list goes with them.
        lambda images: getattr(images.dataset, "classes", classnames.FLOWERS),
    ),
    "sun397": _record("SUN397", classnames.SUN397, "sun397", "top1", _sun("test"), _sun("train")),
    "cars": _record(
        "stanford_cars",
        classnames.CARS,
        "cars",
        "top1",
        _simple(_tv.StanfordCars, split="test"),
        _simple(_tv.StanfordCars, split="train"),
    ),
    "dtd": _record(
        "dtd/dtd", classnames.DTD, "dtd", "top1", _simple(_tv.DTD, split="test"), _joined(_tv.DTD, "train", "val")
    ),
    "caltech101": _record(
        "caltech101/101_ObjectCategories",
        classnames.CALTECH101,
        "caltech101",
        "mean_per_class",
        _caltech("test"),
        _caltech("train"),
        lambda images: images.dataset.categories,
    ),
    "aircraft": _record(
        "fgvc-aircraft-2013b",
        classnames.AIRCRAFT,
        "aircraft",
        "mean_per_class",
        _simple(_tv.FGVCAircraft, split="test"),
        _simple(_tv.FGVCAircraft, split="trainval"),
    ),
    "imagenet": _record("imagenet", classnames.IMAGENET, "imagenet", "top1", _imagenet_test, None, _imagenet_own),
}

# The demo's zero-shot sets: folders under the data root with a classes.jsonl; lists beside them.
DEMO_CLASSIFICATION = {"demo-style": "demo/eval/held-out-style", "demo-concept": "demo/eval/held-out-concept"}
PAPER_PROBE = tuple(name for name, record in CLASSIFICATION.items() if record.train is not None)
