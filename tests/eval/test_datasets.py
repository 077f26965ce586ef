"""Every named classification dataset, in its true layout, through the command and torchvision's own class."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import eval_zeroshot
from alip.errors import UserError
from alip.eval.dataset_records import CLASSIFICATION
from alip.eval.datasets import open_classification
from alip.eval.records_paper import PAPER
from alip.eval.release import ImageNetTransform
from tests.helpers import archives


@pytest.fixture
def plain_prompts(tmp_path):
    """One template a dataset: ImageNet's 80,000 prompts would take longer than all other tests."""
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({name: ["a photo of a {}."] for name in CLASSIFICATION}))
    return file


@pytest.mark.parametrize("name", PAPER)
def test_command_on_true_layout(name, tmp_path, monkeypatch, run, plain_prompts, capsys):
    count = archives.write(name, tmp_path / "data", monkeypatch)
    output = tmp_path / "results"
    status = eval_zeroshot.main(
        f"--checkpoint {run} --datasets {name} --data-root {tmp_path / 'data'} --prompts {plain_prompts} "
        f"--output {output} --no-plots --workers 0 --device cpu".split()
    )
    assert status == 0
    (entry,) = json.loads((output / "results.json").read_text())["entries"]
    numbers = entry["numbers"]
    assert (numbers["images"], numbers["classes"]) == (count, len(CLASSIFICATION[name].names))
    assert numbers["unreadable"] == 0
    assert numbers["primary"] == numbers[CLASSIFICATION[name].metric]
    assert name in capsys.readouterr().out

    dataset = open_classification(name, tmp_path / "data")
    for index in range(0, len(dataset.images), max(1, len(dataset.images) // 50)):
        image, label = dataset.images[index]
        assert archives.class_of(image) == label, dataset.images.name(index)
    if dataset.train is not None:
        train = dataset.train()
        shown = {archives.class_of(train[i][0]) == train[i][1] for i in range(0, len(train), max(1, len(train) // 50))}
        assert shown == {True}
        assert not {train.name(i) for i in range(len(train))} & {
            dataset.images.name(i) for i in range(len(dataset.images)) if name not in ("cifar10", "cifar100")
        }


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_missing_data_says_what_is_needed(name, tmp_path):
    with pytest.raises(UserError, match=f"{name} needs .*docs/evaluation.md"):
        open_classification(name, tmp_path)
    assert not list(tmp_path.iterdir())  # nothing is made by looking


def test_classes_in_another_order_are_refused(tmp_path, monkeypatch):
    archives.write("aircraft", tmp_path, monkeypatch)
    variants = tmp_path / "fgvc-aircraft-2013b" / "data" / "variants.txt"
    lines = variants.read_text().splitlines()
    variants.write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(UserError, match="class 0 is '727-200' in the data, but '707-320' is expected"):
        open_classification("aircraft", tmp_path)


def test_a_class_too_few_is_refused(tmp_path, monkeypatch):
    archives.write("sun397", tmp_path, monkeypatch)
    file = tmp_path / "SUN397" / "ClassName.txt"
    rows = file.read_text().splitlines()
    file.write_text("\n".join([*rows, "/z/zoo"]) + "\n")
    with pytest.raises(UserError, match="398 classes, but 397 are expected"):
        open_classification("sun397", tmp_path)


def test_pickles_that_are_not_the_published_ones_are_never_opened(tmp_path, monkeypatch):
    archives.write("cifar10", tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(UserError, match=r"cifar10: the files .* are not complete"):
        open_classification("cifar10", tmp_path)


def test_a_matlab_file_that_crashes_scipy_is_one_line(tmp_path, monkeypatch):
    """Found by fuzzing: a changed byte in a .mat file ended the process with a segmentation fault, without a line."""
    archives.write("cars", tmp_path, monkeypatch)
    meta = tmp_path / "stanford_cars" / "devkit" / "cars_meta.mat"
    data = meta.read_bytes()
    for broken in (b"", data[:200], data[:144] + b"\x0f" + data[145:], data[:240] + b"\xff" + data[241:]):
        meta.write_bytes(broken)
        with pytest.raises(UserError, match=r"cars: the files under .*SciPy cannot read cars_meta.mat"):
            open_classification("cars", tmp_path)


def test_sun397_without_the_official_partition(tmp_path, monkeypatch):
    count = archives.write("sun397", tmp_path, monkeypatch)
    (tmp_path / "SUN397" / "Partitions" / "Testing_01.txt").unlink()
    with pytest.raises(UserError, match=r"Partitions/Testing_01.txt"):
        open_classification("sun397", tmp_path)
    alip_part = open_classification("sun397", tmp_path, protocol="alip")
    again = open_classification("sun397", tmp_path, protocol="alip")
    names = [alip_part.images.name(i) for i in range(len(alip_part.images))]
    assert len(names) == round(2 * count * 19850 / 108754)
    assert names == [again.images.name(i) for i in range(len(names))]


def names_in(images):
    return {images.name(i) for i in range(len(images))}


def test_caltech_parts(tmp_path, monkeypatch):
    """standard: as CLIP and VTAB count, with the background as a class; alip: the paper's random parts without it."""
    archives.write("caltech101", tmp_path, monkeypatch)
    standard = open_classification("caltech101", tmp_path)
    assert standard.classnames[:3] == ["background", "off-center face", "centered face"]
    assert len(standard.images) == 102 and len(standard.train()) == 204  # of three images two are for training
    assert {standard.images[i][1] for i in range(102)} == {standard.train()[i][1] for i in range(204)} == {*range(102)}
    assert not names_in(standard.images) & names_in(standard.train())
    assert names_in(open_classification("caltech101", tmp_path).images) == names_in(standard.images)
    alip = open_classification("caltech101", tmp_path, protocol="alip")
    assert alip.classnames == standard.classnames[1:]
    assert len(alip.images) == round(303 * 5677 / 8677) and len(alip.train()) == round(303 * 3000 / 8677)
    assert len(names_in(alip.images) | names_in(alip.train())) == 303
    assert open_classification("caltech101", tmp_path, protocol="released").classnames == alip.classnames  # old name


def test_caltech_at_full_size(tmp_path):
    """With the archive's 9,145 images in 102 folders, the test part has CLIP's 6,085 and training 30 of each class."""
    folder = tmp_path / "caltech101" / "101_ObjectCategories"
    counts = [9145 // 102] * 102
    counts[0] += 9145 - sum(counts)
    for number, count in enumerate(counts):
        own = folder / f"class{number:03d}"
        own.mkdir(parents=True)
        for image in range(1, count + 1):
            (own / f"image_{image:04d}.jpg").touch()
        (own / "tmp").touch()  # the archive has such a file
    record = CLASSIFICATION["caltech101"]
    test, train = record.test(tmp_path, "standard"), record.train(tmp_path, "standard")
    assert (len(test), len(train)) == (6085, 3060) and record.image_counts("standard")[0] == 6085
    assert all(train.labels.count(label) == 30 for label in range(102))
    assert not {*train.paths} & {*test.paths}


def test_full_size_parts_have_the_release_sizes():
    from alip.eval.records_paper import _seeded_parts

    train, test = _seeded_parts(8677, 5677 / 8677, 3000 / 8677)
    assert (len(train), len(test)) == (3000, 5677) and not set(train) & set(test)
    train, test = _seeded_parts(108754, 19850 / 108754, 19850 / 108754)
    assert (len(train), len(test)) == (19850, 19850) and not set(train) & set(test)


def test_pets_names_of_the_release(tmp_path, monkeypatch):
    """Its label.json has two typos, and they are in its prompts."""
    archives.write("pets", tmp_path, monkeypatch)
    standard, alip = (open_classification("pets", tmp_path, protocol=name) for name in ("standard", "alip"))
    differing = {(a, b) for a, b in zip(standard.classnames, alip.classnames) if a != b}
    assert differing == {("Persian", "Persian'"), ("Yorkshire Terrier", "Yorkshire Terrie")}


@pytest.mark.parametrize(
    "size", [(640, 427), (427, 640), (500, 375), (90, 131), (256, 256), (1000, 300), (890, 771), (517, 512)]
)
def test_imagenet_transform_of_the_release_is_dalis(model, size):
    """Short side 256, triangular filter, centre crop 224: against DALI itself, on the release's operators."""
    fn = pytest.importorskip("nvidia.dali.fn")
    from nvidia.dali import pipeline_def, types

    rng = np.random.default_rng(sum(size))
    coarse = Image.fromarray(rng.integers(0, 256, (size[1] // 6, size[0] // 6, 3), np.uint8))
    pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def release():
        image = fn.external_source(lambda: [pixels], layout="HWC")
        image = fn.resize(image, size=256, mode="not_smaller", interp_type=types.INTERP_TRIANGULAR)
        mean, std = ([255 * value for value in model.config["preprocess_cfg"][name]] for name in ("mean", "std"))
        return fn.crop_mirror_normalize(image, dtype=types.FLOAT, crop=(224, 224), mean=mean, std=std)

    pipeline = release()
    pipeline.build()
    (output,) = pipeline.run()
    theirs = torch.from_numpy(np.array(output.as_array()[0]))
    at_224 = SimpleNamespace(config=model.config, image_size=224)
    ours = ImageNetTransform(at_224)(Image.fromarray(pixels))
    assert ours.shape == theirs.shape == (3, 224, 224)
    # One level of 255 is 0.015 after normalisation; the two round differently, and nothing is shifted.
    assert (ours - theirs).abs().max() < 0.05 and (ours - theirs).abs().mean() < 0.008


def test_only_imagenet_under_alip_has_its_own_transform(tmp_path, monkeypatch):
    archives.write("imagenet", tmp_path, monkeypatch)
    assert open_classification("imagenet", tmp_path).transform is None
    assert open_classification("imagenet", tmp_path, protocol="alip").transform is ImageNetTransform
    assert [name for name, record in CLASSIFICATION.items() if record.alip_transform] == ["imagenet"]


def test_imagenet_from_a_rec_file(tmp_path, run, plain_prompts):
    from io import BytesIO

    from alip.data.recordio import Writer, pack

    (tmp_path / "imagenet").mkdir()
    rec = tmp_path / "imagenet" / "val.rec"
    with Writer(str(rec), str(rec.with_suffix(".idx"))) as writer:
        for number in (0, 7, 999):
            file = BytesIO()
            Image.new("RGB", (9, 9), archives.colour(number)).save(file, "JPEG", quality=95)
            writer.write(pack([float(number)], file.getvalue(), number))
    dataset = open_classification("imagenet", tmp_path, prompts=plain_prompts)
    assert [(label, archives.class_of(image)) for image, label in (dataset.images[i] for i in range(3))] == [
        (0, 0),
        (7, 7),
        (999, 999),
    ]
    status = eval_zeroshot.main(
        f"--checkpoint {run} --datasets imagenet --data-root {tmp_path} --prompts {plain_prompts} "
        f"--output {tmp_path / 'out'} --no-plots --workers 2 --device cpu".split()
    )
    assert status == 0
