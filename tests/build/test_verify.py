"""--verify finds every kind of damage and names the place; --show draws."""

import json
import os
import re
import shutil
from contextlib import nullcontext as nothing

import numpy as np
import pytest
from PIL import Image

import data2rec
from alip.build.preview import show
from alip.build.verify import verify, verify_shard
from alip.build.worker_pool import WorkerDied, WorkerPool
from alip.data import recordio
from alip.data.manifest_schema import manifest_checksum
from alip.data.sample_reader import Records
from alip.data.shards import load_manifest
from alip.errors import UserError
from tests.helpers.shards import build_shards, encoded, make_image, make_tars


@pytest.fixture
def own_shards(tmp_path):
    make_tars(tmp_path / "tars", 60)
    build_shards(tmp_path / "tars", tmp_path / "set", samples_per_shard=30)
    return tmp_path / "set"


def faults(shards, number=0, decode=False) -> list[str]:
    return verify_shard(load_manifest(shards), number, decode).faults


def test_sound_shards(own_shards, capsys):
    assert verify(own_shards, decode=True, workers=2) == 0
    out = capsys.readouterr().out
    assert verify(own_shards, decode=True, workers=0) == 0 and capsys.readouterr().out == out
    assert "sound: 60 samples in 2 shards" in out and "set-00001.rec" in out and "decoded" in out


def test_without_workers_no_process_is_started(own_shards, monkeypatch):
    monkeypatch.setattr("sys.argv", ["data2rec.py", "--verify", str(own_shards), "--workers", "0"])
    monkeypatch.setattr(WorkerPool, "submit", lambda *_: pytest.fail("a process"))
    assert data2rec.main() == 0


def test_quiet_shows_no_bar(own_shards, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert verify(own_shards, workers=0) == 0 and "samples/s" in capsys.readouterr().err
    assert verify(own_shards, workers=0, quiet=True) == 0 and not capsys.readouterr().err


def test_a_killed_worker_is_one_line(own_shards, monkeypatch):
    def killed(*_):
        raise WorkerDied

    monkeypatch.setattr(WorkerPool, "submit", killed)
    with pytest.raises(UserError, match="a worker process was killed"):
        verify(own_shards)


def change(path, at, new):
    data = bytearray(path.read_bytes())
    data[at : at + len(new)] = new
    path.write_bytes(data)


def test_damage_is_found_and_named(own_shards, capsys):
    rec = own_shards.parent / "set-00000.rec"
    with load_manifest(own_shards).open_shard(0) as reader:
        start, end = reader.span(7)
    change(rec, start + 700, b"\0" * (end - start - 720))
    assert any("checksum" in fault for fault in faults(own_shards))
    assert any(fault.startswith(f"record 7 of {rec}, byte {start}") for fault in faults(own_shards, decode=True))
    assert verify(own_shards) == 1
    out = capsys.readouterr().out
    assert "WRONG" in out and "sound" not in out
    assert not faults(own_shards, 1, decode=True)


def test_framing_and_cut_files(own_shards):
    rec = own_shards.parent / "set-00000.rec"
    with load_manifest(own_shards).open_shard(0) as reader:
        start, _ = reader.span(9)
    change(rec, start, b"\0\0")
    assert any(f"byte {start}: no record starts here" in fault for fault in faults(own_shards))
    os.truncate(own_shards.parent / "set-00001.rec", 5000)
    found = faults(own_shards, 1)
    assert any("cut short" in fault for fault in found) and any("5000 bytes, the manifest has" in f for f in found)


def test_index_sidecar_and_missing_files(own_shards):
    folder = own_shards.parent
    lines = (folder / "set-00000.idx").read_text().splitlines()
    lines[3] = "3\t17"
    (folder / "set-00000.idx").write_text("\n".join(lines) + "\n")
    assert any("line 4: byte 17 of set-00000.rec is not where a record starts" in f for f in faults(own_shards))
    (folder / "set-00000.idx").write_text("\n".join(lines[:-1]) + "\n")
    assert any("29 lines" in fault for fault in faults(own_shards))
    (folder / "set-00000.parquet").write_bytes(b"PAR1")
    assert any("set-00000.parquet" in fault for fault in faults(own_shards))
    (folder / "set-00001.rec").unlink()
    assert any("set-00001.rec" in fault for fault in faults(own_shards, 1))


@pytest.mark.parametrize(
    "label, message",
    [
        (np.zeros(3, np.float32), "a label of 3 numbers, not 154"),
        (np.full(154, 60_000, np.float32), "token id 60000"),
        (np.full(154, -1, np.float32), "no token ids"),
        (np.full(154, 5, np.float32), "a text without start or end token"),
    ],
)
def test_labels_of_released_files(tmp_path, label, message):
    with recordio.Writer(tmp_path / "r.rec", tmp_path / "r.idx") as writer:
        writer.write(recordio.pack(label, encoded(make_image(0))))
    (fault,) = faults(tmp_path / "r.rec", decode=True)
    assert message in fault and "record 0" in fault


def swap_index_lines(folder, change):
    path = folder / "set-00000.idx"
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    path.write_text("".join(f"{key}\t{offset}\n" for key, offset in change(lines)))


@pytest.mark.parametrize(
    "change, fault",
    [
        (lambda lines: [*lines[:5], [lines[5][0], lines[6][1]], *lines[6:]], "byte .* is in more than one line"),
        (lambda lines: [*lines[:5], [lines[4][0], lines[5][1]], *lines[6:]], "key 4 is in more than one line"),
        (lambda lines: lines[::-1], "line 1: not number and byte of record 0"),
        (lambda lines: [[a[0], b[1]] for a, b in zip(lines, lines[::-1])], "line 1: not number and byte of record 0"),
        (
            lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]],
            r"line 4: not number and byte of record 3 \(2 such",
        ),
    ],
    ids=["equal offsets", "equal keys", "reversed", "reversed offsets", "two exchanged"],
)
def test_an_index_that_leads_to_other_records(own_shards, change, fault):
    """Scores and texts would go to the wrong keys; the loader stops at the first wrong record."""
    swap_index_lines(own_shards.parent, change)
    assert any(re.search(fault, found) for found in faults(own_shards))
    if "key 4" not in fault:  # the loader does not use the index's keys
        with pytest.raises(UserError, match=r"set-00000.rec, record \d+ .*the record there has the number"):
            Records(load_manifest(own_shards), 49408).read(np.arange(60))


def edit(shards, change, keep_checksum=False) -> None:
    path = shards.with_suffix(".json")
    content = json.loads(path.read_text())
    change(content)
    if not keep_checksum:
        content["checksum"] = manifest_checksum(content)
    path.write_text(json.dumps(content))


def drop_shard(content):
    content["samples"] -= content["shards"].pop()["samples"]


def repeat_shard(content):
    content["shards"].append(content["shards"][0])
    content["samples"] += content["shards"][0]["samples"]


def test_a_shard_left_out_with_fitting_totals(own_shards, capsys):
    edit(own_shards, drop_shard)
    assert load_manifest(own_shards).samples == 30
    assert verify(own_shards) == 1
    assert "set-00001.rec: the manifest does not list it" in capsys.readouterr().out


def test_a_shard_under_two_names(own_shards, capsys):
    for kind in ("rec", "idx", "parquet"):
        shutil.copy(own_shards.parent / f"set-00000.{kind}", own_shards.parent / f"set-00007.{kind}")

    def change(content):
        repeat_shard(content)
        content["shards"][-1] = json.loads(json.dumps(content["shards"][0]).replace("00000", "00007"))

    edit(own_shards, change)
    assert verify(own_shards) == 1
    assert "set-00007.rec: the same content as set-00000.rec" in capsys.readouterr().out


def set_value(*keys, value):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (repeat_shard, "lists set-00000.rec twice"),
        (set_value("shards", 0, "sha256", value=None), r"shards\[0\].sha256: must be string, not null"),
        (set_value("shards", 0, "rec", value="../set-00000.rec"), r"shards\[0\].rec: "),
        (set_value("shards", 0, "idx", value=".."), r"shards\[0\].idx: "),
        (set_value("shards", 0, "sidecar", value="/etc/passwd"), r"shards\[0\].sidecar: "),
        (set_value("shards", 0, "sidecar", value=None), "belong together"),
        (set_value("shards", 0, "crc32", value=1), r"shards\[0\].crc32: must be boolean"),
        (set_value("shards", 0, "samples", value=30.0), r"shards\[0\].samples: must be integer"),
        (set_value("shards", 0, "bytes", value="many"), r"shards\[0\].bytes: must be integer"),
        (set_value("shards", value={}), "shards: must be array"),
        (set_value("label", "text_tokens", value=77), "label: is "),
        (set_value("label", value=None), "label: must be object"),
        (set_value("vocab_size", value=True), "vocab_size: must be integer"),
        (set_value("version", value="1"), "version: must be integer"),
        (set_value("rejects", value=[]), "rejects: must be object"),
    ],
)
def test_a_manifest_is_checked_by_type(own_shards, change, message):
    edit(own_shards, change)
    with pytest.raises(UserError, match=message) as error:
        load_manifest(own_shards)
    assert "set.json" in str(error.value) and "\n" not in str(error.value)


def test_a_manifest_that_was_changed(own_shards):
    edit(own_shards, set_value("shards", 0, "crc32", value=False), keep_checksum=True)
    with pytest.raises(UserError, match="was changed after it was written"):
        load_manifest(own_shards)
    edit(own_shards, lambda content: content.pop("checksum"), keep_checksum=True)  # as older manifests are
    assert load_manifest(own_shards).samples == 60


def record(shards, number) -> tuple[int, bytes]:
    with load_manifest(shards).open_shard(0) as reader:
        return reader.span(number)[0] + 8, reader[number]


@pytest.mark.parametrize("what", ["label", "image", "crc", "zeroed crc", "number"])
def test_a_flipped_bit_anywhere_is_noticed_as_the_record_is_read(own_shards, what):
    rec = own_shards.parent / "set-00000.rec"
    at, payload = record(own_shards, 11)
    if what == "zeroed crc":
        change(rec, at + 16, bytes(8))
    else:
        at += {"label": 24 + 4 * 3 + 2, "image": len(payload) - 30, "crc": 17, "number": 8}[what]
        change(rec, at, bytes([rec.read_bytes()[at] ^ 1]))
    expected = "has the number" if what == "number" else "CRC-32"
    assert any(f"record 11 of {rec}" in fault and expected in fault for fault in faults(own_shards))
    with pytest.raises(UserError, match=rf"set-00000.rec, record 11 \(byte \d+\): .*{expected}"):
        Records(load_manifest(own_shards), 49408).read(np.arange(30))
    with (
        pytest.raises(UserError, match=r"record 11 .*CRC-32") if what != "number" and "zero" not in what else nothing()
    ):
        Records(load_manifest(rec), 49408).read(np.arange(30))  # the file alone: its own CRC-32 is checked too


def test_released_files_have_no_crc(own_shards):
    """id2 = 0, as MXNet and the released files have it: read as before, whatever the number."""
    rec, idx = own_shards.parent / "r.rec", own_shards.parent / "r.idx"
    with recordio.Writer(rec, idx) as writer, load_manifest(own_shards).open_shard(0) as reader:
        for number, payload in enumerate(reader):
            writer.write(recordio.pack(*recordio.unpack(payload), number + 1000))
    assert not faults(rec)
    ours = Records(load_manifest(own_shards), 49408).read(np.arange(30))
    theirs = Records(load_manifest(rec), 49408).read(np.arange(30))
    assert (ours[0] == theirs[0]).all() and all((a == b).all() for a, b in zip(ours[1], theirs[1]))


def test_show(own_shards, tmp_path, capsys):
    assert show(own_shards, 5) == 0
    path = own_shards.parent / "set-samples.png"
    assert str(path) in capsys.readouterr().out
    assert Image.open(path).size[0] > 800
    released = own_shards.parent / "set-00000.rec"  # no sidecar: the texts come from the tokens
    assert show(released, 2) == 0
    assert (own_shards.parent / "set-00000-samples.png").exists()


def test_show_names_a_damaged_record(own_shards):
    change(own_shards.with_name("set-00001.rec"), 700, b"\xff" * 9)
    with pytest.raises(UserError, match=r"record 0 of .*set-00001\.rec.*--verify .* looks closer"):
        show(own_shards, 60)
