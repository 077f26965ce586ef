import json
import random

import pytest

from alip.build.text_hash import number
from alip.caption import lines
from alip.caption.lines import PartWriter, read_lines, to_line
from alip.caption.store import CaptionStore, DoneImages, NumberSet
from alip.errors import UserError
from alip.files import FileLock, bounded_lines


def test_number_set_is_a_set():
    draw = random.Random(0)
    ours, theirs = NumberSet(late_limit=50), set()
    for _ in range(3000):
        value = draw.choice([draw.randrange(500), draw.getrandbits(64)])
        assert ours.add(value) == (value not in theirs)
        theirs.add(value)
    assert len(ours) == len(theirs)
    assert all(value in ours for value in theirs)
    assert number("a") not in ours


def test_done_images_hold_the_newest():
    done = DoneImages()
    assert done.image("a") is None
    done = DoneImages()
    for key, image in [("a", "00000000000000ff"), ("b", ""), ("a", "1111111111111111")]:
        done.append(key, image)
    assert done.image("a") == "00000000000000ff"
    assert done.image("b") == ""
    assert done.image("c") is None


def test_a_cut_line_is_left_out(tmp_path):
    path = tmp_path / "part.jsonl"
    whole = to_line({"key": "a", "caption": "ä"})
    path.write_bytes((whole + "rubbish\n" + whole).encode()[:-3])
    assert [line["key"] for line in read_lines(path)] == ["a"]


def test_lines_keep_keys_that_are_no_utf8(tmp_path):
    path = tmp_path / "part.jsonl"
    key = b"caf\xe9".decode("utf-8", "surrogateescape")
    path.write_text(to_line({"key": key, "caption": "ä"}) + to_line({"key": "ö", "caption": "ä"}), encoding="utf-8")
    assert [line["key"] for line in read_lines(path)] == [key, "ö"]
    assert "ö" in path.read_text(encoding="utf-8")


def write_part(store, run, rank, lines, failures=()):
    captions, failed = (PartWriter(path) for path in store.part_paths(run, rank)[:2])
    for key, caption in lines:
        captions.write({"key": key, "caption": caption, "image": "00"})
    for key in failures:
        failed.write({"key": key, "where": "", "reason": "broken"})
    captions.close()
    failed.close()


def test_merge_takes_the_newest_line_of_each_key_once(tmp_path):
    store = CaptionStore(tmp_path / "c.jsonl")
    run = store.begin_run({"captioner": "x"}, {})
    write_part(store, run, 0, [("a", "one"), ("b", "one")], failures=["old"])
    write_part(store, run, 1, [("c", "one"), ("b", "other rank")])
    store._lock.close()

    store = CaptionStore(tmp_path / "c.jsonl")  # the first run never merged: it was killed
    run = store.begin_run({"captioner": "x"}, {})
    assert run == 2
    write_part(store, run, 0, [("b", "two")], failures=["z"])
    seen = []
    store.merge(run, seen.append)
    store.finish(store.read_run())
    lines = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert sorted((line["key"], line["caption"]) for line in lines) == [("a", "one"), ("b", "two"), ("c", "one")]
    assert seen == lines
    assert [line["key"] for line in read_lines(store.failures)] == ["z"]  # of the last pass only
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c-failures.jsonl", "c-run.json", "c.jsonl"]


def test_a_merge_that_died_before_it_cleared_up_loses_and_doubles_nothing(tmp_path):
    store = CaptionStore(tmp_path / "c.jsonl")
    run = store.begin_run({"captioner": "x"}, {})
    write_part(store, run, 0, [("a", "one")])
    part = store.part_paths(run, 0)[0]
    kept = part.read_bytes()
    store.merge(run)
    part.write_bytes(kept)  # as if the process had died after the rename
    store._lock.close()
    store = CaptionStore(tmp_path / "c.jsonl")
    run = store.begin_run({"captioner": "x"}, {})
    assert store.done().image("a") is not None
    write_part(store, run, 0, [("b", "two")])
    store.merge(run)
    assert sorted(line["key"] for line in read_lines(store.output)) == ["a", "b"]


def test_refusals(tmp_path):
    with pytest.raises(UserError, match=r"\.jsonl"):
        CaptionStore(tmp_path / "c.json")
    store = CaptionStore(tmp_path / "c.jsonl")
    store.begin_run({"captioner": "blip", "beams": 3}, {})
    with pytest.raises(UserError, match=r"process \d+ on .* is writing"):
        CaptionStore(tmp_path / "c.jsonl").begin_run({"captioner": "blip", "beams": 3}, {})
    store.finish(store.read_run())
    with pytest.raises(UserError, match=r"beams was 3, is 1.*--restart"):
        CaptionStore(tmp_path / "c.jsonl").begin_run({"captioner": "blip", "beams": 1}, {})
    (tmp_path / "mine.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="not written by this command"):
        CaptionStore(tmp_path / "mine.jsonl").begin_run({"captioner": "blip"}, {})
    assert (tmp_path / "mine.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize(
    "wrong", [{"settings": 3}, {"settings": {"shard": 1}}, {"runs": "x"}, {"metadata": [], "runs": 1}]
)
def test_a_record_of_wrong_types_is_one_line(tmp_path, wrong):
    record = {"format": "alip-captions", "version": 1, "settings": {}, "runs": 1} | wrong
    (tmp_path / "c-run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"c-run\.json.*correct it, or run with --restart"):
        CaptionStore(tmp_path / "c.jsonl").begin_run({"captioner": "blip"}, {})


def test_a_record_with_the_names_from_before_resumes(tmp_path):
    old = {"beams": 3, "max_tokens": 30, "min_tokens": 0, "seed": 0}
    new = {"num_beams": 3, "max_new_tokens": 30, "min_new_tokens": 0, "seed": 0}
    record = {"format": "alip-captions", "version": 1, "runs": 1, "facts": {"ranks": 1}}
    record["settings"] = {"captioner": "blip", "precision": "bf16", "decoding": old, "part": [1, 1]}
    (tmp_path / "c-run.json").write_text(json.dumps(record))
    settings = {"captioner": "blip", "precision": "amp_bf16", "decoding": new, "shard": [1, 1]}
    assert CaptionStore(tmp_path / "c.jsonl").begin_run(settings, {}) == 2
    assert CaptionStore(tmp_path / "c.jsonl").read_run()["settings"] == settings


@pytest.mark.parametrize(
    "line",
    [
        '{"key": "a", "costs": {"x": 1' + "0" * 400 + "}}",
        *('{"key": "a"}', '{"key": 3, "caption": "x"}', '{"key": "a", "caption": ["x"]}', "[" * 5000, "3"),
        *('{"key": "a", "caption": "x", "image": 7}', '{"key": "a", "caption": "x", "image": "zz"}'),
    ],
)
def test_lines_that_this_command_never_writes_are_captioned_again(tmp_path, line):
    path = tmp_path / "part.jsonl"
    path.write_text(line + "\n" + to_line({"key": "b", "caption": "ä", "image": "0f"}))
    assert [line["key"] for line in read_lines(path)] == ["b"]


def test_a_run_that_ends_while_another_one_waits_for_it(tmp_path, monkeypatch):
    """It removes the folder of the lock that the other one opens next."""
    first, second = CaptionStore(tmp_path / "c.jsonl"), CaptionStore(tmp_path / "c.jsonl")
    first.begin_run({"captioner": "blip"}, {})

    def open_late(*arguments, **options):
        if not second.read_run()["complete"]:
            first.finish(first.read_run() | {"complete": True})
        return FileLock(*arguments, **options)

    monkeypatch.setattr("alip.caption.store.FileLock", open_late)
    assert second.begin_run({"captioner": "blip"}, {}) == 2
    second.finish(second.read_run())
    assert not second.parts.exists()


def test_a_file_of_gigabytes_without_line_ends_is_never_in_memory(tmp_path, monkeypatch):
    path = tmp_path / "part.jsonl"
    path.write_bytes(b"{" * 1000 + b"\n" + to_line({"key": "b", "caption": "x"}).encode())
    monkeypatch.setattr(lines, "LONGEST_LINE", 100)
    with pytest.raises(UserError, match=r"part.jsonl: a line of more than 100 bytes"):
        list(read_lines(path))
    with path.open() as file:
        assert max(len(line) for line in bounded_lines(file, 100)) == 100
