"""One's own labelled images: tables of every kind, rec shards with a label in the sidecar, and probes on both."""

import csv
import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

import eval_zeroshot
from alip.errors import UserError
from alip.eval import labelled_rows, results
from alip.eval.datasets import open_classification
from alip.eval.labelled_rows import RowFields
from alip.eval.probe_data import with_training_images
from tests.helpers.shards import build_shards, encoded, write_tar

COLORS = {"red_apple": (200, 20, 20), "green_pear": (20, 200, 20), "sky": (20, 20, 200)}


def make_rows(folder, per_class=6):
    """Images and rows; two of three are for training."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(per_class * len(COLORS)):
        name, color = list(COLORS.items())[number % len(COLORS)]
        image = Image.new("RGB", (40, 40), tuple(min(255, one + 3 * number) for one in color))
        image.save(folder / f"images/{number}.png")
        split = "train" if number // len(COLORS) % 3 else "test"
        rows.append({"image": f"images/{number}.png", "label": name, "split": split})
    return rows


def write_table(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_table_is_the_same_dataset(tmp_path, kind):
    rows = make_rows(tmp_path)
    dataset = open_classification(write_table(tmp_path / f"mine.{kind}", rows))
    assert dataset.classnames == ["green pear", "red apple", "sky"]
    test = [row for row in rows if row["split"] == "test"]
    assert dataset.images.labels == [sorted(COLORS).index(row["label"]) for row in test]
    assert [path.name for path in dataset.images.paths] == [row["image"].split("/")[1] for row in test]
    assert len(dataset.train()) == 12 and dataset.name == f"{tmp_path.name}/mine"
    for row in rows:
        row["photo"], row["kind of fruit"] = row.pop("image"), row.pop("label")
        del row["split"]
    dataset = open_classification(
        write_table(tmp_path / f"other.{kind}", rows), fields=RowFields("photo", "kind of fruit")
    )
    assert len(dataset.images) == 18 and dataset.train is None
    assert open_classification(tmp_path / f"mine.{kind}").images.content_hash() != dataset.images.content_hash()


def test_training_images_of_a_table_with_both_parts_are_its_training_rows(tmp_path):
    rows = make_rows(tmp_path)
    both = write_table(tmp_path / "both.csv", rows)
    alone = write_table(tmp_path / "train.csv", [row for row in rows if row["split"] == "train"])
    dataset = open_classification(write_table(tmp_path / "test.csv", [r for r in rows if r["split"] == "test"]))
    assert len(dataset.images) == 6 and dataset.train is None
    for source in (both, alone):
        train = with_training_images(dataset, source).train()
        assert [path.name for path in train.paths] == [
            row["image"].split("/")[1] for row in rows if row["split"] == "train"
        ]


def test_numbers_as_labels(tmp_path):
    """Sorted as numbers; positions in a given list; a Parquet column with a gap is one of floats."""
    rows = [{"image": f"{number}.png", "label": label} for number, label in enumerate([10, 9, 2, 10])]
    path = write_table(tmp_path / "mine.csv", rows)
    dataset = open_classification(path)
    assert dataset.classnames == ["2", "9", "10"] and dataset.images.labels == [2, 1, 0, 2]
    for row in rows:
        row["label"] = float(row["label"])
    floats = open_classification(write_table(tmp_path / "floats.parquet", rows))
    assert floats.classnames == ["2", "9", "10"]
    names = tmp_path / "names.json"
    names.write_text(json.dumps({f"{tmp_path.name}/mine": [f"class {number}" for number in range(11)]}))
    dataset = open_classification(path, classnames=names)
    assert dataset.images.labels == [10, 9, 2, 10] and len(dataset.classnames) == 11
    names.write_text(json.dumps({f"{tmp_path.name}/mine": ["a", "b"]}))
    with pytest.raises(UserError, match="the label 10 is not in the class list"):
        open_classification(path, classnames=names)
    names.write_text(json.dumps({f"{tmp_path.name}/mine": ["2", "10", "9"]}))  # names, in another order
    assert open_classification(path, classnames=names).images.labels == [1, 2, 0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\na.png,\n", "row 1: label is '', where a class name or a whole number belongs"),
        ("image,label\n,cat\n", "row 1: image is '', the path of an image is expected"),
        ("image,kind\na.png,cat\n", "row 1: label missing; it has image, kind: name the field with --label-field"),
        ("photo,label\na.png,cat\n", "row 1: image missing; it has photo, label: name the field with --image-field"),
        ("image,label\nhttps://x.org/a.png,cat\n", "row 1: https://x.org/a.png is an address"),
        ("image,label\na.png,cat,dog\n", "row 1: 3 cells for 2 columns"),
        ("image,label,split\na.png,cat,train\nb.png,cat,more\n", "no row has the split test, val"),
        ("image,label,split\na.png,cat,\n", "row 1: split is ''"),
        ("image,label\na.png,hot_dog\nb.png,hot-dog\n", "'hot-dog' and 'hot_dog' are both 'hot dog' in a prompt"),
        ("image,label\n", "lists no images"),
        ("", "is empty"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(tmp_path, text, message):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        open_classification(path)
    assert "\n" not in str(caught.value) and "mine.csv" in str(caught.value)


def test_a_row_without_the_split_that_others_have(tmp_path):
    """It was in neither part, and nothing said so."""
    path = tmp_path / "mine.jsonl"
    path.write_text('{"image": "a.png", "label": "cat", "split": "test"}\n{"image": "b.png", "label": "dog"}')
    with pytest.raises(UserError, match="line 2: no split, which other rows have"):
        open_classification(path)


def test_odd_labels(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"image": "a.png", "label": "cat"}\n{"image": "b.png", "label": " cat "}')
    assert open_classification(path).images.labels == [0, 0]  # what nobody sees makes no class
    path.write_text(json.dumps({"image": "a.png", "label": "9" * 5000}) + '\n{"image": "b.png", "label": "7"}')
    assert open_classification(path).images.labels == [1, 0]
    for label, message in (('"\\ud800"', "half a character"), ("1e300", "is '1e\\+300'"), ("[1]", r"is '\[1\]'")):
        path.write_text(f'{{"image": "a.png", "label": {label}}}')
        with pytest.raises(UserError, match=message):
            open_classification(path)


def make_shards(folder, rows):
    """The rows' images as a tar with JSON members, built into rec shards; the name of the dataset."""
    samples = []
    for row in rows:
        image = encoded(Image.open(folder / row["image"]))
        fields = {"text": f"a {row['label']}", "caption": "it", "split": row["split"], "fruit": row["label"]}
        samples.append({"jpg": image, "json": json.dumps(fields).encode()})
    (folder / "tars").mkdir()
    write_tar(folder / "tars/0.tar", samples, [f"{number:03d}" for number in range(len(rows))])
    build_shards(folder / "tars", folder / "rec/mine", samples_per_shard=5)
    return folder / "rec/mine"


def test_shards(tmp_path):
    rows = make_rows(tmp_path)
    name = make_shards(tmp_path, rows)
    dataset = open_classification(f"shards:{name}", fields=RowFields(label="fruit"))
    assert dataset.classnames == ["green pear", "red apple", "sky"] and dataset.name == "rec/mine"
    test = [row for row in rows if row["split"] == "test"]
    assert [dataset.images[number][1] for number in range(6)] == [sorted(COLORS).index(row["label"]) for row in test]
    color = dataset.images[1][0].getpixel((20, 20))
    assert max(abs(a - b) for a, b in zip(color, Image.open(tmp_path / test[1]["image"]).getpixel((20, 20)))) < 8
    assert len(dataset.train()) == 12 and "record" in dataset.images.name(0)
    assert open_classification("shards:mine", tmp_path / "rec", fields=RowFields(label="fruit")).classnames
    again = open_classification(f"shards:{name}", fields=RowFields(label="fruit"))
    assert again.images.content_hash() == dataset.images.content_hash() != dataset.train().content_hash()
    with pytest.raises(UserError, match=r"mine: sample 000: label missing; it has key, text.*--label-field"):
        open_classification(f"shards:{name}")
    for path in (name.with_suffix(".json"), name.parent):
        with pytest.raises(UserError, match=r"rec shards are (given as )?shards:"):
            open_classification(path)
    with pytest.raises(UserError, match="no shards at"):
        open_classification("shards:nothing", tmp_path)


def test_few_shards_stay_open(tmp_path, monkeypatch):
    """Four threads on four shards, of which two may be open: every image is right, and no file is left open."""
    rows = make_rows(tmp_path)
    images = open_classification(f"shards:{make_shards(tmp_path, rows)}", fields=RowFields(label="fruit")).train()
    expected = [images[number][0].tobytes() for number in range(12)]
    monkeypatch.setattr(labelled_rows, "_OPEN_SHARDS", 2)
    few, before = pickle.loads(pickle.dumps(images)), open_files(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda number: few[number % 12][0].tobytes() == expected[number % 12], range(96)):
            assert found
    assert len({few.manifest.locate(record)[0] for record in few.records}) == 4
    assert open_files(tmp_path) == before + 2


def open_files(folder):
    """How many files below the folder this process has open."""
    links = [f"/proc/self/fd/{one}" for one in os.listdir("/proc/self/fd")]
    return sum(os.path.realpath(one).startswith(str(folder)) for one in links)


@pytest.mark.parametrize("source", ["table", "two tables", "shards"])
def test_probes_by_one_command(run, tmp_path, source):
    """The colours of the images are learned from the training rows."""
    rows = make_rows(tmp_path)
    flags = f"--checkpoint {run} --output {tmp_path / 'out'} --workers 0 --device cpu --no-plots --task all --shots 2"
    if source == "shards":
        own = ["--datasets", f"shards:{make_shards(tmp_path, rows)}", "--label-field", "fruit"]
    elif source == "table":
        own = ["--datasets", str(write_table(tmp_path / "mine.csv", rows))]
    else:
        parts = {
            part: [{n: v for n, v in row.items() if n != "split"} for row in rows if row["split"] == part]
            for part in ("train", "test")
        }
        own = ["--datasets", str(write_table(tmp_path / "test.parquet", parts["test"]))]
        own += ["--probe-train", str(write_table(tmp_path / "train.csv", parts["train"]))]
    assert eval_zeroshot.main([*flags.split(), *own]) == 0
    found = {entry["task"]: entry["numbers"] for entry in results.load(tmp_path / "out")}
    assert found["probe"]["train_images"] == 12 and found["probe"]["images"] == 6
    assert found["probe"]["top1"] >= 80 and found["few-shot"]["train_images"] == 6


def test_fields_where_nothing_has_columns_are_refused(tmp_path):
    (tmp_path / "red").mkdir()
    with pytest.raises(UserError, match="belong to tables and shards"):
        eval_zeroshot.main(["--checkpoint", "c", "--datasets", str(tmp_path), "--label-field", "x", "--device", "cpu"])


def test_names_for_text_labels_and_numbered_folders(tmp_path):
    """By the labels' own names, or one for each in sorted order; numbers by their value, as in a table."""
    rows = make_rows(tmp_path)
    path, lists = write_table(tmp_path / "mine.csv", rows), tmp_path / "names.json"

    def opened(source, name, *names):
        lists.write_text(json.dumps({name: list(names)}))
        return open_classification(source, classnames=lists)

    own = sorted(COLORS)
    test = [own.index(row["label"]) for row in rows if row["split"] == "test"]
    name = f"{tmp_path.name}/mine"
    renamed = opened(path, name, "a pear", "an apple", "the sky")
    assert renamed.classnames == ["a pear", "an apple", "the sky"] and renamed.images.labels == test
    assert opened(path, name, "sky", *own[:2]).images.labels == [(number + 1) % 3 for number in test]
    assert opened(path, name, "a pear", "an apple", "sky").images.labels == test, "sky is at its own place"
    with pytest.raises(UserError, match="has 'sky' at another place than"):
        opened(path, name, "sky", "a pear", "an apple")
    with pytest.raises(UserError, match=r"has 3 classes, but .* names 2, 'green_pear' not among them"):
        opened(path, name, "a pear", "an apple")
    for number in range(12):
        (tmp_path / "folders" / str(number)).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "folders" / str(number) / "a.png")
    assert open_classification(tmp_path / "folders").classnames == [str(number) for number in range(12)]
    assert labelled_rows.in_order({"10", "2", "1", "01"}) == ["01", "1", "2", "10"]
    words = [f"word {number}" for number in range(12)]
    folders = opened(tmp_path / "folders", "folders", *words)
    found = {path.parent.name: label for path, label in zip(folders.images.paths, folders.images.labels)}
    assert found == {str(number): number for number in range(12)}


def test_a_table_of_training_rows_alone_says_so(tmp_path, capsys):
    rows = [{**row, "split": "train"} for row in make_rows(tmp_path)]
    assert len(open_classification(write_table(tmp_path / "mine.csv", rows)).images) == len(rows)
    assert "all rows are of the split train" in capsys.readouterr().out


def test_a_probes_training_images_without_a_probe_are_refused():
    with pytest.raises(UserError, match="--probe-train belongs to the probes"):
        eval_zeroshot.main(["--checkpoint", "x", "--datasets", "y", "--probe-train", "z"])
