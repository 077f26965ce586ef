"""Building shards: complete, in order, byte-identical however often it is cut off."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from alip.build import journal, merge, writer
from alip.build import shard_writer as shardwriter
from alip.build.images import ImagePolicy
from alip.build.input_shard import InputShard
from alip.build.joined_texts import TextFiles
from alip.build.prepare import Policy
from alip.build.verify import verify_shard
from alip.data.recordio import record_id, unpack
from alip.data.score_table import ScoreTable
from alip.data.shards import load_manifest, read_texts
from alip.errors import UserError
from alip.eval.gates.scoring import write_scores
from alip.tokens import tokenize, unpack_label
from tests.helpers.shards import ROOT, build_shards, encoded, make_image, make_tars

FILES = ("rec", "idx", "parquet", "json", "jsonl")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def command(source: Path, output: Path, *more: str, workers: int = 1) -> list[str]:
    return [
        *(sys.executable, "-W", "ignore", str(ROOT / "data2rec.py"), "--input", str(source), "--output", str(output)),
        *("--workers", str(workers), "--samples-per-shard", "40", "--quiet", *more),
    ]


@pytest.mark.parametrize("shuffle_seed", [None, 3])
def test_a_name_with_a_colon_is_no_address(tmp_path, monkeypatch, shuffle_seed):
    """To pyarrow `cuda:0-00000.parquet` is one, unless its path is absolute."""
    make_tars(tmp_path / "tars", 12)
    monkeypatch.chdir(tmp_path)
    build_shards(tmp_path / "tars", Path("cuda:0"), shuffle_seed=shuffle_seed)
    manifest = load_manifest("cuda:0")
    assert len(list(read_texts(manifest))) == 12 and not verify_shard(manifest, 0, False).faults
    write_scores(Path("a:b.parquet"), manifest, iter(()), ())
    assert ScoreTable("a:b.parquet").columns


def keys(manifest) -> list[str]:
    return [row["key"] for row in read_texts(manifest)]


def test_a_name_that_no_manifest_may_hold_is_refused_before_the_build(tmp_path):
    with pytest.raises(UserError, match="no backslash"):
        build_shards(make_tars(tmp_path / "tars", 2), tmp_path / "a\\b")
    assert not list(tmp_path.glob("a*"))
    with pytest.raises(UserError, match="the dataset's name, without"):
        build_shards(tmp_path / "tars", tmp_path / "set.json")


def test_a_data_set_is_what_went_in(shards):
    manifest = load_manifest(shards)
    assert manifest.samples == 230 and [shard.samples for shard in manifest.shards] == [64, 64, 64, 38]
    assert manifest.rejects == {} and manifest.context_length == 77
    rows = list(read_texts(manifest))
    index = 0
    for number, shard in enumerate(manifest.shards):
        reader = manifest.open_shard(number)
        for i in range(shard.samples):
            payload = reader[i]
            label, image = unpack(payload)
            text, caption = unpack_label(label)
            assert rows[index]["key"] == f"{index:07d}" and record_id(payload) == i
            assert (text == tokenize([f"raw text number {index}"]).numpy()[0]).all()
            assert (caption == tokenize([f"a caption number {index}"]).numpy()[0]).all()
            assert image == encoded(make_image(index), quality=90)
            assert json.loads(rows[index]["metadata"]) == {"odd": bool(index % 2)}
            index += 1
        reader.close()
    assert index == manifest.samples == manifest.metadata["untouched"]
    assert not list(shards.parent.glob("*.partial"))


def test_rejects_are_named_and_counted(tmp_path):
    make_tars(tmp_path / "tars", 60, per_tar=20, broken=(3, 17, 59))
    manifest = build_shards(tmp_path / "tars", tmp_path / "set")
    assert manifest.samples == 57 and manifest.rejects == {"truncated": 3}
    lines = [json.loads(line) for line in (tmp_path / "set-rejects.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == ["0000003", "0000017", "0000059"]
    assert lines[0]["where"].endswith("00000.tar:0000003.jpg") and lines[0]["reason"] == "truncated"


def table(tmp_path, rows):
    for i in range(len(rows)):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(make_image(i)))
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"image": f"{i}.jpg", **row}) + "\n" for i, row in enumerate(rows)))
    return path


MISSING = [{"text": "t", "caption": "c"}, {"text": "t"}, {"caption": "c"}, {}]


@pytest.mark.parametrize(
    "policy, kept, rejects",
    [
        ({}, ["0.jpg"], {"missing-caption": 1, "missing-text": 1, "missing-texts": 1}),
        ({"missing_caption": "use-text"}, ["0.jpg", "1.jpg"], {"missing-text": 1, "missing-texts": 1}),
        ({"missing_text": "use-caption"}, ["0.jpg", "2.jpg"], {"missing-caption": 1, "missing-texts": 1}),
    ],
)
def test_missing_texts(tmp_path, policy, kept, rejects):
    manifest = build_shards(table(tmp_path, MISSING), tmp_path / "out" / "set", policy=Policy(**policy))
    assert keys(manifest) == kept and manifest.rejects == rejects
    assert manifest.metadata.get("one_text", 0) == len(kept) - 1
    text = writer.BuildSummary(manifest).text()
    assert ("1 samples had one text only, which is stored as both" in text) == (len(kept) > 1)


def test_samples_of_one_key_get_the_same_captions_and_that_is_said(tmp_path, capsys):
    make_tars(tmp_path / "a", 3)
    make_tars(tmp_path / "b", 5)
    (tmp_path / "c.tsv").write_text("".join(f"{i:07d}\tcaption {i}\n" for i in range(5)))
    tars, texts = f"{tmp_path}/{{a,b}}/*.tar", TextFiles((str(tmp_path / "c.tsv"),))
    manifest = build_shards(tars, tmp_path / "set", texts=texts)
    assert manifest.metadata["shared_keys"] == 3
    assert "3 samples have the key of another one, and so the same captions" in writer.BuildSummary(manifest).text()
    assert "shared_keys" not in build_shards(tars, tmp_path / "other").metadata
    for shard in ("1/2", "2/2"):
        one = build_shards(tars, tmp_path / "two", texts=texts, input_shard=InputShard.parse(shard))
        assert "shared_keys" not in one.metadata
    assert merge.merge(tmp_path / "two") == 0 and "3 samples have the key of another one" in capsys.readouterr().out


def test_what_is_no_number_in_json_is_none_in_the_sidecar(tmp_path):
    rows = [{"text": "t", "caption": "c", "a": float("nan"), "b": [float("inf"), {"c": float("nan")}]}]
    (row,) = read_texts(build_shards(table(tmp_path, rows), tmp_path / "set"))
    assert row["metadata"] == '{"a": null, "b": ["inf", {"c": null}]}'


def test_missing_caption_as_an_error_names_the_row(tmp_path):
    with pytest.raises(UserError, match=r"t.jsonl, row 2: no caption"):
        build_shards(table(tmp_path, MISSING), tmp_path / "set", policy=Policy(missing_caption="error"))


def test_captions_are_joined(tmp_path):
    path = table(tmp_path, [{"text": f"t{i}"} for i in range(5)])
    captions = tmp_path / "captions.tsv"
    captions.write_text("".join(f"{i}.jpg\tsaid of {i}\n" for i in (4, 1, 0)))
    manifest = build_shards(path, tmp_path / "set", texts=TextFiles(captions=(str(captions),)))
    assert [(row["key"], row["caption"]) for row in read_texts(manifest)] == [
        (f"{i}.jpg", f"said of {i}") for i in (0, 1, 4)
    ]
    captions.write_text("other/key\tnothing\n")
    with pytest.raises(UserError, match=r"none of the captions' keys .*other/key"):
        build_shards(path, tmp_path / "set2", texts=TextFiles(captions=(str(captions),)))


def test_nothing_usable_is_an_error(tmp_path):
    make_tars(tmp_path / "tars", 3, broken=(0, 1, 2))
    with pytest.raises(UserError, match=r"no usable sample in the input \(3 truncated\); the first: .*0000000.jpg"):
        build_shards(tmp_path / "tars", tmp_path / "set")
    assert not (tmp_path / "set.json").exists()
    make_tars(tmp_path / "tars", 3)  # the input was repaired: the same command reads it again
    assert build_shards(tmp_path / "tars", tmp_path / "set").samples == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        build_shards(tmp_path / "empty", tmp_path / "set2")


def test_a_second_run_finds_it_done_and_other_options_are_refused(tmp_path):
    make_tars(tmp_path / "tars", 10)
    build_shards(tmp_path / "tars", tmp_path / "set")
    before = contents(tmp_path)
    build_shards(tmp_path / "tars", tmp_path / "set")
    assert contents(tmp_path) == before
    small = Policy(ImagePolicy(short_side=16))
    with pytest.raises(UserError, match="built with another policy: give --overwrite"):
        build_shards(tmp_path / "tars", tmp_path / "set", policy=small)
    assert build_shards(tmp_path / "tars", tmp_path / "set", policy=small, overwrite=True).samples == 10


def newer(path: Path, content: bytes) -> None:
    """The content of a file, changed a second from now."""
    path.write_bytes(content)
    os.utime(path, (time.time() + 1,) * 2)


@pytest.mark.parametrize("changed", ["a tar", "captions", "texts in a folder"])
def test_an_input_of_the_same_size_that_changed_since_is_named(tmp_path, capsys, changed):
    source, texts = make_tars(tmp_path / "tars", 10), TextFiles()
    path = tmp_path / "tars" / "00000.tar"
    if changed == "captions":
        path = tmp_path / "captions.tsv"
        path.write_text("".join(f"{i:07d}\tsaid of {i}\n" for i in range(10)))
        texts = TextFiles(captions=(str(path),))
    elif changed == "texts in a folder":
        source, path = tmp_path / "images", tmp_path / "images" / "a.json"
        source.mkdir()
        (source / "a.jpg").write_bytes(encoded(make_image(0)))
        path.write_text('{"text": "raw text number 1", "caption": "a caption"}')
    build_shards(source, tmp_path / "set", texts=texts)
    before = contents(tmp_path)
    build_shards(source, tmp_path / "set", texts=texts)
    assert capsys.readouterr().err == ""
    word = b"said of" if changed == "captions" else b"raw text"
    newer(path, path.read_bytes().replace(word, word.upper()))
    build_shards(source, tmp_path / "set", texts=texts)
    expected = f"warning: {path} is newer than what was built from it: --overwrite builds it again\n"
    assert capsys.readouterr().err == expected
    assert {name: before[name] for name in before if "set" in name} == {
        name: data for name, data in contents(tmp_path).items() if "set" in name
    }
    manifest = build_shards(source, tmp_path / "set", texts=texts, overwrite=True)
    row = next(iter(read_texts(manifest)))
    assert word.upper().decode() in row["caption" if changed == "captions" else "text"]


def test_a_tar_that_changed_before_a_resume_is_named(tmp_path, monkeypatch, capsys):
    source, real = make_tars(tmp_path / "tars", 60, per_tar=30), journal.Journal.add

    def add(self, line):
        real(self, line)
        if "shard" in line:
            raise Stop

    monkeypatch.setattr(journal.Journal, "add", add)
    with pytest.raises(Stop):
        build_shards(source, tmp_path / "set", samples_per_shard=25)
    monkeypatch.setattr(journal.Journal, "add", real)
    path = source / "00001.tar"
    newer(path, path.read_bytes())
    assert build_shards(source, tmp_path / "set", samples_per_shard=25).samples == 60
    assert capsys.readouterr().err.startswith(f"warning: {path} is newer than what was built from it")


class Stop(Exception):
    """Stands for a power cut."""


@pytest.mark.parametrize("shuffle_seed", [None, 7])
@pytest.mark.parametrize("workers", [0, 2])
def test_cut_off_anywhere_it_ends_with_the_same_bytes(tmp_path, monkeypatch, shuffle_seed, workers):
    make_tars(tmp_path / "tars", 120, per_tar=30, broken=(5, 39, 40, 119))
    options = {"samples_per_shard": 25, "shuffle_seed": shuffle_seed}
    build_shards(tmp_path / "tars", tmp_path / "whole" / "set", **options)
    whole = contents(tmp_path / "whole")
    real = journal.Journal.add
    attempts = 0
    while True:
        attempts += 1

        def add(self, line, left=[2]):  # noqa: B006 (a counter of this attempt)
            real(self, line)
            left[0] -= 1
            if left[0] == 0:
                with open(self.path, "a") as file:  # half a line, as a crash leaves it
                    file.write('{"shard": {"rec"')
                raise Stop

        monkeypatch.setattr(journal.Journal, "add", add)
        try:
            build_shards(tmp_path / "tars", tmp_path / "cut" / "set", **options)
        except Stop:
            continue
        break
    assert attempts >= 3
    assert contents(tmp_path / "cut") == whole
    monkeypatch.setattr(journal.Journal, "add", real)
    source = writer.build  # workers do not change the bytes either
    from alip.build.open_source import open_source

    source(
        open_source(str(tmp_path / "tars")),
        tmp_path / "workers" / "set",
        policy=Policy(),
        workers=workers,
        quiet=True,
        **options,
    )
    assert contents(tmp_path / "workers") == whole


@pytest.mark.slow
def test_killed_and_run_again(tmp_path):
    make_tars(tmp_path / "tars", 1500, per_tar=100, broken=(7, 700))
    subprocess.run(command(tmp_path / "tars", tmp_path / "whole" / "set"), check=True, stdout=subprocess.DEVNULL)
    whole = contents(tmp_path / "whole")
    output = tmp_path / "cut" / "set"
    run = subprocess.Popen(command(tmp_path / "tars", output, workers=2), start_new_session=True)
    deadline = time.monotonic() + 60
    while not len(list(output.parent.glob("*.rec"))) > 2 and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True).stdout.split()
    run.kill()
    run.wait()
    assert run.returncode == -signal.SIGKILL and not output.with_suffix(".json").exists()
    assert children and len(list(output.parent.glob("*.rec"))) < 37
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{child}").exists() for child in children), "orphans live on"

    run = subprocess.Popen(command(tmp_path / "tars", output, workers=2), stderr=subprocess.PIPE, text=True)
    before = len(list(output.parent.glob("*.rec")))
    while len(list(output.parent.glob("*.rec"))) == before and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    assert run.wait(30) == 130 and run.stderr.read() == "interrupted\n"
    subprocess.run(command(tmp_path / "tars", output), check=True, stdout=subprocess.DEVNULL)
    assert contents(tmp_path / "cut") == whole


def test_a_full_disk_is_told_and_room_is_enough_to_go_on(tmp_path, monkeypatch):
    make_tars(tmp_path / "tars", 100)
    build_shards(tmp_path / "tars", tmp_path / "whole" / "set", samples_per_shard=30)
    room = [50]

    class FullWriter(shardwriter.Writer):
        def write(self, payload, key=None):
            if room[0] == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            room[0] -= 1
            return super().write(payload, key)

    monkeypatch.setattr(shardwriter, "Writer", FullWriter)
    with pytest.raises(UserError, match="is full: free some space and run the same command again"):
        build_shards(tmp_path / "tars", tmp_path / "cut" / "set", samples_per_shard=30)
    room[0] = 1000
    build_shards(tmp_path / "tars", tmp_path / "cut" / "set", samples_per_shard=30)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert room[0] == 1000 - 70, "the first shard was not built again"


def test_a_really_full_disk(tmp_path, monkeypatch):
    """/dev/full refuses every byte, as a full disk does."""
    make_tars(tmp_path / "tars", 5)

    def on_full_disk(folder, name, work, *more):
        (work / f"{name}.rec").symlink_to("/dev/full")
        return shardwriter.ShardWriter(folder, name, work, *more)

    monkeypatch.setattr(writer, "ShardWriter", on_full_disk)
    with pytest.raises(UserError, match="is full"):
        build_shards(tmp_path / "tars", tmp_path / "out" / "set")


def test_a_build_cannot_be_resumed_with_other_options_nor_run_twice(tmp_path, monkeypatch):
    make_tars(tmp_path / "tars", 30)

    def stop(self, *_):
        raise Stop

    monkeypatch.setattr(writer._Build, "_finish", stop)
    with pytest.raises(Stop):
        build_shards(tmp_path / "tars", tmp_path / "set", samples_per_shard=10)
    with pytest.raises(UserError, match="started with another samples_per_shard"):
        build_shards(tmp_path / "tars", tmp_path / "set", samples_per_shard=11)
    monkeypatch.setattr(journal, "LOCK_WAIT", 0.1)
    held = journal.WorkFolder(tmp_path / "set.partial")
    with pytest.raises(UserError, match=r"process \d+ on .* is building"):
        build_shards(tmp_path / "tars", tmp_path / "set", samples_per_shard=10)
    held.close()


def test_shuffle_mixes_everything_and_keeps_everything(tmp_path):
    make_tars(tmp_path / "tars", 150)
    orders = []
    for seed in (1, 1, 2):
        manifest = build_shards(tmp_path / "tars", tmp_path / f"{len(orders)}", samples_per_shard=40, shuffle_seed=seed)
        assert [shard.samples for shard in manifest.shards] == [40, 40, 40, 30]
        orders.append([int(key) for key in keys(manifest)])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == list(range(150))
    assert abs(np.corrcoef(orders[0], range(150))[0, 1]) < 0.3
    with load_manifest(tmp_path / "0").open_shard(0) as reader:
        assert unpack(reader[0])[1] == encoded(make_image(orders[0][0]), quality=90), "texts and images stay together"


@pytest.mark.parametrize("per_tar", [20, 200])
def test_input_shards_are_merged(tmp_path, per_tar):
    make_tars(tmp_path / "tars", 110, per_tar=per_tar, broken=(50,))
    for k in range(3):
        build_shards(tmp_path / "tars", tmp_path / "set", samples_per_shard=15, input_shard=InputShard(k, 3))
    assert merge.merge(tmp_path / "set") == 0
    manifest = load_manifest(tmp_path / "set")
    assert manifest.samples == 109 and manifest.rejects == {"truncated": 1}
    assert sorted(int(key) for key in keys(manifest)) == [i for i in range(110) if i != 50]
    assert len((tmp_path / "set-rejects.jsonl").read_text().splitlines()) == 1
    with pytest.raises(UserError, match="--overwrite"):
        merge.merge(tmp_path / "set")


def test_input_shards_under_their_older_name_are_merged(tmp_path):
    """`-part1of2`, with `part` in the manifest and no checksum in it, as they were written before."""
    make_tars(tmp_path / "tars", 20, per_tar=5)
    for k in range(2):
        build_shards(tmp_path / "tars", tmp_path / "set", input_shard=InputShard(k, 2))
        old, new = (tmp_path / f"set-{word}{k + 1}of2" for word in ("part", "shard"))
        content = json.loads(new.with_suffix(".json").read_text())
        del content["checksum"]
        for holder in (content, content["options"]):
            holder["part"] = holder.pop("input_shard")
        old.with_suffix(".json").write_text(json.dumps(content))
        new.with_suffix(".json").unlink()
        os.rename(f"{new}-rejects.jsonl", f"{old}-rejects.jsonl")
    assert merge.merge(tmp_path / "set") == 0
    assert sorted(int(key) for key in keys(load_manifest(tmp_path / "set"))) == list(range(20))


def test_input_shards_that_do_not_fit(tmp_path):
    make_tars(tmp_path / "tars", 20, per_tar=5)
    with pytest.raises(UserError, match="no input shards of"):
        merge.merge(tmp_path / "set")
    build_shards(tmp_path / "tars", tmp_path / "set", input_shard=InputShard(0, 2))
    with pytest.raises(UserError, match="lacks shard 2/2"):
        merge.merge(tmp_path / "set")
    build_shards(
        tmp_path / "tars", tmp_path / "set", input_shard=InputShard(1, 2), policy=Policy(ImagePolicy(short_side=32))
    )
    with pytest.raises(UserError, match="differ in image"):
        merge.merge(tmp_path / "set")
    with pytest.raises(UserError, match="K/N"):
        InputShard.parse("3/2")


def test_broken_input_is_not_success(tmp_path):
    make_tars(tmp_path / "tars", 20, per_tar=10)
    os.truncate(tmp_path / "tars" / "00000.tar", 5000)
    run = subprocess.run(command(tmp_path / "tars", tmp_path / "set", workers=0), capture_output=True, text=True)
    assert run.returncode == 1 and "parts of the input could not be read" in run.stdout, run.stderr
    manifest = load_manifest(tmp_path / "set")
    assert manifest.rejects["broken-input"] == 1 and manifest.samples >= 11
