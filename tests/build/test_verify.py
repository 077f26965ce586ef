"""--verify finds every kind of damage and names the place; --show draws."""

import os

import numpy as np
import pytest
from PIL import Image

from alip.build.preview import show
from alip.build.verify import verify, verify_shard
from alip.data import recordio
from alip.data.shards import load_manifest
from tests.helpers.shards import build_shards, encoded, make_tars, picture


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
    assert "sound: 60 samples in 2 shards" in out and "set-00001.rec" in out and "decoded" in out


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
    assert any("cut short" in fault for fault in found) and any("5000 bytes, the manifest says" in f for f in found)


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
        writer.write(recordio.pack(label, encoded(picture(0))))
    (fault,) = faults(tmp_path / "r.rec", decode=True)
    assert message in fault and "record 0" in fault


def test_show(own_shards, tmp_path, capsys):
    assert show(own_shards, 5) == 0
    path = own_shards.parent / "set-samples.png"
    assert str(path) in capsys.readouterr().out
    assert Image.open(path).size[0] > 800
    released = own_shards.parent / "set-00000.rec"  # no sidecar: the texts come from the tokens
    assert show(released, 2) == 0
    assert (own_shards.parent / "set-00000-samples.png").exists()
