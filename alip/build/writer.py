"""Sources → shards: streaming, in several processes, restartable anywhere with byte-identical results."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from alip.build.caption_table import CaptionTable
from alip.build.input_shard import InputShard
from alip.build.journal import RejectsFile, explain_disk_errors
from alip.build.output import DatasetOutput
from alip.build.prepare import Policy, PreparedSample, Rejected, prepare_all
from alip.build.progress import ProgressBar
from alip.build.shard_writer import ShardWriter
from alip.build.shuffle import ExternalShuffle
from alip.build.sources import Sample, Source
from alip.data.shards import Manifest, Shard
from alip.errors import UserError
from alip.files import sync

SAMPLES_PER_SHARD = 20_000


@dataclass(frozen=True)
class BuildSummary:
    """What a build did. broken: parts of the input that could not be read; already_there: nothing was to do."""

    manifest: Manifest
    already_there: bool = False

    @property
    def broken(self) -> int:
        """Parts of the input that could not be read, such as damage in a tar: samples of theirs are missing."""
        return self.manifest.rejects.get("broken-input", 0)

    def text(self) -> str:
        """A few lines for the person who started it."""
        manifest = self.manifest
        there = "already complete: " if self.already_there else ""
        size = sum(shard.bytes for shard in manifest.shards) / 1e6
        lines = [
            f"{there}{manifest.folder / manifest.name}: {manifest.samples:,} samples in {len(manifest.shards)} shards, "
            f"{size:,.1f} MB; {manifest.metadata['untouched']:,} JPEGs stored unchanged"
        ]
        if manifest.rejects:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(manifest.rejects.items()))
            lines.append(f"rejected: {reasons}; each is named in {manifest.folder / manifest.name}-rejects.jsonl")
        if self.broken:
            lines.append(f"{self.broken} parts of the input could not be read: see broken-input in the rejects")
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
    input_shard: InputShard | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> BuildSummary:
    """Builds `DIR/NAME-00000.rec …` and `DIR/NAME.json` from a source, or resumes a build that was interrupted.

    output: DIR/NAME. captions: a captions file to join by key. shuffle_seed: mix samples across shards (needs the
    disk space twice for a while); None: keep the source's order. input_shard: build only this shard of the input.
    overwrite: remove what is there under this name first.
    UserError: a full disk, other options than those of the build to resume, no usable sample at all.
    """
    input_shard = input_shard or InputShard()
    folder, name = Path(output).parent, input_shard.name(Path(output).name)
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
        "input_shard": [input_shard.index + 1, input_shard.count],
    }
    with explain_disk_errors(folder), closing(DatasetOutput(folder, name, options, overwrite)) as target:
        if target.finished:
            return BuildSummary(target.finished, already_there=True)
        with closing(_Build(source, target, options, policy, input_shard)) as job:
            return BuildSummary(job.run(workers, captions, quiet))


def _describe_captions(captions: str | None) -> list | None:
    if captions is None:
        return None
    if not Path(captions).is_file():
        raise UserError(f"no captions file {captions}")
    return [Path(captions).name, Path(captions).stat().st_size]


class _Build:
    """One build: its journal, and the state that is written there at each commit."""

    def __init__(self, source: Source, output: DatasetOutput, options: dict, policy: Policy, input_shard: InputShard):
        self.source, self.output, self.options = source, output, options
        self.policy, self.input_shard = policy, input_shard
        self.folder, self.name, self.journal = output.folder, output.name, output.journal
        self.samples_per_shard = options["samples_per_shard"]
        self.seed = options["shuffle_seed"]
        last = self.journal.last("cursor") or {}
        self.cursor = last.get("cursor", [0, 0])  # unit and number of the next sample to read
        self.counts = Counter(last.get("counts", {}))
        self.rejects = RejectsFile(self.journal.folder / "rejects.jsonl", last.get("rejects"))
        self.shards = [Shard(**line["shard"]) for line in self.journal.lines if "shard" in line]
        self.shard: ShardWriter | None = None
        self.shuffle: ExternalShuffle | None = None

    def close(self) -> None:
        """Closes all files; what was not committed is left for the next run to discard."""
        if self.shard:
            self.shard.abandon()
        if self.shuffle:
            self.shuffle.close()
        self.rejects.close()

    def run(self, workers: int, captions: str | None, quiet: bool) -> Manifest:
        """Everything that is still to do."""
        if not self.journal.last("all_read"):
            self._read_all(workers, captions, quiet)
        if self.seed is not None:
            self._gather(quiet)
        return self._finish()

    def _read_all(self, workers: int, captions: str | None, quiet: bool) -> None:
        """The input, from the cursor to its end: into shards or, for a shuffle, into the spill files."""
        table = CaptionTable(captions, self.journal.folder / "captions.sqlite") if captions else None
        with ProgressBar(self.counts, self.rejects, quiet) as bar:
            results = prepare_all(self._samples(table), self.policy, workers)
            accepted = self._accepted(results, bar)
            if self.seed is None:
                self._write(accepted, lambda: {})
            else:
                self._spill(accepted)
        if table and table.found == 0 and self.counts["samples"] == 0:
            raise UserError(
                f"none of the captions' keys is a key of the input: the captions have keys like {table.example()!r}"
            )
        self.rejects.sync()
        self.journal.add({"all_read": True, **self._state()})

    def _samples(self, table: CaptionTable | None) -> Iterator[Sample]:
        unit, number = self.cursor
        units = [one for one in self.input_shard.units(self.source) if one >= unit]
        for sample in self.source.samples(units, number if units and units[0] == unit else 0):
            if self.input_shard.takes(self.source, sample):
                if table:  # the user named this file, so it comes before the source's own caption
                    sample.caption = table.get(sample.key) or sample.caption
                yield sample

    def _accepted(self, results: Iterable[PreparedSample | Rejected], bar: ProgressBar) -> Iterator[PreparedSample]:
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

    def _write(self, samples: Iterable[PreparedSample], position: Callable[[], dict]) -> None:
        """Shards from a stream. position(): what else to remember at a commit."""
        for sample in samples:
            if self.shard is None:
                self.shard = ShardWriter(self.folder, f"{self.name}-{len(self.shards):05d}", self.journal.folder)
            self.shard.add(sample)
            if self.shard.samples == self.samples_per_shard:
                self._commit(position())
        if self.shard is not None:
            self._commit(position())

    def _commit(self, position: dict) -> None:
        self.rejects.sync()
        shard = self.shard.commit()
        self.shard = None
        self.shards.append(shard)
        self.journal.add({"shard": asdict(shard), **self._state(), **position})
        if "gathered" in position:
            self.shuffle.drop_before(position["gathered"][0])

    def _spill(self, samples: Iterable[PreparedSample]) -> None:
        """First pass of a shuffle: every sample into a spill file."""
        last = self.journal.last("spilled") or {}
        self.shuffle = ExternalShuffle(self.journal.folder, self.seed, last.get("spilled"))
        for sample in samples:
            self.shuffle.add(self.counts["samples"], sample)
            if self.counts["samples"] % self.samples_per_shard == 0:
                self._commit_spill()
        self._commit_spill()

    def _commit_spill(self) -> None:
        self.rejects.sync()
        self.journal.add({"spilled": self.shuffle.sync(), **self._state()})

    def _gather(self, quiet: bool) -> None:
        """Second pass of a shuffle: the spill files, in random order, into shards."""
        if self.shuffle:
            self.shuffle.close()
        self.shuffle = ExternalShuffle(self.journal.folder, self.seed, self.journal.last("spilled")["spilled"])
        last = self.journal.last("gathered") or {"gathered": [0, 0]}
        position = list(last["gathered"])
        self.shuffle.drop_before(position[0])  # a kill may have come before they were removed
        written = sum(shard.samples for shard in self.shards)
        with tqdm(total=self.counts["samples"], initial=written, desc="shuffle", unit=" images", disable=quiet) as bar:

            def stream() -> Iterator[PreparedSample]:
                for file, number, sample in self.shuffle.read(tuple(last["gathered"])):
                    position[:] = [file, number + 1]
                    yield sample
                    bar.update()

            self._write(stream(), lambda: {"gathered": list(position)})

    def _finish(self) -> Manifest:
        """Rejects and manifest get their names; the work folder is removed."""
        if not self.shards:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.rejects.counts.items()))
            text = f"no usable sample in the input ({reasons or 'it is empty'})"
            example = self.rejects.first()
            raise UserError(f"{text}; the first: {example}" if example else text)
        final = self.folder / f"{self.name}-rejects.jsonl"
        self.rejects.close()
        shutil.copyfile(self.rejects.path, final)
        sync(final)
        manifest = Manifest(
            name=self.name,
            folder=self.folder,
            samples=self.counts["samples"],
            shards=tuple(self.shards),
            rejects=dict(self.rejects.counts),
            image=asdict(self.policy.image),
            metadata={
                "untouched": self.counts["untouched"],
                "input_shard": self.options["input_shard"],
                "options": self.options,
            },
        )
        return self.output.publish(manifest)
