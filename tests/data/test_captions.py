"""Several captions in a record's label, and which of them an epoch takes, against their definitions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from alip.build.joined_texts import TextFiles
from alip.build.prepare import CaptionPolicy, Policy
from alip.data import recordio
from alip.data.captions import SAMPLING, choose_captions, count_captions, take_texts
from alip.data.loader import create_loader
from alip.data.order import uniform
from alip.data.sample_reader import Records
from alip.data.shards import Manifest, Shard, load_manifest, read_texts
from alip.distributed import World
from alip.errors import UserError
from alip.tokens import pack_label, tokenize, unpack_captions
from tests.helpers.shards import build_shards, encoded, make_captioned_tars, make_image

LENGTH = 77


def random_rows(rng: np.random.Generator, count: int) -> np.ndarray:
    """Rows of token ids as the tokenizer makes them: start, words, end, padding."""
    rows = np.zeros((count, LENGTH), np.int64)
    for row in rows:
        size = int(rng.integers(2, LENGTH + 1))
        row[: size - 1] = rng.integers(1, 49000, size - 1)
        row[size - 1] = 49407
    return rows


@pytest.mark.parametrize("more", [0, 1, 2, 7])
def test_labels_of_several_captions_round_trip(more):
    rows = random_rows(np.random.default_rng(more), 2 + more)
    label = pack_label(*rows[:2], rows[2:])
    sizes = [int(row.argmax()) + 1 for row in rows[2:]]
    assert label.dtype == np.float32 and len(label) == 154 + (1 + more + sum(sizes) if more else 0)
    assert label[:154].tolist() == [*rows[0], *rows[1]]  # the released layout comes first
    text, captions = unpack_captions(label)
    assert text.tolist() == rows[0].tolist() and captions.tolist() == rows[1:].tolist()


def broken(rng: np.random.Generator, label: np.ndarray) -> np.ndarray:
    """The label with something wrong behind the released layout, or cut, or longer."""
    label = label.copy()
    what = rng.integers(5)
    if what == 0:
        return label[: rng.integers(154, len(label))]
    if what == 1:
        return np.append(label, np.float32(3))
    at = 154 if what == 2 else 155
    label[at] = rng.choice([0, 0.5, -1, 1e9, np.nan, np.inf, label[at] + 1, label[at] - 1])
    return label


@pytest.mark.filterwarnings("ignore:invalid value")
def test_many_labels_at_a_time_are_read_as_one_by_one():
    rng = np.random.default_rng(0)
    labels = []
    for number in range(300):
        rows = random_rows(rng, int(rng.integers(2, 8)))
        label = pack_label(*rows[:2], rows[2:])
        labels.append(broken(rng, label) if number % 5 == 0 and len(label) > 154 else label)
    words = np.concatenate(labels)
    sizes = np.array([len(label) for label in labels])
    start = np.cumsum(sizes) - sizes
    counts = count_captions(words, start, sizes, LENGTH, 5)
    expected = []
    for label in labels:
        try:
            captions = len(unpack_captions(label)[1])
            expected.append(captions if captions <= 5 else 0)
        except ValueError:
            expected.append(0)
    assert counts.tolist() == expected and {0, 1, 5} <= set(expected)

    rows = np.flatnonzero(counts)
    numbers = rng.integers(0, counts[rows])
    texts = take_texts(words, start[rows], numbers, LENGTH)
    for row, number, taken in zip(rows, numbers, texts, strict=True):
        text, captions = unpack_captions(labels[row])
        assert taken.tolist() == [*text, *captions[number]]


@pytest.mark.parametrize("sampling", SAMPLING)
def test_a_choice_depends_on_seed_epoch_and_sample_alone(sampling):
    rng = np.random.default_rng(1)
    index, counts = rng.permutation(5000)[:400], rng.integers(1, 6, 400)
    for epoch in (0, 3):
        chosen = choose_captions(sampling, counts, 7, epoch, index)
        for i, count, number in zip(index, counts, chosen, strict=True):
            value = uniform(7, epoch if sampling == "random" else 0, np.array([i]), 100)[0]
            by_hand = {"first": 0, "random": int(value * count), "round-robin": (int(value * count) + epoch) % count}
            assert number == by_hand[sampling]
        back = rng.permutation(400)
        assert np.array_equal(choose_captions(sampling, counts[back], 7, epoch, index[back]), chosen[back])


def test_each_caption_has_the_same_chance_and_round_robin_takes_each_once():
    index, counts = np.arange(3000), np.full(3000, 3)
    found = Counter(choose_captions("random", counts, 0, 5, index).tolist())
    assert set(found) == {0, 1, 2} and min(found.values()) > 900
    epochs = np.stack([choose_captions("round-robin", counts, 0, epoch, index) for epoch in range(3)])
    assert (np.sort(epochs, axis=0) == [[0], [1], [2]]).all() and len(set(epochs[0].tolist())) == 3
    with pytest.raises(ValueError, match="unknown caption sampling 'last'"):
        choose_captions("last", counts, 0, 0, index)


def test_a_label_of_text_and_two_captions_holds_their_tokens():
    text, first, second = tokenize(["a raw text", "a caption", "another one"]).numpy()
    label = pack_label(text, first, [second])
    assert label[154:157].tolist() == [1, 4, second[0]] and len(label) == 160
    with pytest.raises(ValueError, match="caption tokens have shape"):
        pack_label(text, first, [second[:5]])


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Shards of 90 samples with 1 to 4 captions each."""
    folder = tmp_path_factory.mktemp("captions")
    tars, captions = make_captioned_tars(folder / "tars", 90, 4)
    policy = Policy(captions=CaptionPolicy(4))
    build_shards(tars, folder / "set", texts=TextFiles(captions=(str(captions),)), policy=policy, samples_per_shard=40)
    return folder / "set"


@pytest.mark.parametrize(("sampling", "reader"), [("random", "dali"), ("round-robin", "torch"), ("first", "torch")])
def test_batches_hold_the_caption_of_the_epoch_on_any_ranks_from_any_position(several, sampling, reader):
    manifest = load_manifest(several)
    rows = [[row["text"], *row["captions"]] for row in read_texts(manifest)]
    tokens = [tokenize(texts) for texts in rows]
    counts = np.array([len(texts) - 1 for texts in rows])
    for world_size, epoch, start in ((1, 0, 0), (3, 2, 0), (2, 2, 24)):
        chosen = choose_captions(sampling, counts, 5, epoch, np.arange(90))
        for rank in range(world_size):
            form = {"image_size": 16, "mean": (0.5,) * 3, "std": (0.5,) * 3}
            world = World(rank, rank, world_size)
            one = create_loader(manifest, 8, world=world, seed=5, reader=reader, caption_sampling=sampling, **form)
            for batch in one.epoch(epoch, start):
                for row, index in enumerate(batch.index.tolist()):
                    assert torch.equal(batch.text_tokens[row], tokens[index][0])
                    assert torch.equal(batch.caption_tokens[row], tokens[index][1 + chosen[index]])


def test_all_captions_and_odd_records_are_read(several, tmp_path):
    manifest = load_manifest(several)
    records = Records(manifest, 49408)
    counts, found = records.captions(np.array([70, 3, 4]))
    texts = [row["captions"] for row in read_texts(manifest)]
    assert counts.tolist() == [3, 4, 1] == [len(texts[i]) for i in (70, 3, 4)]
    assert np.array_equal(found, tokenize([*texts[70], *texts[3], *texts[4]]).numpy())
    plain = Records(replace(manifest, captions_per_image=1), 49408)
    with pytest.raises(UserError, match="several captions without their manifest"):
        plain.read(np.array([3]))
    fewer = Records(replace(manifest, captions_per_image=3), 49408)
    assert len(fewer.read(np.array([70, 0]))[0]) == 2
    with pytest.raises(UserError, match=r"record 3 .* has 4 captions, the manifest at most 3"):
        fewer.read(np.array([70, 3]))
    with pytest.raises(UserError, match="unknown caption sampling 'last'"):
        create_loader(several, 8, image_size=16, mean=(0,) * 3, std=(1,) * 3, world=World(), caption_sampling="last")


def test_an_image_with_the_records_magic_in_it_is_read_the_slow_way(several, tmp_path):
    """Such a record is split into parts, which the fast path leaves to the general one."""
    text, first, second = tokenize(["a raw text", "a caption", "another one"]).numpy()
    image = encoded(make_image(0)) + b"\0" * 4 + recordio.MAGIC_BYTES * 2
    with recordio.Writer(tmp_path / "x.rec", tmp_path / "x.idx") as writer:
        for i in range(6):
            writer.write(recordio.pack(pack_label(text, first, [second] * (i % 2)), image + b"\0" * i, i))
        size = writer.offset
    manifest = Manifest("x", tmp_path, 6, (Shard("x.rec", "x.idx", None, 6, size),), captions_per_image=2)
    tokens, _, _ = Records(manifest, 49408).read(np.arange(6), lambda counts, index: counts - 1)
    assert [row[77:].tolist() for row in tokens] == [(second if i % 2 else first).tolist() for i in range(6)]
