"""A build cut into pieces of work that any process on any machine can do: what an engine such as Ray distributes.

Two passes. First every unit (an input file, or a part of a large one) becomes records under its own name in
`NAME.partial/units/`; then every shard is put together from the units that it spans. (A shuffle has one pass more
between them: unit_shuffle.py.) A piece is published by its JSON file, which is written last: one that was killed is
done again, one that is there is not. Since a shard depends on nothing but the units, the dataset is byte for byte the
one that a build in one process gives.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow.parquet

from alip.build.division import Key, divide_units, key_of, pieces_of
from alip.build.joined_texts import JoinedTexts
from alip.build.journal import RejectsFile
from alip.build.prepare import CHUNK, Rejected, prepare, prepare_all
from alip.build.shard_writer import ShardWriter
from alip.build.sources import Cut
from alip.build.unit_job import UnitJob, do_pass
from alip.build.unit_shuffle import ShuffleJob, spill_units, write_shuffled_shard
from alip.cluster.pieces import Engine
from alip.data.recordio import IndexedReader, unpack_label
from alip.data.shards import Shard
from alip.errors import UserError
from alip.files import parquet_path, write_json
from alip.remote.urls import name_of


def prepare_unit(job: UnitJob, unit: int, cut: Cut | None = None, careful: bool = False) -> dict:
    """First pass: the records of one input file, or of a part of it. careful: each sample in a process of its own,
    since one of them has killed this piece before. Returns what its JSON file holds."""
    os.chdir(job.directory)
    key = key_of(unit, cut)
    done = job.unit_path(key, ".json")
    done.parent.mkdir(exist_ok=True)
    texts = JoinedTexts(job.texts, job.work, job.several)
    with tempfile.TemporaryDirectory(prefix="tmp-", dir=job.units) as temporary:
        shard = ShardWriter(done.parent, done.stem, Path(temporary), job.several)
        rejects = RejectsFile(Path(temporary) / "rejects.jsonl", None)
        counts: Counter = Counter(untouched=0)
        for result in _results(job, unit, cut, texts, careful):
            if isinstance(result, Rejected):
                if result.fatal:
                    raise UserError(f"{result.where}: {result.message}; the flags --missing-caption and --missing-text")
                rejects.add(result.key, result.where, result.reason, result.message)
            else:
                shard.add(result)
                counts.update(untouched=result.untouched, one_text=result.one_text)
        rejects.sync()
        rejects.close()
        os.replace(rejects.path, job.unit_path(key, "-rejects.jsonl"))
        samples = shard.samples
        shard.commit()
    found = {what: table.found for what in ("captions", "rewrites") if (table := getattr(texts, what))}
    content = {"samples": samples, **counts, "rejects": dict(rejects.counts), "found": found}
    write_json(done, content)
    return content


def _results(job: UnitJob, unit: int, cut: Cut | None, texts: JoinedTexts, careful: bool) -> Iterator:
    def samples() -> Iterator:
        for sample in job.source.read_part(unit, cut):
            if job.input_shard.takes(job.source, sample):
                texts.apply(sample)
                yield sample

    if careful:
        return prepare_all(samples(), job.policy, 1, fork=False)
    stream = samples()
    chunks = iter(lambda: list(islice(stream, CHUNK)), [])
    return chain.from_iterable(prepare(chunk, job.policy) for chunk in chunks)


def write_shard(job: UnitJob, number: int, parts: tuple[tuple[Key, int, int], ...]) -> dict:
    """Second pass: one shard, from (unit and part, first, last) of the units that it spans; uploaded, if there is a
    target. Returns its manifest entry."""
    os.chdir(job.directory)
    with tempfile.TemporaryDirectory(prefix="tmp-", dir=job.units) as temporary:
        shard = ShardWriter(job.folder, f"{job.name}-{number:05d}", Path(temporary), job.several)
        for key, first, last in parts:
            rec, idx, sidecar = (job.unit_path(key, ending) for ending in (".rec", ".idx", ".parquet"))
            rows = pyarrow.parquet.read_table(parquet_path(sidecar)).slice(first, last - first).to_pylist()
            with IndexedReader(rec, idx) as records:
                for i, row in zip(range(first, last), rows, strict=True):
                    payload = records[i]
                    shard.add_record(payload, unpack_label(payload)[0], tuple(row.values()))
        return job.publish_shard(number, shard.commit())


@dataclass
class UnitResult:
    """What the passes gave. shards: of the manifest; counts: samples, untouched; found: look-ups of joined texts."""

    shards: list[Shard]
    counts: Counter
    found: Counter


def build_units(
    job: UnitJob,
    engine: Engine,
    samples_per_shard: int,
    rejects: RejectsFile,
    quiet: bool,
    shuffle_seed: int | None = None,
) -> UnitResult:
    """All passes, from where an earlier run stopped. rejects: gets those of all units, in order.

    UserError names the first of the input files that failed; the others are done then.
    """
    job.units.mkdir(exist_ok=True)
    for leftover in job.units.glob("tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    units = job.input_shard.units(job.source)
    cuts = divide_units(engine, job.source, units, job.units, quiet)
    pieces, sizes = pieces_of(job.source, units, cuts)
    names = {"name": lambda key: name_of(job.source.units[key[0]]), "path": lambda key: job.unit_path(key, ".json")}
    shared = {"units": job.units, "quiet": quiet}
    last_try = {"careful": True}
    done = do_pass(engine, prepare_unit, job, pieces, sizes, what="files", last_try=last_try, **names, **shared)
    counts, found = Counter(), Counter()
    for key in pieces:
        counts.update({name: done[key].get(name, 0) for name in ("samples", "untouched", "one_text")})
        found.update(done[key]["found"])
        rejects.extend(job.unit_path(key, "-rejects.jsonl"), done[key]["rejects"])
    in_order: list[tuple[Any, int]] = [(key, done[key]["samples"]) for key in pieces]
    write, shard_job = write_shard, job
    if shuffle_seed is not None:
        write, shard_job = write_shuffled_shard, ShuffleJob(job, shuffle_seed, tuple(pieces))
        in_order = spill_units(engine, shard_job, [count for _, count in in_order], quiet)
    plan = plan_shards(in_order, samples_per_shard)
    pieces = {number: (number, tuple(parts)) for number, parts in enumerate(plan)}
    names = {"name": lambda number: f"shard {number}", "path": job.shard_path}
    made = do_pass(engine, write, shard_job, pieces, dict.fromkeys(pieces, 1), what="shards", **names, **shared)
    return UnitResult([Shard(**made[number]) for number in range(len(plan))], counts, found)


def plan_shards(counts: list[tuple[Any, int]], samples_per_shard: int) -> list[list[tuple[Any, int, int]]]:
    """(unit, first, last) of every shard, from (unit, number of its samples) in order."""
    plan: list[list[tuple[Any, int, int]]] = []
    room = 0
    for unit, count in counts:
        first = 0
        while first < count:
            if room == 0:
                plan.append([])
                room = samples_per_shard
            last = min(count, first + room)
            plan[-1].append((unit, first, last))
            room -= last - first
            first = last
    return plan
