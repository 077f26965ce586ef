"""Parquet files that hold the images themselves, as those of the Hub do: what is read, and how much is in memory."""

import io
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alip.build import writer
from alip.build.open_source import open_source
from alip.build.prepare import Policy
from alip.build.sources import ByteRange, Fields
from alip.build.table_rows import column_names, read_rows
from alip.data.shards import load_manifest, read_texts
from tests.helpers.shards import ROOT, encoded, make_image

POLICY = Policy(missing_caption="use-text")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # as Hugging Face's `datasets` writes it


def jpegs(count):
    return [encoded(make_image(i, 40, 30)) for i in range(count)]


def samples(path, **columns):
    pq.write_table(pa.table(columns), path)
    return list(open_source(str(path)))


def records(folder):
    """Everything that readers of the built set see of its samples."""
    manifest = load_manifest(folder)
    sidecars = [pq.read_table(folder.parent / shard.sidecar).drop(["source"]).to_pylist() for shard in manifest.shards]
    return [(folder.parent / shard.rec).read_bytes() for shard in manifest.shards], sidecars


def build(spec, folder, **options):
    return writer.build(open_source(str(spec), **options), folder, policy=POLICY, workers=0, quiet=True).manifest


def test_the_set_is_that_of_the_same_images_as_files(tmp_path):
    images = jpegs(7)
    for number, image in enumerate(images):
        (tmp_path / f"{number}.jpg").write_bytes(image)
    texts = {"key": [f"k{i}" for i in range(7)], "text": [f"text {i}" for i in range(7)], "width": [40] * 7}
    tables = {
        "files": [f"{i}.jpg" for i in range(7)],
        "structs": pa.array([{"bytes": image, "path": f"{i}.jpg"} for i, image in enumerate(images)], IMAGE),
        "no paths": pa.array([{"bytes": image, "path": None} for image in images], IMAGE),
        "only paths": pa.array([{"bytes": None, "path": f"{i}.jpg"} for i in range(7)], IMAGE),
        "bytes": pa.array(images, pa.binary()),
        "large": pa.array(images, pa.large_binary()),
    }
    found = []
    for name, cells in tables.items():
        pq.write_table(pa.table({"image": cells, **texts}), tmp_path / f"{name}.parquet", row_group_size=3)
        manifest = build(tmp_path / f"{name}.parquet", tmp_path / name / "set")
        assert (manifest.samples, manifest.rejects) == (7, {}), name
        found.append(records(tmp_path / name / "set"))
    assert all(one == found[0] for one in found)


def test_without_a_key_each_row_has_one_of_its_own(tmp_path):
    """Paths beside images are base names, which are the same in several files."""
    cells = pa.array([{"bytes": image, "path": "0.jpg"} for image in jpegs(2)], IMAGE)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        pq.write_table(pa.table({"image": cells, "text": ["x", "y"]}), tmp_path / folder / "t.parquet")
    assert [sample.key for sample in open_source(str(tmp_path / "a/t.parquet"))] == ["t.parquet#0", "t.parquet#1"]
    both = [sample.key for sample in open_source([str(tmp_path / one / "t.parquet") for one in ("a", "b")])]
    assert both == [f"{one}/t.parquet#{row}" for one in ("a", "b") for row in (0, 1)]


def test_all_rows_of_a_column_of_structs_have_keys_alike(tmp_path):
    """With bytes, with a path alone, with more fields than the usual two."""
    kind = pa.struct([*IMAGE, ("width", pa.int32())])
    cells = [{"bytes": jpegs(1)[0], "path": "a.jpg", "width": 4}, {"path": "b.jpg"}, {"bytes": b"x"}]
    found = samples(tmp_path / "t.parquet", image=pa.array(cells, kind), text=["x"] * 3)
    assert [sample.key for sample in found] == [f"t.parquet#{row}" for row in range(3)]
    assert [sample.error for sample in found] == [None] * 3 and found[1].image_data.path == str(tmp_path / "b.jpg")


def test_a_caption_of_another_key_is_not_taken(tmp_path):
    """Only the keys of COCO's and Karpathy's sentences stand for their image's."""
    from alip.build.joined_texts import TextFiles

    columns = {"image": pa.array(jpegs(2), pa.binary()), "text": ["x", "y"], "key": ["a", "a#1"]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    (tmp_path / "c.jsonl").write_text('{"key": "a", "caption": "of a alone"}\n')
    texts, source = TextFiles((str(tmp_path / "c.jsonl"),)), open_source(str(tmp_path / "t.parquet"))
    manifest = writer.build(source, tmp_path / "set", policy=Policy(), workers=0, quiet=True, texts=texts).manifest
    assert [row["key"] for row in read_texts(manifest)] == ["a"] and manifest.rejects == {"missing-caption": 1}


def test_the_names_of_columns_of_the_hub(tmp_path):
    """Tars of WebDataset that were made Parquet files have `__key__`, `jpg`, `txt`."""
    image = jpegs(1)
    (sample,) = samples(tmp_path / "t.parquet", __key__=["k"], jpg=pa.array(image, pa.binary()), txt=["a text"])
    assert (sample.key, sample.image, sample.text) == ("k", image[0], "a text")
    pq.write_table(pa.table({"photo": pa.array(image, pa.binary()), "text": ["x"]}), tmp_path / "u.parquet")
    (sample,) = open_source(str(tmp_path / "u.parquet"), fields=Fields(image="photo"))
    assert sample.image == image[0]


def test_other_bytes_are_no_metadata(tmp_path):
    image = jpegs(1)
    depth = pa.array([{"bytes": image[0], "path": None}], IMAGE)
    lists = pa.array([[image[0]]], pa.list_(pa.binary()))
    columns = {"image": pa.array(image, pa.binary()), "text": ["x"], "depth": depth, "more": lists, "n": [{"a": [1]}]}
    (sample,) = samples(tmp_path / "t.parquet", **columns)
    assert sample.metadata == {"n": {"a": [1]}}
    build(tmp_path / "t.parquet", tmp_path / "out" / "set")
    assert "JFIF" not in str(list(read_texts(load_manifest(tmp_path / "out" / "set"))))


@pytest.mark.parametrize(
    ("cell", "kind", "error"),
    [
        (
            [b"x"],
            pa.list_(pa.binary()),
            "not-an-image: .*row 1: the column image: an image's path or .*of type list",
        ),
        (
            {"url": "x"},
            pa.struct([("url", pa.string())]),
            "not-an-image: .*an image's path or its bytes should be here, not .*type dict",
        ),
        ({"bytes": "x"}, pa.struct([("bytes", pa.string())]), "not-an-image: .*not a value of type str"),
        (b"123456789", pa.binary(), "unreadable: .*the column image: 9 bytes, the limit is 8"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, monkeypatch, cell, kind, error):
    monkeypatch.setattr("alip.build.tables.MAX_IMAGE_BYTES", 8)
    (sample,) = samples(tmp_path / "t.parquet", image=pa.array([cell], kind), text=["x"])
    assert sample.image_data is None
    assert re.match(error, sample.error), sample.error


def test_broken_and_missing_images_are_rejected_one_by_one(tmp_path):
    good = jpegs(1)[0]
    png = io.BytesIO()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(png, "PNG")
    cells = [
        {"bytes": good, "path": "a.jpg"},
        {"bytes": good[:-200], "path": "b.jpg"},
        {"bytes": b"", "path": None},
        {"bytes": None, "path": None},
        None,
        {"bytes": png.getvalue(), "path": "c.jpg"},
        {"bytes": None, "path": "away.jpg"},
    ]
    pq.write_table(pa.table({"image": pa.array(cells, IMAGE), "text": ["x"] * 7}), tmp_path / "t.parquet")
    manifest = build(tmp_path / "t.parquet", tmp_path / "out" / "set")
    assert manifest.samples == 1
    assert manifest.rejects == {"truncated": 1, "empty": 1, "missing-image": 3, "wrongly-named": 1}


def test_a_row_group_of_images_is_read_piece_by_piece(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "t.parquet"
    cells = pa.array([{"bytes": rng.bytes(25_000), "path": None} for _ in range(2000)], IMAGE)
    pq.write_table(pa.table({"image": cells, "text": [f"text {i}" for i in range(2000)]}), path, write_batch_size=32)
    del cells
    before = pa.total_allocated_bytes()
    most = max(pa.total_allocated_bytes() - before for _ in read_rows(str(path)))
    assert most < 8 << 20, "of 50 MB"
    texts = [row.values for row in read_rows(str(path), with_bytes=False)]
    assert texts == [{"text": f"text {i}"} for i in range(2000)]
    assert column_names(str(path)) == ["image", "text"]


def test_a_file_of_images_alone_has_rows_without_them(tmp_path):
    pq.write_table(pa.table({"image": pa.array(jpegs(5), pa.binary())}), tmp_path / "t.parquet", row_group_size=2)
    found = [(row.values, row.position) for row in read_rows(str(tmp_path / "t.parquet"), with_bytes=False)]
    assert found == [({}, (0, 0)), ({}, None), ({}, (1, 2)), ({}, None), ({}, (2, 4))]


def test_captions_are_made_and_joined_by_the_rows_keys(tmp_path):
    from alip.build.joined_texts import TextFiles
    from alip.caption.pipeline import main

    cells = pa.array([{"bytes": image, "path": "0.jpg"} for image in jpegs(5)], IMAGE)
    pq.write_table(pa.table({"image": cells, "text": [f"text {i}" for i in range(5)]}), tmp_path / "t.parquet")
    captioner = f"file:{ROOT / 'examples' / 'captioner_colours.py'}"
    words = ["--input", tmp_path / "t.parquet", "--output", tmp_path / "c.jsonl", "--captioner", captioner]
    assert main([str(word) for word in (*words, "--workers", 0, "--device", "cpu")]) == 0
    made = {line["key"]: line["caption"] for line in map(json.loads, (tmp_path / "c.jsonl").read_text().splitlines())}
    assert list(made) == [f"t.parquet#{row}" for row in range(5)]
    texts = TextFiles((str(tmp_path / "c.jsonl"),))
    source, folder = open_source(str(tmp_path / "t.parquet")), tmp_path / "out" / "set"
    manifest = writer.build(source, folder, policy=Policy(), workers=0, quiet=True, texts=texts).manifest
    assert {row["key"]: row["caption"] for row in read_texts(manifest)} == made


def test_a_number_is_a_path(tmp_path):
    (sample,) = samples(tmp_path / "t.parquet", image=[12], text=["x"])
    assert (sample.image_data, sample.key, sample.error) == (ByteRange(str(tmp_path / "12")), "12", None)


def test_an_image_beside_the_table_is_still_read_there(tmp_path):
    (sample,) = samples(tmp_path / "t.parquet", image=[" a.jpg "], text=["x"])
    assert (sample.image_data, sample.key) == (ByteRange(str(tmp_path / "a.jpg")), "a.jpg")
