"""ImageNet's variants: other images of its classes, or of some of them, with its names and its 80 templates."""

from __future__ import annotations

from pathlib import Path

from alip.eval import classnames
from alip.eval.image_arrays import CroppedFiles
from alip.eval.image_readers import ImageFiles, Images
from alip.eval.layouts import class_folders
from alip.eval.named_lists import folders
from alip.eval.record_types import ClassificationRecord, needed, record

_OBJECTNET_BORDER = 2  # pixels: every image has a red line around it, so that nobody trains on it unawares


def _names(subset: str) -> list[str]:
    name_of = dict(zip(folders("imagenet"), classnames.IMAGENET))
    return [name_of[synset] for synset in folders(subset)]


def _numbered(folder: Path, part: str) -> Images:
    """ImageNet-V2's folders are class numbers, 0 to 999, without leading zeros."""
    return class_folders(folder, [str(number) for number in range(1000)])


def _sketch(folder: Path, part: str) -> Images:
    return class_folders(folder, folders("imagenet"))


def _subset(name: str) -> ClassificationRecord:
    counts = {"imagenet-r": 30_000, "imagenet-a": 7_500, "imagenet-o": 2_000}
    return record(
        name,
        (name, f"imagenet/{name}"),
        f"{name}/SYNSET/*, 200 synsets",
        lambda folder, part: class_folders(folder, folders(name)),
        counts[name],
        names=_names(name),
        templates="imagenet",
        train=False,
    )


def _v2(variant: str) -> ClassificationRecord:
    archive = f"imagenetv2-{variant}-format-val"
    short = "threshold-0.7" if variant == "threshold0.7" else variant
    return record(
        "imagenet-v2",
        (archive, f"imagenetv2/{archive}", f"ImageNetV2-{short}", f"imagenetv2/ImageNetV2-{short}"),
        f"{archive}/0/*.jpeg … 999/*.jpeg",
        _numbered,
        10_000,
        names=classnames.IMAGENET,
        templates="imagenet",
        train=False,
    )


def _objectnet(folder: Path, part: str) -> Images:
    """The 113 of its 313 classes that are in ImageNet too, under ObjectNet's own names."""
    found: ImageFiles = class_folders(needed(folder / "images", "ObjectNet's images"), folders("objectnet"), more=True)
    return CroppedFiles(found.paths, found.labels, border=_OBJECTNET_BORDER)


IMAGENET_VARIANTS: dict[str, ClassificationRecord] = {
    "imagenet-v2": _v2("matched-frequency"),
    "imagenet-v2-threshold": _v2("threshold0.7"),
    "imagenet-v2-top": _v2("top-images"),
    **{name: _subset(name) for name in ("imagenet-r", "imagenet-a", "imagenet-o")},
    "imagenet-sketch": record(
        "imagenet-sketch",
        ("sketch", "imagenet-sketch/sketch", "imagenet-sketch"),
        "sketch/SYNSET/*.JPEG, 1,000 synsets",
        _sketch,
        50_889,
        names=classnames.IMAGENET,
        templates="imagenet",
        train=False,
    ),
    "objectnet": record(
        "objectnet",
        ("objectnet-1.0", "objectnet/objectnet-1.0"),
        "objectnet-1.0/images/CLASS/*.png",
        _objectnet,
        18_574,
        templates="imagenet",
        train=False,
    ),
}
