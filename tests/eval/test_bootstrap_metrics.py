"""Metrics that are no mean over items: each resampled test set, written out, against its weights; every number of
every task has an interval."""

import numpy as np
import pytest
import torch

from alip.eval import bootstrap, evaluate, outcomes, results
from alip.eval.bootstrap_metrics import ITEM_METRICS, of_seeds
from alip.eval.classification import ClassificationDataset
from alip.eval.features import Encoding
from alip.eval.image_arrays import ArrayImages
from alip.eval.metrics import METRICS, mean_average_precision
from alip.eval.selection import in_groups, winogavil
from alip.eval.zeroshot import outcomes_of, score

COUNTS = {
    "images",
    "classes",
    "unreadable",
    "C",
    "train_images",
    "validation_images",
    "texts_cut",
    "questions",
    "groups",
}


def scored(metric, items=60, classes=5, seed=0):
    """A dataset of that metric, logits with ties, labels."""
    generator = torch.Generator().manual_seed(seed)
    classes = 2 if metric == "roc_auc" else classes
    logits = torch.randn(items, classes, generator=generator).round(decimals=1)
    labels = torch.randint(classes, (items,), generator=generator)
    groups = torch.randint(3, (items, 1), generator=generator).numpy()
    targets = (torch.rand(items, classes, generator=generator) < 0.2).long().numpy() if metric == "mean_ap" else None
    dataset = ClassificationDataset("x", [], ["c"] * classes, ["{}"], metric, groups=groups, targets=targets)
    return dataset, logits, labels


@pytest.mark.parametrize("metric", list(ITEM_METRICS))
def test_weights_are_resampled_test_sets(metric):
    dataset, logits, labels = scored(metric)
    items = outcomes_of(dataset, logits, labels, torch.arange(60))
    (one,) = of_seeds(items, metric, "", np.arange(60))
    statistic = ITEM_METRICS[metric].make(one)
    rng = np.random.default_rng(0)
    for _ in range(30):
        chosen = np.sort(rng.integers(0, 60, 60))
        weights = np.bincount(chosen, minlength=60)[None].astype(float)
        if metric == "mean_ap":
            expected = mean_average_precision(logits[chosen], torch.from_numpy(dataset.targets[chosen]))
        else:
            expected = METRICS[metric](logits[chosen], labels[chosen], torch.from_numpy(dataset.groups[chosen]))
        assert 100 * statistic(weights)[0] == pytest.approx(expected)


@pytest.mark.parametrize("metric", [*ITEM_METRICS, "mean_top1_top5", "top1", "mean_per_class"])
def test_every_number_of_classification_has_an_interval(metric):
    """Also the truncated ones, and means over seeds; the point from the outcomes is the number."""
    dataset, logits, labels = scored(metric, classes=7)
    positions = torch.arange(60)
    numbers, _ = score(dataset, logits, labels, positions)
    items = outcomes_of(dataset, logits, labels, positions)
    truncated = (5 * logits).trunc()
    numbers["primary_truncated"] = score(dataset, truncated, labels, positions)[0]["primary"]
    own = outcomes_of(dataset, truncated, labels, positions)
    items |= {f"{name}_truncated": array for name, array in own.items() if name in outcomes.BY_MODEL}
    point, found = bootstrap.point_values(items, metric), bootstrap.intervals(items, metric)
    assert set(found) == set(point) and set(numbers) <= set(found)
    for name, value in numbers.items():
        assert point[name] == pytest.approx(value), name
        assert found[name][0] <= value + 8 and found[name][1] >= value - 8, name  # the worst group's are lower
    if metric != "mean_ap":
        others = [outcomes_of(dataset, logits.roll(n, 0), labels, positions) for n in range(3)]
        by_seed = {name: np.stack([one[name] for one in others]) for name in outcomes.BY_MODEL if name in others[0]}
        several = bootstrap.point_values(others[0] | by_seed, metric)
        each = [bootstrap.point_values(one, metric)["primary"] for one in others]
        assert several["primary"] == pytest.approx(np.mean(each))


def test_the_worst_group_is_resampled_within_groups():
    dataset, logits, labels = scored("worst_group")
    items = outcomes_of(dataset, logits, labels, torch.arange(60))
    assert "of the primary metric, over images within each group" in bootstrap.describe(items, "worst_group")["method"]
    items["group"] = (np.arange(60) >= 57).astype(np.int64)  # three images in one
    assert bootstrap.describe(items, "worst_group")["method"].endswith("of the primary metric, over images")


def test_the_roc_curve_always_has_both_classes():
    dataset, logits, labels = scored("roc_auc")
    labels = (torch.arange(60) < 2).long()  # two images of one class
    logits[:, 1] = logits[:, 0] + labels  # the curve's area is 1
    items = outcomes_of(dataset, logits, labels, torch.arange(60))
    assert bootstrap.intervals(items, "roc_auc")["primary"] == [100, 100]
    assert "of the primary metric, over images within each class" in bootstrap.describe(items, "roc_auc")["method"]


def test_mean_average_precision_of_many_scores_takes_fewer_test_sets():
    scores = np.zeros((40, 20_000), np.float32)
    assert bootstrap.resamples_of({"hit_top1": scores[0], "scores": scores, "targets": scores}) == 1000


def test_selection_has_intervals_for_its_parts():
    rng = np.random.default_rng(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(n, 8), dim=-1) for n in (90, 180))
    image = np.arange(90)
    names = [("one", "two", "three")[number % 3] for number in range(90)]
    judge = in_groups(image, image * 2, (image * 2 + 1)[:, None], names, show_groups=True)
    judged = judge(images, texts, np.ones(90, bool))
    _check(judged, {"one", "two", "three", "accuracy", "primary"})
    readable = np.ones(90, bool)
    readable[rng.integers(0, 90, 9)] = False
    _check(judge(images, texts, readable), {"one", "two", "three", "accuracy", "primary"})
    judged = in_groups(image, image * 2, (image * 2 + 1)[:, None], names, left_out=frozenset(["two"]))(
        images, texts, np.ones(90, bool)
    )
    _check(judged, {"accuracy", "primary"})
    sizes = [5, 6, 10, 12] * 10
    candidates = [rng.choice(90, size, replace=False).tolist() for size in sizes]
    judged = winogavil(candidates, [own[: 2 + number % 2] for number, own in enumerate(candidates)])(
        images, texts, np.ones(90, bool)
    )
    _check(judged, {"jaccard", "jaccard_5-6", "jaccard_10-12", "primary"})
    assert bootstrap.describe(judged.outcomes, "x")["method"].endswith("questions within each group")
    # Against the spread of a mean of independent values.
    values = judged.outcomes["value_jaccard_10-12"]
    values = values[~np.isnan(values)]
    spread = np.sqrt(np.var(values[::2]) + np.var(values[1::2])) / 2 / np.sqrt(len(values) / 2)
    low, high = bootstrap.intervals(judged.outcomes, "x", resamples=20_000)["primary"]
    assert high - low == pytest.approx(2 * 1.96 * 100 * spread, rel=0.1)


def _check(judged, names):
    point, found = bootstrap.point_values(judged.outcomes, "x"), bootstrap.intervals(judged.outcomes, "x")
    assert set(judged.numbers) - COUNTS == set(found) == names
    assert bootstrap.describe(judged.outcomes, "x")["resamples"] == bootstrap.RESAMPLES
    for name in names:
        assert point[name] == pytest.approx(judged.numbers[name], abs=1e-4)
        assert found[name][0] <= judged.numbers[name] <= found[name][1]


def test_mean_of_datasets():
    parts, spreads, centre = [], [], 0.0
    for seed in range(4):
        hits = (np.random.default_rng(seed).random(200 * (seed + 1)) < 0.3 + 0.1 * seed).astype(np.uint8)
        parts.append(({"hit_primary": hits}, "x"))
        spreads.append(hits.var() / len(hits))
        centre += 25 * hits.mean()
    low, high = bootstrap.mean_interval(parts)
    assert (low + high) / 2 == pytest.approx(centre, abs=0.3)
    assert high - low == pytest.approx(2 * 1.96 * 100 * np.sqrt(sum(spreads)) / 4, rel=0.1)
    assert bootstrap.mean_interval(parts[::-1]) == [low, high]
    assert bootstrap.mean_interval([*parts, ({"hit_other": np.ones(3, np.uint8)}, "x")]) is None
    assert len(bootstrap.as_many(np.arange(300.0), 0)) == bootstrap.RESAMPLES


@pytest.mark.parametrize("metric", ["roc_auc", "macro_f1", "worst_group", "top1"])
def test_probes_have_intervals_too(model, tmp_path, metric):
    """In results.json: every number but counts, the chosen C and the deviation over seeds."""
    rng = np.random.default_rng(0)
    classes, side = 2, model.image_size
    labels = np.arange(48) % classes
    pixels = (rng.integers(0, 120, (48, side, side, 3)) + 100 * labels[:, None, None, None]).astype(np.uint8)
    images = ArrayImages(tmp_path, pixels, labels)
    groups = rng.integers(0, 2, (48, 1))
    dataset = ClassificationDataset(
        "own",
        images,
        ["a", "b"],
        ["{}"],
        metric,
        groups=groups,
        train=lambda: ArrayImages(tmp_path, pixels[::-1], labels),
    )
    encoding = Encoding(batch_size=16, workers=0, progress=False)
    options = {"tasks": evaluate.CLASSIFICATION_TASKS, "shots": (2,), "seeds": 2, "plots": False}
    evaluate.zeroshot(model, [dataset], encoding, protocol="alip", source="x", folder=tmp_path / "out", **options)
    entries = results.load(tmp_path / "out")
    assert [entry["task"] for entry in entries] == ["zeroshot", "probe", "few-shot"]
    for entry in entries:
        names = {name for name in entry["numbers"] if name not in COUNTS and not name.endswith("_std")}
        assert names == set(entry["intervals"]), entry["task"]
        point = bootstrap.point_values(outcomes.load(tmp_path / "out", entry["id"]), metric)
        assert all(point[name] == pytest.approx(entry["numbers"][name]) for name in names)
