"""Tokens against open_clip's tokenizer, and labels against their definition."""

import time

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from alip import tokens
from alip.build.sources import as_text

TEXTS = ["", "a photo of a dog", "Ünïcödé 東京 🙂 &amp; more", "word " * 200, "  spaces\t\n "]


def test_same_as_open_clip():
    assert torch.equal(tokens.tokenize(TEXTS), open_clip.tokenize(TEXTS))
    assert torch.equal(tokens.tokenize(TEXTS, 16), open_clip.tokenize(TEXTS, context_length=16))


SIGNS = [
    *(chr(number) for number in range(0x180)),
    *"\ufeff\u2028\u2029\u200b\u00a0\u3000\ufffd東京🙂",
    *("&amp;", "&#10;", "&lt;p&gt;", "<end_of_text>", "<start_of_text>", "Ã ", "Â\xa0", "â€œ", "Ã©", "\r\n", "é\nÃ©"),
]


@pytest.mark.parametrize("seed", range(5))
def test_same_as_open_clip_for_every_string(seed):
    """Control characters, line separators, marks of the byte order, broken encodings, entities, special tokens."""
    rng = np.random.default_rng(seed)
    texts = ["".join(SIGNS[i] for i in rng.integers(0, len(SIGNS), rng.integers(1, 30))) for _ in range(1000)]
    expected = open_clip.get_tokenizer("ViT-B-32")(texts)
    assert torch.equal(tokens.tokenize(texts), expected)
    kept = [(text, row) for text, row in zip((as_text(text) for text in texts), expected) if text is not None]
    assert torch.equal(tokens.tokenize([text for text, _ in kept]), torch.stack([row for _, row in kept]))
    assert all(tokens.is_empty(row) for text, row in zip(texts, expected) if as_text(text) is None)


def test_same_as_open_clip_for_plain_text():
    """Printable ASCII takes a shorter way than ftfy's; and words come up again."""
    rng = np.random.default_rng(0)
    signs = [*(chr(number) for number in range(0x20, 0x7F)), "<end_of_text>", "<START_OF_TEXT>", "don't", " it's ", "_"]
    words = ["".join(signs[i] for i in rng.integers(0, len(signs), rng.integers(1, 9))) for _ in range(200)]
    texts = [" ".join(words[i] for i in rng.integers(0, len(words), rng.integers(0, 40))) for _ in range(2000)]
    assert torch.equal(tokens.tokenize(texts), open_clip.tokenize(texts))
    assert all(tokens.clip_tokenizer().encode(text) == SimpleTokenizer().encode(text) for text in texts[:3])


@pytest.mark.parametrize("seed", range(40))
def test_long_words_have_the_same_ids(seed):
    rng = np.random.default_rng(seed)
    letters = ("ab", "abc", "etaoinshr", "ha", "東京都の漢字")[seed % 5]
    word = "".join(letters[i] for i in rng.integers(0, len(letters), 150 + 20 * seed))
    reference = SimpleTokenizer()
    assert tokens.clip_tokenizer().encode(word) == reference.encode(word)


def test_a_very_long_word_takes_seconds_not_hours():
    start = time.monotonic()
    word = "".join("abcdefghij"[i] for i in np.random.default_rng(0).integers(0, 10, 200_000))
    assert (tokens.tokenize([word]) > 0).all()
    assert time.monotonic() - start < 20


def test_is_empty():
    rows = tokens.tokenize(["", " \ufeff\x01", "<end_of_text>", "a"])
    assert [tokens.is_empty(row) for row in rows] == [True, True, True, False]


def test_too_long_text_keeps_its_end_token():
    row = tokens.tokenize(["word " * 200])[0]
    assert row[-1] == 49407 and row[0] == 49406 and (row > 0).all()


def test_empty_text_and_no_text():
    assert tokens.tokenize([""])[0].nonzero().flatten().tolist() == [0, 1]
    assert tokens.tokenize([]).shape == (0, 77)


def test_one_string_is_refused():
    with pytest.raises(TypeError, match="list of texts"):
        tokens.tokenize("a dog")


def test_lengths_count_start_and_end():
    rows = tokens.tokenize(["", "dog", "word " * 200])
    assert tokens.lengths(rows).tolist() == [2, 3, 77]
    assert tokens.lengths(rows).tolist() == (rows != 0).sum(1).tolist()


def test_decode():
    assert tokens.decode(tokens.tokenize(["A photo of a Dog!"])[0]) == "a photo of a dog !"


def test_label_round_trip():
    text, caption = tokens.tokenize(["a dog", "word " * 200])
    label = tokens.pack_label(text, caption)
    assert label.dtype == np.float32 and label.shape == (154,)
    back_text, back_caption = tokens.unpack_label(label)
    assert back_text.tolist() == text.tolist() and back_caption.tolist() == caption.tolist()
    assert back_text.dtype == np.int64


def test_every_token_id_is_exact_in_float32():
    ids = np.arange(49408, dtype=np.int64)
    assert np.array_equal(ids.astype(np.float32).astype(np.int64), ids)


@pytest.mark.parametrize("text", [np.zeros(76), np.zeros((1, 77)), np.zeros(0)])
def test_label_of_another_length_is_refused(text):
    with pytest.raises(ValueError, match="shape"):
        tokens.pack_label(text, np.zeros(77))
    with pytest.raises(ValueError, match="shape"):
        tokens.unpack_label(np.concatenate([text.ravel(), np.zeros(77)]).reshape((*text.shape[:-1], -1)))


@pytest.mark.parametrize("value", [0.5, -1.0, float("nan"), float("inf")])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_label_that_holds_no_ids_is_refused(value):
    label = np.zeros(154, np.float32)
    label[3] = value
    with pytest.raises(ValueError, match="token ids"):
        tokens.unpack_label(label)


def test_negative_ids_are_refused():
    with pytest.raises(ValueError, match="not token ids"):
        tokens.pack_label(np.full(77, -1), np.zeros(77))
