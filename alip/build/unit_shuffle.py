"""The external shuffle of shuffle.py cut into pieces of work: the same order, on many machines.

It begins when every unit is done, since the number of a sample in the whole build decides where it goes. Then each
unit's records are sorted by spill file into one file, `UNIT.spill`, and every shard is put together from the parts of
the spill files that it spans. A piece is published by its JSON file, as in units.py.

    UNIT.spill    uint64 (FILES + 1): samples before each spill file; uint64 (n + 1): offset of each frame, in bytes;
                  the frames of shuffle.py, in the order of the spill files and, within one, of the samples' numbers
    spilled.npy   uint32 (units, FILES): samples of each unit in each spill file
"""

from __future__ import annotations

import os
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow.parquet

from alip.build import shuffle
from alip.build.division import Key
from alip.build.prepare import PreparedSample
from alip.build.shard_writer import ShardWriter
from alip.build.unit_job import UnitJob, do_pass
from alip.cluster.pieces import Engine
from alip.data.recordio import IndexedReader, unpack
from alip.files import atomic_write, parquet_path, read_json, sync, write_json
from alip.remote.urls import name_of

SPILL, DONE = ".spill", "-spilled.json"
_TABLE = "spilled.npy"
_OPEN = 256  # spill files of one worker: a shard has samples of nearly all
_INDEX = np.dtype("<u8")
_UNIT_FILES = (".rec", ".idx", ".parquet")


@dataclass(frozen=True)
class ShuffleJob:
    """What the pieces need to know. keys: of the units, in the build's order."""

    units: UnitJob
    seed: int
    keys: tuple[Key, ...]


def spill_units(engine: Engine, job: ShuffleJob, counts: list[int], quiet: bool) -> list[tuple[int, int]]:
    """The first pass of the shuffle. counts: samples of each unit. Returns (spill file, samples in it)."""
    unit_job = job.units
    starts = np.cumsum([1, *counts])  # the first sample of a build has number 1
    pieces = {i: (i, int(starts[i])) for i in range(len(counts)) if counts[i]}
    table = np.zeros((len(counts), shuffle.FILES), np.uint32)

    def take(i: int, result: dict[str, Any]) -> None:
        table[i] = result["samples"]

    do_pass(
        engine,
        spill_unit,
        job,
        pieces,
        {i: counts[i] for i in pieces},
        units=unit_job.units,
        what="shuffle",
        name=lambda i: name_of(unit_job.source.units[job.keys[i][0]]),
        path=lambda i: unit_job.unit_path(job.keys[i], DONE),
        quiet=quiet,
        take=take,
    )
    path = unit_job.units / _TABLE
    if not path.exists():
        with atomic_write(path) as file:
            np.save(file, table)
    return [(file, int(total)) for file, total in enumerate(table.sum(0, dtype=np.int64))]


def spill_unit(job: ShuffleJob, index: int, start: int) -> dict[str, Any]:
    """A piece: the records of unit `index`, of which the first has number `start` in the build, sorted by spill file.
    Returns what its JSON file holds. The unit's own records are removed: the disk holds all of it twice, not thrice."""
    unit_job, key = job.units, job.keys[index]
    os.chdir(unit_job.directory)
    done = unit_job.unit_path(key, DONE)
    if done.exists():  # by a worker that was lost behind its end
        return read_json(done)
    rec, idx, sidecar = paths = [unit_job.unit_path(key, ending) for ending in _UNIT_FILES]
    rows = pyarrow.parquet.read_table(parquet_path(sidecar)).columns
    with tempfile.TemporaryDirectory(prefix="tmp-", dir=unit_job.units) as temporary:
        path = Path(temporary) / "spill"
        with IndexedReader(rec, idx) as records, open(path, "wb", buffering=1 << 20) as file:
            chosen = np.array([shuffle.spill_file(job.seed, start + i) for i in range(len(records))])
            samples = np.bincount(chosen, minlength=shuffle.FILES)
            index_of = np.zeros(shuffle.FILES + 1 + len(records) + 1, _INDEX)
            index_of[1 : shuffle.FILES + 1] = np.cumsum(samples)
            file.write(index_of.tobytes())
            index_of[shuffle.FILES + 1] = file.tell()
            for at, i in enumerate(np.argsort(chosen, kind="stable").tolist(), shuffle.FILES + 2):
                row = tuple(column[i].as_py() for column in rows)
                index_of[at] = index_of[at - 1] + file.write(shuffle.frame(*unpack(records[i]), row))
            file.seek(0)
            file.write(index_of.tobytes())
        sync(path)
        os.replace(path, unit_job.unit_path(key, SPILL))
    content = {"samples": samples.tolist()}
    write_json(done, content)
    for path in paths:
        path.unlink(missing_ok=True)
    return content


def write_shuffled_shard(job: ShuffleJob, number: int, parts: tuple[tuple[int, int, int], ...]) -> dict[str, Any]:
    """A piece of the second pass: one shard, from (spill file, first, last) of its random order. Returns its manifest
    entry."""
    unit_job = job.units
    os.chdir(unit_job.directory)
    table = np.load(unit_job.units / _TABLE, mmap_mode="r")
    with tempfile.TemporaryDirectory(prefix="tmp-", dir=unit_job.units) as temporary, _Spills(job) as spills:
        shard = ShardWriter(unit_job.folder, f"{unit_job.name}-{number:05d}", Path(temporary), unit_job.several)
        for file, first, last in parts:
            starts = np.concatenate(([0], np.cumsum(table[:, file], dtype=np.int64)))
            taken = shuffle.order_of(job.seed, file, int(starts[-1]))[first:last]
            units = np.searchsorted(starts, taken, side="right") - 1
            for unit, within in zip(units.tolist(), (taken - starts[units]).tolist()):
                shard.add(spills.read(unit, file, within))
        return unit_job.publish_shard(number, shard.commit())


class _Spills:
    """The spill files of the units, of which the ones used last are open."""

    def __init__(self, job: ShuffleJob):
        self._job = job
        self._open: OrderedDict[int, tuple[IO[bytes], np.ndarray]] = OrderedDict()

    def read(self, unit: int, file: int, within: int) -> PreparedSample:
        """Sample `within` of those of a unit in a spill file."""
        opened, before = self._opened(unit)
        at = (len(before) + int(before[file]) + within) * _INDEX.itemsize
        offset, end = np.frombuffer(os.pread(opened.fileno(), 2 * _INDEX.itemsize, at), _INDEX).tolist()
        return shuffle.sample_of(os.pread(opened.fileno(), end - offset, offset))

    def _opened(self, unit: int) -> tuple[IO[bytes], np.ndarray]:
        if unit in self._open:
            self._open.move_to_end(unit)
            return self._open[unit]
        if len(self._open) == _OPEN:
            self._open.popitem(last=False)[1][0].close()
        opened = open(self._job.units.unit_path(self._job.keys[unit], SPILL), "rb", buffering=0)  # noqa: SIM115
        before = np.frombuffer(os.pread(opened.fileno(), (shuffle.FILES + 1) * _INDEX.itemsize, 0), _INDEX)
        self._open[unit] = opened, before
        return opened, before

    def __enter__(self) -> _Spills:
        return self

    def __exit__(self, *exc: object) -> None:
        for opened, _ in self._open.values():
            opened.close()
