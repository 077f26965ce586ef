"""Linear probe and few-shot: logistic regression on frozen image features, as CLIP does it.

The strength of the penalty is swept on a part of the training images that is held out, and the final fit is on all of
them. Features are L2-normalised. scikit-learn fits on a CPU, torch on a GPU; more than STORED_FROM training images are
kept in memory-mapped files and fitted by torch, block by block.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from alip.distributed import broadcast_object, work_of_rank_0
from alip.errors import UserError
from alip.eval import few_shot
from alip.eval.datasets import ClassificationDataset
from alip.eval.feature_store import SomeImages, StoredFeatures, encode_stored
from alip.eval.features import Encoding, encode_images
from alip.eval.image_readers import Images
from alip.eval.logistic import (
    ITERATIONS,
    FeaturesInMemory,
    Fit,
    LabelledFeatures,
    fit_sklearn,
    fit_torch,
    held_out,
    sweep,
)
from alip.eval.outcomes import Outcomes
from alip.eval.zeroshot import outcomes_of, score

STORED_FROM = 200_000  # training images; 0.4 GB of 512-dimensional float32 features, twice that in float64
SHOTS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Probed:
    """What one probe found, on every rank; outcomes on the main rank only."""

    numbers: dict[str, float]
    unreadable: list[tuple[str, str]]
    outcomes: Outcomes = field(default_factory=dict)


def measure_probe(
    model: nn.Module, dataset: ClassificationDataset, encoding: Encoding, seed: int = 0, stored_from: int = STORED_FROM
) -> Probed:
    """Accuracies with `primary` and the chosen C. All ranks must call it. stored_from: training images in files."""
    images = training_images(dataset)
    with (
        _evaluating(model),
        _folder(encoding, len(images) >= stored_from) as folder,
        work_of_rank_0(encoding.world) as broadcast,
    ):
        transform = None if dataset.transform is None else dataset.transform(model)
        title = f"{dataset.name} training images"
        if folder is not None:
            train: LabelledFeatures = encode_stored(model, images, encoding, title, folder, transform)
            missing = train.unreadable
        else:
            found = encode_images(model, images, encoding, title, transform)
            train, missing = FeaturesInMemory(found.features, found.labels), found.unreadable
        test = encode_images(model, dataset.images, encoding, f"{dataset.name} images", transform)
        numbers: dict[str, float] = {}
        outcomes: Outcomes = {}
        classes = len(dataset.classnames)
        _check_labels(dataset.name, train.labels, test.labels, classes)
        if encoding.world.is_main:
            fit = fit_torch if isinstance(train, StoredFeatures) else _solver(encoding)
            held = held_out(train.labels, seed)
            if not held.any():
                raise UserError(f"{dataset.name}: no class has two training images, so none can be held out for C")
            strength = sweep(train.part(~held), train.part(held), classes, fit)
            probe = fit(train, classes, strength, None)
            if not probe.converged:
                _note_unfinished(dataset.name, 1)
            logits = probe.logits(test.features)
            labels = test.labels.to(logits.device)
            numbers, _ = score(dataset, logits, labels, test.positions)
            outcomes = outcomes_of(dataset, logits, labels, test.positions)
            numbers.update(images=len(test.labels), train_images=len(train.labels), classes=classes, C=strength)
            numbers["unreadable"] = len(missing) + len(test.unreadable)
        numbers = broadcast(numbers)
    return Probed(numbers, [*missing, *test.unreadable], outcomes)


def measure_few_shot(
    model: nn.Module,
    dataset: ClassificationDataset,
    encoding: Encoding,
    shots: Sequence[int] = SHOTS,
    seeds: int = 3,
) -> dict[int, Probed]:
    """{shots: means and standard deviations over the seeds 0 … seeds - 1}. All ranks must call it.

    Only the sampled images are read, where the labels of all are known beforehand.
    """
    images = training_images(dataset)
    with _evaluating(model):
        transform = None if dataset.transform is None else dataset.transform(model)
        labels = few_shot.labels_without_reading(images)
        title = f"{dataset.name} training images"
        if labels is None:
            train = encode_images(model, images, encoding, title, transform)
            labels = [-1] * len(images)
            for position, label in zip(train.positions.tolist(), train.labels.tolist()):
                labels[position] = label
            samples = _samples(labels, shots, seeds)
            positions = train.positions.cpu()
        else:
            samples = _samples(labels, shots, seeds)
            needed = sorted({p for parts in samples.values() for part in parts for side in part for p in side})
            train = encode_images(model, SomeImages(images, needed), encoding, title, transform)
            positions = torch.tensor(needed)[train.positions.cpu()]
        test = encode_images(model, dataset.images, encoding, f"{dataset.name} images", transform)
    classes = len(dataset.classnames)
    _check_labels(dataset.name, train.labels, test.labels, classes)
    unreadable = [*train.unreadable, *test.unreadable]
    found: dict[int, Probed] = {}
    with work_of_rank_0(encoding.world) as broadcast:
        for count in shots if encoding.world.is_main else ():
            data = FeaturesInMemory(train.features, train.labels)
            numbers, outcomes = few_shot.measure(data, positions, samples[count], test, dataset, _solver(encoding))
            numbers.update(images=len(test.labels), classes=classes, unreadable=len(unreadable))
            if numbers.get("unfinished_fits"):
                _note_unfinished(f"{dataset.name}, {count} shots", numbers["unfinished_fits"])
            if not numbers["validation_images"]:
                print(f"warning: {dataset.name}: {count} shots leave no image to choose C with; C is 1")
            found[count] = Probed(numbers, unreadable, outcomes)
        plain = broadcast({count: one.numbers for count, one in found.items()})
    return {n: found[n] if n in found else Probed(numbers, unreadable) for n, numbers in plain.items()}


def _samples(labels: Sequence[int], shots: Sequence[int], seeds: int) -> dict[int, list[tuple[list[int], list[int]]]]:
    return {count: [few_shot.sample(labels, count, seed) for seed in range(seeds)] for count in shots}


def check_trainable(dataset: ClassificationDataset) -> None:
    """UserError where a probe of the dataset has nothing to be trained on; no image is read."""
    if dataset.targets is not None:
        raise UserError(f"{dataset.name} has several right classes an image; a probe needs one")
    if dataset.train is None:
        raise UserError(
            f"{dataset.name} has no training images for a probe; eval_zeroshot.py takes some with --probe-train "
            "(docs/evaluation.md)"
        )


def training_images(dataset: ClassificationDataset) -> Images:
    """What a probe is trained on; UserError where there is nothing."""
    check_trainable(dataset)
    assert dataset.train is not None
    return dataset.train()


def _note_unfinished(name: str, fits: int) -> None:
    print(
        f"warning: {name}: {fits} of the probes stopped after {ITERATIONS:,} iterations, before the minimum: the "
        "features hardly differ, as those of an untrained model do"
    )


def _solver(encoding: Encoding) -> Fit:
    return fit_torch if encoding.world.device.type == "cuda" else fit_sklearn


def _check_labels(name: str, train: Tensor, test: Tensor, classes: int) -> None:
    for what, labels in (("training", train), ("test", test)):
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise UserError(f"{name}: {what} labels run from {low} to {high}, but there are {classes} class names")
    if len(train.unique()) < 2:
        raise UserError(f"{name}: the training images are all of one class; a probe needs two")


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextlib.contextmanager
def _folder(encoding: Encoding, needed: bool) -> Iterator[Path | None]:
    """Where stored features go: the cache, or a temporary folder, the same on every rank; None where not needed."""
    if not needed:
        yield None
        return
    if encoding.cache is not None:
        yield encoding.cache
        return
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(tempfile.TemporaryDirectory(prefix="alip-")) if encoding.world.is_main else None
        yield Path(broadcast_object(own, encoding.world))
