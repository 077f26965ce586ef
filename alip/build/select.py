"""Cleaning: shards and their gate scores → new shards of the samples to keep, with distrusted raw texts replaced.

A kept record is copied byte for byte, save its number. Where a text is replaced, the raw text's tokens become the
caption's, and the sidecar keeps the old text in its metadata under `replaced_text`. Of a dataset with several captions
per image the table has a row for each caption, and it is captions that are kept: a sample of which none is left is not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from alip.build.expression import Expression, column_types, evaluate_all, parse_condition
from alip.build.journal import explain_disk_errors
from alip.build.output import DatasetOutput
from alip.build.remote_output import disk_of, open_output
from alip.build.remote_shards import shard_at_hand
from alip.build.rewrites import keep_old
from alip.build.shard_writer import ShardWriter
from alip.build.writer import SAMPLES_PER_SHARD
from alip.data.recordio import IndexedReader, RecordError, pack, unpack_label
from alip.data.score_table import CAPTION_INDEX, ScoreTable
from alip.data.shards import CAPTIONS_COLUMN, SIDECAR_COLUMNS, Manifest, Shard, load_manifest, read_texts, row_metadata
from alip.errors import UserError
from alip.files import real_path, sha256_of_file
from alip.remote.urls import UrlPath, is_url, local_path, name_of, redact
from alip.text_table import counted
from alip.tokens import pack_label, unpack_captions


@dataclass(frozen=True)
class SelectSummary:
    """What a selection did. samples: of the source; replaced: raw texts; captions: of the source and kept, None where
    images have one each; already_there: nothing was to do."""

    manifest: Manifest
    samples: int
    replaced: int
    captions: list[int] | None = None
    already_there: bool = False

    def text(self) -> str:
        """A few lines for the person who started it."""
        manifest = self.manifest
        there = "already complete: " if self.already_there else ""
        line = f"{there}{manifest.folder / manifest.name}: {manifest.samples:,} of {self.samples:,} samples kept"
        line += f" ({100 * manifest.samples / self.samples:.1f} %) in {counted(len(manifest.shards), 'shard')}"
        if self.captions:
            line += f", {self.captions[1]:,} of {self.captions[0]:,} captions"
        if manifest.metadata["options"].get("replace_text_where") is not None:
            line += f"; {counted(self.replaced, 'raw text')} replaced by the caption"
        return line


def select(
    source: str | Path,
    scores: str | Path,
    output: str | Path,
    *,
    keep: str | None = None,
    replace_text_where: str | None = None,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    overwrite: bool = False,
    scratch: str | None = None,
    quiet: bool = False,
) -> SelectSummary:
    """Builds `DIR/NAME` from a dataset and its scores, or resumes a build that was interrupted.

    source: DIR/NAME of shards, also at a URL, as output; scores: the table of `python -m alip.eval.gates` for them.
    keep, replace_text_where: expressions over the table's columns (alip.build.expression); None: keep all, replace
    none. scratch: see open_output; shards of a source at a URL are copied there, one at a time.
    UserError: bad expressions, a table of other data, nothing kept, other options than those of the build to resume.
    """
    if keep is None and replace_text_where is None:
        raise UserError("--from copies nothing new without --keep EXPR or --replace-text-where EXPR")
    if is_url(local_path(str(scores))):
        raise UserError(f"{redact(str(scores))}: a score table is read from a disk: copy it here first")
    manifest, output = load_manifest(local_path(str(source)), at_url=True), local_path(str(output))
    _check_another(manifest, output)
    shards_here = Path(scratch) if scratch and isinstance(manifest.folder, UrlPath) else None
    if shards_here is not None:
        shards_here.mkdir(parents=True, exist_ok=True)
        scratch = scratch if is_url(output) else None
    with ScoreTable(scores) as table:
        types = column_types(table.columns)
        conditions = [
            parse_condition(text, types, flag) if text is not None else None
            for text, flag in ((keep, "--keep"), (replace_text_where, "--replace-text-where"))
        ]
        table.check_data(manifest)
        options = {
            "from": manifest.name,
            "from_fingerprint": manifest.fingerprint,
            "scores_sha256": sha256_of_file(scores),
            "keep": keep,
            "replace_text_where": replace_text_where,
            "samples_per_shard": samples_per_shard,
        }
        disk = explain_disk_errors(disk_of(output, scratch))
        with disk, closing(open_output(output, name_of(output), options, overwrite, scratch)) as target:
            if target.finished:
                return _summary(target.finished, already_there=True)
            choice = _decide(conditions, table)
            with closing(_Selection(manifest, table, choice, target, options, shards_here)) as job:
                return _summary(job.run(quiet))


def _check_another(manifest: Manifest, output: str) -> None:
    """UserError if the output is the dataset to read."""
    if isinstance(manifest.folder, UrlPath) or is_url(output):
        is_same = is_url(output) and (manifest.folder / manifest.name) == UrlPath(output)
    else:
        is_same = real_path(output) == real_path(manifest.folder / manifest.name)
    if is_same:
        raise UserError(f"--output {redact(output)} is the dataset to read: give another name")


def _summary(manifest: Manifest, already_there: bool = False) -> SelectSummary:
    selection = manifest.metadata["selection"]
    return SelectSummary(
        manifest, selection["samples"], selection["replaced"], selection.get("captions"), already_there
    )


@dataclass(frozen=True)
class _Choice:
    """What to write. kept: the samples, in order. keep, swap: for every row of the table, (rows,) bool, whether to keep
    its caption, and whether this replaces the raw text. starts: (samples + 1,) the first row of each sample."""

    kept: np.ndarray
    keep: np.ndarray
    swap: np.ndarray
    starts: np.ndarray

    @property
    def replaced(self) -> int:
        """How many raw texts are replaced."""
        return int(np.logical_or.reduceat(self.keep & self.swap, self.starts[:-1]).sum())

    def captions(self, index: int) -> tuple[np.ndarray, int | None]:
        """Of a sample: which captions are kept, and which of these, counted as kept, becomes the raw text."""
        rows = slice(self.starts[index], self.starts[index + 1])
        kept = np.flatnonzero(self.keep[rows])
        swapped = np.flatnonzero(self.swap[rows][kept])
        return kept, int(swapped[0]) if len(swapped) else None


def _decide(conditions: list[Expression | None], table: ScoreTable) -> _Choice:
    keep, swap = np.ones(table.rows, dtype=bool), np.zeros(table.rows, dtype=bool)
    at = 0
    for kept, swapped in evaluate_all(conditions, table.batches):
        for target, values in ((keep, kept), (swap, swapped)):
            if values is not None:
                target[at : at + len(values)] = values
        at += len(kept if kept is not None else swapped)
    several = CAPTION_INDEX in table.columns
    if not keep.any():
        what = f"{table.rows} {'captions' if several else 'samples'}"
        raise UserError(f"--keep {conditions[0].text!r} is true for none of the {what}: nothing to write")
    starts = np.arange(table.rows + 1)
    if several:
        starts = np.append(np.flatnonzero(table.column(CAPTION_INDEX) == 0), table.rows)
    return _Choice(np.flatnonzero(np.logical_or.reduceat(keep, starts[:-1])), keep, swap, starts)


class _Selection:
    """One selection: its journal, and the shard in the making."""

    def __init__(
        self,
        source: Manifest,
        table: ScoreTable,
        choice: _Choice,
        output: DatasetOutput,
        options: dict,
        scratch: Path | None = None,
    ):
        self.scratch = scratch
        self.source, self.table, self.choice, self.kept = source, table, choice, choice.kept
        self.several = source.captions_per_image > 1
        self.output, self.options = output, options
        self.folder, self.name, self.journal = output.folder, output.name, output.journal
        self.shards = [Shard(**line["shard"]) for line in self.journal.lines if "shard" in line]
        self.shard: ShardWriter | None = None
        self._reader: IndexedReader | None = None
        self._opened = ExitStack()  # the source's shard that _reader reads
        self._open_number = -1  # of the source's shard that _reader reads

    def close(self) -> None:
        """Closes all files; what was not committed is left for the next run to overwrite."""
        self._opened.close()
        if self.shard:
            self.shard.abandon()

    def run(self, quiet: bool) -> Manifest:
        """Everything that is still to do."""
        done = sum(shard.samples for shard in self.shards)
        if done < len(self.kept):
            rows = self._rows(int(self.kept[done]))
            bar = tqdm(
                total=len(self.kept),
                initial=done,
                desc="select",
                unit=" samples",
                disable=quiet or None,
                delay=0.1,
            )
            with bar:
                for index in self.kept[done:].tolist():
                    self._copy(index, next(row for number, row in rows if number == index))
                    bar.update()
        if self.shard:
            self._commit()
        return self._finish()

    def _rows(self, start: int) -> Iterator[tuple[int, tuple[str, ...]]]:
        """(index, strings of the sidecar) from a sample on. Released rec files have no sidecar: the table's texts."""
        if all(shard.sidecar for shard in self.source.shards):
            columns = (*SIDECAR_COLUMNS, CAPTIONS_COLUMN) if self.several else SIDECAR_COLUMNS
            for index, row in enumerate(read_texts(self.source, start), start):
                if self.several and not row.get(CAPTIONS_COLUMN):
                    raise UserError(
                        f"{self.source.folder / self.source.name}: the sidecar of sample {index} has no list "
                        f"{CAPTIONS_COLUMN!r}: copy or build it again"
                    )
                yield index, tuple(row[name] for name in columns)
            return
        for batch in self.table.batches(["index", "key", "text", "caption"]):  # (manifests with several have sidecars)
            for index, *strings in zip(*(batch[name].tolist() for name in ("index", "key", "text", "caption"))):
                if index >= start:
                    yield index, (*strings, "{}", "")

    def _copy(self, index: int, row: tuple[str, ...]) -> None:
        if self.shard is None:
            name = f"{self.name}-{len(self.shards):05d}"
            self.shard = ShardWriter(self.folder, name, self.journal.folder, self.several)
        payload = self._payload(index)
        label, image_start = unpack_label(payload)
        kept, swapped = self.choice.captions(index)
        rows = int(self.choice.starts[index + 1] - self.choice.starts[index])
        if self.several and len(row[-1]) != rows:
            raise UserError(
                f"{self.table.path}: sample {index} has {len(row[-1])} captions, the table has {rows} rows of it: "
                "write the table again"
            )
        if len(kept) < rows or swapped is not None:
            text, captions = unpack_captions(label, self.source.context_length)
            first, *more = captions[kept]
            label = pack_label(text if swapped is None else captions[kept][swapped], first, more)
            payload = pack(label, payload[image_start:])
            row = _changed_row(row, kept, swapped, self.source.name)
        self.shard.add_record(payload, label, row)
        if self.shard.samples == self.options["samples_per_shard"]:
            self._commit()

    def _payload(self, index: int) -> bytes:
        number, record = self.source.locate(index)
        if number != self._open_number:
            self._opened.close()
            here = self._opened.enter_context(shard_at_hand(self.source, number, self.scratch))
            self._reader, self._open_number = self._opened.enter_context(here.open_shard(number)), number
        try:
            payload = self._reader[record]
            label, _ = unpack_label(payload)
            if not self.several and len(label) != 2 * self.source.context_length:
                raise RecordError(f"a label that is not of {2 * self.source.context_length} numbers")
            unpack_captions(label, self.source.context_length)  # refuses what is no token, NaN too
            return payload
        except ValueError as error:  # RecordError is one
            raise UserError(
                f"record {record} of {self.source.path(self.source.shards[number].rec)}: {error} "
                f"(`python data2rec.py --verify {self.source.folder / self.source.name}` looks closer)"
            ) from None

    def _commit(self) -> None:
        shard = self.shard.commit()
        self.shard = None
        self.output.store(shard)
        self.shards.append(shard)
        self.journal.add({"shard": asdict(shard)})
        self.output.committed(portable=True)

    def _finish(self) -> Manifest:
        """The manifest of what was kept."""
        selection = {
            "name": self.source.name,
            "fingerprint": self.source.fingerprint,
            "samples": self.source.samples,
            "replaced": self.choice.replaced,
            "checkpoints": self.table.metadata.get("checkpoints", []),
        }
        if self.several:
            selection["captions"] = [len(self.choice.keep), int(self.choice.keep.sum())]
        manifest = replace(
            self.source,
            name=self.name,
            folder=self.folder,
            samples=len(self.kept),
            shards=tuple(self.shards),
            rejects={},
            metadata={"untouched": len(self.kept), "options": self.options, "selection": selection},
        )
        return self.output.publish(manifest)


def _changed_row(row: tuple, kept: np.ndarray, swapped: int | None, name: str) -> tuple:
    """A sidecar's row (of dataset `name`) with these of its captions only and, if asked for, one as the raw text."""
    key, text, caption, metadata, source, *several = row
    captions = [several[0][number] for number in kept] if several else [caption]
    if swapped is not None:
        content = row_metadata({"key": key, "metadata": metadata}, name)
        keep_old(content, "replaced_text", text)
        metadata = json.dumps(content, ensure_ascii=False)
        text = captions[swapped]
    return (key, text, captions[0], metadata, source, *([captions] if several else []))
