"""Metrics that are no mean over items, as functions of how often each item is in a resampled test set.

Each takes outcomes of one model and gives a function weights (b, items) → the metric (b,), as a fraction: exactly what
alip.eval.metrics computes from a test set that holds item i weights[·, i] times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from alip.eval.outcomes import BY_MODEL, Outcomes

Weighted = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ItemMetric:
    """needs: the array of the outcomes it is computed from. strata: the one whose values' counts are fixed.

    always: however few items a stratum has, because the metric is not defined without items of each.
    """

    needs: str
    strata: str | None
    make: Callable[[Outcomes], Weighted]
    always: bool = False


def worst_group(outcomes: Outcomes, last: int) -> Weighted:
    """Rank below `last`, in the group with the lowest accuracy."""
    member = np.eye(int(outcomes["group"].max()) + 1)[outcomes["group"]]
    hit = member * (outcomes["rank"] < last)[:, None]

    def values(weights: np.ndarray) -> np.ndarray:
        count = weights @ member
        return np.where(count > 0, (weights @ hit) / np.maximum(count, 1), np.inf).min(1)

    return values


def macro_f1(outcomes: Outcomes) -> Weighted:
    """The mean F1 score of the classes that have images."""
    classes = np.eye(int(max(outcomes["label"].max(), outcomes["prediction"].max())) + 1)
    present, predicted = classes[outcomes["label"]], classes[outcomes["prediction"]]

    def values(weights: np.ndarray) -> np.ndarray:
        count = weights @ present
        f1 = 2 * (weights @ (present * predicted)) / np.maximum(count + weights @ predicted, 1)
        return (f1 * (count > 0)).sum(1) / (count > 0).sum(1)

    return values


def roc_auc(outcomes: Outcomes) -> Weighted:
    """The area under the ROC curve of `score`; ties count half."""
    order = np.argsort(outcomes["score"], kind="stable")
    score, positive = outcomes["score"][order], outcomes["label"][order] == 1
    starts = np.flatnonzero(np.diff(score, prepend=score[0] - 1))

    def values(weights: np.ndarray) -> np.ndarray:
        ordered = weights[:, order]
        above = np.add.reduceat(ordered * positive, starts, axis=1)
        below = np.add.reduceat(ordered * ~positive, starts, axis=1)
        pairs = np.maximum(above.sum(1) * below.sum(1), 1)
        return (above * (below.cumsum(1) - below / 2)).sum(1) / pairs

    return values


def mean_ap(outcomes: Outcomes) -> Weighted:
    """The mean over the classes of the average precision, from `scores` and `targets` (classes, items)."""
    classes = []
    for scores, right in zip(outcomes["scores"], outcomes["targets"]):
        order = np.argsort(-scores, kind="stable")
        classes.append((order, np.flatnonzero(right[order])))

    def values(weights: np.ndarray) -> np.ndarray:
        total = np.zeros(len(weights))
        for order, hits in classes:
            ordered = weights[:, order]
            times = ordered[:, hits]
            before = ordered.cumsum(1)[:, hits] - times  # items ahead of the first copy of a right one
            right = times.cumsum(1) - times  # of which are right
            found = np.zeros(len(weights))
            for copy in range(1, int(times.max(initial=0)) + 1):
                found += ((times >= copy) * (right + copy) / (before + copy)).sum(1)
            total += found / np.maximum(times.sum(1), 1)
        return total / max(1, len(classes))

    return values


ITEM_METRICS = {
    "worst_group": ItemMetric("group", "group", lambda outcomes: worst_group(outcomes, 1)),
    "worst_group_top5": ItemMetric("group", "group", lambda outcomes: worst_group(outcomes, 5)),
    "macro_f1": ItemMetric("prediction", "label", macro_f1),
    "roc_auc": ItemMetric("score", "label", roc_auc, always=True),
    "mean_ap": ItemMetric("scores", None, mean_ap),
}
_SUFFIX = "_truncated"


def suffixes(outcomes: Outcomes, metric: str) -> list[str]:
    """For which of the primary metric ("") and its truncated form the outcomes have what it needs."""
    item = ITEM_METRICS[metric]
    names = (item.needs, "rank") if item.needs == "group" else (item.needs,)
    return [suffix for suffix in ("", _SUFFIX) if item.needs in outcomes and f"{names[-1]}{suffix}" in outcomes]


def of_seeds(outcomes: Outcomes, metric: str, suffix: str, order: np.ndarray) -> list[Outcomes]:
    """The outcomes of each seed (one, where there are no seeds), items in the given order, under their plain names."""
    item = ITEM_METRICS[metric]
    arrays = {name: outcomes[name] for name in ("label", "group", "targets") if name in outcomes}
    arrays |= {name: outcomes[name + suffix] for name in BY_MODEL if name + suffix in outcomes}
    wanted = (item.needs, "label", "rank", "targets")
    seeds = max((len(one) for name, one in arrays.items() if _by_seed(name, one)), default=1)
    return [
        {n: (one[seed] if _by_seed(n, one) else one)[..., order] for n, one in arrays.items() if n in wanted}
        for seed in range(seeds)
    ]


def _by_seed(name: str, array: np.ndarray) -> bool:
    return name in ("rank", "prediction", "score") and array.ndim == 2
