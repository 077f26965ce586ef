"""Features: batches that do not matter, a cache that knows when it is stale, images as they are meant."""

import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from torchvision.datasets import ImageFolder

from alip.build.image_errors import ImageError
from alip.data.augment import AugmentationParams
from alip.data.decoders import PixelFormat, check_decodes, decode_one
from alip.errors import UserError
from alip.eval import features, image_loader, zeroshot
from alip.eval.baseline import pixel_classification, pixel_retrieval
from alip.eval.caption_files import RetrievalDataset
from alip.eval.datasets import ClassificationDataset, open_retrieval
from alip.eval.features import Encoding, FeatureMemory, batches_of_texts, encode_images, encode_texts
from alip.eval.image_loader import ImageBatches
from alip.eval.image_readers import ImageFiles, JoinedImages, TorchvisionImages, read_rgb
from alip.eval.zeroshot import build_classifier
from alip.model import create_model
from alip.model.weights import weights_hash
from tests.helpers.pairs import write_classes, write_pairs

QUIET = {"workers": 0, "progress": False}


def test_images_one_by_one(model, tmp_path):
    dataset = open_retrieval(write_pairs(tmp_path))
    found = encode_images(model, ImageFiles(dataset.images), Encoding(batch_size=5, **QUIET))
    transform = model.preprocess(is_train=False)
    with torch.no_grad():
        alone = torch.cat([model.encode_image(transform(read_rgb(p))[None], normalize=True) for p in dataset.images])
    torch.testing.assert_close(found.features, alone, atol=1e-5, rtol=0)
    assert found.positions.tolist() == list(range(23)) and found.unreadable == []


def test_an_images_position_in_its_batch_changes_no_bit(model, tmp_path):
    """Why one, two and three ranks give the same: their parts begin at other positions."""
    paths = open_retrieval(write_pairs(tmp_path)).images
    encoding = Encoding(batch_size=5, **QUIET)
    straight = encode_images(model, ImageFiles(paths), encoding).features
    turned = encode_images(model, ImageFiles(paths[7:] + paths[:7]), encoding).features
    assert torch.equal(straight, torch.cat([turned[16:], turned[:16]]))


def test_texts_one_by_one_in_their_order(model):
    texts = ["a dog", "a much longer text about a dog on a boat", "a dog", "sun", "the moon over the house"]
    found = encode_texts(model, texts, Encoding(batch_size=2, **QUIET))
    with torch.no_grad():
        alone = torch.cat([model.encode_text(model.tokenizer([text]), normalize=True) for text in texts])
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)
    assert torch.equal(found[0], found[2])


def test_cache_is_used_and_knows_when_it_is_stale(model, tmp_path, monkeypatch):
    paths = open_retrieval(write_pairs(tmp_path)).images
    encoding = Encoding(batch_size=8, cache=tmp_path / "cache", **QUIET)
    runs = []
    real = features._encode_images
    monkeypatch.setattr(features, "_encode_images", lambda *rest: runs.append(1) or real(*rest))

    first = encode_images(model, ImageFiles(paths), encoding)
    again = encode_images(model, ImageFiles(paths), encoding)
    assert len(runs) == 1 and torch.equal(first.features, again.features)
    assert torch.equal(first.positions, again.positions)

    Image.new("RGB", (20, 20)).save(paths[3])  # another image
    assert not torch.equal(encode_images(model, ImageFiles(paths), encoding).features, first.features)
    torch.manual_seed(1)
    other = create_model(model.config).eval()  # other weights
    assert weights_hash(other) != weights_hash(model)
    encode_images(other, ImageFiles(paths), encoding)
    encode_images(model, ImageFiles(paths[::-1]), encoding)  # another order
    assert len(runs) == 4

    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    encode_images(model, ImageFiles(paths), encoding)  # a damaged file is computed again
    assert len(runs) == 5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_is_near(model, tmp_path, precision):
    paths = open_retrieval(write_pairs(tmp_path, images=4)).images
    low = encode_images(model, ImageFiles(paths), Encoding(precision=precision, **QUIET)).features
    full = encode_images(model, ImageFiles(paths), Encoding(**QUIET)).features
    assert low.dtype == torch.float32
    assert 1e-7 < (low - full).abs().max() < 0.05


def test_unknown_precision():
    with pytest.raises(UserError, match="auto, amp_bf16, amp, fp32"):
        Encoding(precision="int8").resolved_precision()


def test_images_as_they_are_meant(tmp_path):
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[:2] = (255, 0, 0, 255)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    seen = np.asarray(read_rgb(tmp_path / "clear.png"))
    assert seen[0, 0].tolist() == [255, 0, 0] and seen[3, 3].tolist() == [255, 255, 255]
    Image.new("L", (3, 5), 77).save(tmp_path / "grey.jpg")
    assert np.asarray(read_rgb(tmp_path / "grey.jpg")).shape == (5, 3, 3)
    # EXIF's turn is not made: the field's tools do not make it, and numbers are compared with theirs.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (3, 5)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_rgb(tmp_path / "turned.jpg").size == (3, 5)


def test_joined_images(tmp_path):
    paths = open_retrieval(write_pairs(tmp_path, images=5)).images
    joined = JoinedImages([ImageFiles(paths[:2], [0, 1]), ImageFiles(paths[2:], [2, 3, 4])])
    assert [joined[i][1] for i in range(len(joined))] == [0, 1, 2, 3, 4]
    assert [joined.name(i) for i in range(5)] == [str(path) for path in paths]
    with pytest.raises(IndexError):
        joined[5]
    before = joined.cache_key()
    os.utime(paths[4], (1, 1))
    assert joined.cache_key() != before


def _ghostscript(started):
    return lambda *_, **__: started.append(1) or Image.core.new("RGB", (9, 9))


def test_no_other_format_is_tried_whatever_the_file_is_called(tmp_path, monkeypatch):
    """Pillow hands EPS to Ghostscript."""
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", _ghostscript(started))
    (tmp_path / "a").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "a/x.jpg", format="EPS")
    Image.open(tmp_path / "a/x.jpg").load()
    assert started == [1]
    whole = AugmentationParams(np.zeros((1, 2), np.int32), np.full((1, 2), 9, np.int32), np.zeros(1, np.int32))
    encoded = np.frombuffer((tmp_path / "a/x.jpg").read_bytes(), np.uint8)
    for read in (
        lambda: ImageFiles([tmp_path / "a/x.jpg"])[0],
        lambda: TorchvisionImages(ImageFolder(tmp_path))[0],
        lambda: decode_one(encoded, whole, 0, PixelFormat(9, (0, 0, 0), (1, 1, 1))),
    ):
        with pytest.raises(Exception, match="not one of JPEG"):
            read()
    assert check_decodes([encoded.tobytes()])[0].startswith("no size: not one of") and started == [1]


def test_an_image_of_gigabytes_is_not_decoded(tmp_path):
    Image.new("1", (12_000, 9_900)).save(tmp_path / "x.png")
    with pytest.raises(ImageError, match="MB to decode"):
        read_rgb(tmp_path / "x.png")


def test_cached_features_of_corrected_labels_are_not_used(tmp_path):
    """torchvision's datasets keep labels in files of their own."""
    paths = open_retrieval(write_pairs(tmp_path, images=3)).images
    one, other = (SimpleNamespace(_image_files=paths, _labels=labels) for labels in ([0, 1, 2], [0, 2, 1]))
    keys = {TorchvisionImages(dataset, [0, 1, 2]).cache_key() for dataset in (one, other, one)}
    assert len(keys) == 2


def test_pixel_baseline(tmp_path):
    """Training images that are noisy copies of the test images are found; names that nobody has seen are not."""
    rng = np.random.default_rng(0)
    train, images, captions = [], [], []
    for number in range(12):
        pixels = rng.integers(0, 200, (40, 40, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"test{number}.png")
        Image.fromarray((pixels + rng.integers(0, 50, pixels.shape)).astype(np.uint8)).save(tmp_path / f"{number}.png")
        images.append(tmp_path / f"test{number}.png")
        captions.append(f"Thing {number}" if number < 9 else f"never seen {number}")
        train.append((tmp_path / f"{number}.png", f"thing {number}"))
    numbers = pixel_retrieval(train, RetrievalDataset("noise", images, captions, list(range(12))))
    assert numbers["text_to_image_R@1"] == pytest.approx(75) and numbers["text_to_image_R@10"] == pytest.approx(75)
    assert numbers["known_captions"] == pytest.approx(75)

    kinds = ["a", "b", "c"]
    dataset = ClassificationDataset("noise", ImageFiles(images, [n % 3 for n in range(12)]), kinds, ["{}"])
    labelled = [(path, kinds[n % 3]) for n, (path, _) in enumerate(train)]
    assert pixel_classification(labelled, dataset, kinds, k=1)["primary"] == 100


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_batches_of_texts(batch_size):
    """Every text once, ascending, within the number of tokens of a batch of full texts."""
    lengths = torch.randint(1, 78, (200,), generator=torch.Generator().manual_seed(0))
    batches = batches_of_texts(lengths, batch_size, 77)
    assert sorted(torch.cat(batches).tolist()) == list(range(200))
    assert (lengths[torch.cat(batches)].diff() >= 0).all()
    for batch in batches:
        assert len(batch) == 1 or len(batch) * int(lengths[batch].max()) <= batch_size * 77
        assert 0 < len(batch) <= 4 * batch_size
    assert len(batches_of_texts(torch.full((10,), 8), 2, 77)) == 2  # 8 and 2 short texts
    assert len(batches_of_texts(torch.full((10,), 77), 2, 77)) == 5


def test_several_tasks_decode_the_images_once(model, tmp_path):
    """One command's memory: by files, also through links, and within its number of rows."""

    class Counted(ImageFiles):
        reads = 0

        def __getitem__(self, index):
            type(self).reads += 1
            return super().__getitem__(index)

    paths = write_classes(tmp_path / "sorts", images=12).rglob("*.png")
    images = Counted(sorted(paths), [0] * 12)
    encoding = Encoding(batch_size=4, workers=0, progress=False, memory=FeatureMemory())
    first = encode_images(model, images, encoding)
    (tmp_path / "link").symlink_to(tmp_path / "sorts")
    linked = Counted([tmp_path / "link" / path.relative_to(tmp_path / "sorts") for path in images.paths], [0] * 12)
    assert torch.equal(encode_images(model, linked, encoding).features, first.features) and Counted.reads == 12
    encode_images(model, Counted(images.paths[:6], [0] * 6), encoding)
    assert Counted.reads == 18
    small = Encoding(batch_size=4, workers=0, progress=False, memory=FeatureMemory(rows=11))
    encode_images(model, images, small)
    encode_images(model, images, small)
    assert Counted.reads == 42


def test_a_file_of_ten_gigabytes_is_no_image(tmp_path):
    path = tmp_path / "a.png"
    with open(path, "wb") as file:
        file.truncate(10 << 30)
    images = ImageFiles([path])
    with pytest.raises(OSError, match="no image is so large"):
        images[0]
    assert images.content_hash() == ImageFiles([path]).content_hash()  # without reading it


def test_threads_and_processes_give_what_the_transform_gives(model, tmp_path, monkeypatch):
    """Images leave the workers as bytes; normalised afterwards they are the transform's numbers, bit for bit."""
    paths = open_retrieval(write_pairs(tmp_path)).images
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = ImageFiles([*paths[:9], tmp_path / "broken.png", *paths[9:]])
    transform = model.preprocess(is_train=False)
    part = [position for position in range(24) if position != 4][::-1]
    kept = [position for position in part if position != 9]
    expected = torch.stack([transform(images[position][0]) for position in kept])
    for workers, threads in ((0, 4), (2, 4), (2, 1)):
        monkeypatch.setattr(image_loader, "_MOST_THREADS", threads)
        batches = list(ImageBatches(images, transform, part, 5, workers, torch.device("cpu")))
        assert [len(batch[1]) for batch in batches] == [5, 5, 4, 5, 3]
        assert torch.equal(torch.cat([batch[0] for batch in batches]), expected)
        assert torch.cat([batch[2] for batch in batches]).tolist() == kept
        assert [name for batch in batches for name, _ in batch[3]] == [str(tmp_path / "broken.png")]
    # A transform of another form is applied as a whole.
    batches = list(ImageBatches(images, lambda image: transform(image) + 1, part, 5, 2, torch.device("cpu")))
    assert torch.equal(torch.cat([batch[0] for batch in batches]), expected + 1)


def test_there_are_no_more_processes_than_batches(monkeypatch):
    monkeypatch.setattr(image_loader, "DataLoader", lambda *_, num_workers, **__: [num_workers])
    of_16 = {"workers": 12, "batch_size": 16, "device": torch.device("cpu")}
    counts = [next(ImageBatches([], str, range(images), **of_16)._processes()) for images in (12, 40, 1000)]
    assert counts == [0, 3, 12]


def test_an_abandoned_iteration_ends_its_threads(model, tmp_path):
    images = ImageFiles(open_retrieval(write_pairs(tmp_path)).images)
    batches = iter(ImageBatches(images, model.preprocess(is_train=False), range(23), 2, 2, torch.device("cpu")))
    next(batches)
    assert any(thread.name.startswith("images") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("images") for thread in threading.enumerate())


def test_a_classifier_is_built_once_for_several_datasets(model, monkeypatch):
    encoded = []
    real = zeroshot.encode_texts
    monkeypatch.setattr(zeroshot, "encode_texts", lambda *rest: encoded.append(1) or real(*rest))
    encoding = Encoding(memory=FeatureMemory(classifiers=2), **QUIET)
    first = build_classifier(model, ["cat", "dog"], ["a {}"], encoding)
    assert torch.equal(build_classifier(model, ["cat", "dog"], ["a {}"], encoding), first) and len(encoded) == 1
    assert torch.equal(build_classifier(model, ["cat", "dog"], ["a {}"], Encoding(**QUIET)), first)
    build_classifier(model, ["dog", "cat"], ["a {}"], encoding)
    build_classifier(model, ["cat", "dog"], ["the {}"], encoding)
    assert len(encoded) == 4
    build_classifier(model, ["cat", "dog"], ["a {}"], encoding)  # the oldest one has given way
    assert len(encoded) == 5
