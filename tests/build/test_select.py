"""Selecting from a dataset by its scores: what is written, that it is restartable, and what is refused."""

import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest

from alip.build.select import select
from alip.build.shard_writer import ShardWriter
from alip.build.verify import verify
from alip.data.recordio import Writer, pack, unpack
from alip.data.shards import load_manifest, read_texts
from alip.errors import UserError
from alip.tokens import tokenize, unpack_label
from tests.fuzz import run_case, score_tables
from tests.helpers.score_tables import made_up_scores, write_made_up_table
from tests.helpers.shards import build_shards, make_tars

KEEP = "image_text_similarity > 0.2"


@pytest.fixture(scope="module")
def scores(shards, tmp_path_factory):
    return write_made_up_table(shards, tmp_path_factory.mktemp("scores") / "gates.parquet", label="odd")


def records(data):
    """The bytes of every record as they are in the files, and its payload."""
    manifest = load_manifest(data)
    for number in range(len(manifest.shards)):
        with manifest.open_shard(number) as reader:
            content = reader.path.read_bytes()
            for i in range(len(reader)):
                start, end = reader.span(i)
                yield content[start:end], reader[i]


def content(payload):
    """All of an image record but its number."""
    return payload[:8] + payload[16:]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def expected(samples):
    return np.flatnonzero(made_up_scores(np.arange(samples))["image_text_similarity"].astype(float) > 0.2)


def test_kept_records_are_the_same_bytes(shards, scores, tmp_path):
    summary = select(shards, scores, tmp_path / "clean", keep=KEEP, samples_per_shard=20, quiet=True)
    kept = expected(230)
    assert 20 < len(kept) < 200 and summary.manifest.samples == len(kept)
    before, after = list(records(shards)), list(records(tmp_path / "clean"))
    at = slice(16, 24)  # of a record: its number, which is counted in each shard
    assert [record[:16] + record[24:] for record, _ in after] == [before[i][0][:16] + before[i][0][24:] for i in kept]
    assert [int.from_bytes(record[at], "little") for record, _ in after] == [i % 20 for i in range(len(kept))]
    rows = list(read_texts(load_manifest(shards)))
    assert list(read_texts(summary.manifest)) == [rows[i] for i in kept]
    assert [shard.samples for shard in summary.manifest.shards[:-1]] == [20] * (len(summary.manifest.shards) - 1)
    assert verify(tmp_path / "clean", decode=True) == 0
    selection = json.loads((tmp_path / "clean.json").read_text())["selection"]
    assert selection["fingerprint"] == load_manifest(shards).fingerprint and selection["samples"] == 230
    assert f"{len(kept)} of 230 samples kept" in summary.text()
    assert not list(tmp_path.glob("*.partial"))


def test_distrusted_texts_become_the_caption(shards, scores, tmp_path):
    where = "is_mismatched and sample_weight < quantile(sample_weight, 0.5)"
    summary = select(shards, scores, tmp_path / "new", keep=KEEP, replace_text_where=where, quiet=True)
    weight = made_up_scores(np.arange(230))["sample_weight"].astype(float)
    kept = expected(230)
    swapped = (kept % 2 == 1) & (weight[kept] < np.quantile(weight, 0.5))
    assert 5 < swapped.sum() == summary.replaced < len(kept)
    before = [payload for _, payload in records(shards)]
    old_rows = list(read_texts(load_manifest(shards)))
    rows = zip(records(tmp_path / "new"), read_texts(summary.manifest), kept, swapped, strict=True)
    for (_, payload), row, index, is_swapped in rows:
        label, image = unpack(payload)
        old_label, old_image = unpack(before[index])
        text, caption = unpack_label(label)
        assert image == old_image and (caption == unpack_label(old_label)[1]).all()
        assert len(payload) == len(before[index])
        if is_swapped:
            assert (text == tokenize([row["caption"]])[0].numpy()).all()
            assert row["text"] == row["caption"] == f"a caption number {index}"
            assert json.loads(row["metadata"])["replaced_text"] == f"raw text number {index}"
        else:
            assert content(payload) == content(before[index]) and row == old_rows[index]
    assert verify(tmp_path / "new") == 0


def test_interrupted_anywhere_it_ends_with_the_same_bytes(shards, scores, tmp_path, monkeypatch):
    options = {"keep": KEEP, "replace_text_where": "is_mismatched", "samples_per_shard": 30, "quiet": True}
    select(shards, scores, tmp_path / "whole/clean", **options)
    whole = files(tmp_path / "whole")
    add = ShardWriter.add_record
    for stop in (0, 17, 30, 31, 60, len(expected(230)) - 1):
        folder, calls = tmp_path / f"cut{stop}", [0]

        def add_until(self, *args, calls=calls, stop=stop):
            if calls[0] == stop:
                raise KeyboardInterrupt
            calls[0] += 1
            add(self, *args)

        monkeypatch.setattr(ShardWriter, "add_record", add_until)
        with pytest.raises(KeyboardInterrupt):
            select(shards, scores, folder / "clean", **options)
        assert not (folder / "clean.json").exists()
        monkeypatch.setattr(ShardWriter, "add_record", add)
        if stop > 30:  # a shard is done: only the same command resumes it
            with pytest.raises(UserError, match="another keep"):
                select(shards, scores, folder / "clean", **{**options, "keep": "true"})
        select(shards, scores, folder / "clean", **options)
        assert files(folder) == whole


def test_a_complete_one_is_left_alone(shards, scores, tmp_path):
    select(shards, scores, tmp_path / "clean", keep=KEEP, quiet=True)
    before = files(tmp_path)
    assert "already complete" in select(shards, scores, tmp_path / "clean", keep=KEEP, quiet=True).text()
    with pytest.raises(UserError, match="another keep"):
        select(shards, scores, tmp_path / "clean", keep="true", quiet=True)
    assert files(tmp_path) == before
    summary = select(shards, scores, tmp_path / "clean", keep="index < 3", overwrite=True, quiet=True)
    assert summary.manifest.samples == 3


def test_a_fraction_at_random(shards, scores, tmp_path):
    one = select(shards, scores, tmp_path / "one", keep="random(1) < 0.5", quiet=True).manifest
    two = select(shards, scores, tmp_path / "two", keep="random(2) < 0.5", quiet=True).manifest
    assert 80 < one.samples < 150 and one.fingerprint != two.fingerprint


def test_released_files_without_sidecars(shards, tmp_path):
    """Their texts are those of the table; labels and images are copied as always."""
    manifest = load_manifest(shards)
    for shard in manifest.shards:
        for name in (shard.rec, shard.idx):
            (tmp_path / name).write_bytes(manifest.path(name).read_bytes())
    released = load_manifest(tmp_path)
    write_made_up_table_of(released, manifest, tmp_path / "gates.parquet")
    summary = select(tmp_path, tmp_path / "gates.parquet", tmp_path / "out/few", keep="index >= 100", quiet=True)
    assert summary.manifest.samples == 130
    assert next(read_texts(summary.manifest))["text"] == "raw text number 100"
    few, all_of_them = ([content(p) for _, p in records(data)] for data in (tmp_path / "out/few", shards))
    assert few == all_of_them[100:]


def test_a_label_that_holds_no_tokens_is_refused(shards, tmp_path):
    """Released files have no CRC-32 that would tell."""
    manifest = load_manifest(shards)
    for number, shard in enumerate(manifest.shards):
        with manifest.open_shard(number) as reader, Writer(tmp_path / shard.rec, tmp_path / shard.idx) as writer:
            for i, payload in enumerate(reader):
                label, image = unpack(payload)
                writer.write(pack(np.where(i == 7, np.nan, label), image, i))
    write_made_up_table_of(load_manifest(tmp_path), manifest, tmp_path / "gates.parquet")
    with pytest.raises(UserError, match=r"record 7 of .*\.rec: label holds values that are not token ids"):
        select(tmp_path, tmp_path / "gates.parquet", tmp_path / "out/x", keep="index < 9", quiet=True)


def write_made_up_table_of(released, manifest, path):
    """The table of a dataset under the fingerprint of its copy without manifest."""
    write_made_up_table(manifest, path)
    table = pq.read_table(path)
    content = json.loads(table.schema.metadata[b"alip-gates"])
    content["data"]["fingerprint"] = released.fingerprint
    pq.write_table(table.replace_schema_metadata({b"alip-gates": json.dumps(content)}), path)


def rewritten(scores, path, change):
    """A copy of the table, changed by a function of the Arrow table."""
    pq.write_table(change(pq.read_table(scores)), path)
    return path


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda table: table.slice(0, 100), "has 100 rows"),
        (lambda table: table.take([*range(5), 6, 5, *range(7, 230)]), "row 5 is of sample 6"),
        (lambda table: table.replace_schema_metadata(None), "no table of"),
        (lambda table: table.replace_schema_metadata({b"alip-gates": b"{}"}), "no table of"),
        (lambda table: table.replace_schema_metadata({b"alip-gates": b'{"version": 9, "data": 3}'}), "no table of"),
        (lambda table: table.drop_columns(["image_text_similarity"]), "no column 'image_text_similarity'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(shards, scores, tmp_path, change, part):
    path = rewritten(scores, tmp_path / "changed.parquet", change)
    with pytest.raises(UserError) as refused:
        select(shards, path, tmp_path / "out/clean", keep=KEEP, quiet=True)
    assert part in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_other_mistakes(shards, scores, tmp_path):
    make_tars(tmp_path / "tars", 7)
    build_shards(tmp_path / "tars", tmp_path / "other")
    (tmp_path / "broken.parquet").write_bytes(scores.read_bytes()[:-50])
    for arguments, part in (
        ({"source": tmp_path / "other"}, "is of other data: set with 230 samples"),
        ({"scores": tmp_path / "none.parquet"}, "no score table"),
        ({"scores": tmp_path / "broken.parquet"}, "cannot be read as Parquet"),
        ({"keep": "index < 0"}, "true for none of the 230 samples"),
        ({"keep": "nonsense"}, "no column 'nonsense'"),
        ({"keep": None}, "without --keep"),
        ({"keep": None, "replace_text_where": "index"}, "--replace-text-where 'index': gives a number"),
        ({"output": shards}, "is the dataset to read"),
    ):
        words = {"source": shards, "scores": scores, "output": tmp_path / "out/clean", "keep": KEEP, **arguments}
        source, table, output = (words.pop(name) for name in ("source", "scores", "output"))
        with pytest.raises(UserError) as refused:
            select(source, table, output, quiet=True, **words)
        assert part in str(refused.value), arguments


def test_damaged_tables_are_refused_or_read_as_they_were(tmp_path):
    (target,) = score_tables.TARGETS
    for seed in range(60):
        run_case(target.make(random.Random(seed), tmp_path), target.allowed)
    run_case(target.make(random.Random(379), tmp_path), target.allowed)  # a column that has lost its rows
    run_case(target.make(random.Random("score table/310000367"), tmp_path), target.allowed)  # a name that is not UTF-8
