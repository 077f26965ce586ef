"""Metrics of classification beyond accuracy: of groups, of two classes, of several labels.

Each takes logits (n, classes), labels (n,) int64 and, where it needs them, groups (n, fields) int64 or targets
(n, classes) of 0 and 1, all on one device, and gives a percentage. Groups and worst cases are counted as DataComp
counts them, whose evaluation is WILDS's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from alip.errors import UserError
from alip.eval.outcomes import class_ranks

Metric = Callable[[Tensor, Tensor, Tensor | None], float]


def predictions_of(logits: Tensor) -> Tensor:
    """(n,) int64: the best class, of tied ones the lowest number. torch does not promise which one argmax returns."""
    numbers = torch.arange(logits.shape[1], device=logits.device)
    return torch.where(logits == logits.amax(1, keepdim=True), numbers, logits.shape[1]).amin(1)


def macro_f1(logits: Tensor, labels: Tensor, groups: Tensor | None = None) -> float:
    """The mean F1 score of the classes that have images: iWildCam's metric."""
    predictions, classes = predictions_of(logits), logits.shape[1]
    right = torch.bincount(labels[predictions == labels], minlength=classes).double()
    present = torch.bincount(labels, minlength=classes).double()
    predicted = torch.bincount(predictions, minlength=classes).double()
    f1 = 2 * right / (present + predicted).clamp_min(1)
    return 100.0 * float(f1[present > 0].mean())


def _worst(hit: Tensor, groups: Tensor | None) -> float:
    if groups is None:
        raise UserError("this metric needs the groups of the images (.npy members of a wds: dataset)")
    group = groups[:, 0].long()
    if int(group.min()) < 0:
        raise UserError("the groups of the images hold a negative number")
    count = torch.bincount(group).double()
    accuracy = torch.bincount(group[hit], minlength=len(count)) / count.clamp_min(1)
    return 100.0 * float(accuracy[count > 0].min())


def worst_group(logits: Tensor, labels: Tensor, groups: Tensor | None) -> float:
    """The lowest accuracy of a group (the first column of `groups`) that has images: FMoW's regions, GeoDE's.

    DataComp's FMoW counts every region, the one called "Other" too, which WILDS itself leaves out.
    """
    return _worst(class_ranks(logits, labels) < 1, groups)


def worst_group_top5(logits: Tensor, labels: Tensor, groups: Tensor | None) -> float:
    """The same with the label among the five best classes: Dollar Street's."""
    return _worst(class_ranks(logits, labels) < 5, groups)


def mean_top1_top5(logits: Tensor, labels: Tensor, groups: Tensor | None = None) -> float:
    """The mean of the two accuracies: how CLIP reports Kinetics-700."""
    ranks = class_ranks(logits, labels)
    return 50.0 * float((ranks < 1).double().mean() + (ranks < 5).double().mean())


def roc_auc(logits: Tensor, labels: Tensor, groups: Tensor | None = None) -> float:
    """The area under the ROC curve of the second class's logit over the first's; ties count half. Hateful Memes's."""
    if logits.shape[1] != 2:
        raise ValueError(f"the ROC curve is of two classes, not {logits.shape[1]}")
    score = (logits[:, 1] - logits[:, 0]).double()
    positive, negative = score[labels == 1], score[labels == 0].sort().values
    if not len(positive) or not len(negative):
        raise UserError("the ROC curve needs images of both classes")
    below = torch.searchsorted(negative, positive, right=False).double()
    not_above = torch.searchsorted(negative, positive, right=True).double()
    return 100.0 * float((below + not_above).mean() / 2 / len(negative))


def mean_average_precision(logits: Tensor, targets: Tensor) -> float:
    """The mean over the classes of the average precision, with several right classes an image. targets (n, classes)."""
    precisions = []
    for scores, right in zip(logits.T, targets.T.double()):
        order = scores.argsort(descending=True, stable=True)
        hits = right[order]
        precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1, device=hits.device)
        precisions.append(float((precision * hits).sum() / hits.sum().clamp_min(1)))
    return 100.0 * sum(precisions) / len(precisions)


METRICS: dict[str, Metric] = {
    "macro_f1": macro_f1,
    "worst_group": worst_group,
    "worst_group_top5": worst_group_top5,
    "mean_top1_top5": mean_top1_top5,
    "roc_auc": roc_auc,
}


def chance_of(metric: str, classes: int) -> float | None:
    """A random answer's primary metric in percent; None where it depends on the images (groups, F1, precision)."""
    if metric == "roc_auc":
        return 50.0
    if metric == "mean_top1_top5":
        return 50.0 * (1 + min(5, classes)) / classes
    return 100.0 / classes if metric in ("top1", "mean_per_class") else None


def value_of(
    metric: str, numbers: dict[str, float], logits: Tensor, labels: Tensor, groups: Tensor | None = None
) -> float:
    """A dataset's primary metric: one of `numbers` (top1, mean_per_class …), or one of METRICS."""
    return METRICS[metric](logits, labels, groups) if metric in METRICS else numbers[metric]
