"""Scores of captions: the rules, the model's similarities against a plain computation, resuming, and --keep."""

import json
import sys

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from alip.build.caption_scores import CaptionScores
from alip.build.joined_texts import TextFiles
from alip.build.prepare import CaptionPolicy, Policy
from alip.caption import score, text_rules
from alip.caption.scoring import rule_scores
from alip.checkpoint import atomic_save, load_model
from alip.data.shards import read_texts
from alip.errors import UserError
from tests.helpers.captioning import png
from tests.helpers.checkpoints import content_of, make_state
from tests.helpers.shards import build_shards, encoded, make_image

CAPTIONS = {
    "0.jpg": ["a red dog on the grass"],
    "1.jpg": ["the image shows a cat", "a cat and a cat and a cat and a cat"],
    "2.jpg": ["a small house with a shutterstock watermark", "ein kleines Haus mit einem roten Dach"],
    "3.jpg": ["a tree"],
    "4.jpg": ["собака на траве"],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.pt"
    atomic_save(content_of(make_state()), path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Five images with raw texts, and their captions: one or two of each."""
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(make_image(i)))
    (tmp_path / "t.csv").write_text("image,text\n" + "".join(f"{i}.jpg,raw text {i}\n" for i in range(5)))
    write_captions(tmp_path, CAPTIONS)
    return tmp_path


def write_captions(folder, captions):
    lines = [json.dumps({"key": key, "captions": texts}, ensure_ascii=False) + "\n" for key, texts in captions.items()]
    (folder / "captions.jsonl").write_text("".join(lines))


def run(folder, *more):
    given = ["--input", folder / "t.csv", "--captions", folder / "captions.jsonl", "--workers", 0, *more]
    return score.main([*map(str, given)])


def rows(folder, name="captions-scores.parquet"):
    return pq.read_table(folder / name).to_pylist()


def record(folder):
    return json.loads((folder / "captions-scores-run.json").read_text())


@torch.inference_mode()
def plain_similarity(model, image, text):
    pixels = model.preprocess()(Image.open(image).convert("RGB"))[None]
    features = model.encode_image(pixels, normalize=True), model.encode_text(model.tokenizer([text]), normalize=True)
    return float((features[0] * features[1]).sum())


def test_scores_are_the_models_and_stand_beside_the_captions(folder, checkpoint, capsys):
    assert run(folder, "--checkpoint", checkpoint, "--batch-size", 2) == 0
    table = rows(folder)
    assert [(row["key"], row["number"], row["caption"]) for row in table] == [
        (key, i, text) for key, texts in CAPTIONS.items() for i, text in enumerate(texts)
    ]
    model = load_model(checkpoint)
    for row in table:
        wanted = plain_similarity(model, folder / row["key"], row["caption"])
        assert row["image_caption_similarity"] == pytest.approx(wanted, abs=1e-5)
        assert row["clip_score"] == pytest.approx(2.5 * max(wanted, 0), abs=1e-5)
        named = text_rules.phrases(row["caption"])
        fits = {phrase: plain_similarity(model, folder / row["key"], phrase) for phrase in named}
        assert row["weakest_phrase"] in fits
        assert row["weakest_phrase_similarity"] == pytest.approx(min(fits.values()), abs=1e-5)
    shown = capsys.readouterr().out
    assert "quantiles over 7 captions" in shown and "5 images: the captions of 5 have scores" in shown
    assert "boilerplate: 1 captions" in shown
    assert CaptionScores(folder / "captions-scores.parquet").metadata["model"]["fingerprint"]


def test_all_rows_of_a_key_are_scored(folder, checkpoint):
    """Captions as rows of one key, each of which --keep may ask for; the same one twice has one row."""
    listed = [(key, text) for key, texts in CAPTIONS.items() for text in texts]
    (folder / "captions.tsv").write_text("".join(f"{key}\t{text}\n" for key, text in [*listed, listed[1]]))
    given = ["--input", folder / "t.csv", "--captions", folder / "captions.tsv", "--checkpoint", checkpoint]
    assert score.main([*map(str, given), "--workers", "0"]) == 0
    assert [(row["key"], row["caption"]) for row in rows(folder)] == listed
    texts = TextFiles((str(folder / "captions.tsv"),), keep="words > 0")
    several = Policy(captions=CaptionPolicy(2, None))
    manifest = build_shards(folder / "t.csv", folder / "set", texts=texts, policy=several)
    assert {row["key"]: row["captions"] for row in read_texts(manifest)} == CAPTIONS


def test_the_prefix_counts(folder, checkpoint):
    assert run(folder, "--checkpoint", checkpoint, "--text-prefix", "A photo depicts ") == 0
    wanted = plain_similarity(load_model(checkpoint), folder / "3.jpg", "A photo depicts a tree")
    assert rows(folder)[5]["image_caption_similarity"] == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(UserError, match="text_prefix was 'A photo depicts ', is ''"):
        run(folder, "--checkpoint", checkpoint)


def test_rules_need_no_images_and_no_model(folder):
    for i in range(5):
        (folder / f"{i}.jpg").unlink()
    assert run(folder) == 0
    table = rows(folder)
    assert "clip_score" not in table[0] and "language" not in table[0]
    assert [row["boilerplate"] for row in table] == ["", "image shows", "", "", "", "", ""]
    assert [row["suspicious_word"] for row in table] == ["", "", "", "shutterstock", "", "", ""]
    assert table[2]["repetition"] > 0.5 > table[0]["repetition"] == 0
    assert table[-1]["script"] == "cyrillic" and table[0]["script"] == "latin"
    assert table[0]["words"] == table[0]["tokens"] == 6
    assert run(folder) == 0 and record(folder)["counts"]["captioned_before"] == 5


def test_languages(folder, monkeypatch):
    assert run(folder, "--language") == 0
    found = {row["caption"]: row for row in rows(folder)}
    assert found["a red dog on the grass"]["language"] == "en"
    assert found["ein kleines Haus mit einem roten Dach"]["language"] == "de"
    assert 0.5 < found["ein kleines Haus mit einem roten Dach"]["language_probability"] <= 1
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(UserError, match="pip install py3langid"):
        run(folder, "--language", "--output", folder / "other.parquet")


def test_only_what_is_new_is_scored_again(folder, checkpoint, monkeypatch):
    write_captions(folder, {key: CAPTIONS[key] for key in ("0.jpg", "1.jpg", "2.jpg")})
    assert run(folder, "--batch-size", 1, "--checkpoint", checkpoint) == 1  # two images have no captions
    assert record(folder)["counts"]["failed_by_reason"] == {"no-caption": 2}
    write_captions(folder, CAPTIONS | {"1.jpg": ["another cat"]})
    (folder / "2.jpg").write_bytes(encoded(make_image(77)))
    scored = []
    work = score_work(monkeypatch, scored)
    assert run(folder, "--batch-size", 1, "--checkpoint", checkpoint) == 0
    assert scored == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"] and work
    resumed = sorted(rows(folder), key=str)
    assert run(folder, "--batch-size", 1, "--checkpoint", checkpoint, "--output", folder / "whole.parquet") == 0
    assert resumed == sorted(rows(folder, "whole.parquet"), key=str)


def score_work(monkeypatch, scored):
    from alip.caption.scoring import ScoreWork

    plain = ScoreWork.run

    def counting(self, items):
        scored.extend(item.key for item in items)
        return plain(self, items)

    monkeypatch.setattr(ScoreWork, "run", counting)
    return counting


def test_interrupted_and_resumed_the_table_is_the_same(folder, checkpoint, monkeypatch):
    from alip.caption.scoring import ScoreWork

    plain = ScoreWork.run

    def dies(self, items):
        if items[0].key == "3.jpg":
            raise KeyboardInterrupt
        return plain(self, items)

    with monkeypatch.context() as dying, pytest.raises(KeyboardInterrupt):
        dying.setattr(ScoreWork, "run", dies)
        run(folder, "--checkpoint", checkpoint, "--batch-size", 1)
    assert not (folder / "captions-scores.parquet").exists()
    assert run(folder, "--checkpoint", checkpoint, "--batch-size", 1) == 0
    assert record(folder)["counts"]["captioned_before"] == 3
    assert run(folder, "--checkpoint", checkpoint, "--batch-size", 1, "--output", folder / "whole.parquet") == 0
    assert pq.read_table(folder / "captions-scores.parquet").equals(pq.read_table(folder / "whole.parquet"))


def test_shards_merge_to_the_table_of_one_machine(folder, checkpoint, capsys):
    (folder / "3.jpg").write_bytes(b"no image")
    common = ["--checkpoint", checkpoint, "--batch-size", 1]
    assert run(folder, *common, "--output", folder / "whole.parquet") == 1
    shards = [folder / f"captions-scores-shard{k}of2.parquet" for k in (1, 2)]
    assert sorted(run(folder, *common, "--shard", f"{k}/2") for k in (1, 2)) == [0, 1]
    counts = [len(rows(folder, shard.name)) for shard in shards]
    assert sum(counts) == 6 and min(counts) > 0
    merge = ["--captions", folder / "captions.jsonl", "--merge", *shards]
    assert score.main([*map(str, merge)]) == 1
    assert sorted(rows(folder), key=str) == sorted(rows(folder, "whole.parquet"), key=str)
    merged, whole = record(folder), json.loads((folder / "whole-run.json").read_text())
    for name in ("counts", "summary", "settings", "complete"):
        assert merged[name] == whole[name]
    assert "3.jpg" in (folder / "captions-scores-failures.jsonl").read_text()
    (folder / "3.jpg").write_bytes(encoded(make_image(3)))
    assert run(folder, *common) == 0 and record(folder)["counts"]["captioned_now"] == 1, "it resumes from there"
    with pytest.raises(UserError, match=r"--merge needs every shard once: these are shards \[2\] of \[2\]"):
        score.main(["--output", str(folder / "x.parquet"), "--merge", str(shards[1])])
    with pytest.raises(UserError, match="was written with other settings"):
        run(folder, *common, "--shard", "1/2", "--output", shards[1])


def test_data2rec_keeps_what_the_scores_allow(folder, checkpoint):
    assert run(folder, "--checkpoint", checkpoint, "--language") == 0
    keep = "boilerplate == '' and suspicious_word == '' and repetition < 0.5 and script == 'latin' and clip_score > -1"
    texts = TextFiles((str(folder / "captions.jsonl"),), keep=keep)
    manifest = build_shards(folder / "t.csv", folder / "set", texts=texts)
    assert {row["key"]: row["caption"] for row in read_texts(manifest)} == {
        "0.jpg": "a red dog on the grass",
        "2.jpg": "ein kleines Haus mit einem roten Dach",
        "3.jpg": "a tree",
    }
    assert manifest.metadata["caption_filter"]["keys_without_caption"] == 2


def test_unreadable_images_are_named(folder, checkpoint):
    (folder / "1.jpg").write_bytes(b"no image")
    (folder / "3.jpg").write_bytes(png(3)[:60])
    assert run(folder, "--checkpoint", checkpoint) == 1
    names = [json.loads(line)["key"] for line in (folder / "captions-scores-failures.jsonl").read_text().splitlines()]
    assert names == ["1.jpg", "3.jpg"] and {row["key"] for row in rows(folder)} == {"0.jpg", "2.jpg", "4.jpg"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red dog sitting on the green grass next to two cars", ["red dog", "green grass", "cars"]),
        ("a dog, a dog and the dog", ["dog"]),
        ("in front of it", []),
        ("", []),
        ("一只狗", ["一只狗"]),
    ],
)
def test_phrases(text, expected):
    assert text_rules.phrases(text) == expected


@pytest.mark.parametrize(
    ("text", "is_boilerplate", "is_suspicious"),
    [
        ("This image depicts a dog", True, False),
        ("a picture on the wall of a room", False, False),
        ("I'm sorry, I can't see the image", True, False),
        ("Sure! Here is a caption: a dog", True, False),
        ("a dog, see www.example.com", False, True),
        ("img_1234.jpg", False, True),
        ("a stock photo of a man", False, True),
        ("a man watering marks on a lawn", False, False),
        ("<loc0012> dog", False, True),
        ("a dog", False, False),
    ],
)
def test_rules(text, is_boilerplate, is_suspicious):
    scores = rule_scores(text)
    assert (bool(scores["boilerplate"]), bool(scores["suspicious_word"])) == (is_boilerplate, is_suspicious)


def test_repetition_counts():
    assert text_rules.repetition([]) == text_rules.repetition(["dog"]) == text_rules.repetition(["a", "dog"]) == 0
    assert text_rules.repetition(["dog", "dog", "dog", "dog"]) == 1
    assert text_rules.repetition(["a", "man", "and", "a", "woman", "and", "a", "child"]) < 0.5
