"""The loader: every sample once, the same from the same seed, on any number of ranks, from any position on."""

import dataclasses
import queue
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from alip.data import recordio
from alip.data.loader import Augmentation, create_loader, open_data
from alip.data.order import BLOCK, WINDOW, EpochOrder, uniform
from alip.data.sample_reader import Records
from alip.data.shards import Manifest, load_manifest, merged_index
from alip.distributed import World
from alip.errors import UserError
from alip.tokens import pack_label, tokenize
from tests.helpers.shards import build_shards, encoded, make_image, make_tars

FORM = {"image_size": 32, "mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28)}
EVERYTHING = Augmentation(rotation=20, shift=0.1, zoom=(0.7, 1.2), brightness=0.3, contrast=0.3)


def loader(shards, batch_size=16, rank=0, world_size=1, **options):
    options.setdefault("reader", "torch")
    return create_loader(shards, batch_size, world=World(rank, rank, world_size), **FORM, **options)


def indices(one, epoch=0, start=0) -> list[int]:
    return [i for batch in one.epoch(epoch, start) for i in batch.index.tolist()]


@pytest.mark.parametrize("samples", [1, 63, 64, 65, BLOCK * WINDOW + 1, 3 * BLOCK * WINDOW + 777])
def test_an_order_is_a_permutation_in_any_slices(samples):
    order = EpochOrder(samples, seed=3, epoch=1)
    whole = order.slice(0, samples)
    assert sorted(whole.tolist()) == list(range(samples))
    rng = np.random.default_rng(samples)
    for _ in range(20):
        a, b = sorted(rng.integers(0, samples + 50, 2).tolist())
        assert (EpochOrder(samples, 3, 1).slice(a, b) == whole[a:b]).all()
    assert (EpochOrder(samples, 0, 0, shuffle=False).slice(0, samples) == np.arange(samples)).all()
    if samples > 60:
        assert (whole != EpochOrder(samples, 3, 2).slice(0, samples)).any()
        assert (whole != EpochOrder(samples, 4, 1).slice(0, samples)).any()


def test_an_order_mixes_far_and_near():
    samples = 200_000
    whole = EpochOrder(samples, 0, 0).slice(0, samples)
    batch = np.sort(whole[:4096])
    assert np.abs(np.corrcoef(whole, np.arange(samples))[0, 1]) < 0.05
    assert (np.histogram(batch, 10, (0, samples))[0] > 100).all(), "a batch comes from all over the dataset"
    assert (np.abs(np.diff(whole)) < BLOCK).mean() < 0.02, "neighbours do not come one after the other"


def test_uniform_is_uniform_and_depends_on_everything():
    index = np.arange(20_000)
    base = uniform(1, 2, index, 3)
    assert abs(base.mean() - 0.5) < 0.01 and abs(base.var() - 1 / 12) < 0.003 and 0 <= base.min() < base.max() < 1
    for other in (
        uniform(2, 2, index, 3),
        uniform(1, 3, index, 3),
        uniform(1, 2, index, 4),
        uniform(1, 2, index + 1, 3),
    ):
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.03
    assert (uniform(1, 2, index[::-1], 3) == base[::-1]).all()


@pytest.mark.parametrize("reader", ["dali", "torch"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_sample_once_over_all_ranks(shards, reader, world_size):
    """230 samples in 4 shards of unequal size: nothing twice, nothing left but the last incomplete batch."""
    for epoch in (0, 1):
        per_rank = [indices(loader(shards, 16, rank, world_size, reader=reader), epoch) for rank in range(world_size)]
        expected = 230 // (16 * world_size)
        assert [len(one) for one in per_rank] == [16 * expected] * world_size
        seen = [i for one in per_rank for i in one]
        assert len(set(seen)) == len(seen) == 16 * world_size * expected
    assert loader(shards, 16, 0, world_size).batches_per_epoch == expected


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_last_incomplete_batch_on_request(shards, world_size):
    ranks = [loader(shards, 16, rank, world_size, drop_last=False, shuffle=False) for rank in range(world_size)]
    assert len({one.batches_per_epoch for one in ranks}) == 1
    seen = [i for one in ranks for i in indices(one)]
    assert sorted(seen) == list(range(230))
    assert [len(list(one.epoch(0))) for one in ranks] == [ranks[0].batches_per_epoch] * world_size


@pytest.mark.parametrize("reader", ["dali", "torch"])
def test_the_same_seed_gives_the_same_and_epochs_differ(shards, reader):
    first, second = (loader(shards, reader=reader, seed=5, augmentation=EVERYTHING, threads=n) for n in (1, 2))
    for a, b in zip(first.epoch(2), second.epoch(2)):
        assert torch.equal(a.image, b.image) and torch.equal(a.index, b.index)
    assert indices(first, 0) != indices(first, 1)
    assert indices(first, 0) != indices(loader(shards, seed=6), 0)
    unshuffled = loader(shards, reader=reader, shuffle=False)
    zero, one = (next(iter(unshuffled.epoch(epoch))) for epoch in (0, 1))
    assert torch.equal(zero.index, one.index) and not torch.equal(zero.image, one.image), "crops change with the epoch"


@pytest.mark.parametrize("reader", ["dali", "torch"])
def test_resume_in_mid_epoch_is_exact(shards, reader):
    whole = list(loader(shards, reader=reader, augmentation=EVERYTHING).epoch(1))
    running = loader(shards, reader=reader, augmentation=EVERYTHING)
    position = 0
    for _, batch in zip(range(5), running.epoch(1)):
        position += len(batch.index)
    resumed = loader(shards, reader=reader, augmentation=EVERYTHING)
    rest = list(resumed.epoch(1, position))
    assert len(rest) == len(whole) - 5 == resumed.batches_from(position)
    for a, b in zip(whole[5:], rest):
        assert torch.equal(a.image, b.image) and torch.equal(a.index, b.index)
        assert torch.equal(a.text_tokens, b.text_tokens)


def test_batches_stay_as_they_are_while_the_loader_goes_on(shards):
    """DALI's memory is handed over, not lent: nothing writes into a batch that is still held."""
    held, copies = [], []
    for _ in range(2):
        for batch in loader(shards, reader="dali", shuffle=False, augmentation=None).epoch(0):
            held.append(batch.image)
            copies.append(batch.image.clone())
    assert all(torch.equal(a, b) for a, b in zip(held, copies))
    assert not torch.equal(held[0], held[1]) and torch.equal(held[0], held[len(held) // 2])


def test_another_number_of_ranks_goes_on_with_the_same_global_batches(shards):
    alone = list(loader(shards, 32, augmentation=EVERYTHING).epoch(0, start=64))
    ranks = [list(loader(shards, 16, r, 2, augmentation=EVERYTHING).epoch(0, start=64)) for r in range(2)]
    for whole, *parts in zip(alone, *ranks):
        assert torch.equal(whole.index, torch.cat([part.index for part in parts]))
        assert torch.equal(whole.image, torch.cat([part.image for part in parts]))


def test_an_epoch_left_early_leaves_nothing_behind(shards):
    one = loader(shards, reader="dali")
    threads = threading.active_count()
    for _ in range(3):
        for _, _batch in zip(range(2), one.epoch(0)):
            pass
    expected = indices(loader(shards), 4)
    assert indices(one, 4) == expected
    assert threading.active_count() <= threads + 1


def test_the_reading_thread_works_on_its_ranks_gpu(shards, monkeypatch):
    """Each thread starts at GPU 0, and would pin memory there."""
    made, chosen = loader(shards), []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for device in (torch.device("cpu"), torch.device("cuda", 1)):
        made.world = dataclasses.replace(made.world, device=device)
        stopped = threading.Event()
        stopped.set()
        made._read(0, 0, queue.Queue(), stopped)
    assert chosen == [torch.device("cuda", 1)]


def test_tokens_and_images_are_those_of_the_index(shards):
    for reader in ("dali", "torch"):
        for batch in loader(shards, 50, reader=reader, augmentation=None).epoch(3):
            texts = [f"raw text number {i}" for i in batch.index.tolist()]
            captions = [f"a caption number {i}" for i in batch.index.tolist()]
            assert batch.text_tokens.dtype == torch.int64 and batch.image.dtype == torch.float32
            assert torch.equal(batch.text_tokens, tokenize(texts))
            assert torch.equal(batch.caption_tokens, tokenize(captions))
            mean, std = torch.tensor(FORM["mean"]), torch.tensor(FORM["std"])
            for i, image in zip(batch.index.tolist(), batch.image):
                there = (image.permute(1, 2, 0) * std + mean) * 255
                expected = np.asarray(make_image(i).crop((4, 0, 44, 40)).resize((32, 32), 2), dtype=np.float32)
                assert np.abs(there.numpy() - expected).mean() < 6, "JPEG and resize apart, the same image"


@pytest.mark.parametrize(
    "augmentation, mean, most",
    [(None, 0.3, 3), (Augmentation(), 0.3, 3), (replace(EVERYTHING, rotation=0, shift=0, zoom=(1, 1)), 0.5, 4)],
    ids=["none", "crop and flip", "colours"],
)
def test_both_readers_give_the_same_images(shards, augmentation, mean, most):
    """In steps of 1/255: on average below `mean`, nowhere above `most`."""
    one, other = (loader(shards, reader=reader, augmentation=augmentation) for reader in ("dali", "torch"))
    std = torch.tensor(FORM["std"]).view(3, 1, 1) * 255
    for a, b in zip(one.epoch(0), other.epoch(0)):
        difference = (a.image - b.image).abs() * std
        assert difference.mean() < mean and difference.max() <= most


def test_interpolation_reaches_both_readers(shards):
    """Bicubic agrees with bicubic, and is another image than bilinear, in both."""
    std = torch.tensor(FORM["std"]).view(3, 1, 1) * 255
    images = {}
    for reader in ("dali", "torch"):
        for interpolation in (None, "bilinear", "bicubic"):
            one = loader(shards, reader=reader, interpolation=interpolation)
            images[reader, interpolation] = next(iter(one.epoch(0))).image * std
        assert torch.equal(images[reader, None], images[reader, "bilinear"])
        assert (images[reader, "bicubic"] - images[reader, "bilinear"]).abs().mean() > 0.5
    difference = (images["dali", "bicubic"] - images["torch", "bicubic"]).abs()
    assert difference.mean() < 0.4 and difference.max() <= 6


def test_both_readers_turn_and_shift_alike(shards):
    """At the image's edge on white one blends and the other does not: so the median and the mean are compared."""
    one, other = (loader(shards, 64, reader=reader, augmentation=EVERYTHING) for reader in ("dali", "torch"))
    std = torch.tensor(FORM["std"]).view(3, 1, 1) * 255
    for a, b in zip(one.epoch(0), other.epoch(0)):
        difference = (a.image - b.image).abs() * std
        assert difference.median() <= 1.5 and difference.mean() < 5
        corners = (b.image * std + torch.tensor(FORM["mean"]).view(3, 1, 1) * 255)[:, :, 0, 0]
        assert (corners.min(dim=1).values > 180).float().mean() > 0.2, "what is turned out of view is near white"


def test_dalis_own_reader_takes_our_shards_through_the_merged_index(tmp_path):
    """Also records that were split at a magic word."""
    fn = pytest.importorskip("nvidia.dali.fn")
    from nvidia.dali import Pipeline

    shards = []
    number = 0
    for s, count in enumerate((5, 9, 2)):
        with recordio.Writer(tmp_path / f"s-{s}.rec", tmp_path / f"s-{s}.idx") as writer:
            for _ in range(count):
                label = np.full(154, number, dtype=np.float32)
                image = encoded(make_image(number), quality=95)
                image = image[:-2] + b"\0" * (-(len(image) - 2) % 4) + recordio.MAGIC_BYTES + b"\xff\xd9"
                writer.write(recordio.pack(label, image, number))
                number += 1
    manifest = load_manifest(tmp_path)
    assert isinstance(manifest, Manifest) and manifest.samples == 16
    shards = merged_index(manifest, tmp_path / "all.idx")
    pipe = Pipeline(batch_size=16, num_threads=1, device_id=None)
    with pipe:
        image, label = fn.readers.mxnet(path=shards, index_path=[str(tmp_path / "all.idx")])
        pipe.set_outputs(fn.decoders.image(image), label)
    pipe.build()
    images, labels = pipe.run()
    assert np.asarray(labels.as_tensor()).tolist() == [[float(i)] * 154 for i in range(16)]
    for i in range(16):
        assert np.abs(np.asarray(images.at(i)).astype(int) - np.asarray(make_image(i)).astype(int)).mean() < 4


def write_records(folder, labels, images):
    with recordio.Writer(folder / "r.rec", folder / "r.idx") as writer:
        for i, (label, image) in enumerate(zip(labels, images)):
            writer.write(recordio.pack(label, image, i))
    return folder / "r.rec"


def good_label():
    tokens = tokenize(["one", "two"]).numpy()
    return pack_label(tokens[0], tokens[1])


@pytest.mark.parametrize(
    "label, message",
    [
        (np.zeros(10, np.float32), "a label of 10 numbers, not 154"),
        (np.full(154, 50_000, np.float32), "label 0 is 50000.0, no token id"),
        (np.full(154, 0.5, np.float32), "label 0 is 0.5, no token id"),
        (np.full(154, np.nan, np.float32), "label 0 is nan, no token id"),
    ],
)
def test_wrong_labels_are_told_before_training(tmp_path, label, message):
    rec = write_records(tmp_path, [good_label(), label], [encoded(make_image(0))] * 2)
    with pytest.raises(UserError, match=f"r.rec, record 1 .*{message}"):
        loader(rec, 1)


def test_another_tokenizer_or_vocabulary(shards, tmp_path):
    with pytest.raises(UserError, match="77 tokens of clip-bpe-49408, the model takes 64 of t5"):
        loader(shards, context_length=64, tokenizer="t5")
    with pytest.raises(UserError, match="token id 49407, the model's vocabulary ends at 31999"):
        loader(shards, vocab_size=32000)
    with pytest.raises(UserError, match="230 samples, not enough for one batch of 100 on each of 3 ranks"):
        loader(shards, 100, 0, 3)
    with pytest.raises(UserError, match="unknown reader"):
        loader(shards, reader="lmdb")
    with pytest.raises(UserError, match="no shards at"):
        loader(tmp_path / "nothing")


@pytest.fixture
def own_shards(tmp_path):
    make_tars(tmp_path / "tars", 90)
    build_shards(tmp_path / "tars", tmp_path / "set", samples_per_shard=30)
    return tmp_path / "set"


@pytest.mark.parametrize("reader", ["dali", "torch"])
def test_an_image_damaged_later_is_named_in_mid_run(own_shards, reader):
    rec = own_shards.parent / "set-00001.rec"
    manifest = load_manifest(own_shards)
    with manifest.open_shard(1) as records:
        start, end = records.span(17)
    data = bytearray(rec.read_bytes())
    data[start + 8 + 24 + 616 + 2 : end - 8] = bytes(end - 8 - (start + 8 + 24 + 616 + 2))
    rec.write_bytes(data)
    with pytest.raises(UserError, match=r"set-00001.rec, record 17 \(byte \d+\)"):
        indices(loader(own_shards, 10, reader=reader))


def test_an_image_whose_pixels_are_damaged_is_named(own_shards):
    """The header is whole, so only DALI's decoder finds out, batches later."""
    rec = own_shards.parent / "set-00002.rec"
    with load_manifest(own_shards).open_shard(2) as records:
        start, _ = records.span(3)
        payload = records[3]
    at = payload.index(b"\xff\xda")
    payload = payload[:at] + b"\xff\xd9" + payload[at + 2 :]
    data = bytearray(rec.read_bytes())
    data[start + 8 : start + 8 + len(payload)] = recordio.stamp(payload, 3)  # stored so, under the right CRC-32
    rec.write_bytes(data)
    one = loader(own_shards, 10, reader="dali")
    with pytest.raises(UserError, match=r"set-00002.rec, record 3 \(byte \d+\): the image cannot be decoded"):
        indices(one)


def test_damaged_framing_is_named_in_mid_run(own_shards):
    rec = own_shards.parent / "set-00001.rec"
    with load_manifest(own_shards).open_shard(1) as records:
        start, _ = records.span(12)
    data = bytearray(rec.read_bytes())
    data[start] ^= 255
    rec.write_bytes(data)
    with pytest.raises(UserError, match=rf"record 12 of .*set-00001.rec, byte {start}: no record starts here"):
        indices(loader(own_shards, 10))


def test_files_that_are_not_as_the_manifest_says(own_shards):
    rec = own_shards.parent / "set-00001.rec"
    rec.write_bytes(rec.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"set-00001.rec"):
        loader(own_shards)
    rec.unlink()
    with pytest.raises(UserError, match=r"no such rec file: .*set-00001.rec"):
        loader(own_shards)
    manifest = own_shards.parent / "set.json"
    manifest.write_text(manifest.read_text().replace('"samples": 90', '"samples": 91'))
    with pytest.raises(UserError, match="has 91 samples, its shards add up to 90"):
        loader(own_shards)
    manifest.write_text("{")
    with pytest.raises(UserError, match=r"set.json: not valid JSON"):
        loader(own_shards)


def test_records_in_any_order(shards):
    records = Records(load_manifest(shards), 49408)
    index = np.array([229, 0, 64, 63, 128])
    tokens, images, sizes = records.read(index)
    assert [bytes(one) for one in images] == [encoded(make_image(int(i)), quality=90) for i in index]
    assert sizes.tolist() == [[48, 40]] * 5 and tokens.shape == (5, 154)


@pytest.mark.parametrize("bad", [{"area": (0.9, 0.5)}, {"area": (0.5, 1.5)}, {"flip": 2}, {"zoom": (0, 1)}])
def test_augmentations_that_make_no_sense(bad):
    with pytest.raises(UserError):
        Augmentation(**bad)


def test_crops_keep_to_their_limits():
    from alip.data.augment import sample_params

    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 600, (4000, 2))
    index = np.arange(4000)
    params = sample_params(Augmentation(area=(0.3, 0.9), aspect=(0.5, 2.0)), sizes, 32, 1, 1, index)
    assert (params.start >= 0).all() and (params.shape >= 1).all() and (params.start + params.shape <= sizes).all()
    area = params.shape.prod(axis=1) / sizes.prod(axis=1)
    aspect = params.shape[:, 0] / params.shape[:, 1]
    usual = sizes.max(axis=1) < 2 * sizes.min(axis=1)
    assert area[usual].min() > 0.27 and area[usual].max() < 0.93
    assert aspect.min() > 0.45 and aspect.max() < 2.2
    assert abs(params.mirror.mean() - 0.5) < 0.05
    again = sample_params(Augmentation(area=(0.3, 0.9), aspect=(0.5, 2.0)), sizes[::-1], 32, 1, 1, index[::-1])
    assert (again.start[::-1] == params.start).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 4.5}, "batch_size must be a whole number of at least 1, not 4.5"),
        ({"image_size": 0}, "image_size must be"),
        ({"threads": 0}, "threads must be"),
        ({"window_shards": 0}, "window_shards must be"),
        ({"mean": [0.5]}, "mean and std are three numbers each"),
        ({"interpolation": "nearest"}, "unknown interpolation 'nearest': choose bilinear, bicubic"),
    ],
)
def test_values_that_cannot_be_are_one_line(shards, wrong, message):
    with pytest.raises(UserError, match=message):
        create_loader(shards, **{"batch_size": 4, "world": World(0, 0, 1), **FORM, **wrong})


def test_data_that_is_not_given_and_a_start_before_the_epoch(shards):
    with pytest.raises(UserError, match="needs a number of samples"):
        open_data(None, "synthetic")
    with pytest.raises(UserError, match="name the shards"):
        open_data(None)
    with pytest.raises(ValueError, match="sample 0 or later, not -7"):
        next(iter(loader(shards).epoch(0, start=-7)))
