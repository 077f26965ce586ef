"""Builds cut into pieces: the dataset of one process, whoever does them, and whoever dies on the way."""

import json
import tarfile

import pyarrow
import pyarrow.parquet
import pytest

from alip.build import division, shuffle, unit_shuffle, units, writer
from alip.build.archives import TarSource
from alip.build.joined_texts import TextFiles
from alip.build.open_source import open_source
from alip.build.prepare import CaptionPolicy, Policy
from alip.build.tables import TableSource
from alip.build.units import plan_shards
from alip.errors import UserError
from tests.helpers.engines import InTurn, build_captioned, make_captioned_tars


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return make_captioned_tars(tmp_path_factory.mktemp("units"))


@pytest.fixture(scope="module")
def local(tars):
    return build_captioned(tars, tars / "local" / "set")


def content(folder):
    """Every file of a dataset, but for the manifest."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "set.json"}


def test_byte_for_byte_the_build_of_one_process(tars, local, tmp_path):
    manifest = build_captioned(tars, tmp_path / "set", engine=InTurn())
    assert manifest.fingerprint == local.fingerprint and manifest.shards == local.shards
    assert content(tmp_path) == content(local.folder)
    assert manifest.to_json() == local.to_json()
    assert build_captioned(tars, tmp_path / "set").fingerprint == local.fingerprint, "there already, for either engine"


def test_several_captions(tars, tmp_path):
    lines = [json.dumps({"key": f"{i:07d}", "caption": f"second {i}"}) for i in range(0, 100, 2)]
    (tmp_path / "more.jsonl").write_text("\n".join(lines) + "\n")
    texts = TextFiles((str(tars / "captions.jsonl"), str(tmp_path / "more.jsonl")))
    options = {"policy": Policy(captions=CaptionPolicy(2)), "texts": texts}
    one, other = (
        build_captioned(tars, tmp_path / name / "set", engine=e, **options)
        for name, e in (("a", None), ("b", InTurn()))
    )
    assert one.to_json() == other.to_json() and content(one.folder) == content(other.folder)
    assert one.captions_per_image == 2


def unpack(path, folder):
    """The files of a tar of ours. (`extractall` wants a filter, which early releases of Python 3.10 and 3.11 lack.)"""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path) as tar:
        for member in tar:
            (folder / member.name).write_bytes(tar.extractfile(member).read())


def write_table(tars, folder, ending):
    """The images of a tar as files, and a table of them with a broken row."""
    unpack(tars / "tars" / "00000.tar", folder)
    images = sorted(folder.glob("*.jpg"))
    rows = [{"image": image.name, "text": f"text {i}", "caption": f"caption {i}"} for i, image in enumerate(images)]
    path = folder / f"table.{ending}"
    if ending == "csv":
        lines = [f'{row["image"]},"{row["text"]}\r\n, ""quoted""",{row["caption"]}' for row in rows]
        content = "\r\n".join(["image,text,caption", *lines[:6], "", '"never closed', *lines[6:]])
        path.write_bytes(("\ufeff" + content).encode())
    elif ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=4)
    elif ending == "images.parquet":
        cells = [{"bytes": image.read_bytes(), "path": image.name} for image in images]
        table = pyarrow.Table.from_pylist([row | {"image": cell} for row, cell in zip(rows, cells)])
        pyarrow.parquet.write_table(table, path, row_group_size=4, compression="none", write_page_checksum=True)
        data = bytearray(path.read_bytes())
        damaged = data.index(images[5].read_bytes())  # of the second row group, whose texts stay whole
        data[damaged + 100] ^= 1
        path.write_bytes(data)
    else:
        lines = [json.dumps(row) for row in rows]
        path.write_text("\ufeff" + "\n".join([*lines[:6], "", "{broken", *lines[6:]]), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["tar", "damaged.tar", "jsonl", "csv", "parquet", "images.parquet", "folder"])
def test_a_large_file_is_done_in_parts(tars, tmp_path, monkeypatch, kind):
    """The same bytes; and after a driver has died the file is not divided again."""
    if kind.endswith("tar"):
        data = b"".join((tars / "tars" / f"0000{i}.tar").read_bytes() for i in range(2))  # concatenated
        if kind == "damaged.tar":
            middle = len(data) // 2 // 512 * 512 - 30 * 512
            data = data[:middle] + bytes(b ^ 0x55 for b in data[middle : middle + 2048]) + data[middle + 2048 :]
        path = tmp_path / "large.tar"
        path.write_bytes(data)
    elif kind == "folder":
        path = tmp_path / "images"
        for number in range(2):
            unpack(tars / "tars" / f"0000{number}.tar", path / ("below" if number else ""))
        (path / "old.heic").write_bytes(b"a format that is not read")
    else:
        path = write_table(tars, tmp_path, kind)
    options = {"policy": Policy(), "workers": 0, "samples_per_shard": 32, "quiet": True}
    one = writer.build(open_source(str(path)), tmp_path / "a" / "set", **options).manifest
    expected = {"damaged.tar": {"broken-input", "damaged-sample"}, "jsonl": {"broken-row"}, "csv": {"broken-row"}}
    expected |= {"folder": {"unsupported-format"}, "images.parquet": {"broken-input"}}
    assert expected.get(kind, set()) <= set(one.rejects)
    for source in (TarSource, TableSource):
        monkeypatch.setattr(source, "divided_from", 1)
    monkeypatch.setattr(division, "SAMPLES_PER_PART", 3)
    engines = [InTurn(lambda function, piece: function == "write_shard"), InTurn()]
    with pytest.raises(KeyboardInterrupt):
        writer.build(open_source(str(path)), tmp_path / "b" / "set", engine=engines[0], **options)
    other = writer.build(open_source(str(path)), tmp_path / "b" / "set", engine=engines[1], **options).manifest
    assert other.to_json() == one.to_json() and content(one.folder) == content(other.folder)
    names = [name for name, _ in engines[0].calls]
    assert names.count("divide_unit") == 1 and names.count("prepare_unit") > 4
    assert {name for name, _ in engines[1].calls} == {"write_shard"}


@pytest.mark.parametrize("dies_at", [("prepare_unit", 2), ("write_shard", 1)])
def test_a_driver_may_die(tars, local, tmp_path, dies_at):
    first = InTurn(lambda function, piece: (function, piece[0]) == dies_at)
    with pytest.raises(KeyboardInterrupt):
        build_captioned(tars, tmp_path / "set", engine=first)
    (tmp_path / "set.partial" / "units" / "tmp-of-a-killed-worker").mkdir()
    with pytest.raises(UserError, match="holds a build of --engine ray"):
        build_captioned(tars, tmp_path / "set")
    second = InTurn()
    assert build_captioned(tars, tmp_path / "set", engine=second).shards == local.shards
    assert not set(first.calls) & set(second.calls), "nothing is done twice"
    assert content(tmp_path) == content(local.folder)


@pytest.mark.parametrize("several", [False, True])
def test_a_shuffle_in_pieces(tars, tmp_path, monkeypatch, several):
    """The order of one process, with several shards in a spill file and several spill files in a shard; the driver dies
    in two passes."""
    monkeypatch.setattr(shuffle, "FILES", 5)
    monkeypatch.setattr(unit_shuffle, "_OPEN", 2)
    options = {"shuffle_seed": 9, "samples_per_shard": 16}
    if several:
        options |= {"policy": Policy(captions=CaptionPolicy(2))}
    one = build_captioned(tars, tmp_path / "a" / "set", **options)
    dies_at = [("spill_unit", 1), ("write_shuffled_shard", 2), None]
    engines = [InTurn(lambda function, piece, at=at: (function, piece[0]) == at) for at in dies_at]
    output = tmp_path / "b" / "set"
    with pytest.raises(KeyboardInterrupt):
        build_captioned(tars, output, engine=engines[0], **options)
    with pytest.raises(UserError, match="holds a build of --engine ray"):
        build_captioned(tars, output, **options)
    with pytest.raises(KeyboardInterrupt):
        build_captioned(tars, output, engine=engines[1], **options)
    left = {path.suffix for path in (tmp_path / "b" / "set.partial" / "units" / "0000").iterdir()}
    assert left == {".json", ".jsonl", ".spill"}, "no records of the units beside their spill files"
    other = build_captioned(tars, output, engine=engines[2], **options)
    assert other.to_json() == one.to_json() and other.fingerprint == one.fingerprint
    assert content(one.folder) == content(other.folder)
    done = [call for engine in engines for call in engine.calls]
    assert len(done) == len(set(done)) == 5 + 5 + len(one.shards), "each piece once"


def test_a_spilled_unit_is_not_spilled_again(tars, tmp_path, monkeypatch):
    """A worker may be lost behind the end of its piece: then the piece is repeated, without the unit's records."""

    class Twice(InTurn):
        def run(self, function, job, pieces, last_try=None):
            pieces = list(pieces)
            if function.__name__ == "spill_unit":
                before = [function(job, *piece) for piece in pieces]
                assert [result for _, result in super().run(function, job, pieces)] == before[::-1]
            return super().run(function, job, pieces, last_try)

    one = build_captioned(tars, tmp_path / "a" / "set", shuffle_seed=1)
    other = build_captioned(tars, tmp_path / "b" / "set", shuffle_seed=1, engine=Twice())
    assert other.to_json() == one.to_json() and content(one.folder) == content(other.folder)


def test_a_failed_piece_is_named_and_costs_itself_only(tars, local, tmp_path, monkeypatch):
    real = units.prepare_unit

    def prepare_unit(job, unit, cut=None, careful=False):
        if unit == 3:
            raise UserError("no such luck")
        return real(job, unit, cut, careful)

    monkeypatch.setattr(units, "prepare_unit", prepare_unit)
    with pytest.raises(UserError, match=r"1 of 5 pieces of work failed, the first: 00003\.tar: no such luck"):
        build_captioned(tars, tmp_path / "set", engine=InTurn())
    monkeypatch.undo()
    second = InTurn()
    assert build_captioned(tars, tmp_path / "set", engine=second).shards == local.shards
    assert [number for name, number in second.calls if name == "prepare_unit"] == [3]


def test_what_an_engine_cannot_do_is_one_line(tars, tmp_path):
    with pytest.raises(UserError, match="needs --scratch DIR, a folder that all machines share"):
        build_captioned(tars, "s3://bucket/set", engine=InTurn())


@pytest.mark.parametrize("counts", [[], [0, 0], [5], [3, 0, 10, 1], [1] * 9])
def test_the_plan_of_the_shards(counts):
    plan = plan_shards(list(enumerate(counts)), 4)
    flat = [(unit, i) for parts in plan for unit, first, last in parts for i in range(first, last)]
    assert flat == [(unit, i) for unit, count in enumerate(counts) for i in range(count)]
    sizes = [sum(last - first for _, first, last in parts) for parts in plan]
    assert all(size == 4 for size in sizes[:-1]) and all(0 < size <= 4 for size in sizes)
