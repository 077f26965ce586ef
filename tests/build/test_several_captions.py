"""Datasets with several captions per image: from captions files to shards, verified, merged, selected and shown."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from alip.build.caption_table import CaptionTable
from alip.build.input_shard import InputShard
from alip.build.joined_texts import TextFiles
from alip.build.merge import merge
from alip.build.prepare import CaptionPolicy, Policy, prepare
from alip.build.preview import show
from alip.build.select import select
from alip.build.sentences import split_sentences
from alip.build.sources import Sample
from alip.build.verify import verify
from alip.data.recordio import unpack
from alip.data.score_table import ScoreTable
from alip.data.shards import load_manifest, read_texts, row_captions
from alip.errors import UserError
from alip.tokens import tokenize, unpack_captions, unpack_label
from tests.helpers.score_tables import write_made_up_table
from tests.helpers.shards import build_shards, encoded, make_captioned_tars, make_image, make_tars


def policy(per_image: int, sentences: str | None = None, **more) -> Policy:
    return Policy(captions=CaptionPolicy(per_image, sentences), **more)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(tars, captions file, shards) of 60 samples with 1 to 4 captions, at most 3 of them stored."""
    folder = tmp_path_factory.mktemp("several")
    tars, captions = make_captioned_tars(folder / "tars", 60, 4)
    files = TextFiles(captions=(str(captions),))
    build_shards(tars, folder / "set", texts=files, policy=policy(3), samples_per_shard=25)
    return tars, captions, folder / "set"


def test_records_and_sidecars_hold_the_captions(data, capsys):
    _, captions, path = data
    manifest = load_manifest(path)
    stored = json.loads(path.with_suffix(".json").read_text())
    assert stored["version"] == 2 and manifest.captions_per_image == 3
    assert stored["label"] == {
        "length": 154, "text_tokens": 0, "caption_tokens": 77, "more_captions": 154, "captions_per_image": 3
    }  # fmt: skip
    expected = [json.loads(line)["captions"][:3] for line in captions.read_text().splitlines()]
    rows = list(read_texts(manifest))
    assert [row_captions(row) for row in rows] == expected == [row["captions"] for row in rows]
    assert [row["caption"] for row in rows] == [one[0] for one in expected]
    labels = [unpack(payload)[0] for number in range(3) for payload in manifest.open_shard(number)]
    for row, label in zip(rows, labels, strict=True):
        text, tokens = unpack_captions(label)
        assert np.array_equal(np.stack([text, *tokens]), tokenize([row["text"], *row["captions"]]).numpy())
        assert len(label) == 154 or len(row["captions"]) > 1
    assert verify(path) == 0 and "sound: 60 samples" in capsys.readouterr().out
    assert show(path, 5) == 0


def test_one_caption_is_the_released_layout(data, tmp_path):
    """K = 1 from lists, several files and captions of one entry: the very bytes that one caption each gives."""
    tars, captions, _ = data
    first = [(one["key"], one["captions"][0]) for one in map(json.loads, captions.read_text().splitlines())]
    (tmp_path / "one.tsv").write_text("".join(f"{key}\t{caption}\n" for key, caption in first))
    one = build_shards(tars, tmp_path / "one" / "set", texts=TextFiles(captions=(str(tmp_path / "one.tsv"),)))
    files = TextFiles(captions=(str(captions), str(tmp_path / "one.tsv")))
    both = build_shards(tars, tmp_path / "both" / "set", texts=files)
    assert one.captions_per_image == both.captions_per_image == 1
    assert [shard.sha256 for shard in one.shards] == [shard.sha256 for shard in both.shards]
    content = json.loads((tmp_path / "one" / "set.json").read_text())
    assert content["version"] == 1 and content["label"] == {"length": 154, "text_tokens": 0, "caption_tokens": 77}
    assert not {"captions_per_image", "caption_sentences"} & set(content["options"])
    with one.open_shard(0) as reader:
        assert unpack_label(unpack(reader[0])[0])[1].tolist() == tokenize([first[0][1]])[0].tolist()


def test_input_shards_are_merged(data, tmp_path):
    tars, captions, path = data
    for number in (0, 1):
        files = TextFiles(captions=(str(captions),))
        build_shards(tars, tmp_path / "m", texts=files, policy=policy(3), input_shard=InputShard(number, 2))
    assert merge(tmp_path / "m") == 0
    merged = load_manifest(tmp_path / "m")
    assert merged.captions_per_image == 3 and verify(tmp_path / "m") == 0
    found = {row["key"]: row["captions"] for row in read_texts(merged)}
    assert found == {row["key"]: row["captions"] for row in read_texts(load_manifest(path))}
    build_shards(tars, tmp_path / "n", texts=files, policy=policy(2), input_shard=InputShard(0, 2))
    build_shards(tars, tmp_path / "n", texts=files, policy=policy(3), input_shard=InputShard(1, 2))
    with pytest.raises(UserError, match="differ in captions_per_image"):
        merge(tmp_path / "n")


def test_a_shuffled_build_has_the_same_samples(data, tmp_path):
    tars, captions, path = data
    files = TextFiles(captions=(str(captions),))
    manifest = build_shards(tars, tmp_path / "s", texts=files, policy=policy(3), shuffle_seed=5)
    rows, before = ({row["key"]: row for row in read_texts(one)} for one in (manifest, load_manifest(path)))
    assert rows == before and list(rows) != list(before) and verify(tmp_path / "s") == 0


def test_another_number_of_captions_is_another_build(data):
    tars, captions, path = data
    for options, what in ((policy(1), "captions_per_image"), (policy(3, "only"), "caption_sentences")):
        with pytest.raises(UserError, match=f"another {what}"):
            build_shards(tars, path, texts=TextFiles(captions=(str(captions),)), policy=options, samples_per_shard=25)


def test_verify_finds_labels_that_are_not_the_manifests(data, tmp_path, capsys):
    _, _, path = data
    manifest = load_manifest(path)
    replace(manifest, captions_per_image=2).save(tmp_path)
    for shard in manifest.shards:
        for name in (shard.rec, shard.idx, shard.sidecar):
            (tmp_path / name).symlink_to(manifest.path(name))
    assert verify(tmp_path / "set") == 1
    assert "3 captions, the manifest has at most 2" in capsys.readouterr().out


# Captions files


def table(tmp_path, *files: tuple[str, str | bytes], several: bool = True) -> CaptionTable:
    paths = []
    for name, content in files:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        paths.append(str(tmp_path / name))
    (tmp_path / "index").unlink(missing_ok=True)
    return CaptionTable(paths, tmp_path / "index", several=several)


def lines(*entries: dict) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def test_every_way_to_give_several(tmp_path):
    want = ["one", "two", "three"]
    for file in (
        ("a.jsonl", lines({"key": "k", "captions": want})),
        ("b.jsonl", lines({"key": "k", "caption": "one", "captions": ["two", None, "three", " "]})),
        ("i.jsonl", lines({"key": "k", "caption": "one", "captions": ["one", "two", "three"]})),
        ("c.jsonl", lines({"key": "k", "caption_10": "three", "caption": "one", "caption_2": "two", "caption_x": "?"})),
        ("d.csv", "key,caption,caption_2,caption_3\nk,one,two,three\n"),
        ("e.csv", "key,caption\nk,one\nother,x\nk,two\nk,three\n"),
        ("f.tsv", "k\tone\nk\ttwo\nk\tthree\n"),
        ("h.tsv", "key\tcaption_2\tcaption\tcaption_3\nk\ttwo\tone\tthree\n"),
        ("g.json", json.dumps([{"image_id": "k", "caption": one} for one in want])),
    ):
        found = table(tmp_path, file)
        assert found.get("k") == found.get("k#2", image_key="k") == want, file
        assert found.get("none") is None
    columns = {"key": ["k", "m"], "captions": [want, ["four"]]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "h.parquet")
    found = CaptionTable([str(tmp_path / "h.parquet")], tmp_path / "parquet-index", several=True)
    assert (found.get("k"), found.get("m")) == (want, ["four"])


def test_several_files_are_joined_in_order(tmp_path):
    first = ("1.jsonl", lines({"key": "a", "captions": ["x", "y"]}, {"key": "b", "caption": "old"}))
    second = ("2.csv", "key,caption\nb,new\na,z\nc,only here\n")
    found = table(tmp_path, first, second)
    assert [found.get(key) for key in "abc"] == [["x", "y", "z"], ["old", "new"], ["only here"]]
    found = table(tmp_path, first, second, several=False)
    assert [found.get(key) for key in "abc"] == [["x", "y"], ["old"], ["only here"]]


def test_the_index_gives_what_a_dictionary_gives(tmp_path):
    rng = random.Random(3)
    entries = [(f"k{rng.randrange(40)}", f"text {number}") for number in range(300)]
    cuts = [entries[:100], entries[100:180], entries[180:]]
    files = [(f"{n}.tsv", "".join(f"{key}\t{text}\n" for key, text in cut)) for n, cut in enumerate(cuts)]
    several, one = {}, {}
    for key, text in entries:
        several.setdefault(key, []).append(text)
    for cut in reversed(cuts):
        one.update(dict(cut))  # within a file the later line, of the files the first
    assert {key: table(tmp_path, *files).get(key) for key in list(several)[:5]} == dict(list(several.items())[:5])
    both = table(tmp_path, *files), table(tmp_path, *files, several=False)
    for key, texts in several.items():
        assert (both[0].get(key), both[1].get(key)) == (texts, [one[key]])


HOSTILE = {
    "empty list": ({"key": "k", "captions": []}, "entry 1: captions is an empty list"),
    "nested list": ({"key": "k", "captions": ["a", ["b"]]}, "entry 1: captions[1] should be a text, not ['b']"),
    "numbers": ({"key": "k", "captions": [1, 2]}, "entry 1: captions[0] should be a text, not 1"),
    "no list": ({"key": "k", "captions": "one"}, "entry 1: captions should be a list of texts, not 'one'"),
    "object": ({"key": "k", "captions": {"0": "x" * 999}}, "captions should be a list of texts, not {'0': 'xxx"),
    "10,000": ({"key": "k", "captions": ["x"] * 10_000}, "entry 1: 10,000 captions, the limit is 1,000"),
    "surrogate": ({"key": "k", "captions": ["a", "\ud800"]}, "half a character"),
    "nothing": ({"key": "k", "caption_x": "a"}, "should have a key (or image_id) and a caption, or a list of captions"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_lists_are_one_line(tmp_path, name):
    entry, part = HOSTILE[name]
    with pytest.raises(UserError) as error:
        table(tmp_path, ("c.jsonl", lines(entry)))
    assert part in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300


def test_keys_that_come_twice(tmp_path):
    with pytest.raises(UserError, match="'k' comes twice, and one of its entries has several captions"):
        table(tmp_path, ("c.jsonl", lines({"key": "k", "captions": ["a", "b"]}, {"key": "k", "caption": "c"})))
    with pytest.raises(UserError, match="1,001 captions of 'k', the limit is 1,000"):
        table(tmp_path, ("c.tsv", "".join(f"k\t{i}\n" for i in range(1001))))
    assert table(tmp_path, ("c.tsv", "k\ta\nk\tb\n"), several=False).get("k") == ["b"]


# From captions to a record


def sample(*captions: str, text: str | None = "a text") -> Sample:
    return Sample("k", "here", encoded(make_image(1)), "k.jpg", text, captions)


def stored(one: Sample, chosen: Policy) -> list[str] | str:
    (record,) = prepare([one], chosen)
    return record.row[5] if hasattr(record, "row") else record.reason


def test_captions_with_the_same_tokens_count_once_and_unusable_ones_are_left_out():
    long = "x" * 1_000_001
    assert stored(sample("A dog.", "a  dog.", "a cat", "A dog."), policy(4)) == ["A dog.", "a cat"]
    assert stored(sample("\x01", "a cat", "half a \ud800 one", long), policy(4)) == ["a cat"]
    assert stored(sample("a", "b", "c"), policy(2)) == ["a", "b"]
    assert stored(sample("\x01", "\x02"), policy(4)) == "missing-caption"
    assert stored(sample(), policy(4, missing_caption="use-text")) == ["a text"]
    assert stored(sample(long), policy(4)) == "bad-text"
    (record,) = prepare([sample("b", "c", text=None)], policy(4, missing_text="use-caption"))
    assert record.row[1] == "b" and record.row[5] == ["b", "c"]


def test_sentences_become_captions():
    long = "A dog runs. It is brown.\nThe grass is 3.5 cm high."
    sentences = ["A dog runs.", "It is brown.", "The grass is 3.5 cm high."]
    assert stored(sample(long, "A cat."), policy(9, "only")) == [*sentences, "A cat."]
    assert stored(sample(long, "A cat."), policy(9, "with-whole")) == [long, *sentences, "A cat."]
    assert stored(sample(long, "A cat."), policy(3, "with-whole")) == [long, *sentences[:2]]
    assert stored(sample("!!!"), policy(3, "only")) == ["!!!"]


SENTENCES = [
    ("A dog runs. It is brown.", ["A dog runs.", "It is brown."]),
    ("Dr. Smith weighs 3.5 kg. He smiles!", ["Dr. Smith weighs 3.5 kg.", "He smiles!"]),
    ("a dog runs. 2 cats sleep. they dream", ["a dog runs.", "2 cats sleep.", "they dream"]),
    ("狗在跑。猫在睡！天气很好", ["狗在跑。", "猫在睡！", "天气很好"]),
    ("J. R. R. Tolkien left the U.S. in May. Good.", ["J. R. R. Tolkien left the U.S. in May.", "Good."]),
    (
        "A cat sat. It sees the sun. On Sat. Mr. Jones comes.",
        ["A cat sat.", "It sees the sun.", "On Sat. Mr. Jones comes."],
    ),
    ("No. 5 is red. She said no. He left.", ["No. 5 is red.", "She said no.", "He left."]),
    ('She said "Stop!" and left. "Go." He did.', ['She said "Stop!" and left.', '"Go."', "He did."]),
    ("1. A dog.\n2. A cat.\n- a third\n\n## Title", ["A dog.", "A cat.", "a third", "Title"]),
    ("Wait... what? Yes... No.", ["Wait... what?", "Yes...", "No."]),
    ("Cats, e.g. Persian cats, sleep. See www.a.org now.", ["Cats, e.g. Persian cats, sleep.", "See www.a.org now."]),
    ("यह एक कुत्ता है। वह भागता है।", ["यह एक कुत्ता है।", "वह भागता है।"]),
    ("...!!", []),
    (" ", []),
    ("one", ["one"]),
]


@pytest.mark.parametrize(("text", "expected"), SENTENCES)
def test_sentences(text, expected):
    assert split_sentences(text) == expected


def test_sentences_lose_no_word_and_take_no_longer_than_the_text():
    rng = random.Random(0)
    signs = ["dog", "Cat", "3.5", "U.S.", "Mr.", "。", ".", "!", "?", '"', "(", ")", "\n", " ", "e.g.", "- ", "é", "…"]
    for _ in range(500):
        text = "".join(rng.choice(signs) + rng.choice(["", " "]) for _ in range(rng.randrange(30)))
        kept = "".join(split_sentences(text))
        assert re.sub(r"\W", "", kept) == re.sub(r"\W", "", text)
    for text in ("e.g. " * 40_000, "." * 200_000, "a" * 200_000, "1. " * 60_000, '."' * 100_000, "。" * 200_000):
        split_sentences(text)  # quadratic time would not end


# The source's own captions


def test_a_sources_field_may_be_a_list(tmp_path):
    from alip.build.open_source import open_source
    from alip.build.sources import Fields

    make_tars(tmp_path / "tars", 2)
    (tmp_path / "a.jpg").write_bytes(encoded(make_image(0)))
    rows = [
        {"image": "a.jpg", "text": "t", "captions": ["x", "y"]},
        {"image": "a.jpg", "text": "t", "captions": [["x"]]},
    ]
    (tmp_path / "t.jsonl").write_text(lines(*rows))
    good, bad = open_source(str(tmp_path / "t.jsonl"), fields=Fields(caption="captions"))
    assert good.captions == ("x", "y") and "bad-text" in bad.error and "no list of texts" in bad.error


# Selecting captions by their scores


@pytest.mark.parametrize("replace_text", [None, "caption_index == 1 and image_text_similarity < 0.3"])
def test_captions_are_selected_one_by_one(data, tmp_path, replace_text):
    _, _, path = data
    scores = write_made_up_table(path, tmp_path / "gates.parquet")
    keep = "image_caption_similarity > 0.1"
    summary = select(path, scores, tmp_path / "kept", keep=keep, replace_text_where=replace_text, quiet=True)
    expected, before = {}, list(read_texts(load_manifest(path)))
    for row in pyarrow.parquet.read_table(scores).to_pylist():
        if row["image_caption_similarity"] > 0.1:
            entry = expected.setdefault(row["key"], {"captions": [], "text": row["text"]})
            entry["captions"].append(row["caption"])
            swaps = row["caption_index"] == 1 and row["image_text_similarity"] < 0.3
            if replace_text and swaps and entry["text"] == row["text"]:
                entry["text"] = row["caption"]
    found = list(read_texts(summary.manifest))
    assert {row["key"]: {"captions": row["captions"], "text": row["text"]} for row in found} == expected
    assert [row["caption"] for row in found] == [row["captions"][0] for row in found]
    replaced = sum(json.loads(row["metadata"]).get("replaced_text") is not None for row in found)
    assert 0 < len(found) < len(before) and bool(replaced) == bool(replace_text) and summary.replaced == replaced
    kept = sum(len(one["captions"]) for one in expected.values())
    assert summary.captions == [sum(len(row["captions"]) for row in before), kept] and f"{kept} of" in summary.text()
    assert verify(tmp_path / "kept") == 0
    with summary.manifest.open_shard(0) as reader:
        text, captions = unpack_captions(unpack(reader[0])[0])
    assert np.array_equal([text, *captions], tokenize([found[0]["text"], *found[0]["captions"]]).numpy())


def test_tables_that_are_not_of_these_captions(data, tmp_path):
    _, _, path = data
    manifest = load_manifest(path)
    scores = write_made_up_table(path, tmp_path / "gates.parquet")
    table = pyarrow.parquet.read_table(scores)
    rows = np.arange(len(table))
    wrong = {
        "short": rows[:-1], "missing": np.delete(rows, 4), "twice": np.insert(rows, 5, 5), "order": rows[::-1],
        "first": rows[1:],
    }  # fmt: skip
    for name, chosen in wrong.items():
        pyarrow.parquet.write_table(table.take(chosen), tmp_path / f"{name}.parquet", write_page_checksum=True)
        with ScoreTable(tmp_path / f"{name}.parquet") as one:
            try:
                one.check_data(manifest)
            except UserError as error:
                assert "the rows are not those of" in str(error)
            else:  # the last sample without its last caption: only its record shows that
                assert name == "short" and len(list(read_texts(manifest))[-1]["captions"]) > 1
    with pytest.raises(UserError, match="has 3 captions, the table has 2 rows of it"):
        select(path, tmp_path / "short.parquet", tmp_path / "x", keep="index >= 0", quiet=True)
    plain = replace(manifest, captions_per_image=1)
    with pytest.raises(UserError, match="has no row for each caption"), ScoreTable(scores) as one:
        one.check_data(plain)
