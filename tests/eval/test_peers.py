"""The same numbers as the field's own tool, clip-benchmark, on the same model, data and protocol."""

import functools

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

import eval_retrieval
from alip.checkpoint import load_model
from alip.checkpoint.export import export
from alip.distributed import World
from alip.eval import results
from alip.eval.datasets import open_classification, open_retrieval
from alip.eval.retrieval import evaluate_retrieval
from alip.eval.zeroshot import evaluate_zeroshot
from tests.helpers.pairs import write_classes, write_pairs

retrieval_peer = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
zeroshot_peer = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The model as open_clip itself loads what we export: what anyone else would measure."""
    folder = tmp_path_factory.mktemp("peer") / "open_clip"
    export(load_model(run), "open_clip", folder)
    peer, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return peer.eval(), transform


@pytest.mark.parametrize("kind", ["open_clip", "hf"])
def test_other_peoples_folders(kind, run, tmp_path):
    """The same model in their form, through the command: the same numbers."""
    captions = write_pairs(tmp_path / "pairs")
    export(load_model(run), kind, tmp_path / kind)
    numbers = []
    for checkpoint in (run, tmp_path / kind):
        eval_retrieval.main(
            f"--checkpoint {checkpoint} --dataset {captions} --output {tmp_path / 'out'} --workers 0 --device cpu "
            "--no-plots".split()
        )
        entry = results.load(tmp_path / "out")[-1]
        assert entry["checkpoint"] == str(checkpoint)
        numbers.append(entry["numbers"])
    assert numbers[0] == pytest.approx(numbers[1])


def batches(items, collate, size=8):
    return [collate(items[i : i + size]) for i in range(0, len(items), size)]


def test_retrieval(exported, run, tmp_path):
    peer, transform = exported
    dataset = open_retrieval(write_pairs(tmp_path))
    texts = [[c for c, o in zip(dataset.captions, dataset.caption_owner) if o == i] for i in range(len(dataset.images))]
    items = [(transform(Image.open(path)), own) for path, own in zip(dataset.images, texts)]
    loader = batches(items, lambda part: (torch.stack([image for image, _ in part]), [own for _, own in part]))
    theirs = retrieval_peer.evaluate(peer, loader, open_clip.tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10])
    ours = evaluate_retrieval(load_model(run), dataset, world=World(), batch_size=8, workers=0)
    for k in (1, 5, 10):
        assert ours[f"image_to_text_R@{k}"] == pytest.approx(100 * theirs[f"text_retrieval_recall@{k}"], abs=1e-4)
        assert ours[f"text_to_image_R@{k}"] == pytest.approx(100 * theirs[f"image_retrieval_recall@{k}"], abs=1e-4)
    assert 0 < ours["text_to_image_R@5"] < 100


def test_zero_shot(exported, run, tmp_path):
    peer, transform = exported
    dataset = open_classification(write_classes(tmp_path / "sorts"))
    templates = ["a photo of a {c}.", "art of {c}.", "the {c} in a video game."]
    labelled = [(transform(dataset.images[i][0]), dataset.images[i][1]) for i in range(len(dataset.images))]

    loader = batches(labelled, lambda part: (torch.stack([x for x, _ in part]), torch.tensor([y for _, y in part])))
    classifier = zeroshot_peer.zero_shot_classifier(
        peer, open_clip.tokenize, dataset.classnames, templates, "cpu", amp=False
    )
    logits, labels = zeroshot_peer.run_classification(peer, classifier, loader, "cpu", amp=False)
    # Its last step, `accuracy`, does not run with NumPy 2.4; scikit-learn counts the same from the peer's logits.
    theirs = {
        "top1": accuracy_score(labels, logits.argmax(1)),
        "top5": top_k_accuracy_score(labels, logits, k=5, labels=range(7)),
        "mean_per_class": balanced_accuracy_score(labels, logits.argmax(1)),
    }
    named = functools.partial(type(dataset), dataset.name, dataset.images, dataset.classnames)
    ours = evaluate_zeroshot(
        load_model(run), named([t.replace("{c}", "{}") for t in templates]), world=World(), workers=0
    )
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(100 * value, abs=1e-4)
    assert 0 < ours["top5"] < 100


def test_open_clips_own_numbers_in_training(run, tmp_path):
    """`single_positive`: one caption an image, N × N, as open_clip logs it."""
    dataset = open_retrieval(write_pairs(tmp_path))
    model = load_model(run)
    ours = evaluate_retrieval(model, dataset, world=World(), workers=0)
    transform = model.preprocess(is_train=False)
    first = [dataset.caption_owner.index(i) for i in range(len(dataset.images))]
    with torch.no_grad():
        images = model.encode_image(torch.stack([transform(Image.open(p)) for p in dataset.images]), normalize=True)
        texts = model.encode_text(open_clip.tokenize([dataset.captions[i] for i in first]), normalize=True)
    ranking = torch.argsort(images @ texts.T, descending=True)
    places = torch.where(ranking == torch.arange(len(images))[:, None])[1].numpy()
    assert ours["single_positive_image_to_text_R@5"] == pytest.approx(100 * np.mean(places < 5))
    assert ours["single_positive_image_to_text_mean_rank"] == pytest.approx(places.mean() + 1)
