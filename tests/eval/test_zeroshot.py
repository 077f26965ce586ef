"""Accuracies, classifiers and the linear probe, each beside a plain version of itself."""

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, top_k_accuracy_score

from alip.distributed import World
from alip.errors import UserError
from alip.eval import published
from alip.eval.datasets import ClassificationDataset, open_classification
from alip.eval.features import Encoding
from alip.eval.image_readers import ImageFiles
from alip.eval.logistic import FeaturesInMemory, fit_sklearn, fit_torch, held_out, sweep
from alip.eval.probe import measure_probe
from alip.eval.prompts import templates_of
from alip.eval.zeroshot import accuracies, build_classifier, evaluate_zeroshot
from tests.helpers.pairs import write_classes


def test_accuracies_as_scikit_learn_counts_them():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 11, generator=generator)
    labels = torch.randint(10, (400,), generator=generator)  # the last class has no image
    numbers, predictions = accuracies(logits, labels)
    assert torch.equal(predictions, logits.argmax(1))
    assert numbers["top1"] == pytest.approx(100 * accuracy_score(labels, predictions))
    assert numbers["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=5, labels=range(11)))
    present = [100 * (predictions[labels == c] == c).double().mean() for c in range(10)]
    assert numbers["mean_per_class"] == pytest.approx(float(sum(present)) / 10)
    assert "top5" not in accuracies(logits[:, :4], labels.clamp(max=3))[0]


def test_of_tied_classes_the_first_wins():
    numbers, predictions = accuracies(torch.zeros(7, 7), torch.arange(7))
    assert predictions.tolist() == [0] * 7
    assert numbers["top1"] == pytest.approx(100 / 7) and numbers["top5"] == pytest.approx(500 / 7)


def test_nan_is_no_accuracy():
    with pytest.raises(ValueError, match="NaN"):
        accuracies(torch.tensor([[0.0, float("nan")]]), torch.tensor([0]))


def test_classifier_is_the_mean_of_normalised_prompts(model):
    names, templates = ["dog", "sports car"], ["a {}.", "the photo of a very small {}!", "{}"]
    found = build_classifier(model, names, templates, Encoding(batch_size=2, progress=False))
    with torch.no_grad():
        for row, name in zip(found, names):
            texts = model.tokenizer([template.format(name) for template in templates])
            mean = torch.nn.functional.normalize(model.encode_text(texts), dim=-1).mean(0)
            torch.testing.assert_close(row, mean / mean.norm(), atol=1e-5, rtol=0)


def test_classifiers_are_cached(model, tmp_path, monkeypatch):
    encoding = Encoding(progress=False, cache=tmp_path)
    first = build_classifier(model, ["dog", "cat"], ["a {}."], encoding)
    monkeypatch.setattr("alip.eval.zeroshot.encode_texts", lambda *rest: pytest.fail("encoded again"))
    assert torch.equal(build_classifier(model, ["dog", "cat"], ["a {}."], encoding), first)
    with pytest.raises(pytest.fail.Exception, match="encoded again"):
        build_classifier(model, ["cat", "dog"], ["a {}."], encoding)


def test_number_of_templates():
    """As method and release have them."""
    expected = {
        "imagenet": 80,
        "cifar": 18,
        "caltech101": 34,
        "dtd": 8,
        "cars": 8,
        "aircraft": 2,
        "sun397": 2,
        "food101": 1,
        "pets": 1,
        "flowers": 1,
    }
    assert {name: len(set(templates_of(name))) for name in expected} == expected


def test_published_averages():
    """The paper's own averages catch a digit that was copied wrong."""
    given = {"CLIP": 31.8, "SLIP": 30.0, "FILIP": 37.2, "DeCLIP": 41.3, "DeFILIP": 44.2, "HiCLIP": 41.8}
    given |= {"HiDeCLIP": 44.6, "ALIP": 41.7}
    for method, average in given.items():
        values = published.ZEROSHOT[method].values()
        assert sum(values) / len(values) == pytest.approx(average, abs=0.06), method
    assert sum(published.PROBE["ALIP"].values()) / 10 == pytest.approx(72.2, abs=0.06)


def test_labels_outside_the_class_list(model, tmp_path):
    dataset = open_classification(write_classes(tmp_path / "sorts", classes=3, images=5))
    wrong = ClassificationDataset("wrong", dataset.images, dataset.classnames[:2], ["a {}."])
    with pytest.raises(UserError, match="labels run from 0 to 2, but there are 2 class names"):
        evaluate_zeroshot(model, wrong, world=World(), workers=0)


def digits():
    features, labels = load_digits(return_X_y=True)
    features = torch.nn.functional.normalize(torch.tensor(features, dtype=torch.float32), dim=1)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor(labels)[order]
    return features[order][:400], labels[:400], features[order][400:], labels[400:]


def test_both_probes_agree_within_a_tenth_of_a_point():
    train, train_labels, test, labels = digits()
    found = {}
    data = FeaturesInMemory(train, train_labels)
    held = held_out(train_labels, seed=0)
    for fit in (fit_sklearn, fit_torch):
        strength = sweep(data.part(~held), data.part(held), 10, fit)
        found[fit] = accuracies(fit(data, 10, strength).logits(test), labels)[0]["top1"]
    assert found[fit_torch] == pytest.approx(found[fit_sklearn], abs=0.1)
    assert found[fit_torch] > 93


@pytest.mark.parametrize("classes", [2, 10])
def test_both_probes_find_the_same_minimum(classes):
    train, train_labels, test, _ = digits()
    some = train_labels < classes
    data = FeaturesInMemory(train[some], train_labels[some])
    ours = fit_torch(data, classes, 10.0).logits(test)
    theirs = fit_sklearn(data, classes, 10.0).logits(test)
    # Two classes may be shifted by a constant that no probability sees.
    difference = ours.log_softmax(1) - theirs.log_softmax(1)
    assert difference.abs().max() < 0.01


def test_a_class_without_training_images_is_never_predicted():
    train, train_labels, test, _ = digits()
    some = train_labels != 4
    for fit in (fit_sklearn, fit_torch):
        found = fit(FeaturesInMemory(train[some], train_labels[some]), 10, 1.0)
        assert 4 not in found.logits(test).argmax(1).tolist()


def test_probe_of_a_dataset(model, tmp_path):
    files = open_classification(write_classes(tmp_path / "sorts", images=60)).images
    part = lambda start: ImageFiles(files.paths[start::2], files.labels[start::2])  # noqa: E731
    dataset = ClassificationDataset("sorts", part(0), list("abcdefg"), ["{}"], "mean_per_class", lambda: part(1))
    found = measure_probe(model, dataset, Encoding(batch_size=16, workers=0, progress=False))
    numbers = found.numbers
    assert (numbers["images"], numbers["train_images"], found.unreadable) == (30, 30, [])
    assert numbers["primary"] == numbers["mean_per_class"]
    with pytest.raises(UserError, match="no training images"):
        measure_probe(model, open_classification(tmp_path / "sorts"), Encoding(progress=False))
