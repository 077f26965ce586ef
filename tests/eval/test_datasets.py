"""Every named classification set, in its true layout, through the command and torchvision's own class."""

import json

import pytest

import eval_zeroshot
from alip.errors import UserError
from alip.eval.dataset_records import CLASSIFICATION
from alip.eval.datasets import open_classification
from tests.helpers import archives


@pytest.fixture
def plain_prompts(tmp_path):
    """One template a set: ImageNet's 80,000 prompts would take longer than all other tests."""
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({name: ["a photo of a {}."] for name in CLASSIFICATION}))
    return file


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_command_on_true_layout(name, tmp_path, monkeypatch, run, plain_prompts, capsys):
    count = archives.write(name, tmp_path / "data", monkeypatch)
    output = tmp_path / "results"
    status = eval_zeroshot.main(
        f"--checkpoint {run} --datasets {name} --data-root {tmp_path / 'data'} --prompts {plain_prompts} "
        f"--output {output} --no-pictures --workers 0 --device cpu".split()
    )
    assert status == 0
    (entry,) = json.loads((output / "results.json").read_text())["entries"]
    numbers = entry["numbers"]
    assert (numbers["images"], numbers["classes"]) == (count, len(CLASSIFICATION[name].names))
    assert numbers["unreadable"] == 0
    assert numbers["headline"] == numbers[CLASSIFICATION[name].metric]
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


def test_sun397_without_the_official_partition(tmp_path, monkeypatch):
    count = archives.write("sun397", tmp_path, monkeypatch)
    (tmp_path / "SUN397" / "Partitions" / "Testing_01.txt").unlink()
    with pytest.raises(UserError, match=r"Partitions/Testing_01.txt"):
        open_classification("sun397", tmp_path)
    released = open_classification("sun397", tmp_path, protocol="released")
    again = open_classification("sun397", tmp_path, protocol="released")
    names = [released.images.name(i) for i in range(len(released.images))]
    assert len(names) == round(2 * count * 19850 / 108754)
    assert names == [again.images.name(i) for i in range(len(names))]


def test_caltech_parts(tmp_path, monkeypatch):
    archives.write("caltech101", tmp_path, monkeypatch)
    field = open_classification("caltech101", tmp_path)
    assert len(field.train()) == 202 and len({field.train()[i][1] for i in range(202)}) == 101
    released = open_classification("caltech101", tmp_path, protocol="released")
    assert len(released.images) == round(303 * 5677 / 8677) and len(released.train()) == round(303 * 3000 / 8677)
    with_both = {released.images.name(i) for i in range(len(released.images))} | {
        released.train().name(i) for i in range(len(released.train()))
    }
    assert len(with_both) == 303


def test_full_size_parts_have_the_release_sizes():
    from alip.eval.dataset_records import _seeded_parts

    train, test = _seeded_parts(8677, 5677 / 8677, 3000 / 8677, 3072)
    assert (len(train), len(test)) == (3000, 5677) and not set(train) & set(test)
    train, test = _seeded_parts(108754, 19850 / 108754, 19850 / 108754, 3072)
    assert (len(train), len(test)) == (19850, 19850) and not set(train) & set(test)


def test_imagenet_from_a_rec_file(tmp_path, run, plain_prompts):
    from io import BytesIO

    from PIL import Image

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
        f"--output {tmp_path / 'out'} --no-pictures --workers 2 --device cpu".split()
    )
    assert status == 0
