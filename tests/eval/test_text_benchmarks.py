"""Retrieval and compositional benchmarks by name, in their true layouts; numbers against plain references."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import eval_retrieval
from alip.checkpoint import load_model
from alip.distributed import World
from alip.errors import UserError
from alip.eval import results
from alip.eval.datasets import open_retrieval, open_texts
from alip.eval.features import Encoding
from alip.eval.records_retrieval import RETRIEVAL, XM3600_LANGUAGES, XTD_LANGUAGES
from alip.eval.records_selection import SELECTION, SUGARCREPE_PARTS
from alip.eval.selection import measure_selection, winogavil
from alip.eval.text_lengths import count_cut
from tests.helpers.text_archives import (
    LAYOUTS,
    SELECTION_WRITERS,
    aro,
    dci,
    flickr8k_tokens,
    nocaps,
    order,
    sugarcrepe,
    urban1k,
    winoground,
    winoground_parquet,
    xm3600,
    xtd,
)

# Retrieval -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, write", LAYOUTS)
def test_true_layout(name, write, tmp_path):
    images, captions, first = write(tmp_path)
    dataset = open_retrieval(name, tmp_path)
    assert (len(dataset.images), len(dataset.captions), dataset.captions[0]) == (images, captions, first)
    assert all(path.is_file() for path in dataset.images) and max(dataset.caption_owner) == images - 1
    assert dataset.benchmark == name and dataset.expected_images == RETRIEVAL[name].images


def test_xtd_in_cocos_own_folders(tmp_path):
    xtd(tmp_path)
    for path in (tmp_path / "xtd10" / "images").iterdir():
        target = tmp_path / "coco" / path.name.split("_")[1] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    dataset = open_retrieval("xtd10-es", tmp_path)
    assert all(path.is_file() for path in dataset.images) and dataset.language == "es"


def test_other_places_of_the_same_files(tmp_path):
    """NoCaps' captions in annotations/, as mmpretrain's; Urban1k's archive in a folder of its name."""
    nocaps(tmp_path)
    (tmp_path / "nocaps/annotations").mkdir()
    (tmp_path / "nocaps/nocaps_val_4500_captions.json").rename(
        tmp_path / "nocaps/annotations/nocaps_val_4500_captions.json"
    )
    urban1k(tmp_path)
    (tmp_path / "Urban1k").rename(tmp_path / "inner")
    (tmp_path / "Urban1k").mkdir()
    (tmp_path / "inner").rename(tmp_path / "Urban1k/Urban1k")
    for name in ("nocaps", "urban1k"):
        dataset = open_retrieval(name, tmp_path)
        assert len(dataset.images) == 3 and all(path.is_file() for path in dataset.images)


def test_languages_are_clip_benchmarks():
    module = pytest.importorskip("clip_benchmark.datasets.crossmodal3600")
    assert list(XM3600_LANGUAGES) == module.SUPPORTED_LANGUAGES
    pytest.importorskip("requests")
    from clip_benchmark.datasets import xtd10

    assert list(XTD_LANGUAGES) == xtd10.SUPPORTED_LANGUAGES


@pytest.mark.parametrize(
    "name, write, break_it, message",
    [
        ("flickr8k", flickr8k_tokens, lambda r: next(r.rglob("3_ab.jpg")).unlink(), "3_ab.jpg is missing"),
        ("flickr8k", flickr8k_tokens, lambda r: next(r.rglob("Flickr8k.token.txt")).unlink(), "is missing"),
        ("xtd10-ko", xtd, lambda r: None, "test_1kcaptions_ko.txt is missing"),
        ("xtd10-de", xtd, lambda r: next(r.rglob("*_de.txt")).write_text("x"), "1 captions, but 4 images"),
        ("xm3600-fr", xm3600, lambda r: None, r"captions.jsonl, line 1: .*is expected"),
        ("urban1k", urban1k, lambda r: (r / "Urban1k/caption/2.txt").write_text(" "), "2.txt is empty"),
        ("dci", dci, lambda r: (r / "densely_captioned_images/complete/1.json").write_text("{}"), "1.json"),
        ("nocaps", nocaps, lambda r: (r / "nocaps/nocaps_val_4500_captions.json").unlink(), "is missing"),
    ],
)  # fmt: skip
def test_mistakes_of_retrieval(name, write, break_it, message, tmp_path):
    write(tmp_path)
    break_it(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        open_retrieval(name, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*RETRIEVAL, *SELECTION])
def test_missing_data_says_what_is_expected(name, tmp_path):
    with pytest.raises(UserError, match=f"{name} needs "):
        open_texts(name, tmp_path)


def test_notes_on_long_texts_and_languages(tmp_path, run, capsys):
    urban1k(tmp_path)
    xtd(tmp_path)
    command = f"--checkpoint {run} --datasets urban1k xtd10-de --data-root {tmp_path} --output {tmp_path / 'out'}"
    assert eval_retrieval.main(f"{command} --workers 0 --no-plots --device cpu".split()) == 0
    printed = capsys.readouterr().out
    assert "note: urban1k: 3 of 3 texts have more than 77 tokens; the rest of them is cut off" in printed
    assert "note: xtd10-de: texts in the language 'de', read with CLIP's English tokenizer" in printed
    assert "warning: 3 images where urban1k has 1,000" in printed
    assert [entry["numbers"]["texts_cut"] for entry in results.load(tmp_path / "out")] == [3, 0]


def test_count_of_texts_that_are_cut(model):
    """75 tokens fit, with start and end; 76 do not."""
    fits, cut = "dog " * 75, "dog " * 76
    assert count_cut(model, [fits, cut, "", "é" * 500, fits.upper()]) == 2


# Choosing between texts or images ------------------------------------------------------------------------------


def features_of(model, images, texts):
    transform = model.preprocess(is_train=False)
    with torch.no_grad():
        x = model.encode_image(torch.stack([transform(image.convert("RGB")) for image in images]), normalize=True)
        t = model.encode_text(model.tokenizer(texts), normalize=True)
    return (x @ t.T).numpy()


def measure(model, dataset):
    return measure_selection(model, dataset, Encoding(World(), 8, 0, progress=False))


def test_sugarcrepe(tmp_path, run):
    count = sugarcrepe(tmp_path)
    dataset = open_texts("sugarcrepe", tmp_path)
    assert dataset.questions == count and len(dataset.images) == 4
    model = load_model(run)
    found = measure(model, dataset)
    accuracies = []
    for part in SUGARCREPE_PARTS:
        rows = json.loads((tmp_path / f"sugarcrepe/data/{part}.json").read_text()).values()
        images = [Image.open(tmp_path / "sugarcrepe/val2017" / row["filename"]) for row in rows]
        scores = features_of(model, images, [row[key] for row in rows for key in ("caption", "negative_caption")])
        hits = [scores[i, 2 * i] > scores[i, 2 * i + 1] for i in range(4)]
        accuracies.append(100 * np.mean(hits))
        assert found.numbers[part] == pytest.approx(accuracies[-1])
    assert found.numbers["primary"] == pytest.approx(np.mean(accuracies))


def test_winoground_as_clip_benchmark(tmp_path, run):
    """The package's procedure for Winoground and SugarCrepe on the same model and images."""
    metrics = pytest.importorskip("clip_benchmark.metrics.image_caption_selection")
    count = winoground(tmp_path)
    dataset, model = open_texts("winoground", tmp_path), load_model(run)
    found = measure(model, dataset)
    transform = model.preprocess(is_train=False)
    folder = tmp_path / "winoground" / "data"
    items = []
    for line in (folder / "examples.jsonl").read_text().splitlines():
        row = json.loads(line)
        pair = [Image.open(folder / "images" / f"{row[f'image_{side}']}.png") for side in (0, 1)]
        items.append((torch.stack([transform(one) for one in pair]), [row["caption_0"], row["caption_1"]]))
    loader = [(torch.stack([x for x, _ in items]), [texts for _, texts in items])]
    theirs = metrics.evaluate(model, loader, model.tokenizer, "cpu", amp=False)
    assert found.numbers["questions"] == count
    names = {"text_score": "text_acc", "image_score": "image_acc", "group_score": "acc"}
    for ours, name in names.items():
        assert found.numbers[ours] == pytest.approx(100 * theirs[name], abs=1e-4)
    assert found.numbers["primary"] == found.numbers["group_score"]


def test_winoground_in_parquet_is_the_same(tmp_path, run):
    model, found = load_model(run), []
    for write in (winoground, winoground_parquet):
        write(tmp_path / write.__name__)
        found.append(measure(model, open_texts("winoground", tmp_path / write.__name__)))
    assert found[0].numbers == found[1].numbers and found[0].numbers["questions"] == 6
    folder = tmp_path / "winoground_parquet/winoground/data"
    (folder / "test-00001-of-00002.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is no Parquet file"):
        open_texts("winoground", folder.parents[1])
    pq.write_table(pa.table({"caption_0": ["a"]}), folder / "test-00001-of-00002.parquet")
    with pytest.raises(UserError, match="has no column caption_1; it has caption_0"):
        open_texts("winoground", folder.parents[1])


def test_ties_count_against_us():
    from alip.eval.selection import choice_of_text
    from alip.eval.selection import winoground as judge_of

    one = torch.eye(2)[[0, 0]]
    zeros = np.zeros(1, np.int64)
    assert not choice_of_text(zeros, zeros, np.ones((1, 1), np.int64))(one, one)[0]
    judged = judge_of(np.array([[0, 1]]), np.array([[0, 1]]))(one, one, np.ones(2, bool))
    assert judged.numbers["text_score"] == judged.numbers["image_score"] == 0


@pytest.mark.parametrize("task", ["relation", "attribution"])
def test_aro(task, tmp_path, run):
    """The part in the box; the mean over relations that are not symmetric, or over pairs with 25 questions."""
    aro(tmp_path, task)
    dataset, model = open_texts(f"aro-{task}", tmp_path), load_model(run)
    found = measure(model, dataset)
    rows = json.loads((tmp_path / "aro" / f"visual_genome_{task}.json").read_text())
    images = []
    for row in rows:
        left, top = row["bbox_x"], row["bbox_y"]
        box = (left, top, left + row["bbox_w"], top + row["bbox_h"])
        images.append(Image.open(tmp_path / "aro/images" / row["image_path"]).crop(box))
    scores = features_of(model, images, [row[key] for row in rows for key in ("true_caption", "false_caption")])
    hits = np.array([scores[i, 2 * i] > scores[i, 2 * i + 1] for i in range(60)])
    names = np.array([row["relation_name"] if task == "relation" else row["attributes"][0] for row in rows])
    counted = ["on", "under"] if task == "relation" else ["old"]  # "near" is symmetric; ("tall", "wet") has 20
    assert found.numbers["primary"] == pytest.approx(100 * np.mean([hits[names == one].mean() for one in counted]))
    assert found.numbers["accuracy"] == pytest.approx(100 * hits.mean()) and found.numbers["groups"] == len(counted)
    assert found.outcomes["hit_accuracy"].sum() == hits.sum()


def test_order(tmp_path, run):
    order(tmp_path)
    dataset, model = open_texts("aro-coco-order", tmp_path), load_model(run)
    scores = features_of(model, [Image.open(path) for path in dataset.images.paths], dataset.texts)
    hits = [scores[i % 3, 5 * i] > scores[i % 3, 5 * i + 1 : 5 * i + 5].max() for i in range(9)]
    assert measure(model, dataset).numbers["primary"] == pytest.approx(100 * np.mean(hits))


def test_winogavil_as_datacomp():
    """DataComp's steps, in NumPy and scikit-learn: the best of the candidates, Jaccard index, means by size."""
    from sklearn.metrics import jaccard_score

    rng = np.random.default_rng(0)
    images, texts = torch.randn(30, 8), torch.randn(12, 8)
    candidates = [rng.choice(30, size, replace=False).tolist() for size in (5, 6, 10, 12) * 3]
    right = [own[: 1 + number % 4] for number, own in enumerate(candidates)]
    judged = winogavil(candidates, right)(images, texts, np.ones(30, bool))
    found = []
    for cue, (own, answers) in enumerate(zip(candidates, right)):
        logits = (texts[cue] @ images[own].T).numpy()
        predicted = np.isin(np.arange(len(own)), np.argsort(logits)[-len(answers) :])
        found.append(jaccard_score(np.isin(own, answers), predicted))
    sizes = np.array([len(own) for own in candidates])
    assert judged.numbers["jaccard"] == pytest.approx(100 * np.mean(found))
    assert judged.numbers["primary"] == pytest.approx(100 * np.array(found)[sizes >= 10].mean())
    assert judged.numbers["jaccard_5-6"] == pytest.approx(100 * np.array(found)[sizes <= 6].mean())


def test_command_and_report(tmp_path, run, capsys):
    for name in ("sugarcrepe", "winoground"):
        SELECTION_WRITERS[name](tmp_path)
    output = tmp_path / "out"
    command = f"--checkpoint {run} --datasets sugarcrepe winoground --data-root {tmp_path} --output {output}"
    assert eval_retrieval.main(f"{command} --workers 0 --device cpu --no-plots".split()) == 0
    printed = capsys.readouterr().out
    assert "warning: 28 questions where sugarcrepe has 7,511" in printed and "group_score" in printed
    entries = results.load(output)
    assert [entry["task"] for entry in entries] == ["selection", "selection"]
    assert entries[1]["intervals"]["text_score"][0] <= entries[1]["numbers"]["text_score"]
    from alip.eval.report import markdown

    assert "## Selection" in markdown({"tiny": entries})


def test_unreadable_image_costs_its_questions(tmp_path, run):
    winoground(tmp_path)
    (tmp_path / "winoground/data/images/ex_2_img_1.png").write_bytes(b"nothing")
    found = measure(load_model(run), open_texts("winoground", tmp_path))
    assert found.numbers["questions"] == 5 and found.numbers["unreadable"] == 1


@pytest.mark.parametrize(
    "name, break_it, message",
    [
        ("sugarcrepe", lambda r: (r / "sugarcrepe/data/swap_obj.json").unlink(), "one of SugarCrepe's seven files"),
        ("sugarcrepe", lambda r: (r / "sugarcrepe/data/swap_obj.json").write_text('{"0": {}}'), "swap_obj.json"),
        ("sugarcrepe", lambda r: (r / "sugarcrepe/val2017").rename(r / "x"), "is not under any of: .*val2017"),
        ("winoground", lambda r: (r / "winoground/data/images").rename(r / "x"), "unpack images.zip beside"),
        ("winoground", lambda r: (r / "winoground/data/examples.jsonl").write_text('{"id": 1}'), "jsonl, line 1"),
        ("aro-relation", lambda r: (r / "aro/visual_genome_relation.json").write_text("[{}]"), "relation.json"),
        ("aro-coco-order", lambda r: (r / "aro/coco_order.json").unlink(), "json.dump.COCO_Order"),
    ],
)
def test_mistakes_of_selection(name, break_it, message, tmp_path):
    SELECTION_WRITERS[name](tmp_path)
    break_it(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        open_texts(name, tmp_path)
    assert "\n" not in str(error.value)
