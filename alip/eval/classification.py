"""A classification dataset: labelled images, and the words to classify them by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn

from alip.eval.image_readers import Images


@dataclass(frozen=True)
class ClassificationDataset:
    """Labelled images, and what is needed to classify them from words.

    classnames: class number → name. templates: texts with one {}. metric: the primary one: "top1", "mean_per_class", a
    name of alip.eval.metrics, or "mean_ap".
    groups: (n, fields) int64, what metrics of groups need. targets: (n, classes) of 0 and 1, where an image has several
    right classes (metric "mean_ap"). Both by position in `images`.
    train: opens the labelled images of the linear probe; None where there are none.
    benchmark: the name in the table of datasets it was opened by, None for somebody's own files.
    image_counts: how many images the benchmark has, the usual number first; empty where that is not known.
    transform: model → (PIL image → tensor), where the protocol does not take the model's own.
    given: the files that replaced the dataset's own lists: {"prompts": path, "classnames": path}.
    """

    name: str
    images: Images
    classnames: list[str]
    templates: list[str]
    metric: str = "top1"
    train: Callable[[], Images] | None = None
    benchmark: str | None = None
    image_counts: tuple[int, ...] = ()
    transform: Callable[[nn.Module], Callable] | None = None
    given: dict[str, str] | None = None
    groups: np.ndarray | None = None
    targets: np.ndarray | None = None
