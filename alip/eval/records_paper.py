"""The paper's eleven zero-shot datasets, which torchvision's own classes read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import datasets as torchvision_datasets

from alip.errors import UserError
from alip.eval import classnames, release
from alip.eval.image_readers import ImageFiles, Images, JoinedImages, RecordImages, TorchvisionImages, file_of
from alip.eval.matlab_files import check_matlab_files
from alip.eval.named_lists import folders
from alip.eval.prompts import templates_of
from alip.eval.record_types import ClassificationRecord, Opener


def _simple(dataset: Callable[..., Any], **arguments: Any) -> Opener:
    return lambda root, protocol: TorchvisionImages(dataset(root, **arguments))


def _joined(dataset: Callable[..., Any], *splits: str) -> Opener:
    return lambda root, protocol: JoinedImages([TorchvisionImages(dataset(root, split=split)) for split in splits])


def _with_matlab_files(opener: Opener, *files: str) -> Opener:
    """The opener, after SciPy has read these files under the data root."""

    def open_part(root: Path, protocol: str) -> Images:
        check_matlab_files([root / file for file in files])
        return opener(root, protocol)

    return open_part


_CARS_NAMES = "stanford_cars/devkit/cars_meta.mat"
_CARS_TEST, _CARS_TRAIN = "stanford_cars/cars_test_annos_withlabels.mat", "stanford_cars/devkit/cars_train_annos.mat"
_FLOWERS = ("flowers-102/imagelabels.mat", "flowers-102/setid.mat")


def _classes(images: Images) -> Sequence[str]:
    return images.dataset.classes


def _seeded_parts(count: int, test: float, train: float) -> tuple[list[int], list[int]]:
    """(train, test) numbers as the release samples them: torch's permutation from its seed, the train part first."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(release.SEED)).tolist()
    first, second = round(count * train), round(count * test)
    return order[:first], order[first : first + second]


class _ClassFolders(ImageFiles):
    """A folder of images per class, classes and files in sorted order; `classes`: the folders' names."""

    def __init__(self, classes: Sequence[str], paths: Sequence[Path], labels: Sequence[int]):
        super().__init__(paths, labels)
        self.classes = list(classes)


_TRAIN_IMAGES_PER_CLASS = 30
_TFDS_SEED = 1234


def _caltech(part: str) -> Opener:
    """Caltech-101 has no split of its own.

    standard: as CLIP, VTAB and CLIP_benchmark count: the background class is the 102nd, 30 images of each class are
    for training and the rest (6,085) is the test part. Which 30 follows TensorFlow Datasets' rule (NumPy's sampling
    from seed 1234, class after class), on sorted files: theirs are in the order of the disk that made the split.
    alip: the 101 classes without background, 3,000 and 5,677 of the 8,677 images at random, with the release's seed.
    """

    def open_part(root: Path, protocol: str) -> Images:
        if protocol == "alip":
            dataset = torchvision_datasets.Caltech101(root)
            train, test = _seeded_parts(len(dataset), 5677 / 8677, 3000 / 8677)
            return TorchvisionImages(dataset, sorted(train if part == "train" else test))
        folders = sorted(entry for entry in (root / "caltech101" / "101_ObjectCategories").iterdir() if entry.is_dir())
        sampler = np.random.RandomState(_TFDS_SEED)
        paths, labels = [], []
        for label, folder in enumerate(folders):
            files = sorted(folder.glob("*.jpg"))
            count = min(_TRAIN_IMAGES_PER_CLASS, max(0, len(files) - 1))  # one is left for the test
            train = set(sampler.choice(len(files), count, replace=False).tolist()) if files else set()
            chosen = [file for number, file in enumerate(files) if (number in train) == (part == "train")]
            paths += chosen
            labels += [label] * len(chosen)
        return _ClassFolders([folder.name for folder in folders], paths, labels)

    return open_part


def _caltech_own(images: Images) -> Sequence[str]:
    return images.classes if isinstance(images, _ClassFolders) else images.dataset.categories


def _sun(part: str) -> Opener:
    """SUN397: standard is the official first partition (Training_01.txt, Testing_01.txt: 50 images a class each).

    alip: 19,850 images each, at random. The release seeds that with Python's hash of a text, which differs from
    one process to the next; here the seed is fixed and the files are sorted first.
    """

    def open_part(root: Path, protocol: str) -> Images:
        dataset = torchvision_datasets.SUN397(root)
        folder = Path(dataset.root) / "SUN397"
        # torchvision lists the files in the disk's own order, which differs between machines.
        order = sorted(range(len(dataset)), key=lambda position: str(file_of(dataset, position)))
        if protocol == "alip":
            train, test = _seeded_parts(len(order), 19850 / 108754, 19850 / 108754)
            return TorchvisionImages(dataset, sorted(order[n] for n in (train if part == "train" else test)))
        name = "Training_01.txt" if part == "train" else "Testing_01.txt"
        candidates = [folder / "Partitions" / name, folder / name, Path(root) / "Partitions" / name]
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            raise UserError(f"sun397 needs {candidates[0]} (Partitions.zip of the dataset's page), or --protocol alip")
        number = {"/" + file_of(dataset, n).relative_to(folder).as_posix(): n for n in order}
        wanted = found.read_text().split()
        missing = [line for line in wanted if line not in number]
        if missing:
            raise UserError(
                f"sun397: {len(missing)} images of {found.name} are not under {folder}; the first: {missing[0]}"
            )
        return TorchvisionImages(dataset, [number[line] for line in wanted])

    return open_part


def _imagenet(part: str) -> Opener:
    """part: "val" or "train"; PART.rec and PART.idx, or a folder PART with the 1,000 synsets."""

    def open_part(root: Path, protocol: str) -> Images:
        rec = root / "imagenet" / f"{part}.rec"
        if rec.is_file():
            return RecordImages(rec)
        dataset = torchvision_datasets.ImageFolder(root / "imagenet" / part)
        if part == "train" and dataset.classes != list(folders("imagenet")):
            raise UserError(f"{root / 'imagenet' / part}: {len(dataset.classes)} folders, not the 1,000 synsets")
        return TorchvisionImages(dataset)

    return open_part


def _imagenet_own(images: Images) -> Sequence[str]:
    """Folders must be the 1,000 synsets; a rec file holds numbers only, whose range is checked when they are read."""
    if isinstance(images, RecordImages):
        return classnames.IMAGENET
    names = dict(zip(folders("imagenet"), classnames.IMAGENET))
    return [names.get(folder, folder) for folder in images.dataset.classes]


def _record(
    location: str,
    names: Sequence[str],
    templates: str,
    metric: str,
    test: Opener,
    train: Opener | None,
    images: int | tuple[int, ...],
    layout: str,
    own: Callable[[Images], Sequence[str]] = _classes,
    **alip: Any,
) -> ClassificationRecord:
    counts = images if isinstance(images, tuple) else (images,)
    template_list = templates_of(templates)
    return ClassificationRecord((location,), names, template_list, metric, test, train, counts, own, layout, **alip)


_tv = torchvision_datasets
_SUN = "SUN397/ and in it Partitions/Testing_01.txt"
PAPER: dict[str, ClassificationRecord] = {
    "cifar10": _record(
        "cifar-10-batches-py",
        classnames.CIFAR10,
        "cifar",
        "top1",
        _simple(_tv.CIFAR10, train=False),
        _simple(_tv.CIFAR10, train=True),
        10_000,
        "cifar-10-batches-py/",
    ),
    "cifar100": _record(
        "cifar-100-python",
        classnames.CIFAR100,
        "cifar",
        "top1",
        _simple(_tv.CIFAR100, train=False),
        _simple(_tv.CIFAR100, train=True),
        10_000,
        "cifar-100-python/",
    ),
    "food101": _record(
        "food-101",
        classnames.FOOD101,
        "food101",
        "top1",
        _simple(_tv.Food101, split="test"),
        _simple(_tv.Food101, split="train"),
        25_250,
        "food-101/images, food-101/meta",
    ),
    "pets": _record(
        "oxford-iiit-pet",
        classnames.PETS,
        "pets",
        "mean_per_class",
        _simple(_tv.OxfordIIITPet, split="test"),
        _simple(_tv.OxfordIIITPet, split="trainval"),
        3_669,
        "oxford-iiit-pet/images, oxford-iiit-pet/annotations",
        alip_names=release.PETS,
    ),
    "flowers": _record(
        "flowers-102",
        classnames.FLOWERS,
        "flowers",
        "mean_per_class",
        _with_matlab_files(_simple(_tv.Flowers102, split="test"), *_FLOWERS),
        _with_matlab_files(_joined(_tv.Flowers102, "train", "val"), *_FLOWERS),
        6_149,
        "flowers-102/jpg, imagelabels.mat, setid.mat",
        # The archive has no names at all, only numbers; torchvision's list goes with them.
        lambda images: getattr(images.dataset, "classes", classnames.FLOWERS),
    ),
    "sun397": _record(
        "SUN397",
        classnames.SUN397,
        "sun397",
        "top1",
        _sun("test"),
        _sun("train"),
        19_850,
        "SUN397/ and its Partitions/Testing_01.txt",
    ),
    "cars": _record(
        "stanford_cars",
        classnames.CARS,
        "cars",
        "top1",
        _with_matlab_files(_simple(_tv.StanfordCars, split="test"), _CARS_NAMES, _CARS_TEST),
        _with_matlab_files(_simple(_tv.StanfordCars, split="train"), _CARS_NAMES, _CARS_TRAIN),
        8_041,
        "stanford_cars/devkit, cars_train, cars_test, cars_test_annos_withlabels.mat",
    ),
    "dtd": _record(
        "dtd/dtd",
        classnames.DTD,
        "dtd",
        "top1",
        _simple(_tv.DTD, split="test"),
        _joined(_tv.DTD, "train", "val"),
        1_880,
        "dtd/dtd/images, dtd/dtd/labels",
    ),
    "caltech101": _record(
        "caltech101/101_ObjectCategories",
        ["background", *classnames.CALTECH101],
        "caltech101",
        "mean_per_class",
        _caltech("test"),
        _caltech("train"),
        (6_085, 6_084),  # CLIP's count; VTAB's
        "caltech101/101_ObjectCategories/CLASS/*.jpg",
        _caltech_own,
        alip_names=classnames.CALTECH101,
        alip_images=(5_677,),
    ),
    "aircraft": _record(
        "fgvc-aircraft-2013b",
        classnames.AIRCRAFT,
        "aircraft",
        "mean_per_class",
        _simple(_tv.FGVCAircraft, split="test"),
        _simple(_tv.FGVCAircraft, split="trainval"),
        3_333,
        "fgvc-aircraft-2013b/data",
    ),
    "imagenet": _record(
        "imagenet",
        classnames.IMAGENET,
        "imagenet",
        "top1",
        _imagenet("val"),
        _imagenet("train"),
        50_000,
        "imagenet/val/SYNSET/*.JPEG, or imagenet/val.rec and val.idx",
        _imagenet_own,
        alip_transform=release.ImageNetTransform,
    ),
}
