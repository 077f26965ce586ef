"""What raw pixels can do: the nearest training image at 32 × 32, which a small model should beat.

It is given more than the model: every training image's true name or class.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from alip.eval.datasets import ClassificationDataset, RetrievalDataset
from alip.eval.image_readers import ImageFiles, Images
from alip.eval.retrieval import recall_from_scores
from alip.eval.zeroshot import accuracies

# Below every real score, and the same for all: an unknown name ties with everything, and ties count against us.
_UNKNOWN = -1e9


def pixels(images: Images, size: int = 32) -> Tensor:
    """(n, 3·size·size) float32: each image shrunk to size × size, its mean colour subtracted, scaled to length 1."""
    rows = np.stack(
        [np.asarray(images[i][0].resize((size, size), Image.Resampling.BOX), np.float32) for i in range(len(images))]
    )
    flat = torch.from_numpy(rows).flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True), dim=1)


def pixel_retrieval(
    train: Sequence[tuple[str | Path, str]], dataset: RetrievalDataset, size: int = 32
) -> dict[str, float]:
    """Retrieval without a model: a caption is represented by the training images with that name.

    train: (image file, true name) pairs; a caption of the test dataset matches when it equals the name, but for case.
    A test image's score for a caption is its best pixel correlation with those images; a caption that no training image
    has scores the same with everything and so is never found.
    Returns the numbers of `recall_from_scores`, and `known_captions`, the percentage that has a training image.
    """
    train_pixels = pixels(ImageFiles([Path(path) for path, _ in train]), size)
    test_pixels = pixels(ImageFiles(dataset.images), size)
    by_name: dict[str, list[int]] = {}
    for number, (_, name) in enumerate(train):
        by_name.setdefault(_plain(name), []).append(number)
    similarity = test_pixels @ train_pixels.T
    scores = torch.full((len(dataset.images), len(dataset.captions)), _UNKNOWN)
    known = 0
    for column, caption in enumerate(dataset.captions):
        numbers = by_name.get(_plain(caption))
        if numbers:
            known += 1
            scores[:, column] = similarity[:, numbers].amax(1)
    numbers = recall_from_scores(scores, torch.tensor(dataset.caption_owner))
    return {**numbers, "known_captions": 100.0 * known / len(dataset.captions)}


def pixel_classification(
    train: Sequence[tuple[str | Path, str]],
    dataset: ClassificationDataset,
    labels: Sequence[str],
    size: int = 32,
    k: int = 5,
) -> dict[str, float]:
    """Classification without a model: the k nearest training images vote, each with its correlation.

    train: (image file, true class) pairs. labels: the dataset's classes as they are written in `train`, in the order of
    `dataset.classnames`. Returns the numbers of `alip.eval.zeroshot.accuracies`, and `primary`.
    """
    number = {label: i for i, label in enumerate(labels)}
    train_labels = torch.tensor([number[label] for _, label in train])
    train_pixels = pixels(ImageFiles([Path(path) for path, _ in train]), size)
    truth = torch.tensor([dataset.images[i][1] for i in range(len(dataset.images))])
    nearest = (pixels(dataset.images, size) @ train_pixels.T).topk(min(k, len(train)), dim=1)
    votes = torch.zeros(len(truth), len(labels)).scatter_add_(1, train_labels[nearest.indices], nearest.values + 1)
    numbers, _ = accuracies(votes, truth)
    return {**numbers, "primary": numbers[dataset.metric]}


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
