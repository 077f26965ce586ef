"""Tables: what a row holds is found row by row, and a broken row costs that row, with a reason."""

import csv
import datetime
import json
import os
import random
import time

import pyarrow
import pyarrow.parquet
import pytest

from alip.build import table_rows
from alip.build.open_source import open_source
from alip.build.sources import ByteRange, Fields
from alip.build.table_rows import read_rows
from alip.build.tables import TableSource
from alip.errors import UserError


@pytest.fixture(autouse=True)
def field_limit():
    """The csv module has one limit for the whole process: what a test sets would be that of the tests after it."""
    before = csv.field_size_limit()
    yield
    csv.field_size_limit(before)


def rows(path) -> list:
    return [row.values if row.values is not None else row.fault for row in read_rows(str(path))]


def test_each_json_line_has_its_own_fields(tmp_path):
    """A caption that first appears in the third line is a caption, not metadata."""
    path = tmp_path / "t.jsonl"
    lines = [
        {"image": "a.jpg", "text": "one"},
        {"image": "b.jpg", "title": "two", "n": 1},
        {"path": "c.jpg", "text": "three", "caption": "said"},
        {"text": "no image"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    got = list(open_source(str(path)))
    assert [(s.text, s.caption, s.metadata) for s in got] == [
        ("one", None, {}),
        ("two", None, {"n": 1}),
        ("three", "said", {}),
        ("no image", None, {}),
    ]
    assert [s.image_data is None for s in got] == [False, False, False, True]
    (third,) = [s for s in open_source(str(path), fields=Fields(caption="caption")) if s.caption]
    assert third.caption == "said"


def test_a_lone_carriage_return_is_part_of_a_text(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'image,text\r\na.jpg,one\rtwo\r\nb.jpg,"quoted\rtext"\r\nc.jpg,three\r\n')
    assert [row["text"] for row in rows(path)] == ["one\rtwo", "quoted\rtext", "three"]
    path = tmp_path / "t.tsv"
    path.write_bytes(b"image\ttext\na.jpg\tone\rtwo\nb.jpg\tthree\n")
    assert [row["text"] for row in rows(path)] == ["one\rtwo", "three"]
    path.write_bytes(b"image\ttext\ra.jpg\tone\rb.jpg\tthree\r")
    with pytest.raises(UserError, match="lone carriage return"):
        rows(path)


def test_an_unclosed_quotation_mark_costs_one_row(tmp_path):
    path = tmp_path / "t.csv"
    body = [f"{i}.jpg,text {i}" for i in range(50)]
    body[7] = '7.jpg,"never closed'
    body[20] = '20.jpg,a 5" pipe'
    body[30] = '30.jpg,"fine" '
    path.write_text("\n".join(["image,text", *body, ""]))
    got = rows(path)
    assert len(got) == 50 and isinstance(got[7], str)
    assert [row["image"] for i, row in enumerate(got) if i != 7] == [f"{i}.jpg" for i in range(50) if i != 7]
    assert got[20]["text"] == 'a 5" pipe' and got[30]["text"] == "fine "


def test_quoted_line_breaks_are_kept(tmp_path):
    path = tmp_path / "t.csv"
    for end in ("\n", "\r\n"):
        text = 'image,text\na.jpg,"two\nlines, and a ""quotation"""\nb.jpg,x\n'.replace("\n", end)
        path.write_text(text, newline="")
        assert [row["text"] for row in rows(path)] == [f'two{end}lines, and a "quotation"', "x"]


def test_too_long_fields_and_lines_cost_their_row(tmp_path, monkeypatch):
    monkeypatch.setattr(table_rows, "LONGEST_FIELD", 1000)
    for name, line in (("t.csv", "b.jpg,{}"), ("t.tsv", "b.jpg\t{}"), ("t.jsonl", '{{"image": "b", "text": "{}"}}')):
        path = tmp_path / name
        head = {"t.csv": "image,text\na.jpg,x\n", "t.tsv": "image\ttext\na.jpg\tx\n", "t.jsonl": '{"image": "a"}\n'}[
            name
        ]
        tail = {"t.csv": "c.jpg,y\n", "t.tsv": "c.jpg\ty\n", "t.jsonl": '{"image": "c"}\n'}[name]
        path.write_text(head + line.format("x" * 5000) + "\n" + tail)
        got = rows(path)
        assert isinstance(got[1], str) and "1,000" in got[1] and isinstance(got[-1], dict) and len(got) == 3, name


@pytest.mark.parametrize(
    "content",
    [b"\xff", b'{"a": 1, "a": 2}', b'{"a": NaN', b"[" * 100_000, b"nonsense", b'{"image": 1' + b"0" * 9000 + b"}"],
)
def test_broken_json_lines(tmp_path, content):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"image": "a"}\n' + content + b'\n{"image": "b"}\n')
    first, broken, last = rows(path)
    assert first == {"image": "a"} and isinstance(broken, str) and last == {"image": "b"}


def test_texts_that_are_none(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"image": "a", "text": ["x"]}\n{"image": "b", "text": {"x": 1}}\n{"image": "c", "text": 7}\n')
    got = list(open_source(str(path)))
    assert got[0].error.startswith("bad-text") and got[1].error.startswith("bad-text") and got[2].text == "7"


def test_two_columns_of_one_name_are_refused(tmp_path):
    twice = pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 3, names=["image", "text", "text"])
    pyarrow.parquet.write_table(twice, tmp_path / "t.parquet")
    with pytest.raises(UserError, match="has two columns 'text'"):
        rows(tmp_path / "t.parquet")


def test_parquet_with_dates_that_python_does_not_know(tmp_path):
    path = tmp_path / "t.parquet"
    far = pyarrow.array([10**15, 0], pyarrow.timestamp("s"))
    table = pyarrow.table({"image": ["a.jpg", "b.jpg"], "text": ["x", "y"], "when": far})
    pyarrow.parquet.write_table(table, path)
    got = rows(path)
    assert [row["text"] for row in got] == ["x", "y"]
    assert got[1]["when"] == datetime.datetime(1970, 1, 1) and not isinstance(got[0]["when"], datetime.datetime)
    assert next(iter(open_source(str(path)))).error is None


def test_a_damaged_row_group_is_named_and_the_others_are_read(tmp_path):
    path = tmp_path / "t.parquet"
    table = pyarrow.table({"image": [f"{i}.jpg" for i in range(300)], "text": [f"{i:040d}" for i in range(300)]})
    pyarrow.parquet.write_table(table, path, row_group_size=100, compression="zstd")
    data = bytearray(path.read_bytes())
    middle = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(1)
    start = middle.dictionary_page_offset or middle.data_page_offset
    data[start : start + middle.total_compressed_size] = b"\xff" * middle.total_compressed_size
    path.write_bytes(data)
    samples = list(open_source(str(path)))
    assert [s.text for s in samples if not s.error] == [f"{i:040d}" for i in (*range(100), *range(200, 300))]
    (error,) = [s.error for s in samples if s.error]
    assert error.startswith("broken-input") and "row group 1 (100 rows)" in error
    path.write_bytes(data[:-20])
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        rows(path)


def test_a_row_group_that_ends_too_early_is_named(tmp_path, monkeypatch):
    """Some damage makes pyarrow return fewer rows, without an error."""
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": [f"{i}.jpg" for i in range(9)]}), path, row_group_size=3)
    whole = pyarrow.parquet.ParquetFile.iter_batches

    def fewer(self, row_groups, **options):
        for batch in whole(self, row_groups=row_groups, **options):
            yield batch.slice(0, 1 if row_groups == [1] else 3)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", fewer)
    got = rows(path)
    assert [row["image"] for row in got if isinstance(row, dict)] == [f"{i}.jpg" for i in (0, 1, 2, 3, 6, 7, 8)]
    assert got[4] == "the rest of row group 1 (2 rows) cannot be read: it ends too early"


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_utf_16_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_text("image,text\na,b\n", encoding="utf-16")
    with pytest.raises(UserError, match="UTF-16"):
        rows(path)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet", "t.tar", "t.json"])
def test_a_named_pipe_or_folder_is_refused_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="neither a regular file nor a folder"):
        open_source(str(tmp_path / name))
    (tmp_path / f"d-{name}").mkdir()
    with pytest.raises(UserError):
        list(open_source(str(tmp_path / f"d-{name}"), "table"))


def test_a_named_pipe_as_an_image_is_refused_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    start = time.monotonic()
    with pytest.raises(ValueError, match="regular file"):
        ByteRange(str(tmp_path / "pipe.jpg")).read()
    with pytest.raises(ValueError, match="limit"):
        (tmp_path / "large.jpg").touch()
        os.truncate(tmp_path / "large.jpg", 1 << 40)
        ByteRange(str(tmp_path / "large.jpg")).read()
    assert time.monotonic() - start < 5


def random_table(rng, delimiter):
    """Bytes with quotations, line ends in them, broken rows, blank lines, lone carriage returns."""
    cells = [
        "x",
        "",
        'a "b"',
        '"two\nlines"',
        '"a\r\nb, ""c"""',
        '"open',
        'close"',
        '"x" ',
        "\r",
        "\0",
        "\xff",
        " ",
        "ü",
        "y" * 90,
    ]
    end = rng.choice(["\n", "\r\n"])
    rows = ["image" + delimiter + "text"]
    for number in range(rng.randrange(25)):
        width = 2 if rng.random() < 0.9 else rng.randrange(1, 4)
        rows.append(delimiter.join([f"{number}.jpg", *(rng.choice(cells) for _ in range(width - 1))]))
        rows.extend([""] * (rng.random() < 0.1))
    content = end.join(rows) + end * rng.randrange(3)
    return b"\xef\xbb\xbf" * (rng.random() < 0.5) + content.encode("latin-1" if rng.random() < 0.3 else "utf-8")


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_parts_of_a_table_have_the_rows_of_all_of_it(tmp_path, monkeypatch, name):
    """Random tables, cut behind every few rows."""
    rng, path, cuts = random.Random(15), tmp_path / name, 0
    for _ in range(150):
        monkeypatch.setattr(table_rows, "LONGEST_FIELD", rng.choice([80, 1 << 24]))
        path.write_bytes(random_table(rng, "\t" if name.endswith("tsv") else ","))
        source = TableSource([str(path)], Fields(), None)
        whole = list(source.read_part(0, None))
        parts = source.divide(0, rng.randrange(1, 4))
        found = [sample for cut in parts for sample in source.read_part(0, cut)]
        assert found == whole, path.read_bytes()
        cuts += len(parts) - 1
    assert cuts > 300
