"""A build cut into pieces of work that any process on any machine can do: what an engine such as Ray distributes.

Two passes. First every unit (an input file) becomes records under its own name in `NAME.partial/units/`; then every
shard is put together from the units that it spans. A piece is published by its JSON file, which is written last:
one that was killed is done again, one that is there is not. Since a shard depends on nothing but the units, the dataset
is byte for byte the one that a build in one process gives.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet
from tqdm import tqdm

from alip.build.input_shard import InputShard
from alip.build.joined_texts import JoinedTexts, TextFiles
from alip.build.journal import RejectsFile
from alip.build.prepare import CHUNK, Policy, Rejected, prepare, prepare_all
from alip.build.shard_writer import ShardWriter
from alip.build.sources import Source
from alip.data.recordio import IndexedReader, unpack_label
from alip.data.shards import Shard
from alip.errors import UserError
from alip.files import read_json, write_json
from alip.remote.urls import name_of

UNITS = "units"
_GROUP = 1000


class Engine(Protocol):
    """run(function, job, pieces): calls function(job, *piece) for every piece, anywhere, and gives (piece, result) as
    they come; a result may be the exception that ended the last attempt."""

    def run(self, function: Callable, job: Any, pieces: Iterable[tuple]) -> Iterator[tuple[tuple, Any]]: ...


@dataclass(frozen=True)
class UnitJob:
    """What every piece of work needs to know. folder, name: of the dataset; work: its NAME.partial, on storage that all
    machines share; directory: in which relative paths start."""

    source: Source
    policy: Policy
    texts: TextFiles
    input_shard: InputShard
    folder: Path
    name: str
    work: Path
    directory: str

    @property
    def several(self) -> bool:
        """True if an image may have several captions."""
        return self.policy.captions.per_image > 1

    @property
    def units(self) -> Path:
        """The folder of the pieces."""
        return self.work / UNITS

    def path(self, what: str, number: int, ending: str) -> Path:
        """A file of a piece: what is "unit" or "shard". A folder has at most a few thousand of them: listing it, as
        writing a file does, has to stay cheap."""
        return self.units / f"{number // _GROUP:04d}" / f"{what}-{number:06d}{ending}"


def prepare_unit(job: UnitJob, unit: int, careful: bool = False) -> dict:
    """First pass: the records of one input file. careful: each sample in a process of its own, since one of them has
    killed this piece before. Returns what its JSON file holds."""
    os.chdir(job.directory)
    done = job.path("unit", unit, ".json")
    done.parent.mkdir(exist_ok=True)
    texts = JoinedTexts(job.texts, job.work, job.several)
    with tempfile.TemporaryDirectory(prefix="tmp-", dir=job.units) as temporary:
        shard = ShardWriter(done.parent, done.stem, Path(temporary), job.several)
        rejects = RejectsFile(Path(temporary) / "rejects.jsonl", None)
        untouched = 0
        for result in _results(job, unit, texts, careful):
            if isinstance(result, Rejected):
                if result.fatal:
                    raise UserError(f"{result.where}: {result.message}; the flags --missing-caption and --missing-text")
                rejects.add(result.key, result.where, result.reason, result.message)
            else:
                shard.add(result)
                untouched += result.untouched
        rejects.sync()
        rejects.close()
        os.replace(rejects.path, job.path("unit", unit, "-rejects.jsonl"))
        samples = shard.samples
        shard.commit()
    found = {what: table.found for what in ("captions", "rewrites") if (table := getattr(texts, what))}
    content = {"samples": samples, "untouched": untouched, "rejects": dict(rejects.counts), "found": found}
    write_json(done, content)
    return content


def _results(job: UnitJob, unit: int, texts: JoinedTexts, careful: bool) -> Iterator:
    def samples() -> Iterator:
        for sample in job.source.samples([unit]):
            if job.input_shard.takes(job.source, sample):
                texts.apply(sample)
                yield sample

    if careful:
        return prepare_all(samples(), job.policy, 1, fork=False)
    stream = samples()
    chunks = iter(lambda: list(islice(stream, CHUNK)), [])
    return chain.from_iterable(prepare(chunk, job.policy) for chunk in chunks)


def write_shard(job: UnitJob, number: int, parts: list[tuple[int, int, int]]) -> dict:
    """Second pass: one shard, from (unit, first, last) of the units that it spans. Returns its manifest entry."""
    os.chdir(job.directory)
    with tempfile.TemporaryDirectory(prefix="tmp-", dir=job.units) as temporary:
        shard = ShardWriter(job.folder, f"{job.name}-{number:05d}", Path(temporary), job.several)
        for unit, first, last in parts:
            rec, idx, sidecar = (job.path("unit", unit, ending) for ending in (".rec", ".idx", ".parquet"))
            rows = pyarrow.parquet.read_table(sidecar).slice(first, last - first).to_pylist()
            with IndexedReader(rec, idx) as records:
                for i, row in zip(range(first, last), rows, strict=True):
                    payload = records[i]
                    shard.add_record(payload, unpack_label(payload)[0], tuple(row.values()))
        entry = asdict(shard.commit())
    path = job.path("shard", number, ".json")
    path.parent.mkdir(exist_ok=True)
    write_json(path, entry)
    return entry


@dataclass
class UnitResult:
    """What both passes gave. shards: of the manifest; counts: samples, untouched; found: look-ups of joined texts."""

    shards: list[Shard]
    counts: Counter
    found: Counter


def build_units(job: UnitJob, engine: Engine, samples_per_shard: int, rejects: RejectsFile, quiet: bool) -> UnitResult:
    """Both passes, from where an earlier run stopped. rejects: gets those of all units, in order.

    UserError names the first of the input files that failed; the others are done then.
    """
    job.units.mkdir(exist_ok=True)
    for leftover in job.units.glob("tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    units = job.input_shard.units(job.source)
    sizes = {unit: job.source.sizes[unit] for unit in units}
    done = _all_pieces(job, engine, prepare_unit, "unit", {unit: (unit,) for unit in units}, sizes, quiet)
    counts, found = Counter(), Counter()
    for unit in units:
        counts.update(samples=done[unit]["samples"], untouched=done[unit]["untouched"])
        found.update(done[unit]["found"])
        rejects.extend(job.path("unit", unit, "-rejects.jsonl"), done[unit]["rejects"])
    plan = plan_shards([(unit, done[unit]["samples"]) for unit in units], samples_per_shard)
    pieces = {number: (number, parts) for number, parts in enumerate(plan)}
    made = _all_pieces(job, engine, write_shard, "shard", pieces, dict.fromkeys(pieces, 1), quiet)
    return UnitResult([Shard(**made[number]) for number in range(len(plan))], counts, found)


def plan_shards(counts: list[tuple[int, int]], samples_per_shard: int) -> list[list[tuple[int, int, int]]]:
    """(unit, first, last) of every shard, from (unit, number of its samples) in order."""
    plan: list[list[tuple[int, int, int]]] = []
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


def _all_pieces(
    job: UnitJob, engine: Engine, function: Callable, what: str, pieces: dict[int, tuple], sizes: dict, quiet: bool
) -> dict[int, dict]:
    """The results of one pass by number: those that are there already, and the engine's."""
    there = {path.name for path in job.units.glob(f"*/{what}-*.json")}
    paths = {number: job.path(what, number, ".json") for number in pieces}
    done = {number: read_json(path) for number, path in paths.items() if path.name in there}
    missing = [piece for number, piece in pieces.items() if number not in done]
    failed: dict[int, Exception] = {}
    with tqdm(
        total=sum(sizes.values()),
        initial=sum(sizes[number] for number in done),
        desc={"unit": "files", "shard": "shards"}[what],
        bar_format="{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}",
        disable=quiet,
    ) as bar:
        for piece, result in engine.run(function, job, missing):
            if isinstance(result, Exception):
                failed[piece[0]] = result
            else:
                done[piece[0]] = result
            bar.set_postfix_str(f" {len(done):,} of {len(pieces):,}, {len(failed)} failed", refresh=False)
            bar.update(sizes[piece[0]])
    if failed:
        number = min(failed)
        first = name_of(job.source.units[number]) if what == "unit" else f"shard {number}"
        raise UserError(
            f"{len(failed)} of {len(pieces)} pieces of work failed, the first: {first}: {failed[number]}; fix that and "
            "run the same command again, the others are done"
        )
    return done
