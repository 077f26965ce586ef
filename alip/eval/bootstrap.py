"""Confidence intervals by the bootstrap over test items: percentiles of the metric over resampled test sets.

What is resampled: images. Of a classification dataset with at least ten images in every class, each class for itself
(stratified): its class sizes are fixed by whoever made it. In retrieval an image brings its captions along, because
captions of one image are not independent; the candidates stay the whole test set, as the metric has it. The accuracy of
the worst group: each group for itself, on the same condition. Questions in groups or of several sizes: likewise.

Items that a metric cannot tell apart (same class, same hits) are one category, and how often each category comes up in
a resampled test set is multinomial: exact, and fast where there are few categories. Source: Efron and Tibshirani, An
Introduction to the Bootstrap (1993), chapters 8 and 13.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from alip.eval.bootstrap_metrics import ITEM_METRICS, of_seeds, suffixes
from alip.eval.outcomes import Outcomes

LEVEL = 0.95
RESAMPLES = 2000
_LARGE = 100_000  # images with their captions: beyond, fewer resamples, which differ little for so many
_MULTILABEL = 4  # scores of images for classes, as costly as one image of retrieval
_STRATUM = 10  # images of the smallest class: below, resampling within a class would understate the spread
_CHUNK = 1 << 23  # numbers of one chunk of resampled weights

Values = dict[str, np.ndarray]  # metric → (resamples,)
Statistic = Callable[[np.ndarray], Values]  # weights (b, categories) → values


def describe(outcomes: Outcomes, metric: str, seed: int = 0) -> dict[str, Any]:
    """How the intervals are made, for results.json. metric: as in `intervals`."""
    over = "images with their captions" if "caption_owner" in outcomes else "items"
    if "label" in outcomes:
        over = "images within each class" if _is_stratified(outcomes["label"]) else "images"
        if metric.startswith("worst_group") and "group" in outcomes:
            within = " within each group" if _is_stratified(outcomes["group"]) else ""
            over += f"; of the primary metric, over images{within}"
        elif metric == "roc_auc" and not _is_stratified(outcomes["label"]):
            over += "; of the primary metric, over images within each class"
    elif "scores" in outcomes:
        over = "images"
    elif (strata := _question_strata(outcomes)) is not None and _is_stratified(strata):
        over = "questions within each group"
    return {
        "method": f"percentile bootstrap over {over}",
        "level": LEVEL,
        "resamples": resamples_of(outcomes),
        "seed": seed,
    }


def resamples_of(outcomes: Outcomes) -> int:
    """How many test sets are resampled: fewer, but 200 at least, where a dataset is very large."""
    images = len(outcomes.get("image_rank", ()))
    if "scores" in outcomes:
        images = outcomes["scores"].size // _MULTILABEL
    return RESAMPLES if images <= _LARGE else max(200, RESAMPLES * _LARGE // images)


def intervals(outcomes: Outcomes, metric: str, seed: int = 0, resamples: int | None = None) -> dict[str, list[float]]:
    """{metric: [low, high]} in the metrics' own units, for every number that the outcomes decide.

    metric: what `primary` stands for: "top1", "mean_per_class", "mean R@1", "mean_ap" or a name of alip.eval.metrics.
    Empty for outcomes without items.
    """
    values = resampled_values([outcomes], metric, seed, resamples)[0]
    return {name: ends_of(found) for name, found in values.items()}


def resampled_values(several: list[Outcomes], metric: str, seed: int = 0, resamples: int | None = None) -> list[Values]:
    """The metrics of every resampled test set, one dict for each of `several`: the same test sets for all of them.

    several: outcomes of the same items (`outcomes.same_items`), by different models.
    """
    first = several[0]
    resamples = resamples or resamples_of(first)
    if "caption_owner" in first:
        return _retrieval(several, seed, resamples)
    if "label" in first:
        return _classification(several, metric, seed, resamples)
    found = _hits(several, seed, resamples)
    if "scores" in first:
        for values, special in zip(found, _by_item(several, "mean_ap", seed, resamples)):
            values |= special | {"mean_ap": special["primary"]}
    return found


def mean_interval(parts: list[tuple[Outcomes, str]]) -> list[float] | None:
    """[low, high] of the mean of the primary metrics of several datasets, which are resampled independently.

    parts: outcomes and metric of each. None where one of them has no interval.
    """
    total = np.zeros(RESAMPLES)
    for number, (outcomes, metric) in enumerate(sorted(parts, key=_content)):  # the same in every order of columns
        values = resampled_values([outcomes], metric, seed=number)[0].get("primary")
        if values is None:
            return None
        total += as_many(values, number) / len(parts)
    return ends_of(total)


def _content(part: tuple[Outcomes, str]) -> bytes:
    digest = hashlib.blake2b(part[1].encode())
    for name, values in sorted(part[0].items()):
        digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
    return digest.digest()


def as_many(values: np.ndarray, seed: int) -> np.ndarray:
    """RESAMPLES values: these, or of fewer a random choice."""
    return values if len(values) == RESAMPLES else np.random.default_rng([seed, 1]).choice(values, RESAMPLES)


def ends_of(values: np.ndarray) -> list[float]:
    """The percentiles between which LEVEL of the values are."""
    return [float(one) for one in np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]


def point_values(outcomes: Outcomes, metric: str) -> dict[str, float]:
    """The metrics themselves, from the outcomes alone: equal to the entry's numbers."""
    if "caption_owner" in outcomes:
        images = len(outcomes["image_rank"])
        found = _retrieval_statistic(outcomes)(np.ones((1, images)))
        if "single_caption_owner" in outcomes:
            single = _retrieval_statistic(outcomes, "single_")(np.ones((1, len(outcomes["single_image_rank"]))))
            found |= {f"single_positive_{name}": one for name, one in single.items() if name != "primary"}
    elif "label" in outcomes:
        rows, sizes, names = _classification_categories([outcomes])
        found = _classification_statistic(rows, names, metric)[0](sizes[None].astype(float))
        found |= _by_item([outcomes], metric, 0, 0)[0] if metric in ITEM_METRICS else {}
    else:
        found = {name: 100 * np.array([np.nanmean(array)]) for name, array in _hit_arrays(outcomes).items()}
        if "group" in outcomes:
            hits = _hit_arrays(outcomes)[_grouped(outcomes)]
            counted = [number for number in np.unique(outcomes["group"]) if number >= 0]
            found["primary"] = np.array([100 * np.mean([hits[outcomes["group"] == one].mean() for one in counted])])
        if "scores" in outcomes:
            found |= _by_item([outcomes], "mean_ap", 0, 0)[0]
            found["mean_ap"] = found["primary"]
    return {name: float(one[0]) for name, one in found.items()}


def _weights(sizes: np.ndarray, strata: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """(b, categories) float64, chunk by chunk: how often each category comes up in b resampled test sets.

    sizes (categories,): items of each. strata (categories,): ascending; each is resampled to its own number of items.
    """
    rng = np.random.default_rng(seed)
    starts = np.flatnonzero(np.diff(strata, prepend=strata[0] - 1))
    parts = list(zip(starts, [*starts[1:], len(strata)]))
    chunk = max(1, min(resamples, _CHUNK // len(sizes)))
    for first in range(0, resamples, chunk):
        count = min(chunk, resamples - first)
        weights = np.empty((count, len(sizes)))
        for low, high in parts:
            total = int(sizes[low:high].sum())
            weights[:, low:high] = rng.multinomial(total, sizes[low:high] / total, size=count)
        yield weights


def _joined(parts: Iterator[list[Values]]) -> list[Values]:
    chunks = list(parts)
    return [
        {name: np.concatenate([chunk[i][name] for chunk in chunks]) for name in chunks[0][i]}
        for i in range(len(chunks[0]))
    ]


def _hit_arrays(outcomes: Outcomes) -> Mapping[str, np.ndarray]:
    prefixes = ("hit_", "value_")
    return {name.partition("_")[2]: array for name, array in outcomes.items() if name.startswith(prefixes)}


def _grouped(outcomes: Outcomes) -> str:
    """Which metric is averaged over the groups: its hits. The file does not keep the order of the arrays."""
    return next(name for name in outcomes if name.startswith("hit_")).removeprefix("hit_")


def _question_strata(outcomes: Outcomes) -> np.ndarray | None:
    """What the questions are resampled within."""
    return outcomes.get("stratum", outcomes.get("group"))


def _hits(several: list[Outcomes], seed: int, resamples: int) -> list[Values]:
    """The metrics are means over the items that have a number; with `group` (n,), `primary` is the mean over the groups
    from 0 on of the one that `_grouped` names."""
    group, strata = several[0].get("group"), _question_strata(several[0])
    columns = [(i, name, array) for i, one in enumerate(several) for name, array in _hit_arrays(one).items()]
    items = len(columns[0][2]) if columns else 0
    if not items:
        return [{} for _ in several]
    arrays = [np.nan_to_num(array.astype(float), nan=-1.0) for _, _, array in columns]  # -1: not counted
    strata = np.zeros(items, int) if strata is None else strata - strata.min()
    groups = strata if group is None else group
    rows, sizes = np.unique(np.column_stack([strata, groups, *arrays]), axis=0, return_counts=True)
    within = rows[:, 0] if _is_stratified(strata) else np.zeros(len(rows))
    starts = np.flatnonzero(np.diff(rows[:, 1], prepend=rows[0, 1] - 1))
    counted = rows[starts, 1] >= 0
    found: list[dict[str, list[np.ndarray]]] = [{} for _ in several]
    for weights in _weights(sizes, within, resamples, seed):
        count = np.add.reduceat(weights, starts, axis=1)[:, counted]
        for column, (i, name, _) in enumerate(columns, 2):
            own = rows[:, column] >= 0
            value = weights[:, own] @ rows[own, column] / np.maximum(weights[:, own].sum(1), 1)
            found[i].setdefault(name, []).append(100 * value)
            if group is not None and name == _grouped(several[i]):
                right = np.add.reduceat(weights * rows[:, column], starts, axis=1)[:, counted]
                mean = (right / np.maximum(count, 1)).sum(1) / np.maximum((count > 0).sum(1), 1)
                found[i].setdefault("primary", []).append(100 * mean)
    return [{name: np.concatenate(parts) for name, parts in one.items()} for one in found]


# Classification ------------------------------------------------------------------------------------------------


def _is_stratified(labels: np.ndarray) -> bool:
    counts = np.unique(labels, return_counts=True)[1]
    return bool(counts.min(initial=_STRATUM) >= _STRATUM)


def _classification_categories(several: list[Outcomes]) -> tuple[np.ndarray, np.ndarray, list[list[str]]]:
    """(rows, sizes, names): distinct rows (label, hits of the first outcomes, hits of the second, …) and their counts.

    With several seeds a hit is the fraction of the seeds. names: of each outcomes' columns.
    """
    columns, names = [several[0]["label"].astype(float)], []
    for one in several:
        rank = np.atleast_2d(one["rank"])
        columns += [(rank < 1).mean(0), (rank < 5).mean(0)]
        names.append(["top1", "top5"])
        if "rank_truncated" in one:
            columns += [one["rank_truncated"] < 1, one["rank_truncated"] < 5]
            names[-1] += ["truncated", "truncated5"]
    rows, sizes = np.unique(np.column_stack(columns), axis=0, return_counts=True)
    return rows, sizes, names


_PRIMARY = {"top1": "primary", "truncated": "primary_truncated"}


def _classification_statistic(rows: np.ndarray, names: list[list[str]], metric: str) -> list[Statistic]:
    """One for each of the outcomes; rows are sorted by label."""
    starts = np.flatnonzero(np.diff(rows[:, 0], prepend=-1))

    def per_class_mean(weights: np.ndarray, hits: np.ndarray) -> np.ndarray:
        count = np.add.reduceat(weights, starts, axis=1)
        right = np.add.reduceat(weights * hits, starts, axis=1)
        return (right / np.maximum(count, 1)).sum(1) / (count > 0).sum(1)

    def statistic(first: int, own: list[str]) -> Statistic:
        def values(weights: np.ndarray) -> Values:
            total = weights.sum(1)
            plain = {name: 100 * (weights @ rows[:, column]) / total for column, name in enumerate(own, first)}
            found = {name: plain[name] for name in ("top1", "top5")}
            for column, name in enumerate(own, first):
                balanced = 100 * per_class_mean(weights, rows[:, column]) if name in _PRIMARY else None
                if name == "top1":
                    found["mean_per_class"] = balanced
                if name in _PRIMARY and metric == "mean_top1_top5":
                    found[_PRIMARY[name]] = (plain[name] + plain[name.removesuffix("1") + "5"]) / 2
                elif name in _PRIMARY and metric in ("top1", "mean_per_class"):
                    found[_PRIMARY[name]] = plain[name] if metric == "top1" else balanced
            return found

        return values

    offsets = np.cumsum([1, *map(len, names)])
    return [statistic(int(first), own) for first, own in zip(offsets, names)]


def _classification(several: list[Outcomes], metric: str, seed: int, resamples: int) -> list[Values]:
    if len(several[0]["label"]) == 0:
        return [{} for _ in several]
    rows, sizes, names = _classification_categories(several)
    statistics = _classification_statistic(rows, names, metric)
    strata = rows[:, 0] if _is_stratified(several[0]["label"]) else np.zeros(len(rows))
    chunks = _weights(sizes, strata, resamples, seed)
    found = _joined([statistic(weights) for statistic in statistics] for weights in chunks)
    if metric in ITEM_METRICS:
        for values, special in zip(found, _by_item(several, metric, seed, resamples)):
            values |= special
    return found


def _by_item(several: list[Outcomes], metric: str, seed: int, resamples: int) -> list[Values]:
    """`primary` and `primary_truncated` of a metric of alip.eval.bootstrap_metrics, where the outcomes have what it
    needs. Every item is a category of its own. Without resamples: of the test set itself."""
    item, first = ITEM_METRICS[metric], several[0]
    common = [suffix for suffix in suffixes(first, metric) if all(suffix in suffixes(one, metric) for one in several)]
    if not common:
        return [{} for _ in several]
    items = first[item.needs].shape[-1]
    strata = np.zeros(items, int)
    if item.strata is not None and (item.always or _is_stratified(first[item.strata])):
        strata = first[item.strata].astype(int)
    order = np.argsort(strata, kind="stable")
    statistics = [
        {f"primary{end}": [item.make(own) for own in of_seeds(one, metric, end, order)] for end in common}
        for one in several
    ]
    whole = iter([np.ones((1, items))])
    chunks = _weights(np.ones(items, int), strata[order], resamples, seed) if resamples else whole
    return _joined(
        [
            {name: 100 * np.mean([of(weights) for of in seeds], axis=0) for name, seeds in one.items()}
            for one in statistics
        ]
        for weights in chunks
    )


# Retrieval -----------------------------------------------------------------------------------------------------


def _retrieval(several: list[Outcomes], seed: int, resamples: int) -> list[Values]:
    found = _retrieval_part(several, "", seed, resamples)
    if all("single_caption_owner" in one for one in several):
        for values, single in zip(found, _retrieval_part(several, "single_", seed, resamples)):
            values |= {f"single_positive_{name}": one for name, one in single.items() if name != "primary"}
    return found


def _retrieval_part(several: list[Outcomes], prefix: str, seed: int, resamples: int) -> list[Values]:
    images = len(several[0][prefix + "image_rank"])
    if images == 0:
        return [{} for _ in several]
    statistics = [_retrieval_statistic(one, prefix) for one in several]
    chunks = _weights(np.ones(images, int), np.zeros(images), resamples, seed)
    return _joined([statistic(weights) for statistic in statistics] for weights in chunks)


def _retrieval_statistic(outcomes: Outcomes, prefix: str = "") -> Statistic:
    """Every image is a category of its own: its rank, and its captions' ranks."""
    owner = outcomes[prefix + "caption_owner"]
    image_rank, caption_rank = outcomes[prefix + "image_rank"], outcomes[prefix + "caption_rank"]
    queries = np.flatnonzero(image_rank >= 0)
    ways = {"image_to_text": (image_rank[queries], queries), "text_to_image": (caption_rank, owner)}

    columns = {
        way: np.stack(
            [np.bincount(unit, one, len(image_rank)) for one in (None, rank, rank < 1, rank < 5, rank < 10)], 1
        )
        for way, (rank, unit) in ways.items()
    }

    def values(weights: np.ndarray) -> Values:
        found: Values = {}
        for way, (rank, unit) in ways.items():
            count, ranks, *hits = (weights @ columns[way]).T
            count = np.maximum(count, 1)  # a resampled test set of images without captions alone has no queries
            found |= {f"{way}_R@{k}": 100 * hit / count for k, hit in zip((1, 5, 10), hits)}
            found[f"{way}_mean_rank"] = ranks / count + 1
            found[f"{way}_median_rank"] = _medians(weights, rank, unit) + 1
        found["primary"] = (found["image_to_text_R@1"] + found["text_to_image_R@1"]) / 2
        return found

    return values


def _medians(weights: np.ndarray, ranks: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """(b,): the median of ranks, each counted as often as weights (b, units) has its unit."""
    order = np.argsort(ranks, kind="stable")
    ordered = ranks[order].astype(float)
    found = np.empty(len(weights))
    for i, one in enumerate(weights):
        below = np.cumsum(one[unit[order]])
        total = below[-1]
        middle = np.searchsorted(below, [np.ceil(total / 2), np.floor(total / 2) + 1])
        found[i] = ordered[np.minimum(middle, len(ordered) - 1)].mean()
    return found
