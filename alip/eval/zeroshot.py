"""Zero-shot classification: an image's class is the one with the nearest mean feature of its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alip.distributed import World
from alip.errors import UserError
from alip.eval import cache
from alip.eval.datasets import ClassificationDataset
from alip.eval.features import Encoding, encode_images, encode_texts
from alip.eval.metrics import mean_average_precision, predictions_of, value_of
from alip.eval.outcomes import BY_MODEL, Outcomes, class_ranks, classification_outcomes
from alip.eval.prompts import canonical_protocol
from alip.eval.ranking import full_precision


@dataclass(frozen=True)
class Classified:
    """What one evaluation found: the numbers, and what plots need.

    labels, predictions: (n,) int64 on the CPU. unreadable: (name, reason) of the images left out.
    outcomes: the rank of every image's class.
    """

    numbers: dict[str, float]
    dataset: ClassificationDataset
    labels: Tensor
    predictions: Tensor
    unreadable: list[tuple[str, str]]
    outcomes: Outcomes = field(default_factory=dict)


def build_classifier(
    model: nn.Module, classnames: Sequence[str], templates: Sequence[str], encoding: Encoding
) -> Tensor:
    """(classes, D), L2-normalised: the mean of each class's normalised prompt features. The same on every rank."""
    if encoding.memory is None:
        return _build(model, classnames, templates, encoding)
    return encoding.memory.classifier(classnames, templates, lambda: _build(model, classnames, templates, encoding))


def _build(model: nn.Module, classnames: Sequence[str], templates: Sequence[str], encoding: Encoding) -> Tensor:
    key = None
    if encoding.cache is not None:
        key = cache.key_of(model, "classifier", list(classnames), list(templates), encoding.resolved_precision())
        kept = encoding.cached(key)
        if kept is not None:
            return kept["classifier"]
    texts = [template.replace("{}", name) for name in classnames for template in templates]
    features = encode_texts(model, texts, encoding, "prompts")
    classifier = F.normalize(features.view(len(classnames), len(templates), -1).mean(1), dim=-1)
    if encoding.cache is not None and encoding.world.is_main:
        cache.write(encoding.cache, key, {"classifier": classifier})
    return classifier


def accuracies(logits: Tensor, labels: Tensor) -> tuple[dict[str, float], Tensor]:
    """Percentages top1, top5 (with five classes or more) and mean_per_class, and the predictions (n,).

    logits: (n, classes) float; labels: (n,) int64. Of tied classes the one with the lower number comes first.
    mean_per_class is over the classes that have images.
    """
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("the logits hold NaN or infinity")
    classes = logits.shape[1]
    rank, predictions = class_ranks(logits, labels), predictions_of(logits)
    hit = (rank == 0).double()
    count = torch.bincount(labels, minlength=classes).double()
    hits = torch.bincount(labels[rank == 0], minlength=classes).double()
    present = count > 0
    numbers = {"top1": 100.0 * float(hit.mean())}
    if classes >= 5:
        numbers["top5"] = 100.0 * float((rank < 5).double().mean())
    numbers["mean_per_class"] = 100.0 * float((hits[present] / count[present]).mean())
    return numbers, predictions


def score(
    dataset: ClassificationDataset, logits: Tensor, labels: Tensor, positions: Tensor
) -> tuple[dict[str, float], Tensor]:
    """The numbers of `accuracies` with `primary`, the dataset's own metric, and the predictions (n,).

    positions: (n,) int64, each row's position in the dataset. With several right classes an image (`targets`) there
    are only `mean_ap` and, as top1, how often the best class is a right one.
    """
    if dataset.targets is not None:
        targets = torch.from_numpy(dataset.targets)[positions.cpu()].to(logits.device)
        predictions = predictions_of(logits)
        right = targets.gather(1, predictions[:, None]).double().mean()
        numbers = {"top1": 100.0 * float(right), "mean_ap": mean_average_precision(logits, targets)}
        return {**numbers, "primary": numbers["mean_ap"]}, predictions
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise UserError(
            f"{dataset.name}: labels run from {int(labels.min())} to {int(labels.max())}, "
            f"but there are {logits.shape[1]} class names"
        )
    numbers, predictions = accuracies(logits, labels)
    groups = None if dataset.groups is None else torch.from_numpy(dataset.groups)[positions.cpu()].to(logits.device)
    numbers["primary"] = value_of(dataset.metric, numbers, logits, labels, groups)
    return numbers, predictions


def outcomes_of(dataset: ClassificationDataset, logits: Tensor, labels: Tensor, positions: Tensor) -> Outcomes:
    """The rank of every image's class, and what the intervals of metrics need that are no mean over images.

    With several right classes an image: whether the best class is one of them, and all scores. Arguments: of `score`.
    """
    if dataset.targets is None:
        outcomes = classification_outcomes(labels, class_ranks(logits, labels))
        if dataset.metric == "macro_f1":
            outcomes["prediction"] = predictions_of(logits).cpu().numpy()
        if dataset.metric == "roc_auc":
            outcomes["score"] = (logits[:, 1] - logits[:, 0]).double().cpu().numpy()
        if dataset.metric.startswith("worst_group") and dataset.groups is not None:
            outcomes["group"] = dataset.groups[positions.cpu().numpy(), 0]
        return outcomes
    targets = torch.from_numpy(dataset.targets)[positions.cpu()].to(logits.device)
    hits = targets.gather(1, predictions_of(logits)[:, None]).squeeze(1)
    scores = {"scores": logits.T.float().cpu().numpy(), "targets": targets.T.cpu().numpy().astype(np.uint8)}
    return {"hit_top1": hits.cpu().numpy(), **scores}


def evaluate_zeroshot(
    model: nn.Module,
    dataset: ClassificationDataset,
    *,
    world: World,
    batch_size: int = 256,
    workers: int = 2,
    precision: str = "fp32",
    progress: bool = False,
) -> dict[str, float]:
    """The numbers of `accuracies`, and `primary`, the dataset's own metric. All ranks must call it."""
    encoding = Encoding(world, batch_size, workers, precision, progress=progress)
    return measure_zeroshot(model, dataset, encoding).numbers


def measure_zeroshot(
    model: nn.Module, dataset: ClassificationDataset, encoding: Encoding, protocol: str = "standard"
) -> Classified:
    """Builds the classifier from the dataset's names and templates, classifies its images. All ranks must call it.

    Under the protocol "alip" there is one number more, `primary_truncated`: the primary metric as the release computes
    it, from 100 × cosine truncated to integers, so that near classes tie and the first of them wins.
    """
    training = model.training
    model.eval()
    classifier = build_classifier(model, dataset.classnames, dataset.templates, encoding)
    transform = None if dataset.transform is None else dataset.transform(model)
    found = encode_images(model, dataset.images, encoding, f"{dataset.name} images", transform)
    model.train(training)
    labels = found.labels
    with full_precision():
        logits = found.features @ classifier.T
    numbers, predictions = score(dataset, logits, labels, found.positions)
    outcomes = outcomes_of(dataset, logits, labels, found.positions)
    if canonical_protocol(protocol) == "alip":
        truncated = (100 * logits).trunc()
        numbers["primary_truncated"] = score(dataset, truncated, labels, found.positions)[0]["primary"]
        own = outcomes_of(dataset, truncated, labels, found.positions)
        outcomes |= {f"{name}_truncated": one for name, one in own.items() if name in BY_MODEL}
    numbers.update(images=len(labels), classes=len(dataset.classnames), unreadable=len(found.unreadable))
    return Classified(numbers, dataset, labels.cpu(), predictions.cpu(), found.unreadable, outcomes)
