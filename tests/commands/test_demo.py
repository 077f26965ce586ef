"""The demo's texts and tars: rates, labels, and nobody on both sides of a split."""

from __future__ import annotations

import json
import re
import sys
import tarfile

import pytest

from alip.errors import UserError
from tests.helpers.shards import ROOT


@pytest.fixture(scope="module")
def texts():
    sys.path.insert(0, str(ROOT / "scripts/demo"))
    try:
        import texts

        yield texts
    finally:
        sys.path.remove(str(ROOT / "scripts/demo"))


@pytest.fixture(scope="module")
def records():
    """The demo's training records, keyed as in the tars."""
    found = []
    for path in sorted((ROOT / "scripts/demo").glob("train-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    content = json.loads(tar.extractfile(member).read())
                    found.append({"key": member.name.removesuffix(".json"), **content})
    return found


def test_tars_hold_what_texts_makes(texts, records):
    """The committed tars and the code agree: corrupting the records' own texts again gives the stored texts."""
    again = texts.corrupt_texts(records, texts.MISMATCHED_FRACTION, texts.WRONG_CAPTION_FRACTION)
    assert again == records
    assert len(records) == 6164


def test_captions_file(texts, records):
    """Four captions of each training sample, the first of them its tar's; all right, or all wrong."""
    lines = [json.loads(line) for line in (ROOT / "scripts/demo/captions.jsonl").read_text().splitlines()]
    by_class = texts.names_by_class(records)
    class_only = 0
    for record, line in zip(records, lines, strict=True):
        captions = line["captions"]
        assert line["key"] == record["key"] and captions[0] == record["caption"] and len(set(captions)) == 4
        assert captions == texts.sampled_captions(record, by_class, texts.CAPTIONS_PER_IMAGE)
        name = re.compile(rf"((an? \w+ of )|(an? .* called ))?{re.escape(record['name'])}(, an? .*)?")
        named = [name.fullmatch(caption) is not None for caption in captions]
        if record["caption_is_wrong"]:
            assert not any(named)
        else:
            shown = zip(named, captions, strict=True)
            assert all(is_named or record["class"] in caption for is_named, caption in shown)
            class_only += sum(not is_named for is_named in named[1:])
    right = sum(not record["caption_is_wrong"] for record in records)
    assert class_only / (3 * right) == pytest.approx(texts.CLASS_ONLY_FRACTION, abs=0.02)


def test_rates_and_labels(texts, records):
    for mismatched, wrong in ((0.0, 0.0), (0.4, 0.1), (0.6, 0.3)):
        rows = texts.corrupt_texts(records, mismatched, wrong)
        assert sum(row["is_mismatched"] for row in rows) / len(rows) == pytest.approx(mismatched, abs=0.03)
        assert sum(row["caption_is_wrong"] for row in rows) / len(rows) == pytest.approx(wrong, abs=0.02)
        for row in rows:
            assert row["is_mismatched"] == (row["text"].split(",")[0] != row["own_text"].split(",")[0])
            if row["caption_is_wrong"]:
                assert row["name"] not in row["caption"].split(",")[0].split(" of ")
        assert {row["text"] for row in rows} <= {row["own_text"] for row in rows}


def test_higher_rates_hold_the_lower_ones(texts, records):
    low, high = (texts.corrupt_texts(records, rate, rate / 2) for rate in (0.2, 0.6))
    for label in ("is_mismatched", "caption_is_wrong"):
        assert {row["key"] for row in low if row[label]} < {row["key"] for row in high if row[label]}


def test_no_designer_is_on_both_sides():
    """A concept's held-out style is by a designer of whom training has no image of that concept."""
    designers: dict[str, dict[str, set]] = {}
    for split in ("train", "held-out-style", "held-out-concept"):
        for path in (ROOT / "scripts/demo").glob(f"{split}-*.tar"):
            with tarfile.open(path) as tar:
                for name in tar.getnames():
                    designer = name.split("-")[0]
                    designers.setdefault(_code(name), {}).setdefault(split, set()).add(designer)
    for code, found in designers.items():
        assert not found.get("train", set()) & found.get("held-out-style", set()), code
        assert "held-out-concept" not in found or len(found) == 1, code


def _code(name: str) -> str:
    stem = name.rsplit(".", 1)[0]
    for style in ("fluent-3d", "fluent-flat", "fluent-modern", "google", "twitter", "openmoji"):
        if stem.startswith(style + "-"):
            return stem.removeprefix(style + "-")
    raise AssertionError(name)


def test_unpacking_removes_nothing_of_others(texts, tmp_path):
    import unpack

    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="holds something else"):
        unpack.unpack(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
