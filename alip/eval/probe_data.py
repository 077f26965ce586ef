"""Training images for a probe that the dataset itself does not have: those of another one with the same classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from alip.errors import UserError
from alip.eval.datasets import ClassificationDataset, open_classification
from alip.eval.few_shot import labels_without_reading
from alip.eval.image_readers import Images
from alip.eval.labelled_rows import USUAL_FIELDS, RowFields


class Relabelled:
    """Images whose class numbers are translated. number_of: their own number → the new one."""

    def __init__(self, images: Images, number_of: Sequence[int]):
        self.images, self.number_of = images, list(number_of)
        own = labels_without_reading(images)
        self.labels = None if own is None else [self.number_of[label] for label in own]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.images[index]
        return image, self.number_of[label]

    def name(self, index: int) -> str:
        return self.images.name(index)

    def cache_key(self) -> str:
        return f"{self.images.cache_key()} {self.number_of}"

    def content_hash(self) -> str:
        return f"{self.images.content_hash()} {self.number_of}"


def with_training_images(
    dataset: ClassificationDataset,
    source: str | Path,
    data_root: str | Path | None = None,
    fields: RowFields = USUAL_FIELDS,
) -> ClassificationDataset:
    """The dataset with the images of another one as training images; classes are matched by name.

    Of one that has training images itself, those.

    source: anything that `open_classification` takes. UserError when it has a class that the dataset has not.
    """
    given = open_classification(source, data_root, fields=fields)
    number = {name: label for label, name in enumerate(dataset.classnames)}
    if len(number) < len(dataset.classnames) and given.classnames != dataset.classnames:
        raise UserError(f"{dataset.name}: two classes have one name, so the classes of {source} cannot be matched")
    unknown = next((name for name in given.classnames if name not in number), None)
    if unknown is not None:
        raise UserError(
            f"--probe-train {source}: {dataset.name} has no class {unknown[:80]!r}; it has "
            f"{', '.join(dataset.classnames[:5])[:200]}, …"
        )
    images = given.images if given.train is None else given.train()
    if given.classnames != dataset.classnames:
        images = Relabelled(images, [number[name] for name in given.classnames])
    return replace(dataset, train=lambda: images)
