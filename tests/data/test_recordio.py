"""RecordIO against a slow reference, and its messages about damaged files."""

import struct

import numpy as np
import pytest

from alip.data import recordio
from alip.data.recordio import MAGIC_BYTES, IndexedReader, RecordError, Writer, pack, scan, unpack
from tests.helpers.shards import PLANTED


def reference_encode(payload: bytes) -> bytes:
    """dmlc's writer, word by word."""
    out = b""
    start = 0
    for at in range(0, len(payload) // 4 * 4, 4):
        if payload[at : at + 4] == MAGIC_BYTES:
            flag = 1 if start == 0 else 2
            out += MAGIC_BYTES + struct.pack("<I", flag << 29 | at - start) + payload[start:at]
            start = at + 4
    rest = payload[start:]
    flag = 3 if start else 0
    return out + MAGIC_BYTES + struct.pack("<I", flag << 29 | len(rest)) + rest + b"\0" * (-len(rest) % 4)


def test_encode_is_the_references():
    assert any(reference_encode(one)[7] >> 5 for one in PLANTED)
    for payload in PLANTED:
        assert recordio.encode(payload) == reference_encode(payload)


def test_what_is_written_is_read(tmp_path):
    rec, idx = tmp_path / "a.rec", tmp_path / "a.idx"
    with Writer(rec, idx) as writer:
        for payload in PLANTED:
            writer.write(payload)
    with IndexedReader(rec, idx) as reader:
        assert len(reader) == len(PLANTED)
        assert list(reader) == PLANTED
        assert reader[-1] == PLANTED[-1]
        with pytest.raises(IndexError):
            reader[len(PLANTED)]
        assert [offset for offset, _ in scan(rec)] == reader.offsets.tolist()
    assert [payload for _, payload in scan(rec)] == PLANTED


def test_an_index_in_any_order(tmp_path):
    rec, idx = tmp_path / "a.rec", tmp_path / "a.idx"
    with Writer(rec, idx) as writer:
        for i in range(5):
            writer.write(bytes([i]) * (i + 1))
    lines = idx.read_text().splitlines()
    idx.write_text("\n".join(lines[::-1]) + "\n")
    with IndexedReader(rec, idx) as reader:
        assert [payload[0] for payload in reader] == [4, 3, 2, 1, 0]


def test_pack_and_unpack():
    label = np.arange(154, dtype=np.float32) * 300
    payload = pack(label, b"image", 2**63 + 5)
    assert payload[:4] == struct.pack("<I", 154)
    assert recordio.record_id(payload) == 2**63 + 5
    back, image = unpack(payload)
    assert back.dtype == np.float32 and (back == label).all() and image == b"image"
    back, image = unpack(pack(3.5, b"", 1))
    assert back.tolist() == [3.5] and image == b""
    with pytest.raises(RecordError, match="one row"):
        pack(np.zeros((2, 3)), b"")
    with pytest.raises(RecordError, match="header"):
        unpack(payload[:20])
    with pytest.raises(RecordError, match="154 labels"):
        unpack(payload[:100])


def test_above_four_gigabytes(tmp_path):
    """A sparse file: the hole takes no room on the disk."""
    rec, idx = tmp_path / "big.rec", tmp_path / "big.idx"
    far = 5 * 2**30
    with open(rec, "wb") as file:
        file.write(recordio.encode(b"near"))
        file.seek(far)
        file.write(recordio.encode(b"far away"))
    idx.write_text(f"0\t0\n1\t{far}\n")
    with IndexedReader(rec, idx) as reader:
        assert reader[1] == b"far away"
        assert reader.span(1)[0] == far


@pytest.fixture
def damaged(tmp_path):
    rec, idx = tmp_path / "d.rec", tmp_path / "d.idx"
    with Writer(rec, idx) as writer:
        for i in range(3):
            writer.write(bytes([i]) * 40)
    return rec, idx


def test_a_bad_magic_names_file_and_byte(damaged):
    rec, idx = damaged
    data = bytearray(rec.read_bytes())
    data[48] ^= 1
    rec.write_bytes(data)
    with IndexedReader(rec, idx) as reader:
        assert reader[0] == bytes(40)
        with pytest.raises(RecordError, match=rf"{rec}, byte 48: no record starts here") as error:
            reader[1]
        assert error.value.offset == 48 and error.value.path == rec
    with pytest.raises(RecordError, match="byte 48"):
        list(scan(rec))


@pytest.mark.parametrize("cut, where", [(1, 96), (41, 96), (45, 96)])
def test_a_cut_record_names_file_and_byte(damaged, cut, where):
    rec, idx = damaged
    data = rec.read_bytes()
    rec.write_bytes(data[:-cut])
    if cut <= 40:
        with IndexedReader(rec, idx) as reader, pytest.raises(RecordError, match=f"byte {where}: .*cut short"):
            reader[2]
    else:
        with pytest.raises(RecordError, match="points outside the file"):
            IndexedReader(rec, idx)
    with pytest.raises(RecordError, match=f"byte {where}: .*cut short"):
        list(scan(rec))


def test_a_continued_record_that_stops(tmp_path, damaged):
    rec, _ = damaged
    rec.write_bytes(recordio.encode(b"abcd" + MAGIC_BYTES + b"efgh")[:12] + recordio.encode(b"next"))
    with pytest.raises(RecordError, match="byte 12: a part with continue flag 0"):
        list(scan(rec))


def test_an_index_that_points_nowhere(damaged):
    rec, idx = damaged
    idx.write_text("0\t0\n1\t4\n2\t100000\n")
    with pytest.raises(RecordError, match=r"points outside the file of 144 bytes") as error:
        IndexedReader(rec, idx)
    assert error.value.offset == 100000
    idx.write_text("0\t0\n1\t4\n")
    with IndexedReader(rec, idx) as reader, pytest.raises(RecordError, match="byte 4: no record starts here"):
        reader[1]


def test_a_long_index_in_blocks(tmp_path, monkeypatch):
    """Lines that cross a block's border, a last line without an end, both line ends."""
    rng = np.random.default_rng(0)
    expected = np.cumsum(rng.integers(1, 10**9, 300))
    for end, last in (("\n", "\n"), ("\r\n", ""), ("\n", "")):
        text = end.join(f"{key}\t{offset}" for key, offset in enumerate(expected.tolist())) + last
        (tmp_path / "x.idx").write_bytes(text.encode())
        for block in (40, 64, 1000, 1 << 20):
            monkeypatch.setattr(recordio, "_INDEX_BLOCK", block)
            keys, offsets = recordio.read_index(tmp_path / "x.idx")
            assert (keys == np.arange(300)).all() and (offsets == expected).all()
    (tmp_path / "x.idx").write_text("")
    assert len(recordio.read_index(tmp_path / "x.idx")[0]) == 0


@pytest.mark.parametrize("text", ["0 0\n1\n", "key\toffset\n", "0\t1.5\n", "0\t-4\n", "\n", "0\t0\n\n", "7" * 5000])
def test_what_is_no_index(damaged, text):
    rec, idx = damaged
    idx.write_text(text)
    with pytest.raises(RecordError, match="not an index"):
        IndexedReader(rec, idx)


def test_missing_files(tmp_path):
    with pytest.raises(RecordError, match="no such index"):
        IndexedReader(tmp_path / "x.rec", tmp_path / "x.idx")
    (tmp_path / "x.idx").write_text("0\t0\n")
    with pytest.raises(RecordError, match="no such rec"):
        IndexedReader(tmp_path / "x.rec", tmp_path / "x.idx")
