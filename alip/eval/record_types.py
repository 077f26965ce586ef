"""What a named dataset is: one small record each, and what its reader needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from alip.errors import UserError
from alip.eval.caption_files import RetrievalDataset
from alip.eval.image_readers import Images
from alip.eval.named_lists import classes
from alip.eval.prompts import templates_of

Opener = Callable[[Path, str], Images]  # (data root, protocol) → images
TransformMaker = Callable[[nn.Module], Callable]  # model → (PIL image → tensor)
Reader = Callable[[Path, str], Images]  # (the dataset's folder or file, "test" or "train") → images


@dataclass(frozen=True)
class RetrievalRecord:
    """files: caption files looked for under the data root, first match wins. folders: where to look for their images.

    images: how many test images the benchmark has; None: not fixed.
    read: (name, folder) → dataset, where it is no caption file of a common form; `files` are then folders, and layout
    is what is expected in them.
    """

    files: tuple[str, ...]
    folders: tuple[str, ...] = ()
    images: int | None = None
    read: Callable[[str, Path], RetrievalDataset] | None = None
    layout: str = ""


@dataclass(frozen=True)
class ClassificationRecord:
    """locations: what must exist under the data root, the first that does. layout: what is expected there, in words.

    test, train: openers; train is None where there are no training images.
    images: how many test images there are; the first number is the usual one, others are in use too; empty: not fixed.
    own: reads the data's own class names from the opened test images, to be checked against `names`; None: the opener
    has checked them.
    metric: the primary one, a name of alip.eval.metrics.
    alip_names, alip_images, alip_transform: where the protocol `alip` differs.
    """

    locations: tuple[str, ...]
    names: Sequence[str]
    templates: Sequence[str]
    metric: str
    test: Opener
    train: Opener | None
    images: tuple[int, ...]
    own: Callable[[Images], Sequence[str]] | None
    layout: str = ""
    alip_names: Sequence[str] | None = None
    alip_images: tuple[int, ...] | None = None
    alip_transform: TransformMaker | None = None

    def class_names(self, protocol: str) -> list[str]:
        """The names of the classes in prompts."""
        return list(self.alip_names if protocol == "alip" and self.alip_names else self.names)

    def image_counts(self, protocol: str) -> tuple[int, ...]:
        """How many test images are right."""
        return self.alip_images if protocol == "alip" and self.alip_images else self.images

    def location(self, root: Path) -> Path:
        """The first of the locations that exists, else the usual one."""
        return first_of(root, self.locations)


def first_of(root: Path, names: Sequence[str]) -> Path:
    """The first of the names under root that exists, else the first."""
    return next((root / name for name in names if (root / name).exists()), root / names[0])


def needed(path: Path, what: str) -> Path:
    """The path; raises UserError unless it is there. what: what it is, for the message."""
    if not path.exists():
        raise UserError(f"{path} is missing ({what})")
    return path


def record(
    name: str,
    locations: Sequence[str],
    layout: str,
    read: Reader,
    images: int | tuple[int, ...],
    *,
    metric: str = "top1",
    names: Sequence[str] | None = None,
    templates: str | None = None,
    train: bool = True,
) -> ClassificationRecord:
    """A record whose reader takes the dataset's own folder. names, templates: of other lists than `name`'s own."""
    locations = tuple(locations)

    def opener(part: str) -> Opener:
        return lambda root, protocol: read(first_of(root, locations), part)

    return ClassificationRecord(
        locations=locations,
        names=list(names) if names is not None else classes(name),
        templates=templates_of(templates or name),
        metric=metric,
        test=opener("test"),
        train=opener("train") if train else None,
        images=(images,) if isinstance(images, int) else images,
        own=None,
        layout=layout,
    )
