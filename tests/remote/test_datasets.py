"""What data2rec.py does with datasets that are in object storage: --verify, --show, --from, --merge."""

import sys

import numpy as np
import pytest

import data2rec
from alip.build import writer
from alip.build.input_shard import InputShard
from alip.build.open_source import open_source
from alip.build.prepare import Policy
from alip.build.select import select
from alip.build.verify import verify
from alip.data.score_table import SCORES
from alip.data.shards import load_manifest, read_texts
from alip.errors import UserError
from alip.eval.gates.scoring import write_scores
from alip.remote import reading, writing
from alip.remote.access import RemoteError
from tests.helpers.shards import build_shards, make_tars


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    make_tars(folder / "in", 40, per_tar=20)
    return build_shards(folder / "in", folder / "set", samples_per_shard=16)


@pytest.fixture
def stored(s3, local):
    for path in local.folder.glob("set*"):
        writing.upload(path, f"s3://bucket/data/{path.name}")
    s3.requests.clear()
    return "s3://bucket/data/set"


def test_verify(s3, stored, local, tmp_path, capsys):
    assert verify(stored, decode=True, scratch=str(tmp_path / "scratch")) == 0
    assert "sound: 40 samples in 3 shards" in capsys.readouterr().out
    assert not list((tmp_path / "scratch").iterdir())
    damaged = bytearray((local.folder / "set-00001.rec").read_bytes())
    damaged[-40] ^= 1
    writing.write_url("s3://bucket/data/set-00001.rec", bytes(damaged))
    writing.remove_url("s3://bucket/data/set-00002.idx")
    writing.write_url("s3://bucket/data/set-00007.rec", b"stray")
    try:
        assert verify(stored) == 1
    finally:
        for number in (1, 2, 7):
            for ending in ("rec", "idx"):
                writing.remove_url(f"s3://bucket/data/set-{number:05d}.{ending}")
    shown = capsys.readouterr().out
    assert "s3://bucket/data/set-00001.rec: the checksum is not the manifest's" in shown
    assert "s3://bucket/data/set-00002.idx: no such index file" in shown
    assert "s3://bucket/data/set-00007.rec: the manifest does not list it" in shown and "/tmp" not in shown


def test_show_reads_the_records_it_shows(s3, stored, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["data2rec.py", "--show", "3", "--output", stored])
    assert data2rec.main() == 0
    assert (tmp_path / "set-samples.png").stat().st_size > 10_000
    whole = [path for method, path, *_ in s3.requests if method == "GET" and path.endswith(".rec")]
    assert len(whole) == 3, "one request for each record"


def test_select_from_there_to_there(s3, stored, local, tmp_path):
    """Interrupted between two shards, resumed on another machine; the shards are those of a selection on the disk."""
    table = tmp_path / "gates.parquet"
    rows = list(read_texts(local))
    content = {"index": np.arange(40), "key": [row["key"] for row in rows], "shard": ["x"] * 40}
    content |= {"record": np.zeros(40, np.int32), "text": ["t"] * 40, "caption": ["c"] * 40}
    content |= dict.fromkeys(SCORES, np.linspace(0, 1, 40, dtype=np.float32))
    write_scores(table, local, iter([content]), [])
    options = {"keep": "text_caption_similarity > 0.2", "samples_per_shard": 10, "quiet": True}
    wanted = select(local.folder / "set", table, tmp_path / "wanted" / "clean", **options).manifest
    s3.fault = lambda method, path: "drop" if method == "PUT" and "clean-00002" in path else None
    with pytest.raises(RemoteError, match=r"clean-00002\.rec: writing failed"):
        select(stored, table, "s3://bucket/out/clean", scratch=str(tmp_path / "one"), **options)
    s3.fault = lambda method, path: None
    found = select(stored, table, "s3://bucket/out/clean", scratch=str(tmp_path / "two"), **options).manifest
    assert found.fingerprint == wanted.fingerprint and found.samples == wanted.samples == 32
    assert [row["key"] for row in read_texts(found)] == [row["key"] for row in read_texts(wanted)]
    assert not list((tmp_path / "two").glob("*/*")), "nothing is left behind"
    again = select(stored, table, "s3://bucket/out/clean", scratch=str(tmp_path / "two"), **options)
    assert again.already_there
    here = select(stored, table, tmp_path / "here" / "clean", **options).manifest
    assert here.fingerprint == wanted.fingerprint
    with pytest.raises(UserError, match="is the dataset to read"):
        select(stored, table, stored, **options)
    with pytest.raises(UserError, match="a score table is read from a disk"):
        select(stored, "s3://bucket/gates.parquet", tmp_path / "x", **options)


def test_merge(s3, local, tmp_path, monkeypatch, capsys):
    source = str(local.folder / "in")
    for index in range(2):
        options = {"input_shard": InputShard(index, 2), "scratch": str(tmp_path / "scratch")}
        writer.build(open_source(source), "s3://bucket/parts/set", policy=Policy(), workers=0, quiet=True, **options)
    monkeypatch.setattr(sys, "argv", ["data2rec.py", "--merge", "--output", "s3://bucket/parts/set"])
    assert data2rec.main() == 0
    manifest = load_manifest("s3://bucket/parts/set", at_url=True)
    assert manifest.samples == 40 and reading.exists("s3://bucket/parts/set-rejects.jsonl")
    with pytest.raises(UserError, match=r"s3://bucket/parts/set\.json exists already"):
        data2rec.main()
