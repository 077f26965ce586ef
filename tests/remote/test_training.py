"""Training from object storage through a small cache: line by line what training from a disk gives."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from alip.data.cache_files import CacheFiles, release
from alip.data.loader import create_loader
from alip.data.order import ShardOrder
from alip.data.shard_cache import parse_size
from alip.data.shards import load_manifest
from alip.distributed import World
from alip.errors import UserError
from alip.remote import reading, writing
from tests.helpers.ranks import on_ranks
from tests.helpers.s3 import environment
from tests.helpers.shards import build_shards, make_tars
from tests.helpers.steps import TINY_MODEL
from tests.helpers.train_runs import command, start, train_here, train_lines, weights_of

FORM = {"image_size": 16, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "reader": "torch", "threads": 1}


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """DIR/NAME of 240 samples in 40 shards."""
    folder = tmp_path_factory.mktemp("many")
    make_tars(folder / "tars", 240)
    build_shards(folder / "tars", folder / "set", samples_per_shard=6)
    return folder / "set"


@pytest.fixture
def stored(s3, many) -> str:
    if not reading.exists("s3://bucket/many/set.json"):
        for path in sorted(many.parent.glob("set*")):
            writing.upload(path, f"s3://bucket/many/{path.name}")
    s3.requests.clear()
    return "s3://bucket/many/set"


def tenth(many: Path) -> int:
    """A tenth of the data's bytes, and what the indexes may take."""
    return sum(one.bytes for one in load_manifest(many).shards) // 10 + 4 * 6 * 24 + 4000


def flags(tmp_path: Path, data: str | Path, run: str) -> list[str]:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY_MODEL))
    return [
        *("--train-data", str(data), "--model", str(tmp_path / "tiny.json"), "--device", "cpu", "--precision", "fp32"),
        *("--reader", "torch", "--workers", "1", "--batch-size", "8", "--epochs", "2", "--log-every", "1"),
        *("--data-order", "shards", "--window-shards", "2", "--output", str(tmp_path / run), "--report-to", "none"),
    ]


def test_the_same_lines_as_from_a_disk(s3, stored, many, tmp_path):
    assert train_here(*flags(tmp_path, many, "local")) == 0
    seen = {}

    def fault(method, path):  # every eighth file fails at first
        seen[path] = seen.get(path, 0) + 1
        return "truncate" if seen[path] == 1 and len(seen) % 8 == 0 and method == "GET" else None

    s3.fault = fault
    cache = ["--cache-dir", str(tmp_path / "cache"), "--cache-size", str(tenth(many))]
    assert train_here(*flags(tmp_path, stored, "remote"), *cache) == 0
    assert train_lines(tmp_path / "remote") == train_lines(tmp_path / "local")
    (folder,) = (tmp_path / "cache" / "shards").iterdir()
    assert sum(path.stat().st_size for path in folder.glob("set*.rec")) <= tenth(many)
    run = json.loads((tmp_path / "remote" / "run.json").read_text())
    assert run["recipe"]["data_order"] == "shards" and run["recipe"]["window_shards"] == 2
    weights = [weights_of(tmp_path / name) for name in ("local", "remote")]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


@pytest.mark.slow
def test_a_killed_run_resumes_exactly_from_its_cache(s3, stored, many, tmp_path):
    assert train_here(*flags(tmp_path, many, "local"), "--save-every", "5") == 0
    cache = ["--cache-dir", str(tmp_path / "cache"), "--cache-size", "1GB", "--save-every", "5", "--resume", "auto"]
    words = command(*flags(tmp_path, stored, "remote"), *cache)
    s3.rate = 200_000
    first = start(words, **environment(s3))
    while not list((tmp_path / "remote" / "checkpoints").glob("step-*.pt")):
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    s3.rate = 0
    fetched = {path for method, path, _ in s3.requests if method == "GET" and path.endswith(".rec")}
    (folder,) = (tmp_path / "cache" / "shards").iterdir()
    whole = {f"/bucket/many/{path.name.removesuffix('.verified')}" for path in folder.glob("*.verified")}
    s3.requests.clear()
    second = start(words, **environment(s3))
    assert second.wait(120) == 0, second.stdout.read()
    again = {path for method, path, _ in s3.requests if method == "GET" and path.endswith(".rec")}
    assert whole and whole <= fetched and not again & whole, "what was whole is not fetched again"
    lines = {line["step"]: line for line in train_lines(tmp_path / "remote")}
    assert list(lines.values()) == train_lines(tmp_path / "local")
    assert not list(folder.glob(".*.tmp")) and not list(folder.glob("*.reserved"))


def read_epochs(world, data, options):
    loader = create_loader(data, 4, world=world, data_order="shards", window_shards=2, **FORM, **options)
    return [batch.index.tolist() for epoch in range(2) for batch in loader.epoch(epoch)]


def test_ranks_of_a_machine_share_one_download(s3, stored, many, tmp_path):
    options = {"cache_dir": str(tmp_path / "cache"), "cache_size": 10**9}
    there = on_ranks(2, read_epochs, stored, options)
    assert there == on_ranks(2, read_epochs, str(many), {})
    fetches = [path for method, path, _ in s3.requests if method == "GET" and path.endswith(".rec")]
    assert len(fetches) == len(set(fetches)) == 40
    alone = create_loader(many, 8, world=World(), data_order="shards", window_shards=2, **FORM)
    merged = [batch.index.tolist() for epoch in range(2) for batch in alone.epoch(epoch)]
    assert merged == [a + b for a, b in zip(*there)], "the same global batches on any number of ranks"


def test_a_resume_in_mid_epoch_fetches_what_is_left(s3, stored, many, tmp_path):
    options = {"cache_dir": str(tmp_path / "cache"), "cache_size": 10**9}
    loader = create_loader(stored, 8, world=World(), data_order="shards", window_shards=2, **options, **FORM)
    rest = [batch.index.tolist() for batch in loader.epoch(1, 160)]
    local = create_loader(many, 8, world=World(), data_order="shards", window_shards=2, **FORM)
    assert rest == [batch.index.tolist() for batch in local.epoch(1)][20:]
    order = ShardOrder(loader.manifest.starts, 0, 1, window_shards=2)
    needed = {int(shard) for window in range(order.window_at(160), 20) for shard in order.shards_of(window)}
    ahead = set(ShardOrder(loader.manifest.starts, 0, 2, window_shards=2).shards_of(0).tolist())
    fetched = {int(path[-9:-4]) for method, path, _ in s3.requests if method == "GET" and path.endswith(".rec")}
    assert needed <= fetched <= needed | ahead


def test_a_file_url_is_data_like_any_other(many, tmp_path):
    options = {"cache_dir": str(tmp_path), "cache_size": tenth(many)}
    loader = create_loader(f"file://{many}", 8, world=World(), data_order="shards", window_shards=2, **options, **FORM)
    local = create_loader(many, 8, world=World(), data_order="shards", window_shards=2, **FORM)
    for one, other in zip(loader.epoch(0), local.epoch(0), strict=True):
        assert (one.index == other.index).all() and (one.image == other.image).all()


@pytest.fixture
def cache(s3, stored, many, tmp_path):
    return CacheFiles(load_manifest(stored, at_url=True), tmp_path / "cache", 10**9)


def test_damaged_and_foreign_files_in_the_cache_are_noticed(s3, cache):
    assert cache.fetch(3, lambda shard: 0) and cache.is_there(3)
    rec = cache.folder / "set-00003.rec"
    good = rec.read_bytes()
    os.utime(rec, (1, 1))  # as after a copy: verified again, and kept
    s3.requests.clear()
    assert not cache.is_there(3) and cache.fetch(3, lambda shard: 0) and not s3.requests
    rec.write_bytes(good[:-4] + b"abcd")
    assert cache.hold(3) is None
    assert cache.fetch(3, lambda shard: 0) and rec.read_bytes() == good and s3.bytes_read("set-00003.rec") == 1


def test_a_wrong_index_or_shard_at_the_store_is_one_line(s3, cache, monkeypatch):
    for name in ("set-00004.idx", "set-00005.rec", "set-00006.rec"):
        content = reading.read_url(f"s3://bucket/many/{name}", 1 << 20)
        changed = {"set-00004.idx": content.replace(b"2\t", b"2\t1"), "set-00005.rec": content[:-1] + b"x"}
        writing.write_url(f"s3://bucket/broken/{name}", changed.get(name, content[:-4]))
    for name in ("set-00004.rec", "set-00005.idx", "set-00006.idx"):
        writing.write_url(f"s3://bucket/broken/{name}", reading.read_url(f"s3://bucket/many/{name}", 1 << 20))
    from dataclasses import replace

    from alip.remote.urls import UrlPath

    broken = CacheFiles(replace(cache.remote, folder=UrlPath("s3://bucket/broken")), cache.folder, 10**9)
    for shard, line in ((4, "is not the index of its rec file"), (5, "SHA-256"), (6, "its manifest")):
        with pytest.raises(UserError, match=line):
            broken.fetch(shard, lambda shard: 0)
        assert not broken.is_there(shard)
    assert not list(cache.folder.glob("set*")), "nothing wrong stays"


def test_what_is_needed_last_makes_room(s3, cache):
    cache.limit = 3 * max(cache.bytes_of(shard) for shard in range(40))
    turn = {0: 10, 1: 30, 2: 20, 3: 0, 4: 40}
    for shard in (0, 1, 2):
        assert cache.fetch(shard, turn.__getitem__)
    assert not cache.fetch(4, turn.__getitem__), "all others are needed sooner"
    held = cache.hold(1)
    assert cache.fetch(3, turn.__getitem__) and cache.is_there(1) and not cache.is_there(2), "1 is in use"
    release(held)
    assert cache.fetch(2, turn.__getitem__) and not cache.is_there(1)


def test_a_full_disk_and_a_small_cache_are_one_line(s3, stored, many, tmp_path, monkeypatch):
    def create(size):
        return create_loader(
            stored, 8, world=World(), data_order="shards", window_shards=2, cache_dir=tmp_path, cache_size=size, **FORM
        )

    with pytest.raises(UserError, match=r"--cache-size .* is too small: 2 windows of 2 shards"):
        create(1000)
    with pytest.raises(UserError, match="need --data-order shards"):
        create_loader(stored, 8, world=World(), **FORM)
    with pytest.raises(UserError, match="give --cache-dir"):
        create_loader(stored, 8, world=World(), data_order="shards", **FORM)
    with pytest.raises(UserError, match="reads shards from a local folder"):
        load_manifest(stored)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("alip.data.cache_files.download", full)
    with pytest.raises(UserError, match="its disk is full; free some space, or give a lower --cache-size"):
        next(iter(create(10**9).epoch(0)))


def test_a_batch_of_several_windows_has_room_for_all_of_them(s3, stored, many, tmp_path):
    """With room for two of them it would wait for ever: what it holds already is in the way."""

    def read(size):
        form = {**FORM, "data_order": "shards", "window_shards": 2, "cache_dir": tmp_path, "cache_size": size}
        return [batch.index.tolist() for batch in create_loader(stored, 40, world=World(), **form).epoch(0)]

    with pytest.raises(UserError, match=r"is too small: 5 windows of 2 shards"):
        read(tenth(many))
    manifest = load_manifest(many)
    largest = sorted((many.parent / shard.rec).stat().st_size for shard in manifest.shards)[-10:]
    room = sum(largest) + sum((many.parent / shard.idx).stat().st_size for shard in manifest.shards)
    local = create_loader(many, 40, world=World(), data_order="shards", window_shards=2, **FORM)
    assert read(room) == [batch.index.tolist() for batch in local.epoch(0)]


def test_sizes():
    assert [parse_size(text) for text in ("100GB", "1.5 TiB", "7", "20mb")] == [10**11, 3 * 2**39, 7, 2 * 10**7]
    for text in ("", "GB", "-1GB", "1PB", "1 1"):
        with pytest.raises(ValueError, match="write 100GB"):
            parse_size(text)
