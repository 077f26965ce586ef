"""Retrieval and compositional benchmarks by name, in their true layouts; numbers against plain references."""

import json

import numpy as np
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
from tests.helpers.archives import write_image


def noise(path, seed, size=(20, 18)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


# Retrieval -----------------------------------------------------------------------------------------------------


def flickr8k_tokens(root):
    texts = root / "flickr8k" / "Flickr8k_text"
    texts.mkdir(parents=True)
    lines = [f"{i}_ab.jpg#{n}\ta dog, number {i} {n} ." for i in range(4) for n in range(5)]
    (texts / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    (texts / "Flickr_8k.testImages.txt").write_text("1_ab.jpg\n3_ab.jpg\n")
    for i in range(4):
        write_image(root / "flickr8k" / "Flicker8k_Dataset" / f"{i}_ab.jpg", i)
    return 2, 10, "a dog, number 1 0 ."


def flickr8k_table(root):
    folder = root / "flickr8k"
    folder.mkdir()
    rows = ["image,caption", *[f'{i}_ab.jpg,"A dog , number {i} {n} ."' for i in range(2) for n in range(5)]]
    rows.append("1_ab.jpg,a plain row , with a comma")
    (folder / "flickr8k_test_karpathy.txt").write_text("\n".join(rows) + "\n")
    for i in range(2):
        write_image(folder / "Images" / f"{i}_ab.jpg", i)
    return 2, 11, "A dog , number 0 0 ."


def flickr8k_karpathy(root):
    folder = root / "flickr8k"
    folder.mkdir()
    images = [
        {"filename": f"{i}.jpg", "split": split, "sentences": [{"raw": f"a {split} {i} {n}"} for n in range(5)]}
        for i, split in enumerate(("train", "test", "test"))
    ]
    (folder / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    for i in range(3):
        write_image(folder / "Flicker8k_Dataset" / f"{i}.jpg", i)
    return 2, 10, "a test 1 0"


def nocaps(root):
    images = [{"id": i, "file_name": f"{i:04x}.jpg", "open_images_id": f"{i:04x}", "domain": "in"} for i in range(3)]
    captions = [{"id": 9 * i + n, "image_id": i, "caption": f"thing {i} {n}"} for i in range(3) for n in range(10)]
    (root / "nocaps").mkdir()
    content = {"licenses": [], "info": {}, "images": images, "annotations": captions}
    (root / "nocaps" / "nocaps_val_4500_captions.json").write_text(json.dumps(content))
    for i in range(3):
        write_image(root / "nocaps" / "images" / f"{i:04x}.jpg", i)
    return 3, 30, "thing 0 0"


def urban1k(root):
    for i in (1, 2, 10):
        write_image(root / "Urban1k" / "image" / f"{i}.jpg", i)
        path = root / "Urban1k" / "caption" / f"{i}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{'a long street with shops ' * 20}{i}")
    return 3, 3, "a long street with shops " * 20 + "1"


def dci(root):
    folder = root / "densely_captioned_images"
    (folder / "complete").mkdir(parents=True)
    for i in range(2):
        write_image(folder / "photos" / f"sa_{i}.jpg", i)
        row = {"image": f"sa_{i}.jpg", "short_caption": f"A pump {i}.", "extra_caption": "It is red.", "mask_data": {}}
        (folder / "complete" / f"{i}.json").write_text(json.dumps(row))
    return 2, 2, "A pump 0.\nIt is red."


def xtd(root):
    folder = root / "xtd10"
    names = [f"COCO_train2014_{i:012d}.jpg" for i in range(3)] + ["COCO_val2014_000000000009.jpg"]
    for part, language in (("XTD10", "es"), ("MIC", "de"), ("STAIR", "jp")):
        (folder / part).mkdir(parents=True)
        text = "\n".join(f"{language} texto {i}" for i in range(4))  # no line end after the last, as in es
        (folder / part / f"test_1kcaptions_{language}.txt").write_text(text)
    (folder / "XTD10" / "test_image_names.txt").write_text("\n".join(names) + "\n")
    for i, name in enumerate(names):
        write_image(folder / "images" / name, i)
    return 4, 4, "de texto 0"


def xm3600(root):
    folder = root / "xm3600"
    folder.mkdir()
    rows = []
    for i in range(3):
        write_image(folder / "images" / f"{i:016x}.jpg", i)
        languages = {one: {"caption": [f"{one} {i} a", f"{one} {i} b"]} for one in ("en", "de", "quz")}
        rows.append(json.dumps({"image/key": f"{i:016x}", "image/locale": "de", **languages}))
    (folder / "captions.jsonl").write_text("\n".join(rows) + "\n")
    return 3, 6, "de 0 a"


LAYOUTS = [
    ("flickr8k", flickr8k_tokens),
    ("flickr8k", flickr8k_table),
    ("flickr8k", flickr8k_karpathy),
    ("nocaps", nocaps),
    ("urban1k", urban1k),
    ("dci", dci),
    ("xtd10-de", xtd),
    ("xm3600-de", xm3600),
]


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


def sugarcrepe(root):
    for part in SUGARCREPE_PARTS:
        rows = {
            str(3 * i): {
                "filename": f"{i:012d}.jpg",
                "caption": f"a cat and {i} birds {part}",
                "negative_caption": f"a dog and {i} birds {part}",
            }
            for i in range(4)
        }
        path = root / "sugarcrepe" / "data" / f"{part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))
    for i in range(4):
        noise(root / "sugarcrepe" / "val2017" / f"{i:012d}.jpg", i)
    return 28


def winoground(root):
    folder = root / "winoground" / "data"
    folder.mkdir(parents=True)
    lines = []
    for i in range(6):
        for side in (0, 1):
            noise(folder / "images" / f"ex_{i}_img_{side}.png", 2 * i + side)
        row = {"id": i, "image_0": f"ex_{i}_img_0", "image_1": f"ex_{i}_img_1", "tag": "Object"}
        lines.append(json.dumps({**row, "caption_0": f"{i} old kisses young", "caption_1": f"{i} young kisses old"}))
    (folder / "examples.jsonl").write_text("\n".join(lines) + "\n")
    return 6


def aro(root, task):
    rows = []
    groups = ["on", "near", "under"] if task == "relation" else [("old", "red"), ("tall", "wet")]
    for i in range(60):
        noise(root / "aro" / "images" / f"{i % 5}.jpg", i % 5, (30, 40))
        row = {"image_path": f"{i % 5}.jpg", "bbox_x": i % 7, "bbox_y": 2, "bbox_w": 20, "bbox_h": 18}
        row |= {"true_caption": f"the cat {i} is on it", "false_caption": f"it is on the cat {i}"}
        own = groups[0 if i < 40 else 1 + i % (len(groups) - 1)]
        rows.append({**row, **({"relation_name": own} if task == "relation" else {"attributes": [*own, "x"]})})
    (root / "aro" / f"visual_genome_{task}.json").write_text(json.dumps(rows))
    return 60


def order(root):
    rows = [{"image": f"val2014/{i % 3}.jpg", "caption_options": [f"{i} {w}" for w in "abcde"]} for i in range(9)]
    (root / "aro").mkdir()
    (root / "aro" / "coco_order.json").write_text(json.dumps(rows))
    for i in range(3):
        noise(root / "coco" / "val2014" / f"{i}.jpg", i)
    return 9


WRITERS = {
    "sugarcrepe": sugarcrepe,
    "winoground": winoground,
    "aro-relation": lambda root: aro(root, "relation"),
    "aro-attribution": lambda root: aro(root, "attribution"),
    "aro-coco-order": order,
}


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
        WRITERS[name](tmp_path)
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
    WRITERS[name](tmp_path)
    break_it(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        open_texts(name, tmp_path)
    assert "\n" not in str(error.value)
