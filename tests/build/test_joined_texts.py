"""Captions chosen by an expression over their scores, and rewritten raw texts, on their way into shards."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alip.build.caption_scores import METADATA_KEY, VERSION, CaptionScores, KeptCaptions, scores_path
from alip.build.joined_texts import TextFiles
from alip.build.prepare import CaptionPolicy, Policy
from alip.build.rewrites import keep_old
from alip.build.text_hash import text_digest
from alip.data.shards import read_texts
from alip.errors import UserError
from tests.helpers.shards import build_shards, encoded, make_image

CAPTIONS = {f"{i}.jpg": f"a caption of number {i}" for i in range(6)}


def write_scores(path, captions=CAPTIONS, version=VERSION):
    """`value` counts the rows, `language` alternates."""
    metadata = {METADATA_KEY: json.dumps({"version": version})}
    columns = {"key": list(captions), "number": [0] * len(captions), "caption": list(captions.values())}
    columns |= {"value": [float(i) for i in range(len(captions))], "language": ["en", "de"] * (len(captions) // 2)}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, row_group_size=4)
    return path


@pytest.fixture
def folder(tmp_path):
    """Six images with raw texts and captions, and the captions' scores."""
    for i in range(6):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(make_image(i)))
    rows = "".join(f"{i}.jpg,raw text {i},own caption {i}\n" for i in range(6))
    (tmp_path / "t.csv").write_text("image,text,caption\n" + rows)
    lines = [json.dumps({"key": key, "caption": caption}) + "\n" for key, caption in CAPTIONS.items()]
    (tmp_path / "captions.jsonl").write_text("".join(lines))
    write_scores(tmp_path / "captions-scores.parquet")
    return tmp_path


def build(folder, name="set", policy=None, **texts):
    files = TextFiles((str(folder / "captions.jsonl"),), **texts)
    return build_shards(folder / "t.csv", folder / "out" / name, texts=files, policy=policy or Policy())


def test_only_captions_that_pass_get_into_the_shards(folder):
    manifest = build(folder, keep="value >= quantile(value, 0.5) and language == 'en'")
    assert {row["key"]: row["caption"] for row in read_texts(manifest)} == {"4.jpg": CAPTIONS["4.jpg"]}
    assert manifest.rejects == {"missing-caption": 5}  # the source's own caption is no way around the filter
    assert manifest.metadata["caption_filter"]["keys_without_caption"] == 5
    assert manifest.metadata["options"]["keep"].startswith("value >=")


def test_what_was_filtered_can_be_the_raw_text(folder):
    manifest = build(folder, keep="value < 2", policy=Policy(missing_caption="use-text"))
    captions = [row["caption"] for row in read_texts(manifest)]
    assert captions == [CAPTIONS["0.jpg"], CAPTIONS["1.jpg"], *(f"raw text {i}" for i in range(2, 6))]


def test_another_expression_is_another_build(folder):
    build(folder, keep="value < 2")
    assert build(folder, keep="value < 2").samples == 2  # already complete
    with pytest.raises(UserError, match="another keep"):
        build(folder, keep="value < 3")
    with pytest.raises(UserError, match="another keep"):
        build(folder)
    write_scores(folder / "captions-scores.parquet", dict(reversed(CAPTIONS.items())))
    with pytest.raises(UserError, match="another scores_sha256"):
        build(folder, keep="value < 2")


def test_a_caption_without_scores_is_named(folder):
    write_scores(folder / "captions-scores.parquet", CAPTIONS | {"3.jpg": "an older caption"})
    with pytest.raises(UserError, match=r"no scores for the caption 'a caption of number 3' of '3\.jpg'"):
        build(folder, keep="value < 2")


@pytest.mark.parametrize("several", [False, True])
def test_captions_of_other_images_need_no_scores(folder, several):
    with open(folder / "captions.jsonl", "a") as file:
        file.write(json.dumps({"key": "of another input.jpg", "caption": "never scored"}) + "\n")
    policy = Policy(captions=CaptionPolicy(per_image=2)) if several else None
    assert build(folder, keep="value < 2", policy=policy).samples == 2


def test_captions_of_an_image_that_could_not_be_scored_are_not_kept(folder):
    write_scores(folder / "captions-scores.parquet", CAPTIONS | {"1.jpg": "an older caption"})
    failure = {"key": "1.jpg", "error": "corrupt-image: it was, when captions were scored"}
    (folder / "captions-scores-failures.jsonl").write_text(json.dumps(failure) + "\n")
    manifest = build(folder, keep="value < 3")
    assert [row["key"] for row in read_texts(manifest)] == ["0.jpg", "2.jpg"]
    assert manifest.rejects == {"missing-caption": 4}


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("value > 99", "true for none of the 6 captions"),
        ("clip_score > 0.2", "no column 'clip_score'; the table has key, number, caption, value, language"),
        ("value", "gives a number, not true or false"),
    ],
)
def test_wrong_expressions(folder, keep, message):
    with pytest.raises(UserError, match=message):
        build(folder, keep=keep)


def test_wrong_tables(folder):
    scores = folder / "captions-scores.parquet"
    assert scores_path(folder / "captions.jsonl") == scores
    scores.rename(folder / "elsewhere.parquet")
    with pytest.raises(UserError, match=r"--keep needs .*captions-scores\.parquet: write it with"):
        build(folder, keep="value < 2")
    assert build(folder, keep="value < 2", scores=(str(folder / "elsewhere.parquet"),)).samples == 2
    pq.write_table(pa.table({"key": ["a"], "caption": ["b"]}), scores)
    with pytest.raises(UserError, match="is no table of"):
        CaptionScores(scores)
    write_scores(scores, version=99)
    with pytest.raises(UserError, match="version 99"):
        CaptionScores(scores)
    scores.write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        CaptionScores(scores)
    with pytest.raises(UserError, match="--keep belongs to"):
        TextFiles(keep="value < 2")


def test_captions_are_told_apart_by_key_and_text(tmp_path):
    table = {"a": "x", "b": "y", "a\0x": "z", "é": "雪", "e": ""}
    keep = KeptCaptions(write_scores(tmp_path / "s.parquet", table | {"f": "f"}), "language == 'en'")
    assert [keep(key, caption) for key, caption in table.items()] == [True, False, True, False, True]
    assert keep("a", "y") is None


def test_a_replaced_text_overwrites_nothing():
    metadata = {"original_text": "the source's own"}
    for text in ("first", "second"):
        keep_old(metadata, "original_text", text)
    assert list(metadata.values()) == ["the source's own", "first", "second"] and "original_text_3" in metadata


def test_rewritten_raw_texts(folder):
    texts = {1: "raw text 1", 4: "raw text 4", 5: "a text that number 5 has no more"}
    lines = [{"key": f"{i}.jpg", "rewrite": f"better text {i}", "text": text_digest(texts[i])} for i in texts]
    (folder / "rewrites.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "rewrites-run.json").write_text(json.dumps({"settings": {"captioner": "openai:m", "prompt": "p {text}"}}))
    manifest = build(folder, rewrites=str(folder / "rewrites.jsonl"))
    rows = {row["key"]: row for row in read_texts(manifest)}
    assert [row["text"] for row in rows.values()] == [
        f"{'better' if i in (1, 4) else 'raw'} text {i}" for i in range(6)
    ]
    assert {key: row["caption"] for key, row in rows.items()} == CAPTIONS  # captions stay what they were
    assert json.loads(rows["1.jpg"]["metadata"]) == {"original_text": "raw text 1"}
    assert "original_text" not in rows["2.jpg"]["metadata"]
    assert manifest.metadata["rewrites"]["made_by"]["captioner"] == "openai:m"
    (folder / "rewrites.jsonl").write_text('{"key": "other", "rewrite": "x", "text": "0"}\n')
    for _ in range(2):  # nor by repeating the command
        with pytest.raises(UserError, match=r"none of the rewrites' keys .* like 'other'"):
            build(folder, "set2", rewrites=str(folder / "rewrites.jsonl"))
    (folder / "captions.jsonl").write_text('{"key": "other", "caption": "x"}\n')
    with pytest.raises(UserError, match=r"none of the captions' keys .* like 'other'"):  # though there are samples
        build(folder, "third")
    (folder / "rewrites.jsonl").write_text('{"key": "1.jpg", "rewrite": "x"}\n')
    with pytest.raises(UserError, match="entry 1: should have key, text"):
        build(folder, "set3", rewrites=str(folder / "rewrites.jsonl"))


def test_a_file_without_captions_is_said_to_have_none(folder):
    (folder / "captions.jsonl").write_text("")
    (folder / "t.csv").write_text("image,text\n0.jpg,raw text\n")
    with pytest.raises(UserError, match="the captions files hold no captions"):
        build(folder)
