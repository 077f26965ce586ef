"""Captioning cut into pieces: the files of one process, whoever does them, and whoever dies on the way."""

import json

import pytest

from alip.build import division
from alip.build.archives import TarSource
from alip.caption.command_line import parse
from alip.caption.jobs import choice_of
from alip.caption.pipeline import caption_on_cluster, main, open_input
from alip.errors import UserError
from tests.helpers.captioning import numbered, read_captions, write_captioner, write_tar
from tests.helpers.engines import InTurn


@pytest.fixture
def folder(tmp_path):
    """Three tars of ten images each, one of which is broken, and a captioner file that logs."""
    for i in range(3):
        images = numbered(10 * i, 10 * i + 10)
        if i == 1:
            images["k0013"] = b"\x89PNG broken"
        write_tar(tmp_path / f"{i}.tar", images)
    write_captioner(tmp_path)
    return tmp_path


def words(folder, output, *more):
    captioner = ["--captioner", f"file:{folder / 'sizes.py'}", "--option", f"log={folder / 'log'}"]
    shared = ["--workers", "0", "--batch-size", "4", *captioner]
    return ["--input", str(folder / "*.tar"), "--output", str(folder / output), *shared, *map(str, more)]


def on_cluster(folder, output, engine, *more):
    """The command with an engine of the test's."""
    arguments = parse(words(folder, output, "--engine", "ray", *more))
    return caption_on_cluster(engine, open_input(arguments), choice_of(arguments), arguments, quiet=True)


def files(folder, name):
    record = json.loads((folder / f"{name}-run.json").read_text())
    lines = [(folder / f"{name}{ending}").read_bytes() for ending in (".jsonl", "-failures.jsonl")]
    return lines, record["counts"], record["summary"], record["settings"], record["metadata"]["captioner"]


@pytest.mark.parametrize("in_parts", [False, True])
def test_the_files_of_one_process(folder, monkeypatch, in_parts):
    if in_parts:
        monkeypatch.setattr(TarSource, "divided_from", 1)
        monkeypatch.setattr(division, "SAMPLES_PER_PART", 3)
    assert main(words(folder, "one.jsonl")) == 1
    engine = InTurn()
    assert on_cluster(folder, "two.jsonl", engine) == 1
    assert files(folder, "two") == files(folder, "one")
    assert len(engine.calls) == (15 if in_parts else 3)
    assert (folder / "two-samples.png").exists() and not (folder / "two-parts").exists()


def test_a_driver_may_die_and_nothing_is_captioned_twice(folder):
    assert main(words(folder, "one.jsonl")) == 1
    (folder / "log").unlink()
    with pytest.raises(KeyboardInterrupt):
        on_cluster(folder, "two.jsonl", InTurn(lambda name, piece: piece == (0,)))
    (folder / "two-parts" / "tmp-of-a-killed-worker").mkdir()
    engine = InTurn()
    assert on_cluster(folder, "two.jsonl", engine) == 1
    assert engine.calls == [("CaptionWorker", 0)]
    counts = [int(line) for line in (folder / "log").read_text().split()]
    assert sum(counts) == 29
    assert files(folder, "two") == files(folder, "one")


def test_one_process_may_end_what_a_cluster_began(folder):
    """And the other way round: what was captioned is known, what failed is tried again."""
    with pytest.raises(KeyboardInterrupt):
        on_cluster(folder, "c.jsonl", InTurn(lambda name, piece: piece == (0,)))
    write_tar(folder / "2.tar", numbered(20, 31))  # a new image in a file that was done
    assert main(words(folder, "c.jsonl")) == 1
    assert len(read_captions(folder / "c.jsonl")) == 30 and not (folder / "c-parts").exists()
    write_tar(folder / "1.tar", numbered(10, 20))
    assert on_cluster(folder, "c.jsonl", engine := InTurn()) == 0 and len(engine.calls) == 3
    assert len(read_captions(folder / "c.jsonl")) == 31
    counts = [int(line) for line in (folder / "log").read_text().split()]
    assert sum(counts) == 31


def test_another_input_is_another_pass(folder):
    with pytest.raises(KeyboardInterrupt):
        on_cluster(folder, "c.jsonl", InTurn(lambda name, piece: piece == (0,)))
    write_tar(folder / "0a.tar", numbered(40, 50))  # the numbers of the files behind it change
    assert on_cluster(folder, "c.jsonl", engine := InTurn()) == 1
    assert len(engine.calls) == 4 and len(read_captions(folder / "c.jsonl")) == 39


def test_a_failed_file_is_named_and_the_others_are_done(folder, monkeypatch):
    def unreadable(source, unit, position=None):
        if unit == 1:
            raise UserError("no such luck")
        return real(source, unit, position)

    real = TarSource.read_unit
    monkeypatch.setattr(TarSource, "read_unit", unreadable)
    with pytest.raises(UserError, match=r"1 of 3 pieces of work failed, the first: 1\.tar: no such luck"):
        on_cluster(folder, "c.jsonl", InTurn())
    monkeypatch.undo()
    assert on_cluster(folder, "c.jsonl", engine := InTurn()) == 1
    assert engine.calls == [("CaptionWorker", 1)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--captioner", "openai:m", "--base-url", "http://x/v1"], "a server's captions need one machine"),
        (["--limit", "3"], "--limit is for trying things out"),
        (["--shard", "1/2"], "leave --shard out"),
        (["--device", "cuda:1"], "give --device cuda"),
    ],
)
def test_what_a_cluster_cannot_do_is_one_line(folder, flags, message, capsys):
    with pytest.raises((SystemExit, UserError)) as caught:
        main(words(folder, "c.jsonl", "--engine", "ray", *flags))
    assert message in capsys.readouterr().err + str(caught.value)
