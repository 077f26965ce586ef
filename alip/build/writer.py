"""Sources → shards: streaming, in several processes, restartable anywhere with byte-identical results."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from alip.build.caption_table import CaptionTable
from alip.build.journal import Journal, RejectsFile, explain_full_disk
from alip.build.prepare import Policy, PreparedSample, Rejected, prepare_all
from alip.build.shard_writer import ShardWriter
from alip.build.shuffle import Buckets
from alip.build.sources import Sample, Source
from alip.data.shards import Manifest, Shard, load_manifest
from alip.errors import UserError
from alip.files import sync_folder

SAMPLES_PER_SHARD = 20_000


@dataclass(frozen=True)
class Part:
    """Part k of n: what one of n machines builds. k counts from 1."""

    k: int = 1
    n: int = 1

    @staticmethod
    def parse(text: str) -> Part:
        """From `K/N`."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match.group(1)) <= int(match.group(2)):
            raise UserError(f"--part is K/N with K from 1 to N, for example 2/4, not {text!r}")
        return Part(int(match.group(1)), int(match.group(2)))

    def units(self, source: Source) -> list[int]:
        """The files of a source that this part reads: every n-th, or all where there are too few of them."""
        count = len(source.units)
        return list(range(self.k - 1, count, self.n)) if count >= self.n else list(range(count))

    def takes(self, source: Source, sample: Sample) -> bool:
        """True if this part has the sample; where parts share files, they take turns."""
        return len(source.units) >= self.n or sample.number % self.n == self.k - 1

    def name(self, name: str) -> str:
        """The name of this part's data set."""
        return name if self.n == 1 else f"{name}-part{self.k}of{self.n}"


@dataclass(frozen=True)
class BuildSummary:
    """What a build did. broken: input files that could not be read to their end; already_there: nothing was to do."""

    manifest: Manifest
    already_there: bool = False

    @property
    def broken(self) -> int:
        """Input files that could not be read to their end: their samples from there on are missing."""
        return self.manifest.rejects.get("broken-input", 0)

    def text(self) -> str:
        """A few lines for the person who started it."""
        manifest = self.manifest
        there = "already complete: " if self.already_there else ""
        size = sum(shard.bytes for shard in manifest.shards) / 1e6
        lines = [
            f"{there}{manifest.folder / manifest.name}: {manifest.samples:,} samples in {len(manifest.shards)} shards, "
            f"{size:,.1f} MB; {manifest.facts['untouched']:,} JPEGs went in untouched"
        ]
        if manifest.rejects:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(manifest.rejects.items()))
            lines.append(f"rejected: {reasons}; each is named in {manifest.folder / manifest.name}-rejects.jsonl")
        if self.broken:
            lines.append(f"{self.broken} input files could not be read to their end: see broken-input in the rejects")
        return "\n".join(lines)


def build(
    source: Source,
    output: str | Path,
    *,
    policy: Policy,
    workers: int = 2,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    captions: str | None = None,
    shuffle_seed: int | None = None,
    part: Part | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> BuildSummary:
    """Builds `DIR/NAME-00000.rec …` and `DIR/NAME.json` from a source, or goes on with a build that was cut off.

    output: DIR/NAME. captions: a captions file to join by key. shuffle_seed: mix samples across shards (needs the
    room for everything twice on the disk for a while); None: keep the source's order. overwrite: build anew.
    UserError: a full disk, other options than those of the build to go on with, no usable sample at all.
    """
    part = part or Part()
    folder, name = Path(output).parent, part.name(Path(output).name)
    options = {
        "input": source.describe(),
        "source": source.source_type,
        "fields": asdict(source.fields),
        "image_root": getattr(source, "image_root", None),
        "splits": list(getattr(source, "splits", [])),
        "policy": asdict(policy),
        "samples_per_shard": samples_per_shard,
        "captions": _describe_captions(captions),
        "shuffle_seed": shuffle_seed,
        "part": [part.k, part.n],
    }
    if overwrite:
        _remove(folder, name)
    elif (folder / f"{name}.json").exists():
        return BuildSummary(_finished(folder, name, options), already_there=True)
    with explain_full_disk(folder):
        job = _Build(source, folder, name, options, policy, part)
        try:
            return BuildSummary(job.run(workers, captions, quiet))
        finally:
            job.close()


def _describe_captions(captions: str | None) -> list | None:
    if captions is None:
        return None
    if not Path(captions).is_file():
        raise UserError(f"no captions file {captions}")
    return [Path(captions).name, Path(captions).stat().st_size]


def _remove(folder: Path, name: str) -> None:
    pattern = re.compile(re.escape(name) + r"(-\d{5}\.(rec|idx|parquet)|-rejects\.jsonl|\.json)")
    for path in folder.glob("*") if folder.is_dir() else ():
        if pattern.fullmatch(path.name):
            path.unlink()
    shutil.rmtree(folder / f"{name}.partial", ignore_errors=True)


def _finished(folder: Path, name: str, options: dict) -> Manifest:
    manifest = load_manifest(folder / f"{name}.json")
    before = manifest.facts.get("options", {})
    changed = [key for key in options if before.get(key) != options[key]]
    if changed:
        raise UserError(
            f"{folder / name} was built with another {', '.join(changed)}: give --overwrite to build it anew, or "
            "another --output"
        )
    return manifest


class _Build:
    """One build: its journal, and the state that is written there at each commit."""

    def __init__(self, source: Source, folder: Path, name: str, options: dict, policy: Policy, part: Part):
        self.source, self.folder, self.name, self.options = source, folder, name, options
        self.policy, self.part = policy, part
        self.samples_per_shard = options["samples_per_shard"]
        self.seed = options["shuffle_seed"]
        folder.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(folder / f"{name}.partial", options)
        self.counts: Counter = Counter()
        self.cursor = [0, 0]  # unit and number of the next sample to read
        last = self.journal.last("cursor") or {}
        self.cursor = last.get("cursor", self.cursor)
        self.counts.update(last.get("counts", {}))
        self.rejects = RejectsFile(self.journal.folder / "rejects.jsonl", last.get("rejects"))
        self.shards = [Shard(**line["shard"]) for line in self.journal.lines if "shard" in line]
        self.shard: ShardWriter | None = None
        self.buckets: Buckets | None = None

    def close(self) -> None:
        """Lets go of all files; what was not committed is left for the next run to throw away."""
        if self.shard:
            self.shard.abandon()
        if self.buckets:
            self.buckets.close()
        self.rejects.close()
        self.journal.close()

    def run(self, workers: int, captions: str | None, quiet: bool) -> Manifest:
        """Everything that is still to do."""
        if not self.journal.last("all_read"):
            table = CaptionTable(captions, self.journal.folder / "captions.sqlite") if captions else None
            with _Bar(self.counts, self.rejects, quiet) as bar:
                results = prepare_all(self._samples(table), self.policy, workers)
                if self.seed is None:
                    self._write(self._accepted(results, bar))
                else:
                    self._scatter(self._accepted(results, bar))
            if table:
                self._check_captions(table)
            self.rejects.sync()
            self.journal.add({"all_read": True, **self._state()})
        if self.seed is not None:
            self._gather(quiet)
        return self._finish()

    def _samples(self, table: CaptionTable | None) -> Iterator[Sample]:
        unit, number = self.cursor
        units = [one for one in self.part.units(self.source) if one >= unit]
        for sample in self.source.samples(units, number if units and units[0] == unit else 0):
            if self.part.takes(self.source, sample):
                if table:  # asked for by name, so it comes before what the source itself says
                    sample.caption = table.get(sample.key) or sample.caption
                yield sample

    def _accepted(self, results: Iterable[PreparedSample | Rejected], bar: _Bar) -> Iterator[PreparedSample]:
        """The usable ones; the others go to the rejects."""
        for result in results:
            self.cursor = [result.unit, result.number + 1]
            if isinstance(result, Rejected):
                if result.fatal:
                    raise UserError(f"{result.where}: {result.message}; the flags --missing-caption and --missing-text")
                self.rejects.add(result.key, result.where, result.reason, result.message)
            else:
                self.counts["samples"] += 1
                self.counts["untouched"] += result.untouched
                yield result
            bar.show(result.progress)

    def _state(self) -> dict:
        return {"cursor": self.cursor, "counts": dict(self.counts), "rejects": self.rejects.state()}

    def _write(self, samples: Iterable[PreparedSample], place=dict) -> None:
        """Shards from a stream. place(): what else to remember at a commit."""
        for sample in samples:
            if self.shard is None:
                self.shard = ShardWriter(self.folder, f"{self.name}-{len(self.shards):05d}", self.journal.folder)
            self.shard.add(sample)
            if self.shard.samples == self.samples_per_shard:
                self._commit(place)
        if self.shard is not None:
            self._commit(place)

    def _commit(self, place) -> None:
        self.rejects.sync()
        shard = self.shard.commit()
        self.shard = None
        self.shards.append(shard)
        self.journal.add({"shard": asdict(shard), **self._state(), **place()})

    def _scatter(self, samples: Iterable[PreparedSample]) -> None:
        """First half of a shuffle: every sample into a bucket drawn by the seed."""
        last = self.journal.last("buckets") or {}
        self.buckets = Buckets(self.journal.folder, self.seed, last.get("buckets"))
        for sample in samples:
            self.buckets.add(self.counts["samples"], sample)
            if self.counts["samples"] % self.samples_per_shard == 0:
                self.rejects.sync()
                self.journal.add({"buckets": self.buckets.sync(), **self._state()})
        self.journal.add({"buckets": self.buckets.sync(), **self._state()})

    def _gather(self, quiet: bool) -> None:
        """Second half: the buckets one after the other, each in an order drawn by the seed."""
        if self.buckets:
            self.buckets.close()
        self.buckets = Buckets(self.journal.folder, self.seed, self.journal.last("buckets")["buckets"])
        at = (self.journal.last("place") or {"place": [0, 0]})["place"]
        written = sum(shard.samples for shard in self.shards)
        with tqdm(total=self.counts["samples"], initial=written, desc="shuffle", unit=" images", disable=quiet) as bar:
            where = list(at)

            def stream() -> Iterator[PreparedSample]:
                for bucket, number, sample in self.buckets.read(*at):
                    where[:] = [bucket, number + 1]
                    yield sample
                    bar.update()

            def place() -> dict:
                self.buckets.drop_before(where[0])
                return {"place": list(where)}

            self._write(stream(), place)

    def _check_captions(self, table: CaptionTable) -> None:
        if table.found == 0 and self.counts["samples"] == 0:
            raise UserError(
                f"none of the captions' keys is a key of the input: the captions have {table.example()!r} and the like"
            )

    def _finish(self) -> Manifest:
        """Rejects and manifest get their names; the work folder goes."""
        if not self.shards:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.rejects.counts.items()))
            text = f"no usable sample in the input ({reasons or 'it is empty'})"
            example = self.rejects.first()
            raise UserError(f"{text}; the first: {example}" if example else text)
        final = self.folder / f"{self.name}-rejects.jsonl"
        self.rejects.close()
        shutil.copyfile(self.rejects.path, final)
        manifest = Manifest(
            name=self.name,
            folder=self.folder,
            samples=self.counts["samples"],
            shards=tuple(self.shards),
            rejects=dict(self.rejects.counts),
            image=asdict(self.policy.image),
            facts={"untouched": self.counts["untouched"], "part": self.options["part"], "options": self.options},
        )
        manifest.save()
        sync_folder(self.folder)
        self.journal.remove()
        return load_manifest(self.folder / f"{self.name}.json")


class _Bar:
    """Images a second, time left and rejects so far. The share of the input that is read is what can be known."""

    def __init__(self, counts: Counter, rejects: RejectsFile, quiet: bool):
        self.counts, self.rejects = counts, rejects
        self.before = counts["samples"] + rejects.count
        form = "{percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}"
        self.bar = tqdm(total=1.0, bar_format=form, disable=quiet, mininterval=0.5)
        self.first: float | None = None

    def show(self, progress: float | None) -> None:
        """One more sample is done."""
        done = self.counts["samples"] + self.rejects.count - self.before
        if self.bar.disable or done % 32:
            return
        if progress is not None:
            if self.first is None:  # a resumed build starts further in: the time left is for the rest
                self.first = self.bar.initial = progress
            self.bar.n = progress
        rate = done / max(1e-3, self.bar.format_dict["elapsed"])
        accepted = self.counts["samples"]
        self.bar.set_postfix_str(f" {accepted:,} images, {rate:.0f}/s, {self.rejects.count:,} rejects", refresh=False)
        self.bar.update(0)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None and not self.bar.disable:
            self.bar.n = 1.0
        self.bar.close()
