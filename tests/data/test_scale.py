"""What keeps memory and open files flat: mapped offsets, few open shards, a check of manifests that does not crawl."""

import os
import shutil
import time

import numpy as np
import pytest

from alip.data import index_cache, sample_reader
from alip.data.index_cache import read_offsets
from alip.data.manifest_schema import _SHARD, _is_plain
from alip.data.recordio import RecordError, read_index
from alip.data.sample_reader import Records
from alip.data.shards import load_manifest
from alip.errors import UserError
from alip.schema import check


@pytest.fixture
def index(tmp_path, monkeypatch):
    monkeypatch.setattr(index_cache, "LEAST_BYTES", 10)
    idx = tmp_path / "x-00000.idx"
    idx.write_text("".join(f"{i}\t{i * 1000}\n" for i in range(500)))
    return idx


def test_offsets_are_mapped_and_follow_their_index(index):
    wanted = read_index(index)[1]
    first = read_offsets(index)
    assert isinstance(first, np.memmap) and (first == wanted).all()
    saved = index.with_suffix(".offsets")
    made = saved.stat().st_mtime_ns
    assert (read_offsets(index) == wanted).all() and saved.stat().st_mtime_ns == made, "not made again"
    os.utime(index, ns=(1, 1))  # a copy: the same content
    assert (read_offsets(index) == wanted).all()
    assert index_cache._HEADER.unpack(saved.read_bytes()[: index_cache._HEADER.size])[2] == 1
    index.write_text(index.read_text().replace("499000", "499004"))  # the same length
    assert read_offsets(index)[-1] == 499004


@pytest.mark.parametrize("damage", [b"", b"ALIPOFF1", b"x" * 64, b"x" * 4064, "bit"])
def test_damaged_offsets_are_made_again(index, damage):
    if damage == "bit":
        read_offsets(index)
        damage = bytearray(index.with_suffix(".offsets").read_bytes())
        damage[100] ^= 8
    index.with_suffix(".offsets").write_bytes(damage)
    assert (read_offsets(index) == read_index(index)[1]).all()
    index.with_suffix(".offsets").unlink()
    index.with_suffix(".offsets").mkdir()  # it cannot be written
    assert (read_offsets(index) == read_index(index)[1]).all()


def test_a_missing_or_broken_index_is_reported_as_ever(index):
    index.write_text("1\tx\n" * 100)
    with pytest.raises(RecordError, match="not an index"):
        read_offsets(index)
    index.unlink()
    with pytest.raises(RecordError, match="no such index file"):
        read_offsets(index)


def test_few_shards_stay_open(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(sample_reader, "OPEN_SHARDS", 2)
    monkeypatch.setattr(index_cache, "LEAST_BYTES", 10)
    for path in shards.parent.glob("set*"):
        if path.is_file():
            shutil.copy(path, tmp_path)
    few, many = Records(load_manifest(tmp_path / "set"), 49408), Records(load_manifest(shards), 49408)
    rng = np.random.default_rng(0)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        index = rng.integers(0, 230, 16)
        ours, theirs = few.read(index), many.read(index)
        assert (ours[0] == theirs[0]).all() and all((a == b).all() for a, b in zip(ours[1], theirs[1]))
        assert len(few._readers) <= 2
    assert len(os.listdir("/proc/self/fd")) <= before + 2 * 2 + 4, (
        "the two that are kept with their maps, and four of `many`"
    )


def test_the_quick_check_of_a_shard_is_no_laxer_than_the_schema():
    good = {
        **{"rec": "a.rec", "idx": "a.idx", "sidecar": "a.parquet", "samples": 1, "bytes": 1, "sha256": "0" * 64},
        **{"max_token": 0, "sidecar_sha256": "f" * 64, "crc32": True},
    }
    assert _is_plain(good)
    odd = [None, 0, -1, 1.0, True, 2**54, "", ".", "..", "a/b", "a\n", "0" * 63, "0" * 64 + "\n", "G" * 64, [], {}]
    for key in good:
        for value in odd:
            changed = {**good, key: value}
            try:
                check(changed, _SHARD, "x")
            except UserError:
                assert not _is_plain(changed), (key, value)
        assert not _is_plain({k: v for k, v in good.items() if k != key})
    assert not _is_plain({**good, "more": 1})


def test_a_manifest_of_many_shards_is_checked_in_time(tmp_path):
    from alip.data.shards import Manifest, Shard

    shards = tuple(
        Shard(f"m-{i:05d}.rec", f"m-{i:05d}.idx", f"m-{i:05d}.parquet", 9, 9, "0" * 64, 9, "1" * 64, True)
        for i in range(5000)
    )
    Manifest("m", tmp_path, 45_000, shards).save()
    begun = time.process_time()
    assert load_manifest(tmp_path / "m").shards == shards
    assert time.process_time() - begun < 1.5, "the schema alone takes 2 s and more"
