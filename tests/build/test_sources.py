"""Each source gives the samples that it holds, and names those that it cannot read."""

import csv
import gzip
import io
import json
import os
import shutil
import tarfile
import time

import pyarrow
import pyarrow.parquet
import pytest

from alip.build.caption_files import read_captions
from alip.build.caption_table import CaptionTable
from alip.build.open_source import expand, open_source
from alip.build.sources import Fields
from alip.errors import UserError
from tests.helpers.shards import encoded, make_image, make_tars, write_tar

JPEG = encoded(make_image(1))


def simple(sample):
    return sample.key, sample.text, sample.caption, sample.error


def test_expand(tmp_path):
    for name in ("a-00.tar", "a-01.tar", "a-02.tar", "b.tar", "c[1].tar"):
        (tmp_path / name).touch()
    one = str(tmp_path)
    assert expand([f"{one}/a-{{00..02}}.tar"]) == [f"{one}/a-0{i}.tar" for i in range(3)]
    assert expand([f"{one}/{{b,a-00}}.tar"]) == [f"{one}/b.tar", f"{one}/a-00.tar"]
    assert expand([f"{one}/a-*.tar", f"{one}/b.tar"]) == [f"{one}/a-0{i}.tar" for i in range(3)] + [f"{one}/b.tar"]
    assert expand([f"{one}/c[1].tar"]) == [f"{one}/c[1].tar"]
    with pytest.raises(UserError, match="no such file or folder"):
        expand([f"{one}/a-{{00..03}}.tar"])


def test_webdataset_with_both_texts(tmp_path):
    make_tars(tmp_path / "tars", 7, per_tar=3)
    source = open_source(str(tmp_path / "tars"))
    samples = list(source)
    assert source.source_type == "webdataset" and len(source.units) == 3
    assert simple(samples[4]) == ("0000004", "raw text number 4", "a caption number 4", None)
    assert samples[4].metadata == {"odd": False} and samples[4].where.endswith("00001.tar:0000004.jpg")
    assert samples[4].image == encoded(make_image(4), quality=90)
    assert [(sample.unit, sample.number) for sample in samples] == [(i // 3, i % 3) for i in range(7)]
    assert samples[-1].progress > samples[0].progress
    again = list(source.samples([1, 2], skip=1))
    assert [sample.key for sample in again] == [f"{i:07d}" for i in (4, 5, 6)]


def test_a_folder_of_tars_is_all_of_them_each_once(tmp_path):
    make_tars(tmp_path, 4, per_tar=2)
    (tmp_path / "00001.tar.gz").write_bytes(gzip.compress((tmp_path / "00001.tar").read_bytes()))
    (tmp_path / "00001.tar").unlink()
    source = open_source([str(tmp_path), str(tmp_path / "00000.tar"), f"{tmp_path}/./00000.tar"])
    assert [sample.key for sample in source] == [f"{i:07d}" for i in range(4)]


@pytest.mark.parametrize("other", ["a.JPG", "below/1.tar", "1.tar.zst"])
def test_a_folder_of_tars_with_other_samples_is_refused(tmp_path, other):
    make_tars(tmp_path, 1)
    (tmp_path / "below").mkdir()
    (tmp_path / other).touch()
    with pytest.raises(UserError, match=f"holds tars, and also .*{other}"):
        open_source(str(tmp_path))


def test_a_name_that_is_no_utf8_becomes_a_key_that_can_be_looked_up(tmp_path):
    for ending, content in ((b"jpg", JPEG), (b"txt", b"said")):
        with open(os.fsencode(tmp_path) + b"/\xff." + ending, "wb") as file:
            file.write(content)
    (sample,) = open_source(str(tmp_path))
    assert sample.key == "\\udcff" and sample.image == JPEG and sample.text == "said"


def test_webdataset_as_img2dataset_writes_it(tmp_path):
    row = {"caption": "raw from the web", "url": "u", "status": "success"}
    tar = tmp_path / "00000.tar"
    samples = [
        {"jpg": JPEG, "txt": b"raw from the web", "json": json.dumps(row).encode()},
        {"jpg": JPEG, "json": json.dumps(row).encode()},
        {"jpg": JPEG, "txt": "nur Text ü".encode()},
        {"jpg": JPEG, "txt": b"\xff\xfe"},
        {"jpg": JPEG, "json": b"[1]"},
        {"txt": b"no image"},
        {"jpg": JPEG, "png": JPEG, "txt": b"two"},
        {"jpg": JPEG},
    ]
    write_tar(tar, samples, [f"x/{i:05d}" for i in range(len(samples))])
    got = list(open_source(str(tar)))
    assert [sample.text for sample in got[:3]] == ["raw from the web", "raw from the web", "nur Text ü"]
    assert [sample.caption for sample in got[:3]] == [None] * 3 and got[0].key == "x/00000"
    assert got[3].error.startswith("bad-text") and got[4].error.startswith("bad-text")
    assert got[5].image is None and got[5].error is None
    assert got[6].error.startswith("ambiguous") and got[7].text is None
    named = list(open_source(str(tar), fields=Fields(text="url", caption="caption")))
    assert simple(named[0])[1:3] == ("u", "raw from the web")


def test_a_compressed_and_a_cut_tar(tmp_path):
    make_tars(tmp_path, 4)
    plain = tmp_path / "00000.tar"
    with gzip.open(tmp_path / "x.tar.gz", "wb") as out:
        out.write(plain.read_bytes())
    packed = list(open_source(str(tmp_path / "x.tar.gz")))
    assert [(s.key, s.image) for s in packed] == [(s.key, s.image) for s in open_source(str(plain))]
    os.truncate(plain, 4000)
    cut = list(open_source(str(plain)))
    assert cut[-1].error.startswith("broken-input") and str(plain) in cut[-1].error
    assert len(cut) < 5


@pytest.mark.parametrize("place", ["in a header", "between two members"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_tar_cut_where_tarfile_sees_nothing_amiss(tmp_path, place, compressed):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(4):
            member = tarfile.TarInfo(f"{number}.txt")
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
    end = 4 * 512 + (200 if place == "in a header" else 0)  # two members are whole
    path = tmp_path / ("cut.tar.gz" if compressed else "cut.tar")
    path.write_bytes(gzip.compress(buffer.getvalue()[:end]) if compressed else buffer.getvalue()[:end])
    samples = list(open_source(str(path)))
    assert [sample.key for sample in samples[:-1]] == ["0", "1"]
    assert samples[-1].error.startswith("broken-input") and "end mark" in samples[-1].error


ROWS = [
    {"image": "a.jpg", "text": 'a "quoted, text', "caption": "one"},
    {"image": "sub/b.jpg", "text": "two\nlines", "caption": ""},
    {"image": "", "text": "no image", "caption": "three"},
]


def write_table(path, rows):
    if path.suffix in (".csv", ".tsv"):
        with open(path, "w", newline="", encoding="utf-8") as file:
            if path.suffix == ".tsv":
                file.write("image\ttext\tcaption\n")
                for row in rows:
                    file.write("\t".join(value.replace("\n", " ") for value in row.values()) + "\n")
            else:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_tables(tmp_path, suffix):
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "sub/b.jpg"):
        (tmp_path / name).write_bytes(JPEG)
    path = tmp_path / f"t{suffix}"
    write_table(path, ROWS)
    source = open_source(str(path))
    got = list(source)
    assert source.source_type == "table"
    assert simple(got[0]) == ("a.jpg", 'a "quoted, text', "one", None)
    assert simple(got[1]) == ("sub/b.jpg", "two lines" if suffix == ".tsv" else "two\nlines", None, None)
    assert got[0].image == JPEG and got[1].image == JPEG and got[2].image is None
    assert got[-1].progress == pytest.approx(1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(path, elsewhere / path.name)
    again = list(open_source(str(elsewhere / path.name), image_root=str(tmp_path)))
    assert again[1].image == JPEG


def test_table_columns_by_flag(tmp_path):
    path = tmp_path / "t.jsonl"
    write_table(path, [{"file": "a.jpg", "alt": "raw", "blip": "said", "n": 1, "uid": 77}])
    (got,) = open_source(str(path), fields=Fields(key="uid", text="alt", caption="blip"))
    assert simple(got) == ("77", "raw", "said", None) and got.metadata == {"n": 1}
    with pytest.raises(UserError, match="no column 'nope' for --caption-field; it has file, alt"):
        list(open_source(str(path), fields=Fields(caption="nope")))
    write_table(path, [{"nothing": 1}])
    with pytest.raises(UserError, match="--image-field"):
        list(open_source(str(path)))


def test_broken_rows_are_named(tmp_path):
    csv_path, jsonl = tmp_path / "t.csv", tmp_path / "t.jsonl"
    csv_path.write_bytes(b"image,text\na.jpg,good\nb.jpg\nc.jpg,\xff\xfe\n")
    jsonl.write_text('{"image": "a.jpg", "text": "good"}\n{"image": \n[1]\n')
    for path in (csv_path, jsonl):
        got = list(open_source(str(path)))
        assert [bool(sample.error) for sample in got] == [False, True, True]
        assert got[1].error.startswith("broken-row") and "row 2" in got[1].where


KARPATHY = {
    "images": [
        {
            "filename": "1.jpg",
            "filepath": "v",
            "split": "train",
            "cocoid": 11,
            "sentences": [{"raw": "a"}, {"raw": "b"}],
        },
        {"filename": "2.jpg", "split": "test", "imgid": 2, "sentences": [{"raw": "c"}]},
        {"filename": "3.jpg", "split": "restval", "imgid": 3, "sentences": [{"raw": "d"}]},
    ]
}
COCO = {
    "images": [{"id": 5, "file_name": "5.jpg"}, {"id": 6, "file_name": "6.jpg"}],
    "annotations": [{"image_id": 5, "caption": "x"}, {"image_id": 5, "caption": "y"}, {"image_id": 9, "caption": "z"}],
}


def test_karpathy_and_coco(tmp_path):
    (tmp_path / "k.json").write_text(json.dumps(KARPATHY))
    (tmp_path / "c.json").write_text(json.dumps(COCO))
    source = open_source(str(tmp_path / "k.json"))
    got = list(source)
    assert source.source_type == "karpathy"
    assert [simple(s)[:2] for s in got] == [("11#0", "a"), ("11#1", "b"), ("3#0", "d")]
    assert got[0].image_data.path == str(tmp_path / "v" / "1.jpg")
    assert [s.key for s in open_source(str(tmp_path / "k.json"), splits=("test",))] == ["2#0"]
    source = open_source(str(tmp_path / "c.json"), image_root="imgs")
    got = list(source)
    assert source.source_type == "coco"
    assert [simple(s)[:2] for s in got] == [("5#0", "x"), ("5#1", "y"), ("9#0", "z"), ("6#0", None)]
    assert got[0].image_data.path == "imgs/5.jpg" and got[2].image_data is None


@pytest.mark.parametrize(
    "content, message",
    [
        ({"images": [{"id": 5}], "annotations": []}, "images\\[0\\] has no 'file_name'; it has 'id'"),
        ({"images": [{"i" * 999: 5}], "annotations": []}, "images\\[0\\] has no 'file_name'; it has 'i{199}$"),
        ({"images": [], "annotations": [{"id": 5}]}, "annotations\\[0\\] has no 'image_id'; it has 'id'"),
        ({"images": [], "annotations": [{"image_id": 5}]}, "has no 'caption'"),
        ({"images": [], "annotations": [{"image_id": [5], "caption": "x"}]}, "'image_id' of annotations"),
        ({"images": {"id": 5}, "annotations": []}, "'images' of the file cannot be"),
        ({"images": ["x"], "annotations": []}, "images\\[0\\] should be an object"),
        ({"images": [{"id": 1, "file_name": 7}]}, "'file_name' of images"),
        ({"images": [{"id": 1, "file_name": name} for name in "ab"]}, "has the id 1, and so has another image"),
        ({"annotations": []}, "the file has no 'images'"),
        ([1], "a JSON list"),
    ],
    ids=str,
)
def test_coco_json_that_is_not(tmp_path, content, message):
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        list(open_source(str(tmp_path / "c.json"), "coco"))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b'{"images": ' + b"[" * 100_000, b'{"images": [NaN]}'])
@pytest.mark.parametrize("source_type", ["coco", "karpathy"])
def test_broken_annotation_files(tmp_path, content, source_type):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(UserError, match=f"is not {source_type} JSON"):
        list(open_source(str(tmp_path / "c.json"), source_type))


def test_a_byte_order_mark_before_json(tmp_path):
    (tmp_path / "c.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(COCO).encode())
    assert len(list(open_source(str(tmp_path / "c.json")))) == 4


def test_patterns_that_stand_for_too_much(tmp_path):
    start = time.monotonic()
    for pattern in ("{1..99999999999}.tar", "{0..9}" * 17 + ".tar", "{" * 5000 + "}" * 5000):
        with pytest.raises(UserError, match=r"no such file|more than"):
            expand([f"{tmp_path}/{pattern}"])
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="more than 1,000"):
        expand([f"{tmp_path}/x/{{.,.}}" + "/{.,.}" * 15], most=1000)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "source_type, options, flag",
    [
        ("webdataset", {"fields": Fields(image="x")}, "--image-field"),
        ("webdataset", {"image_root": "x"}, "--image-root"),
        ("folder", {"image_root": "x"}, "--image-root"),
        ("coco", {"fields": Fields(key="x")}, "--key-field"),
        ("karpathy", {"fields": Fields(text="x")}, "--text-field"),
        ("coco", {"splits": ("test",)}, "--splits"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(tmp_path, source_type, options, flag):
    with pytest.raises(UserError, match=f"{flag} means nothing for a {source_type} source"):
        open_source(str(tmp_path), source_type, **options)


def test_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b", "a", "deep/c"):
        (tmp_path / f"{name}.jpg").write_bytes(JPEG)
        (tmp_path / f"{name}.txt").write_text(f"text of {name}\n")
    (tmp_path / "a.json").write_text('{"caption": "said of a", "text": "better"}')
    (tmp_path / "notes.md").write_text("no image")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    source = open_source(str(tmp_path))
    got = list(source)
    assert source.source_type == "folder"
    assert [s.key for s in got] == ["a", "b", "deep/c"]
    assert simple(got[0])[1:] == ("better", "said of a", None)
    assert got[1].error.startswith("bad-text") and got[2].text == "text of deep/c" and got[2].image == JPEG


def test_what_cannot_be_recognised(tmp_path):
    (tmp_path / "x.bin").touch()
    (tmp_path / "x.csv").touch()
    with pytest.raises(UserError, match="--source-type"):
        open_source(str(tmp_path / "x.bin"))
    with pytest.raises(UserError, match="mixes"):
        open_source([str(tmp_path / "x.csv"), str(tmp_path)])
    with pytest.raises(UserError, match="no such file or folder"):
        open_source(str(tmp_path / "y.csv"))
    with pytest.raises(UserError, match="is empty"):
        list(open_source(str(tmp_path / "x.csv")))


PAIRS = {"a": "said of a", "sub/b": "said, of b", "5": "said of five"}


@pytest.mark.parametrize("form", ["jsonl", "tsv", "tsv with header", "csv", "ofa"])
def test_captions_files(tmp_path, form):
    path = tmp_path / f"captions.{'json' if form == 'ofa' else form.split()[0]}"
    if form == "jsonl":
        path.write_text("".join(json.dumps({"key": key, "caption": one}) + "\n" for key, one in PAIRS.items()))
    elif form == "csv":
        path.write_text("key,caption\n" + "".join(f'{key},"{one}"\n' for key, one in PAIRS.items()))
    elif form == "ofa":
        pairs = [{"image_id": int(k) if k.isdigit() else k, "caption": one} for k, one in PAIRS.items()]
        path.write_text(json.dumps(pairs))
    else:
        head = "image_id\tcaption\n" if "header" in form else ""
        path.write_text(head + "".join(f"{key}\t{one}\n" for key, one in PAIRS.items()))
    assert dict(read_captions(str(path))) == PAIRS
    table = CaptionTable([str(path)], tmp_path / "index.sqlite")
    assert [table.get(key) for key in ("sub/b", "5#3", "none")] == [["said, of b"], None, None]
    assert table.get("5#3", image_key="5") == ["said of five"]
    assert table.found == 2


def test_a_long_json_list_is_read_in_pieces(tmp_path, monkeypatch):
    pairs = [{"image_id": i, "caption": f"caption [{i}], with {{signs}} é"} for i in range(500)]
    path = tmp_path / "c.json"
    path.write_text(json.dumps(pairs, indent=1, ensure_ascii=False))
    monkeypatch.setattr("alip.build.caption_files._BLOCK", 37)
    assert list(read_captions(str(path))) == [(str(p["image_id"]), p["caption"]) for p in pairs]
    path.write_text(json.dumps(pairs)[:-5])
    with pytest.raises(UserError, match="broken JSON after entry 499"):
        list(read_captions(str(path)))


def test_broken_captions_files(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"key": "a"}\n')
    with pytest.raises(UserError, match="entry 1: should have a key"):
        list(read_captions(str(path)))
    path = tmp_path / "c.tsv"
    path.write_text("no tab here\n")
    with pytest.raises(UserError, match="line 1: should be key, tab, caption"):
        list(read_captions(str(path)))
    with pytest.raises(UserError, match="no captions file"):
        list(read_captions(str(tmp_path / "none.tsv")))
