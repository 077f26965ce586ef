"""Few-shot: a linear probe on K training images per class, mean and standard deviation over several samples of them.

Which images: those of a class in an order that depends on the seed, the class number and how many images it has, and
on nothing else; the first K are for training, so that fewer shots are a part of more. The next min(K, 4) choose the
strength of the penalty and are not trained on (CoOp's validation size). A class with fewer images gives all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alip.data.order import uniform
from alip.eval.classification import ClassificationDataset
from alip.eval.features import ImageFeatures
from alip.eval.image_readers import ImageFiles, Images, JoinedImages, TorchvisionImages
from alip.eval.logistic import FeaturesInMemory, Fit, Linear, sweep
from alip.eval.outcomes import BY_MODEL, Outcomes
from alip.eval.zeroshot import outcomes_of, score

_STREAM = 16  # of the random order: one that nothing else uses
_VALIDATION = 4  # images per class, at most
_C_WITHOUT_VALIDATION = 1.0


def sample(labels: Sequence[int], shots: int, seed: int) -> tuple[list[int], list[int]]:
    """(training positions, validation positions), ascending, for labels in the dataset's order; -1 is no class."""
    labels = np.asarray(labels)
    train: list[int] = []
    validation: list[int] = []
    for label in np.unique(labels[labels >= 0]).tolist():
        own = np.flatnonzero(labels == label)
        order = own[np.argsort(uniform(seed, label, np.arange(len(own)), _STREAM), kind="stable")]
        train += order[:shots].tolist()
        validation += order[shots : shots + min(shots, _VALIDATION)].tolist()
    return sorted(train), sorted(validation)


def labels_without_reading(images: Images) -> list[int] | None:
    """Every image's class number, where it is known without decoding the images."""
    if isinstance(images, JoinedImages):
        parts = [labels_without_reading(part) for part in images.parts]
        return None if None in parts else [label for part in parts for label in part]
    if isinstance(images, TorchvisionImages):
        for attribute in ("targets", "_labels", "y"):
            if hasattr(images.dataset, attribute):
                own = getattr(images.dataset, attribute)
                return [int(own[position]) for position in images.indices]
        return None
    own = getattr(images, "labels", None)
    return (
        [int(label) for label in own]
        if isinstance(images, ImageFiles) or isinstance(own, (list, tuple, np.ndarray))
        else None
    )


def measure(
    train: FeaturesInMemory,
    positions: Tensor,
    samples: Sequence[tuple[list[int], list[int]]],
    test: ImageFeatures,
    dataset: ClassificationDataset,
    fit: Fit,
) -> tuple[dict[str, Any], Outcomes]:
    """Mean and spread over the samples, one probe for each.

    train: features of the sampled images (at least), positions (n,): their positions in the training dataset.
    samples: of `sample`. test: of the dataset's images.
    """
    classes = len(dataset.classnames)
    found: list[dict[str, float]] = []
    outcomes: list[Outcomes] = []
    strengths, unfinished = [], 0
    for chosen, held in samples:
        own = train.part(torch.isin(positions.cpu(), torch.tensor(chosen)))
        validation = train.part(torch.isin(positions.cpu(), torch.tensor(held, dtype=torch.int64)))
        strength = sweep(own, validation, classes, fit) if len(validation.labels) else _C_WITHOUT_VALIDATION
        probe: Linear = fit(own, classes, strength, None)
        unfinished += not probe.converged
        logits = probe.logits(test.features)
        labels = test.labels.to(logits.device)
        found.append(score(dataset, logits, labels, test.positions)[0])
        outcomes.append(outcomes_of(dataset, logits, labels, test.positions))
        strengths.append(strength)
    numbers = {}
    for name in found[0]:
        values = np.array([one[name] for one in found])
        numbers[name] = float(values.mean())
        if len(values) > 1:
            numbers[f"{name}_std"] = float(values.std(ddof=1))
    numbers["train_images"], numbers["validation_images"] = (len(part) for part in samples[0])
    numbers["C"] = float(np.median(strengths))
    if unfinished:
        numbers["unfinished_fits"] = unfinished
    own = {name: np.stack([one[name] for one in outcomes]) for name in BY_MODEL if name in outcomes[0]}
    return numbers, outcomes[0] | own
