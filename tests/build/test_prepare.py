"""One bad sample is one reject: whatever its image, texts or metadata do, its neighbours become records."""

import os
import signal

import numpy as np
import open_clip
import pytest

from alip.build import prepare as module
from alip.build.open_source import open_source
from alip.build.prepare import Policy, PreparedSample, prepare
from alip.build.sources import ByteRange, Sample
from alip.errors import UserError
from alip.tokens import unpack_label
from tests.helpers.shards import encoded, make_image

JPEG = encoded(make_image(1))


def sample(key="a", text="a text", caption="a caption", image=JPEG, **other) -> Sample:
    captions = () if caption is None else (caption,)
    return Sample(key, f"here:{key}", image, f"{key}.jpg", text, captions, **other)


def outcome(samples, policy=None):
    return [
        one.row[0] if isinstance(one, PreparedSample) else (one.key, one.reason)
        for one in prepare(samples, policy or Policy())
    ]


BAD = {
    "missing-image": {"image": ByteRange("/nowhere/x.jpg")},
    "unreadable": {"image": ByteRange("/")},
    "empty": {"image": b""},
    "bad-text": {"text": "half a \ud800 character"},
    "missing-text": {"text": " \x1f\ufeff"},
    "missing-caption": {"caption": "\x01\x02"},
    "missing-texts": {"text": None, "caption": None},
    "failed": {"metadata": {"x": {1: 2, "y": 3}}},  # keys that cannot be sorted
    "ambiguous": {"error": "ambiguous: two images"},
}


@pytest.mark.parametrize("reason", BAD)
def test_one_bad_sample_among_good_ones(reason):
    got = outcome([sample("a"), sample("bad", **BAD[reason]), sample("c")])
    assert got == ["a", ("bad", reason), "c"]


def test_the_path_of_a_missing_image_is_named():
    """With an --image-root the row's own path says too little."""
    (one,) = prepare([sample("bad", image=ByteRange("/nowhere/x.jpg"))], Policy())
    assert one.message == "no such file: /nowhere/x.jpg"


@pytest.mark.parametrize("depth, reads", [(40, True), (60, False), (600, False), (100_000, False)])
def test_deeply_nested_metadata_cannot_end_a_build(tmp_path, depth, reads):
    """600 levels can be read, but not be sent to a worker process."""
    lines = ['{"image": "a.jpg", "text": "x", "caption": "y", "n": 1}'] * 3
    lines[1] = '{"image": "a.jpg", "text": "x", "caption": "y", "deep": ' + "[" * depth + "]" * depth + "}"
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    results = list(module.prepare_all(open_source(str(tmp_path / "t.jsonl")).samples(), Policy(), workers=1))
    assert [isinstance(one, PreparedSample) for one in results] == [True, reads, True]


def test_a_sample_that_kills_its_worker_is_a_reject(monkeypatch):
    """As images do that crash a decoder: forked workers share the function that is replaced here."""
    stored = module.to_jpeg

    def deadly(data, *others):
        if data == b"deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        return stored(data, *others)

    monkeypatch.setattr(module, "to_jpeg", deadly)
    monkeypatch.setattr(module, "in_use", lambda: False)  # a test before may have read from a store
    samples = [sample(str(i), image=b"deadly" if i in (40, 77) else JPEG) for i in range(100)]
    results = list(module.prepare_all(samples, Policy(), workers=2))
    assert [getattr(one, "key", None) or one.row[0] for one in results] == [str(i) for i in range(100)]
    assert [one.key for one in results if getattr(one, "reason", "") == "killed-its-worker"] == ["40", "77"]
    with pytest.raises(UserError, match="again and again"):
        list(module.prepare_all([sample(str(i), image=b"deadly") for i in range(40)], Policy(), workers=1))


def test_a_long_text_is_a_reject(monkeypatch):
    monkeypatch.setattr(module, "MAX_TEXT", 1000)
    assert outcome([sample("a", text="x " * 501), sample("b")]) == [("a", "bad-text"), "b"]


def test_a_tokenizer_that_stumbles_costs_only_the_text(monkeypatch):
    import alip.tokens

    tokenize = alip.tokens.tokenize

    def stumbling(texts, *args):
        if any("boom" in text for text in texts):
            raise RuntimeError("boom")
        return tokenize(texts, *args)

    monkeypatch.setattr(alip.tokens, "tokenize", stumbling)
    assert outcome([sample("a"), sample("b", caption="boom"), sample("c")]) == ["a", ("b", "bad-text"), "c"]


def test_an_emptied_text_counts_as_missing():
    policy = Policy(missing_caption="use-text", missing_text="use-caption")
    one, two = prepare([sample("a", text="\ufeff"), sample("b", caption=" \ufeff\x07")], policy)
    assert one.row[1:3] == ("a caption", "a caption") and two.row[1:3] == ("a text", "a text")
    assert outcome([sample("a", text="\ufeff", caption="\x01")], policy) == [("a", "missing-texts")]


def test_ids_are_those_of_the_raw_text():
    texts = [
        "one\x1ctwo",
        "Ã©\nÃ\xa0",
        "x\u2028y",
        "\ufeffa b",
        "é\rÃ©",
        "a\x85b",
        " &amp;amp; ",
        "tab\there",
        "a\x0bb",
    ]
    records = prepare([sample(str(i), text=text, caption=text) for i, text in enumerate(texts)], Policy())
    expected = open_clip.tokenize(texts).numpy()
    for text, record, row in zip(texts, records, expected):
        for ids in unpack_label(record.label):
            assert np.array_equal(ids, row), repr(text)
        assert record.row[1] == text  # so that the ids can be made again from the sidecar


def test_keys_that_are_no_utf_8_stay_different():
    got = prepare([sample("a\udcff"), sample("a\udcfe")], Policy())
    assert [one.row[0] for one in got] == ["a\\udcff", "a\\udcfe"]
