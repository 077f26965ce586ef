"""Probes: on stored features, few-shot, from folders and files of one's own, and by the command."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

import eval_zeroshot
from alip.errors import UserError
from alip.eval import bootstrap, few_shot, logistic, outcomes, probe, results
from alip.eval.datasets import ClassificationDataset, open_classification
from alip.eval.feature_store import encode_stored
from alip.eval.features import Encoding
from alip.eval.image_readers import ImageFiles
from alip.eval.logistic import FeaturesInMemory, fit_sklearn, fit_torch
from alip.eval.probe import measure_few_shot, measure_probe
from alip.eval.probe_data import with_training_images
from tests.helpers import archives

PLAIN = Encoding(batch_size=16, workers=0, progress=False)


def features(seed=0, rows=300, width=20, classes=6):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    means = torch.randn(classes, width, generator=generator)
    rows = torch.randn(rows, width, generator=generator) + means[labels]
    return torch.nn.functional.normalize(rows, dim=1), labels


@pytest.mark.parametrize("strength", [0.01, 1.0, 300.0])
def test_the_fit_is_scikit_learns(strength):
    x, y = features()
    theirs = LogisticRegression(C=strength, max_iter=5000, tol=1e-9).fit(x.double().numpy(), y.numpy())
    expected = theirs.predict_proba(x.double().numpy())
    for fit in (fit_sklearn, fit_torch):
        found = fit(FeaturesInMemory(x, y), 6, strength).logits(x).softmax(1).numpy()
        assert np.abs(found - expected).max() < 1e-4


def coloured(folder, classes=4, images=12, seed=0, names=None):
    """A folder per class; each class has a colour of its own, in noise."""
    rng = np.random.default_rng(seed)
    colours = np.random.default_rng(99).integers(0, 256, (classes, 3))
    for label in range(classes):
        own = folder / (names[label] if names else f"class{label}")
        own.mkdir(parents=True, exist_ok=True)
        for number in range(images):
            pixels = colours[label] + rng.normal(0, 60, (20, 20, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(own / f"{number}.png")
    return folder


@pytest.fixture
def parts(tmp_path):
    coloured(tmp_path / "colours" / "train", seed=1)
    coloured(tmp_path / "colours" / "test", seed=2)
    return tmp_path / "colours"


def test_stored_features_give_the_same_probe(model, parts, tmp_path, capsys):
    dataset = open_classification(parts)
    images = dataset.train()
    plain = measure_probe(model, dataset, PLAIN).numbers
    stored = measure_probe(model, dataset, PLAIN, stored_from=10).numbers
    assert stored.keys() == plain.keys() and stored["train_images"] == 48
    assert stored["top1"] == pytest.approx(plain["top1"], abs=5)  # float32 products, and torch in place of scikit-learn

    found = encode_stored(model, images, PLAIN, "train", tmp_path / "store", file_images=20)
    together = torch.cat([block for block, _ in found.blocks()])
    assert len(list((tmp_path / "store").glob("*.safetensors"))) == 3 and len(together) == 48
    assert found.labels.tolist() == [images.labels[i] for k in range(3) for i in range(k, 48, 3)]
    strict = FeaturesInMemory(together, found.labels)
    for part in (torch.arange(48) % 4 > 0, torch.ones(48, dtype=torch.bool)):
        exact = fit_torch(strict.part(part), 4, 3.0).logits(together).softmax(1)
        blocked = fit_torch(found.part(part), 4, 3.0).logits(together).softmax(1)
        assert (exact - blocked).abs().max() < 1e-3

    # What is there is not computed again; a damaged file is.
    damaged = sorted((tmp_path / "store").glob("*.safetensors"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()}
    again = encode_stored(model, images, PLAIN, "train", tmp_path / "store", file_images=20)
    assert "computing them again" in capsys.readouterr().out
    assert [path for path, time in before.items() if path.stat().st_mtime_ns != time] == [damaged]
    assert torch.equal(torch.cat([block for block, _ in again.blocks()]), together)


def test_unreadable_training_images_are_named_on_every_run(model, parts, tmp_path):
    (parts / "train" / "class1" / "3.png").write_bytes(b"no image")
    cached = Encoding(batch_size=16, workers=0, progress=False, cache=tmp_path / "cache")
    for _ in range(2):
        found = measure_probe(model, open_classification(parts), cached, stored_from=10)
        assert [name.endswith("class1/3.png") for name, _ in found.unreadable] == [True]
        assert found.numbers["train_images"] == 47


def test_samples_depend_on_seed_and_class_alone():
    labels = [0] * 9 + [1] * 30 + [2] * 3
    order = torch.randperm(42, generator=torch.Generator().manual_seed(0)).tolist()
    mixed = [labels[i] for i in order]
    one = few_shot.sample(labels, 4, seed=1)
    assert one == few_shot.sample(labels, 4, seed=1) != few_shot.sample(labels, 4, seed=2)
    assert [len(part) for part in one] == [4 + 4 + 3, 4 + 4 + 0]
    assert not set(one[0]) & set(one[1])
    assert set(few_shot.sample(labels, 2, seed=1)[0]) < set(one[0])  # fewer shots are a part of more
    # The same ones of a class, wherever its images are and whatever other classes there are.
    ranks = lambda labels, chosen, label: [  # noqa: E731
        [i for i, own in enumerate(labels) if own == label].index(position)
        for position in chosen
        if labels[position] == label
    ]
    for label in (0, 1):
        assert ranks(labels, one[0], label) == ranks(mixed, few_shot.sample(mixed, 4, seed=1)[0], label)
    assert few_shot.sample([-1, 0, 0, -1], 1, 0)[0][0] in (1, 2)


def test_few_shot_means_and_spread(model, parts):
    dataset = open_classification(parts)
    found = measure_few_shot(model, dataset, PLAIN, (1, 4), seeds=3)
    assert list(found) == [1, 4]
    for shots, probed in found.items():
        numbers, ranks = probed.numbers, probed.outcomes["rank"]
        assert ranks.shape == (3, 48) and numbers["train_images"] == 4 * shots
        single = 100 * (ranks == 0).mean(1)
        assert numbers["top1"] == pytest.approx(single.mean())
        assert numbers["top1_std"] == pytest.approx(single.std(ddof=1))
        assert bootstrap.point_values(probed.outcomes, "top1")["primary"] == pytest.approx(numbers["primary"])
    assert found[4].numbers["top1"] > 25  # chance

    # Where the labels are not known beforehand all training images are read: the same numbers.
    class Plain:
        def __init__(self, images):
            self.images = images
            self.name, self.cache_key, self.content_hash = images.name, images.cache_key, images.content_hash

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            return self.images[index]

    assert few_shot.labels_without_reading(Plain(dataset.train())) is None
    hidden = ClassificationDataset(
        "x", dataset.images, dataset.classnames, ["{}"], train=lambda: Plain(dataset.train())
    )
    for shots, probed in measure_few_shot(model, hidden, PLAIN, (1, 4), seeds=3).items():
        assert probed.numbers["top1"] == pytest.approx(found[shots].numbers["top1"], abs=1)


def test_one_image_per_class_leaves_nothing_to_choose_with(model, tmp_path, capsys):
    coloured(tmp_path / "few" / "train", images=1)
    coloured(tmp_path / "few" / "val", images=3)
    found = measure_few_shot(model, open_classification(tmp_path / "few"), PLAIN, (1,), seeds=1)
    assert found[1].numbers["C"] == 1 and "primary_std" not in found[1].numbers
    assert "leave no image to choose C with" in capsys.readouterr().out
    with pytest.raises(UserError, match="none can be held out"):
        measure_probe(model, open_classification(tmp_path / "few"), PLAIN)


def test_training_images_of_other_datasets(parts, tmp_path):
    """Classes are matched by name, whatever their order; unknown ones are an error."""
    dataset = open_classification(parts / "test")
    rows = [{"image": f"train/class{label}/0.png", "label": f"class{label}"} for label in (3, 1)]
    (parts / "few.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    train = with_training_images(dataset, parts / "few.jsonl").train()
    assert [train[i][1] for i in range(2)] == [3, 1] == few_shot.labels_without_reading(train)
    assert with_training_images(dataset, parts / "train").train().labels == open_classification(parts).train().labels
    coloured(tmp_path / "others", names=["class0", "class1", "class2", "zebra"])
    with pytest.raises(UserError, match="has no class 'zebra'"):
        with_training_images(dataset, tmp_path / "others")
    (parts / "train" / "class0").rename(parts / "train" / "class9")
    with pytest.raises(UserError, match=r"train/class9: .*test has no such class"):
        open_classification(parts).train()


def test_the_command(run, parts, tmp_path, capsys):
    flags = f"--checkpoint {run} --datasets {parts} --output {tmp_path / 'out'} --workers 0 --device cpu --no-plots"
    assert eval_zeroshot.main([*flags.split(), *["--task", "all", "--shots", "1", "2", "--seeds", "2"]]) == 0
    found = results.load(tmp_path / "out")
    assert [(one["task"], one.get("shots")) for one in found] == [
        ("zeroshot", None),
        ("probe", None),
        ("few-shot", 1),
        ("few-shot", 2),
    ]
    assert len({one["id"] for one in found}) == 4
    for one in found:
        assert set(one["intervals"]) >= {"top1", "mean_per_class", "primary"}
        assert outcomes.load(tmp_path / "out", one["id"]) is not None
    printed = capsys.readouterr().out
    assert "few-shot probe" in printed and "linear probe" in printed
    eval_zeroshot.main([*flags.split(), *["--task", "few-shot", "--shots", "2", "--seeds", "3"]])
    assert [one.get("seeds") for one in results.load(tmp_path / "out")] == [None, None, 2, 2, 3]

    for wrong, message in (
        ("--task probes", "choose from zeroshot, probe, few-shot"),
        ("--task few-shot --shots 0", "--shots"),
        ("--seeds 2", "belong to the few-shot probes"),
        (f"--task probe --datasets {parts} {parts / 'test'} --probe-train x", "names 2"),
        (f"--task probe --datasets {parts / 'test'}", "--probe-train"),
    ):
        with pytest.raises(UserError, match=message):
            eval_zeroshot.main([*flags.split(), *wrong.split()])


def test_a_list_of_images(model, tmp_path):
    """A torch-free form: ImageFiles with labels, as every reader gives them."""
    paths = sorted(coloured(tmp_path / "c", classes=2, images=6).rglob("*.png"))
    files = ImageFiles(paths, [0] * 6 + [1] * 6)
    dataset = ClassificationDataset("c", files, ["a", "b"], ["{}"], train=lambda: files)
    assert measure_probe(model, dataset, PLAIN).numbers["top1"] > 50


def test_imagenets_training_images(tmp_path, monkeypatch):
    """imagenet/train in one folder per synset, with the numbers of the validation images' classes."""
    archives.write("imagenet", tmp_path, monkeypatch)
    dataset = open_classification("imagenet", tmp_path)
    assert few_shot.labels_without_reading(dataset.train()) == list(range(1000))
    shutil.rmtree(tmp_path / "imagenet" / "train" / "n01440764")
    with pytest.raises(UserError, match="999 folders, not the 1,000 synsets"):
        dataset.train()
    shutil.rmtree(tmp_path / "imagenet" / "train")
    with pytest.raises(UserError, match="imagenet"):
        dataset.train()


def test_a_dataset_without_training_images_is_refused_before_anything_is_measured(run, parts, tmp_path, capsys):
    alone = coloured(tmp_path / "alone")
    flags = f"--checkpoint {run} --output {tmp_path / 'out'} --workers 0 --device cpu --no-plots --task all"
    with pytest.raises(UserError, match="alone has no training images for a probe"):
        eval_zeroshot.main([*flags.split(), "--datasets", str(parts), str(alone)])
    assert not (tmp_path / "out" / "results.json").exists()


def test_one_shot_gives_no_warning_of_scikit_learn(recwarn):
    x, y = features()
    first = [int((y == label).nonzero()[0]) for label in range(6)]
    fit_sklearn(FeaturesInMemory(x[first], y[first]), 6, 1.0)
    assert not [one for one in recwarn if "unique classes" in str(one.message)]


@pytest.mark.parametrize("fit", [fit_sklearn, fit_torch])
def test_a_fit_that_stops_early_says_so_once(model, parts, capsys, recwarn, monkeypatch, fit):
    x, y = features()
    assert fit(FeaturesInMemory(x, y), 6, 1.0).converged
    monkeypatch.setattr(logistic, "ITERATIONS", 1)
    assert not fit(FeaturesInMemory(x, y), 6, 1e6).converged
    monkeypatch.setattr(probe, "_solver", lambda encoding: fit)
    dataset = open_classification(parts)
    measure_probe(model, dataset, PLAIN)
    numbers = measure_few_shot(model, dataset, PLAIN, shots=(2,), seeds=2)[2].numbers
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(" of the probes")[0] for line in printed] == [
        "warning: colours: 1",
        "warning: colours, 2 shots: 2",
    ]
    assert numbers["unfinished_fits"] == 2
    assert not [one for one in recwarn if "lbfgs" in str(one.message)]


def test_the_search_stays_in_its_range():
    """At the ends of it, too, where the smallest C and the largest classify as well as any."""
    tried = []

    class Alike:
        labels = torch.zeros(4, dtype=torch.long)

    def fit(train, classes, strength, start):
        tried.append(strength)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logistic, "logits_of", lambda fitted, data: [(torch.eye(4)[:1].expand(4, 4), Alike.labels)])
        assert logistic.sweep(None, Alike(), 4, fit) == 1e-6
    assert min(tried) == 1e-6 and max(tried) == 1e6
