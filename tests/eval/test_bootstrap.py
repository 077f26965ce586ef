"""Intervals: against closed forms and a plain loop over resampled test sets; outcomes on disk."""

import json

import numpy as np
import pytest
import torch

import eval_retrieval
import eval_zeroshot
from alip.eval import bootstrap, outcomes, results
from alip.eval.classification import ClassificationDataset
from alip.eval.metrics import METRICS
from alip.eval.ranking import ranks_from_scores
from alip.eval.retrieval import recalls
from alip.eval.zeroshot import accuracies, outcomes_of
from tests.helpers.pairs import write_classes, write_pairs


def classified(classes, per_class, seed=0, noise=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(torch.as_tensor(per_class))
    logits = torch.randn(len(labels), classes, generator=generator) * noise
    logits[torch.arange(len(labels)), labels] += 1
    return logits, labels


def items_of(logits, labels):
    return outcomes.classification_outcomes(labels, outcomes.class_ranks(logits, labels))


@pytest.mark.parametrize("per_class", [40, [3, 4, 90, 5, 6, 7]])
def test_classification_points_are_the_numbers(per_class):
    logits, labels = classified(6, per_class)
    numbers, _ = accuracies(logits, labels)
    found = bootstrap.point_values(items_of(logits, labels), "mean_per_class")
    for name, value in numbers.items():
        assert found[name] == pytest.approx(value)
    assert found["primary"] == found["mean_per_class"]


def test_stratified_spread_is_that_of_binomials():
    logits, labels = classified(6, 50)
    items = items_of(logits, labels)
    values = bootstrap.resampled_values([items], "top1", resamples=20_000)[0]["top1"]
    rate = np.array([(items["rank"][items["label"] == c] == 0).mean() for c in range(6)])
    expected = 100 * np.sqrt((rate * (1 - rate) / 50).mean() / 6)
    assert values.std() == pytest.approx(expected, rel=0.03)
    low, high = bootstrap.intervals(items, "top1", resamples=20_000)["top1"]
    assert high - low == pytest.approx(2 * 1.96 * expected, rel=0.08)


def plain_loop(items, resamples, seed=1):
    """Whole resampled test sets, one by one, not stratified."""
    rng, found = np.random.default_rng(seed), {"top1": [], "top5": [], "mean_per_class": []}
    for _ in range(resamples):
        chosen = rng.integers(0, len(items["label"]), len(items["label"]))
        label, rank = items["label"][chosen], items["rank"][chosen]
        found["top1"].append(100 * (rank < 1).mean())
        found["top5"].append(100 * (rank < 5).mean())
        found["mean_per_class"].append(100 * np.mean([(rank[label == c] < 1).mean() for c in np.unique(label)]))
    return found


def test_few_images_per_class_are_resampled_together():
    logits, labels = classified(8, [2, 3, 4, 5, 6, 7, 8, 30])
    items = items_of(logits, labels)
    assert "within each class" not in bootstrap.describe(items, "top1")["method"]
    values = bootstrap.resampled_values([items], "top1", resamples=6000)[0]
    for name, expected in plain_loop(items, 3000).items():
        assert values[name].mean() == pytest.approx(np.mean(expected), abs=0.3)
        assert values[name].std() == pytest.approx(np.std(expected), rel=0.06)


def test_retrieval_against_a_plain_loop():
    rng = np.random.default_rng(0)
    owner = np.sort(rng.integers(0, 40, 90))  # some images have no caption
    scores = torch.tensor(rng.normal(size=(40, 90)))
    scores[owner, range(90)] += 1.5
    ranks = ranks_from_scores(scores, torch.tensor(owner))
    items = outcomes.retrieval_outcomes(ranks.image_to_text, ranks.text_to_image, torch.tensor(owner))
    point = bootstrap.point_values(items, "mean R@1")
    for name, value in recalls(ranks).items():
        assert point[name] == pytest.approx(value), name
    values = bootstrap.resampled_values([items], "mean R@1", resamples=4000)[0]
    text, image = ranks.text_to_image.numpy(), ranks.image_to_text.numpy()
    found = {"text_to_image_R@5": [], "text_to_image_median_rank": [], "image_to_text_mean_rank": [], "primary": []}
    for _ in range(3000):
        chosen = rng.integers(0, 40, 40)
        captions = np.concatenate([np.flatnonzero(owner == one) for one in chosen])
        queries = image[chosen][image[chosen] >= 0]
        found["text_to_image_R@5"].append(100 * (text[captions] < 5).mean())
        found["text_to_image_median_rank"].append(np.median(text[captions]) + 1)
        found["image_to_text_mean_rank"].append(queries.mean() + 1)
        found["primary"].append(50 * ((text[captions] < 1).mean() + (queries < 1).mean()))
    for name, expected in found.items():
        assert values[name].mean() == pytest.approx(np.mean(expected), rel=0.03), name
        assert values[name].std() == pytest.approx(np.std(expected), rel=0.08), name


def test_the_same_items_are_resampled_for_all_models():
    (logits, labels), (others, _) = classified(5, 30), classified(5, 30, seed=1)
    one, other = items_of(logits, labels), items_of(others, labels)
    same, also, different = bootstrap.resampled_values([one, one, other], "top1")
    assert np.array_equal(same["top1"], also["top1"]) and not np.array_equal(same["top1"], different["top1"])
    joint = np.std(different["top1"] - same["top1"])
    hits = (other["rank"] == 0).astype(float) - (one["rank"] == 0)
    assert joint == pytest.approx(100 * hits.std() / np.sqrt(150), rel=0.1)


def test_other_metrics_by_item():
    hits = {"hit_group": np.array([1, 0, 0, 1, 1] * 20, np.uint8)}
    assert bootstrap.point_values(hits, "group") == {"group": pytest.approx(60)}
    low, high = bootstrap.intervals(hits, "group")["group"]
    assert 45 < low < 55 and 65 < high < 75


@pytest.mark.parametrize("metric", ["macro_f1", "worst_group", "worst_group_top5", "mean_top1_top5", "roc_auc"])
def test_other_metrics_of_classification(metric):
    """The point is the metric's own, and whole resampled test sets have the same spread."""
    classes = 2 if metric == "roc_auc" else 7
    logits, labels = classified(classes, 25, noise=1.5)
    logits = logits.round(decimals=1)  # ties
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(3, (len(labels), 1), generator=generator)
    dataset = ClassificationDataset("x", [], ["c"] * classes, ["{}"], metric, groups=groups.numpy())
    items = outcomes_of(dataset, logits, labels, torch.arange(len(labels)))
    assert bootstrap.point_values(items, metric)["primary"] == pytest.approx(METRICS[metric](logits, labels, groups))
    values = bootstrap.resampled_values([items], metric, resamples=2000)[0]["primary"]
    expected = []
    strata = groups[:, 0] if metric.startswith("worst_group") else labels  # 25 a class, some 58 a group
    for _ in range(400):
        parts = [torch.nonzero(strata == one).squeeze(1) for one in strata.unique()]
        chosen = torch.cat([part[torch.randint(len(part), (len(part),), generator=generator)] for part in parts])
        expected.append(METRICS[metric](logits[chosen], labels[chosen], groups[chosen]))
    assert values.mean() == pytest.approx(np.mean(expected), rel=0.02)
    assert values.std() == pytest.approx(np.std(expected), rel=0.15)


@pytest.mark.parametrize("sizes", [(40, 60, 25), (3, 60, 25)])
def test_means_over_groups(sizes):
    """Of questions in groups, one of which is not in the mean; resampled within groups where all have ten."""
    rng = np.random.default_rng(0)
    group = np.repeat([-1, 0, 1], sizes)
    hit = (rng.random(len(group)) < np.repeat([0.9, 0.7, 0.3], sizes)).astype(np.uint8)
    part = np.where(group == 1, hit, np.nan).astype(np.float32)  # of a group alone: a file's arrays come in any order
    items = {"value_part": part, "hit_accuracy": hit, "group": group}
    point = bootstrap.point_values(items, "mean over groups")
    assert point["primary"] == pytest.approx(50 * (hit[group == 0].mean() + hit[group == 1].mean()))
    values = bootstrap.resampled_values([items], "mean over groups", resamples=5000)[0]
    variances = [hit[group == g].mean() * (1 - hit[group == g].mean()) / sizes[g + 1] for g in (0, 1)]
    assert values["primary"].mean() == pytest.approx(point["primary"], abs=0.5)
    assert values["primary"].std() == pytest.approx(50 * np.sqrt(sum(variances)), rel=0.08)
    assert values["accuracy"].mean() == pytest.approx(100 * hit.mean(), abs=0.5)


def test_it_is_seeded_and_degenerate_cases_do_not_fail():
    logits, labels = classified(4, 12)
    items = items_of(logits, labels)
    assert bootstrap.intervals(items, "top1") == bootstrap.intervals(items, "top1")
    values = [bootstrap.resampled_values([items], "top1", seed)[0]["top1"] for seed in (0, 1)]
    assert not np.array_equal(*values)
    one = items_of(logits[:1], labels[:1])
    assert len(set(bootstrap.intervals(one, "top1")["top1"])) == 1
    assert bootstrap.intervals(items_of(logits[:0], labels[:0]), "top1") == {}


def test_both_commands_store_intervals_and_outcomes(run, tmp_path):
    captions, classes = write_pairs(tmp_path / "pairs"), write_classes(tmp_path / "sorts")
    flags = f"--checkpoint {run} --output {tmp_path / 'out'} --workers 0 --device cpu --no-plots"
    eval_retrieval.main([*flags.split(), "--dataset", str(captions)])
    eval_zeroshot.main([*flags.split(), "--datasets", str(classes), "--protocol", "alip"])
    for entry in results.load(tmp_path / "out"):
        items = outcomes.load(tmp_path / "out", entry["id"])
        point = bootstrap.point_values(items, entry["primary_metric"])
        constants = {"images", "captions", "classes", "unreadable", "texts_cut"}
        assert set(entry["intervals"]) == set(entry["numbers"]) - constants, entry["numbers"]
        for name, (low, high) in entry["intervals"].items():
            assert point[name] == pytest.approx(entry["numbers"][name]), name
            assert low <= entry["numbers"][name] + 1e-9 and high >= entry["numbers"][name] - 1e-9, name
        assert entry["interval_method"]["level"] == 0.95


def test_outcomes_on_disk(tmp_path, capsys):
    logits, labels = classified(3, 5)
    items = items_of(logits, labels)
    outcomes.save(tmp_path, "abc", items)
    assert outcomes.same_items(outcomes.load(tmp_path, "abc"), items)
    assert not outcomes.same_items(items, {**items, "label": items["label"][::-1]})
    assert not outcomes.same_items(items, {name: array[:-1] for name, array in items.items()})
    assert outcomes.load(tmp_path, "other") is None
    (tmp_path / "outcomes" / "abc.safetensors").write_bytes(b"{")
    assert outcomes.load(tmp_path, "abc") is None and "evaluate again" in capsys.readouterr().out


def test_a_results_file_with_odd_intervals_is_one_line(run, tmp_path):
    classes = write_classes(tmp_path / "sorts")
    flags = f"--checkpoint {run} --output {tmp_path} --workers 0 --device cpu --no-plots --datasets {classes}"
    eval_zeroshot.main(flags.split())
    data = json.loads((tmp_path / "results.json").read_text())
    data["entries"][0]["intervals"]["top1"] = [1]
    (tmp_path / "results.json").write_text(json.dumps(data))
    with pytest.raises(Exception, match=r"results\.json.*intervals"):
        results.load(tmp_path)
