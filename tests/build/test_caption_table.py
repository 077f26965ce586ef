"""Captions files of every malformed kind: one line with file, place and fix, in bounded time; never a traceback."""

import json
import os
import subprocess
import sys
import time

import pyarrow
import pyarrow.parquet
import pytest

from alip.build import caption_files
from alip.build.caption_files import read_captions
from alip.build.caption_table import CaptionTable
from alip.errors import UserError
from tests.helpers.shards import ROOT

LIST = json.dumps([{"image_id": i, "caption": f"said {i}"} for i in range(3)])
MALFORMED = {
    "empty.json": b"",
    "object.json": b'{"image_id": 1, "caption": "x"}',
    "coco.json": b'{"images": [{"id": 1}], "annotations": []}',
    "unclosed.json": LIST[:-1].encode(),
    "unclosed-text.json": b'[{"image_id": 1, "caption": "' + b"x" * 3_000_000,
    "comma.json": LIST[:-1].encode() + b",]",
    "no-comma.json": b'[{"image_id": 1, "caption": "x"} {"image_id": 2, "caption": "y"}]',
    "behind.json": LIST.encode() + b"]",
    "deep.json": b"[" * 200_000,
    "deep-entry.json": b'[{"image_id": 1, "caption": ' + b"[" * 200_000,
    "latin.json": LIST.replace("said", "saïd").encode("latin-1"),
    "utf16.json": LIST.encode("utf-16"),
    "surrogate.json": b'[{"image_id": 1, "caption": "\\ud800"}]',
    "surrogate-key.jsonl": b'{"key": "\\udfff", "caption": "x"}\n',
    "entries.json": b'[1, 2, "three"]',
    "null.json": b"[null]",
    "no-caption.json": b'[{"image_id": 1}]',
    "list-caption.json": b'[{"image_id": 1, "caption": ["a"]}]',
    "object-caption.jsonl": b'{"key": "a", "caption": {"x": 1}}\n',
    "broken.jsonl": b'{"key": "a", "caption": "x"}\n{"key": \n',
    "deep.jsonl": b"[" * 200_000 + b"\n",
    "twice.jsonl": b'{"key": "a", "caption": "x", "caption": "y"}\n',
    "twice.json": b'[{"image_id": 1, "caption": "x", "caption": "y"}]',
    "no-tab.tsv": b"key caption\n",
    "columns.tsv": b"key\tcaption\tcaption_2\na\tb\n",
    "twice.tsv": b"key\tcaption\tcaption\na\tb\tc\n",
    "other.tsv": b"key\tone\ttwo\na\tb\tc\n",
    "latin.tsv": "a\tsaïd\n".encode("latin-1"),
    "utf16.tsv": "a\tx\n".encode("utf-16"),
    "empty.csv": b"",
    "cells.csv": b"key,caption\na,b,c\n",
    "quotation.csv": b'key,caption\na,"b\n',
    "columns.csv": b"one,two\na,b\n",
    "twice.csv": b"key,caption,caption\na,b,c\n",
    "latin.csv": "key,caption\na,saïd\n".encode("latin-1"),
    "no-parquet.parquet": b"PAR1 nothing PAR1",
    "name.xyz": b"a\tb\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_one_line(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(MALFORMED[name])
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        list(read_captions(str(path)))
    assert str(path) in str(error.value) and len(str(error.value)) < 600
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("name", ["c.json", "c.jsonl", "c.tsv", "c.csv", "c.parquet"])
def test_folders_pipes_and_forbidden_files(tmp_path, name):
    for make in (os.mkdir, os.mkfifo):
        path = tmp_path / f"{make.__name__}-{name}"
        make(path)
        with pytest.raises(UserError, match="regular file"):
            list(read_captions(str(path)))


UNUSUAL = {
    "bom.json": (b"\xef\xbb\xbf" + LIST.encode(), {"0": "said 0", "1": "said 1", "2": "said 2"}),
    "none.json": (b" [ ]\n", {}),
    "bom.jsonl": (b'\xef\xbb\xbf{"key": "a", "caption": "x"}\n\n', {"a": "x"}),
    "bom.tsv": (b"\xef\xbb\xbfa\tx\n", {"a": "x"}),
    "bom-head.tsv": (b"\xef\xbb\xbfkey\tcaption\na\tx\n", {"a": "x"}),
    "crlf.tsv": (b"a\tx\r\nb\ty\r\n", {"a": "x", "b": "y"}),
    "cr.tsv": (b"a\tx\ry\n", {"a": "x\ry"}),
    "cr.csv": (b"key,caption\na,x\ry\nb,z\n", {"a": "x\ry", "b": "z"}),
    "bom.csv": (b"\xef\xbb\xbfkey,caption\na,x\n", {"a": "x"}),
    "blank.jsonl": (b'{"key": "a", "caption": " "}\n{"key": "b", "caption": null}\n', {}),
    "number.json": (b'[{"image_id": 1, "caption": 12}]', {"1": "12"}),
    "only-id.json": (b'[{"id": 9, "caption": "x"}]', {"9": "x"}),
    "again.jsonl": (b'{"key": "a", "caption": "x"}\n{"key": "a", "caption": "y"}\n', {"a": "y"}),
    "nul.jsonl": (b'{"key": "a\\u0000b", "caption": "x\\u0000y"}\n', {"a\0b": "x\0y"}),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_but_right_is_read(tmp_path, name):
    path = tmp_path / name
    content, expected = UNUSUAL[name]
    path.write_bytes(content)
    assert dict(read_captions(str(path))) == expected
    table = CaptionTable([str(path)], tmp_path / "index.sqlite")
    assert {key: table.get(key) for key in expected} == {key: [caption] for key, caption in expected.items()}


def test_parquet_with_bad_dates(tmp_path):
    table = pyarrow.table({"key": ["a"], "caption": ["x"], "when": pyarrow.array([10**15], pyarrow.timestamp("s"))})
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    assert list(read_captions(str(tmp_path / "c.parquet"))) == [("a", "x")]


def test_parquet_with_keys_of_bytes(tmp_path):
    path = tmp_path / "c.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"key": ["犬".encode()], "caption": ["x"]}), path)
    assert list(read_captions(str(path))) == [("犬", "x")]
    pyarrow.parquet.write_table(pyarrow.table({"key": [b"\xff"], "caption": ["x"]}), path)
    with pytest.raises(UserError, match="entry 1: its key is not UTF-8"):
        list(read_captions(str(path)))


def test_an_unclosed_string_takes_linear_time_and_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(caption_files, "_BLOCK", 1 << 12)
    monkeypatch.setattr(caption_files, "_LONGEST_ENTRY", 1 << 18)
    path = tmp_path / "c.json"
    path.write_text('[{"image_id": 1, "caption": "' + "x" * (1 << 22))
    decoded = []
    decode = json.JSONDecoder.raw_decode

    def counting(self, text, at=0):
        decoded.append(len(text) - at)
        return decode(self, text, at)

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", counting)
    with pytest.raises(UserError, match="an entry is broken, or longer"):
        list(read_captions(str(path)))
    assert sum(decoded) < 5 * (1 << 18)


def test_numbers_and_texts_across_blocks(tmp_path, monkeypatch):
    for block in range(1, 40):
        monkeypatch.setattr(caption_files, "_BLOCK", block)
        path = tmp_path / "c.json"
        path.write_text('[ {"image_id": 12345, "caption": "a, ]\\u00e9"} ,\n{"image_id": 6, "caption": 7.25}] ')
        assert list(read_captions(str(path))) == [("12345", "a, ]é"), ("6", "7.25")]


def test_the_limit_on_a_files_size_is_no_traceback(tmp_path):
    """SQLite calls it a disk I/O error."""
    (tmp_path / "c.json").write_text(LIST)
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); "
        "from alip.build.caption_table import CaptionTable; from alip.errors import run_command; "
        "from pathlib import Path; run_command(lambda: CaptionTable(['c.json'], Path('index.sqlite')))"
    )
    words = [sys.executable, "-c", program]
    done = subprocess.run(
        words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "File too large" in done.stderr
    assert not (tmp_path / "index.sqlite").exists()
