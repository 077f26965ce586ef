"""data2rec.py from object storage and to it: the same records as from a disk, whatever fails on the way."""

import json
import subprocess
import sys

import pytest

from alip.build import division, writer
from alip.build.joined_texts import TextFiles
from alip.build.open_source import open_source
from alip.build.prepare import Policy
from alip.build.tables import TableSource
from alip.data.shards import load_manifest, read_texts
from alip.errors import UserError
from alip.remote import reading, writing
from alip.remote.access import RemoteError, filesystem
from tests.helpers.engines import InTurn
from tests.helpers.s3 import environment
from tests.helpers.shards import ROOT, encoded, make_image, make_tars


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """Three tars of 20 samples, one image broken; and the dataset built from them on the disk."""
    folder = tmp_path_factory.mktemp("tars")
    make_tars(folder / "in", 60, per_tar=20, broken=(4,))
    source = open_source(str(folder / "in"))
    local = writer.build(source, folder / "set", policy=Policy(), workers=0, samples_per_shard=16, quiet=True)
    return folder, local.manifest


@pytest.fixture
def stored(s3, tars) -> str:
    for path in sorted((tars[0] / "in").iterdir()):
        writing.upload(path, f"s3://bucket/in/{path.name}")
    s3.requests.clear()
    return "s3://bucket/in/{00000..00002}.tar"


def build(source, output, scratch, **options):
    source = open_source(source) if isinstance(source, str) else source
    options = {"policy": Policy(), "workers": 0, "samples_per_shard": 16, "quiet": True, **options}
    return writer.build(source, output, scratch=scratch and str(scratch), **options).manifest


def fetch(url, folder):
    """A dataset in the store, copied to a folder."""
    folder.mkdir()
    for one in reading.glob(f"{url}*"):
        reading.download(one, folder / one.rpartition("/")[2])
    return folder / url.rpartition("/")[2]


def test_the_same_shards_as_on_a_disk(s3, stored, tars, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 1 << 14)
    seen = {}

    def fault(method, path):  # the first request of each kind to each file fails
        seen[method, path] = seen.get((method, path), 0) + 1
        return ("drop", "503", "truncate")[len(seen) % 3] if seen[method, path] == 1 and method != "HEAD" else None

    s3.fault = fault
    manifest = build(stored, "s3://bucket/out1/set", tmp_path / "scratch")
    assert manifest.fingerprint == tars[1].fingerprint and manifest.rejects == {"truncated": 1}
    sources = [row["source"] for row in read_texts(manifest)]
    assert sources[0] == "s3://bucket/in/00000.tar:0000000.jpg"
    assert build(stored, "s3://bucket/out1/set", tmp_path / "scratch").fingerprint == manifest.fingerprint, "is there"
    assert not list((tmp_path / "scratch").glob("*/*")), "nothing is left behind"
    copy = fetch("s3://bucket/out1/set", tmp_path / "copy")
    command = [sys.executable, str(ROOT / "data2rec.py"), "--verify", str(copy), "--workers", "1"]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    with pytest.raises(UserError, match="was built with another input"):
        build("s3://bucket/in/00000.tar", "s3://bucket/out1/set", tmp_path / "scratch")


@pytest.mark.parametrize("keep_scratch", [True, False])
def test_a_build_resumes_here_or_elsewhere(s3, stored, tars, tmp_path, monkeypatch, keep_scratch):
    name = f"s3://bucket/out2{keep_scratch}/set"
    monkeypatch.setattr("alip.remote.access.ATTEMPTS", 2)
    s3.fault = lambda method, path: "drop" if method == "PUT" and "set-00002" in path else None
    with pytest.raises(RemoteError, match=r"set-00002\.rec: writing failed 2 times"):
        build(stored, name, tmp_path / "one")
    assert not reading.exists(f"{name}.json"), "the manifest comes last"
    s3.fault = lambda method, path: None
    s3.requests.clear()
    manifest = build(stored, name, tmp_path / ("one" if keep_scratch else "two"))
    assert manifest.fingerprint == tars[1].fingerprint and manifest.rejects == tars[1].rejects
    assert not any("set-00001" in path for method, path, _ in s3.requests if method == "PUT"), "made before"
    assert not reading.glob(f"{name}.partial/*")


def test_input_that_stays_away_stops_the_build(s3, stored, tmp_path, monkeypatch):
    monkeypatch.setattr("alip.remote.access.ATTEMPTS", 2)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    s3.fault = lambda method, path: "cut" if method == "GET" and path.endswith("00001.tar") else None
    with pytest.raises(RemoteError, match=r"00001\.tar: reading failed 2 times"):
        build(stored, tmp_path / "out" / "set", None)
    with pytest.raises(UserError, match=r"no such file: s3://bucket/in/00003\.tar"):
        open_source("s3://bucket/in/{00000..00003}.tar")
    with pytest.raises(UserError, match="there is no such bucket"):
        build(open_source(stored), "s3://nobucket/set", tmp_path / "scratch")


def test_tables_and_their_images(s3, tmp_path, monkeypatch):
    """The same by an engine, with the tables in parts."""
    import pyarrow
    import pyarrow.parquet

    rows = []
    for i in range(4):
        writing.write_url(f"s3://bucket/table/images/{i}.jpg", encoded(make_image(i), quality=90))
        rows.append({"image": f"images/{i}.jpg", "text": f"raw {i}", "caption": f"caption {i}"})
    rows.append({"image": "http://169.254.169.254/latest", "text": "a", "caption": "b"})
    rows.append({"image": "images/none.jpg", "text": "a", "caption": "b"})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.csv").write_text("".join(",".join(row) + "\n" for row in [rows[0], *map(dict.values, rows)]))
    monkeypatch.setattr(TableSource, "divided_from", 1)
    monkeypatch.setattr(division, "SAMPLES_PER_PART", 2)
    lines = "".join(json.dumps({"key": row["image"], "caption": "joined"}) + "\n" for row in rows)
    writing.write_url("s3://bucket/table/captions.jsonl", lines.encode())
    found = []
    for name in ("rows.parquet", "rows.jsonl", "rows.csv"):
        writing.upload(tmp_path / name, f"s3://bucket/table/{name}")
        captions = "s3://bucket/table/captions.jsonl"
        url, texts, engine = f"s3://bucket/table/{name}", TextFiles((captions,)), InTurn()
        manifest = build(url, tmp_path / name[-5:] / "set", None, texts=texts)
        other = build(url, tmp_path / "parts" / name[-5:] / "set", None, texts=texts, engine=engine)
        assert other.to_json() == manifest.to_json()
        assert [call for call, _ in engine.calls].count("prepare_unit") == (1 if name == "rows.parquet" else 3)
        assert manifest.samples == 4 and manifest.rejects == {"foreign-url": 1, "missing-image": 1}
        found.append([(row["key"], row["caption"]) for row in read_texts(manifest)])
    assert found[0] == found[1] == found[2] == [(f"images/{i}.jpg", "joined") for i in range(4)]


def test_tables_that_hold_their_images(s3, tmp_path):
    import pyarrow
    import pyarrow.parquet

    cells = [{"bytes": encoded(make_image(i), quality=90), "path": None} for i in range(5)]
    texts = {"text": [f"raw {i}" for i in range(5)], "caption": [f"caption {i}" for i in range(5)]}
    pyarrow.parquet.write_table(pyarrow.table({"image": cells, **texts}), tmp_path / "t.parquet", row_group_size=2)
    writing.upload(tmp_path / "t.parquet", "s3://bucket/held/t.parquet")
    here = build(str(tmp_path / "t.parquet"), tmp_path / "here" / "set", None)
    there = build("s3://bucket/held/t.parquet", tmp_path / "there" / "set", None)
    assert there.samples == 5 and there.fingerprint == here.fingerprint
    assert [row["key"] for row in read_texts(there)] == [f"t.parquet#{row}" for row in range(5)]


def test_captions_of_images_in_the_store(s3, stored, tmp_path):
    from alip.caption.pipeline import main

    address = f"http://user:secret@{s3.url.removeprefix('http://')}/bucket/in/00000.tar?token=secret"
    files, path = filesystem("s3://bucket/in/00000.tar")
    files.chmod(path, "public-read")
    captioner = f"file:{ROOT / 'examples' / 'captioner_colours.py'}"
    for number, source in enumerate(("s3://bucket/in/*.tar", address)):
        output = tmp_path / str(number) / "captions.jsonl"
        output.parent.mkdir()
        words = ["--input", source, "--output", output, "--captioner", captioner, "--workers", 0, "--device", "cpu"]
        assert main([str(word) for word in words]) in (0, 1), "one image is broken"
        assert len(output.read_text().splitlines()) == (59, 19)[number]
        assert not any("secret" in file.read_text(errors="replace") for file in output.parent.rglob("*.json*"))


@pytest.mark.slow
def test_the_command_shows_no_secret(s3, stored, tars, tmp_path):
    command = [sys.executable, "-W", "ignore", str(ROOT / "data2rec.py"), "--input", "s3://bucket/in/*.tar"]
    command += ["--samples-per-shard", "16", "--output", "s3://bucket/out3/set", "--scratch", str(tmp_path)]
    done = subprocess.run([*command, "--workers", "1"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "s3://bucket/out3/set: 59 samples in 4 shards" in done.stdout
    everything = done.stdout + done.stderr + reading.read_url("s3://bucket/out3/set.json", 1 << 20).decode()
    assert not any(
        secret in everything for secret in environment(s3).values() if "secret" in secret or "AKIA" in secret
    )
    assert load_manifest("s3://bucket/out3/set", at_url=True).fingerprint == tars[1].fingerprint


def test_an_engine_uploads_the_shards_it_makes(s3, stored, tars, tmp_path):
    """Its driver dies in between, with shards in the store and no manifest; then the dataset is the same."""
    engine = InTurn(lambda name, piece: name == "write_shard" and piece[0] == 1)
    with pytest.raises(KeyboardInterrupt):
        build(stored, "s3://bucket/out9/set", tmp_path / "scratch", engine=engine)
    assert not reading.exists("s3://bucket/out9/set.json") and reading.exists("s3://bucket/out9/set-00002.rec")
    manifest = build(stored, "s3://bucket/out9/set", tmp_path / "scratch", engine=InTurn())
    assert manifest.fingerprint == tars[1].fingerprint and manifest.rejects == {"truncated": 1}
    assert not list((tmp_path / "scratch").glob("*/*")), "nothing is left behind"
