"""Sources → shards: streaming, in several processes, restartable anywhere with byte-identical results."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from alip.build.input_shard import InputShard
from alip.build.joined_texts import JoinedTexts, TextFiles, provenance
from alip.build.journal import RejectsFile, explain_disk_errors
from alip.build.output import DatasetOutput
from alip.build.prepare import Policy, PreparedSample, Rejected, prepare_all
from alip.build.progress import ProgressBar
from alip.build.remote_output import disk_of, open_output
from alip.build.shard_writer import ShardWriter
from alip.build.shared_keys import count_shared_keys, shared_keys_text
from alip.build.shuffle import ExternalShuffle
from alip.build.sources import Sample, Source
from alip.build.unit_job import UnitJob
from alip.build.units import build_units
from alip.cluster.pieces import Engine
from alip.data.shards import Manifest, Shard
from alip.errors import UserError
from alip.files import sync
from alip.remote.urls import is_url, local_path, name_of
from alip.text_table import counted

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
            f"{there}{manifest.folder / manifest.name}: {manifest.samples:,} samples in "
            f"{counted(len(manifest.shards), 'shard')}, {size:,.1f} MB; "
            f"{manifest.metadata['untouched']:,} JPEGs stored unchanged"
        ]
        dropped = manifest.metadata.get("caption_filter", {}).get("keys_without_caption", 0)
        if dropped:
            lines.append(f"--keep left {dropped:,} keys of the captions file without a caption")
        if one_text := manifest.metadata.get("one_text"):
            lines.append(f"{one_text:,} samples had one text only, which is stored as both raw text and caption")
        lines += shared_keys_text(manifest.metadata)
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
    texts: TextFiles | None = None,
    shuffle_seed: int | None = None,
    input_shard: InputShard | None = None,
    overwrite: bool = False,
    scratch: str | None = None,
    engine: Engine | None = None,
    quiet: bool = False,
) -> BuildSummary:
    """Builds `DIR/NAME-00000.rec …` and `DIR/NAME.json` from a source, or resumes a build that was interrupted.

    output: DIR/NAME, also at a URL. texts: files whose texts are joined by key. shuffle_seed: mix samples across shards
    (needs the disk space twice for a while); None: keep the source's order. input_shard: build only this shard of the
    input. overwrite: remove what is there under this name first. scratch: see open_output. engine: what distributes the
    work over machines (units.py); None: `workers` processes of this one. The dataset is the same.
    UserError: a full disk, other options than those of the build to resume, no usable sample at all.
    """
    input_shard, texts = input_shard or InputShard(), texts or TextFiles()
    name = input_shard.name(name_of(str(output)))
    if engine is not None and is_url(local_path(str(output))) and scratch is None:
        raise UserError("--engine ray with an --output at a URL needs --scratch DIR, a folder that all machines share")
    options = {
        "input": source.describe(),
        "source": source.source_type,
        "fields": asdict(source.fields),
        "image_root": getattr(source, "image_root", None),
        "splits": list(getattr(source, "splits", [])),
        **policy.options(),
        "samples_per_shard": samples_per_shard,
        **texts.options(),
        "shuffle_seed": shuffle_seed,
        "input_shard": [input_shard.index + 1, input_shard.count],
    }
    with ExitStack() as stack:
        stack.enter_context(explain_disk_errors(disk_of(output, scratch)))
        target = stack.enter_context(closing(open_output(output, name, options, overwrite, scratch)))
        _warn_of_changes(target.last_written, chain(source.local_files(), texts.local_files()))
        if target.finished:
            return BuildSummary(target.finished, already_there=True)
        job = stack.enter_context(closing(_Build(source, target, options, policy, input_shard, texts)))
        return BuildSummary(job.run(workers, quiet) if engine is None else job.run_on(engine, quiet))


def _warn_of_changes(last_written: float | None, files: Iterable[str]) -> None:
    """Inputs are known by name and size, so that a copy of them serves as well. A file of the same size that is newer
    than the build may have other content: most tars keep their size when a text in them changes."""
    for file in files if last_written is not None else ():
        with suppress(OSError):  # gone meanwhile: reported by who reads it
            if os.stat(file).st_mtime > last_written:
                warning = f"warning: {file} is newer than what was built from it: --overwrite builds it again"
                print(warning, file=sys.stderr)
                return


def _recorded(options: dict) -> dict:
    """The options for the manifest. Those that came later are left out where they are not used, as a build before them
    has no other manifest."""
    later = ("captions_per_image", "caption_sentences", "keep", "scores_sha256", "rewrites")
    return {name: value for name, value in options.items() if value is not None or name not in later}


class _Build:
    """One build: its journal, and the state that is written there at each commit."""

    def __init__(
        self,
        source: Source,
        output: DatasetOutput,
        options: dict,
        policy: Policy,
        input_shard: InputShard,
        texts: TextFiles,
    ):
        self.source, self.output, self.options = source, output, options
        self.policy, self.input_shard, self.texts = policy, input_shard, texts
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
        self.joined: JoinedTexts | None = None

    def close(self) -> None:
        """Closes all files; what was not committed is left for the next run to discard."""
        if self.shard:
            self.shard.abandon()
        if self.shuffle:
            self.shuffle.close()
        self.rejects.close()

    def run(self, workers: int, quiet: bool) -> Manifest:
        """Everything that is still to do."""
        if self.journal.last("engine"):
            raise UserError(
                f"{self.journal.folder} holds a build of --engine ray: resume it with that, or give --overwrite"
            )
        if not self.journal.last("all_read"):
            self._read_all(workers, quiet)
        if self.seed is not None:
            self._gather(quiet)
        return self._finish()

    def run_on(self, engine: Engine, quiet: bool) -> Manifest:
        """Everything that is still to do, by an engine."""
        if self.shards or self.journal.last("cursor"):
            raise UserError(
                f"{self.journal.folder} holds a build of --engine local: resume it with that, or give --overwrite"
            )
        several = self.policy.captions.per_image > 1
        texts = JoinedTexts(self.texts, self.journal.folder, several)  # its indices are made once, here
        if not self.journal.last("engine"):
            self.journal.add({"engine": "units"})
        parts = (self.source, self.policy, self.texts, self.input_shard, self.folder, self.name, self.journal.folder)
        job = UnitJob(*parts, os.getcwd(), self.output.target)
        done = build_units(job, engine, self.samples_per_shard, self.rejects, quiet, self.seed)
        self.shards, self.counts = done.shards, done.counts
        texts.add_found(done.found)
        texts.check_found(self.counts["samples"], True, self.input_shard.count)
        self.rejects.sync()
        self.journal.add({"captions_dropped": texts.dropped()})
        return self._finish()

    def _read_all(self, workers: int, quiet: bool) -> None:
        """The input, from the cursor to its end: into shards or, for a shuffle, into the spill files."""
        self.joined = texts = JoinedTexts(self.texts, self.journal.folder, self.policy.captions.per_image > 1)
        before = self.journal.last("found") or {}
        whole = self.cursor == [0, 0] or "found" in before  # not in the journals of earlier versions
        texts.add_found(before.get("found", {}))
        with ProgressBar(self.counts, self.rejects, quiet) as bar:
            results = prepare_all(self._samples(texts), self.policy, workers)
            accepted = self._accepted(results, bar)
            if self.seed is None:
                self._write(accepted, lambda: {})
            else:
                self._spill(accepted)
        texts.check_found(self.counts["samples"], whole, self.input_shard.count)
        self.rejects.sync()
        self.journal.add({"all_read": True, "captions_dropped": texts.dropped(), **self._state()})

    def _samples(self, texts: JoinedTexts) -> Iterator[Sample]:
        unit, number = self.cursor
        units = [one for one in self.input_shard.units(self.source) if one >= unit]
        for sample in self.source.samples(units, number if units and units[0] == unit else 0):
            if self.input_shard.takes(self.source, sample):
                texts.apply(sample)
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
                self.counts["one_text"] += result.one_text
                yield result
            bar.show(result.progress)

    def _state(self) -> dict:
        state = {"cursor": self.cursor, "counts": dict(self.counts), "rejects": self.rejects.state()}
        return {**state, "found": self.joined.found()} if self.joined else state

    def _write(self, samples: Iterable[PreparedSample], position: Callable[[], dict]) -> None:
        """Shards from a stream. position(): what else to remember at a commit."""
        for sample in samples:
            if self.shard is None:
                name, several = f"{self.name}-{len(self.shards):05d}", self.policy.captions.per_image > 1
                self.shard = ShardWriter(self.folder, name, self.journal.folder, several)
            self.shard.add(sample)
            if self.shard.samples == self.samples_per_shard:
                self._commit(position())
        if self.shard is not None:
            self._commit(position())

    def _commit(self, position: dict) -> None:
        self.rejects.sync()
        shard = self.shard.commit()
        self.shard = None
        self.output.store(shard)
        self.shards.append(shard)
        self.journal.add({"shard": asdict(shard), **self._state(), **position})
        self.output.committed(portable=self.seed is None)  # a shuffle's spill files are on this disk only
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

    def _noted(self) -> dict[str, int]:
        """What the user should hear of the texts, for the manifest; nothing where nothing is odd."""
        shared = count_shared_keys(self.options, self.output.target or self.folder, self.shards)
        counts = {"one_text": self.counts["one_text"], "shared_keys": shared}
        return {name: count for name, count in counts.items() if count}

    def _finish(self) -> Manifest:
        """Rejects and manifest get their names; the work folder is removed."""
        if not self.shards:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.rejects.counts.items()))
            text = f"no usable sample in the input ({reasons or 'it is empty'})"
            example = self.rejects.first()
            text = f"{text}; the first: {example}" if example else text
            if {"missing-caption", "missing-text", "missing-texts"} & self.rejects.counts.keys():
                text += "; see --text-field, --caption-field, --captions, --missing-caption, --missing-text"
            self.output.discard()  # not "resumed" when the input or the command is corrected
            raise UserError(text)
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
            captions_per_image=self.policy.captions.per_image,
            metadata={
                "untouched": self.counts["untouched"],
                **self._noted(),
                "input_shard": self.options["input_shard"],
                "options": _recorded(self.options),
                **provenance(self.texts, (self.journal.last("captions_dropped") or {}).get("captions_dropped", 0)),
            },
        )
        return self.output.publish(manifest)
