"""Every sample of a dataset scored: streaming, on any number of ranks, into one Parquet table with flat memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from alip.data.loader import create_loader
from alip.data.score_table import CAPTION_INDEX, LABELS, ROWS, SCORES, data_metadata, table_schema
from alip.data.shards import Manifest, read_texts, row_captions
from alip.distributed import World, barrier, share
from alip.errors import UserError
from alip.eval.gates.labels import mismatch_label
from alip.eval.gates.run_checkpoints import Scorer
from alip.files import atomic_path, parquet_path, refusals_named


def score_dataset(
    scorers: Sequence[Scorer],
    manifest: Manifest,
    output: Path,
    world: World,
    *,
    columns: dict[str, str] | None = None,
    batch_size: int = 256,
    workers: int = 2,
    quiet: bool = False,
) -> None:
    """Writes the table of `manifest`'s scores to `output`: with several scorers, the mean of each score over them.
    Where images may have several captions, each of them has a row.

    columns: {label of alip.data.score_table.LABELS: field of the sources' JSON} where labels are known. Images are
    taken without augmentation. All ranks call it; each handles a run of whole batches, always the same batches, so the
    table is the same on any number of ranks. Rank 0 returns when the table is complete.
    """
    columns = chosen_labels(columns)
    schema = schema_of([scorer.source for scorer in scorers], manifest, columns, batch_size)
    output.parent.mkdir(parents=True, exist_ok=True)
    part = _part_path(output, world.rank)
    if world.is_main:
        _remove_other_parts(output, world.world_size)
    try:
        scoring = Scoring(scorers, manifest, world, columns, batch_size, workers)
        mine = share(scoring.batches, world)
        hidden = quiet or not world.is_main
        look = {"desc": "scoring", "unit": "batch", "dynamic_ncols": True, "delay": 0.1}
        with tqdm(total=len(mine), disable=hidden or None, **look) as bar:
            scoring.write(part, schema, mine, bar.update)
        barrier(world)
        if world.is_main:
            join([_part_path(output, rank) for rank in range(world.world_size)], output, schema)
        barrier(world)  # no rank removes its part before it is read
    finally:
        part.unlink(missing_ok=True)


def chosen_labels(columns: dict[str, str] | None) -> dict[str, str]:
    """{label: field of the sources' JSON}, those that are given, in the table's order."""
    return {name: columns[name] for name in LABELS if columns and columns.get(name)}


def schema_of(sources: list[dict[str, Any]], manifest: Manifest, columns: dict[str, str], batch_size: int) -> pa.Schema:
    """The table's schema. sources: of the scorers."""
    metadata = {"data": data_metadata(manifest), "checkpoints": sources, "batch_size": batch_size}
    return table_schema(list(columns), metadata, manifest.captions_per_image > 1)


def _part_path(output: Path, rank: int) -> Path:
    return output.with_name(f".{output.name}.rank{rank}.tmp")


def _remove_other_parts(output: Path, world_size: int) -> None:
    """Removes what a killed run with more ranks left; these ranks write over their own."""
    start, end = _part_path(output, 0).name.split("0.tmp")[0], ".tmp"
    for path in output.parent.iterdir():
        number = path.name.removeprefix(start).removesuffix(end)
        if path.name == f"{start}{number}{end}" and number.isdecimal() and int(number) >= world_size:
            path.unlink(missing_ok=True)


class Scoring:
    """Scores runs of whole batches of a dataset. batches: how many there are; the others as `score_dataset`."""

    def __init__(
        self,
        scorers: Sequence[Scorer],
        manifest: Manifest,
        world: World,
        columns: dict[str, str],
        batch_size: int,
        workers: int,
    ):
        self.scorers, self.manifest, self.columns, self.batch_size = scorers, manifest, columns, batch_size
        self.batches = -(-manifest.samples // batch_size)
        self.loader = create_loader(
            manifest,
            batch_size,
            **scorers[0].model.input_format,
            # Alone, as far as the loader knows: it would split a batch over the ranks, here each takes whole ones.
            world=World(local_rank=world.local_rank, device=world.device),
            threads=workers,
            augmentation=None,
            shuffle=False,
            drop_last=False,
            caption_sampling="first",
        )

    def write(self, path: Path, schema: pa.Schema, batches: range, on_batch: Callable[[], Any]) -> None:
        """The rows of some batches, as a table. on_batch(): called after each."""
        found = self._rows(batches, on_batch)
        _write(path, schema, (pa.RecordBatch.from_pydict(columns_of, schema=schema) for columns_of in found))

    def _rows(self, batches: range, on_batch: Callable[[], Any]) -> Iterator[dict[str, Any]]:
        """One batch at a time, as {column: values}."""
        manifest, several = self.manifest, self.manifest.captions_per_image > 1
        start = min(batches.start * self.batch_size, manifest.samples)
        texts = _texts(manifest, start)
        for batch in islice(self.loader.epoch(0, start), len(batches)):
            index, captions = batch.index.numpy(), None
            rows = list(islice(texts, len(index))) if texts else _decoded(batch)
            if several:
                captions = self.loader.records.captions(index)
                rows = _for_each_caption(manifest, rows, captions[0], index)
                captions = tuple(map(torch.from_numpy, captions))
            scores = torch.stack([scorer.score(batch, captions) for scorer in self.scorers]).mean(0).float().numpy()
            of_rows = index if captions is None else index.repeat(captions[0].numpy())
            yield _as_columns(manifest, of_rows, rows, self.columns) | dict(zip(SCORES, scores, strict=True))
            on_batch()


def _texts(manifest: Manifest, start: int) -> Iterator[dict] | None:
    """The sidecars' rows; None for released rec files, which carry no strings."""
    if any(shard.sidecar is None for shard in manifest.shards):
        return None
    return read_texts(manifest, start)


def _for_each_caption(manifest: Manifest, rows: list[dict], counts: np.ndarray, index: np.ndarray) -> list[dict]:
    """The sidecar's rows once for each of their captions. counts: how many the samples' records have."""
    found = []
    for row, count, sample in zip(rows, counts.tolist(), index.tolist(), strict=True):
        captions = row_captions(row)
        if len(captions) != count:
            raise UserError(
                f"{manifest.folder / manifest.name}: sample {sample} has {count} captions, its sidecar "
                f"{len(captions)}: copy or build the shard again"
            )
        found += [{**row, "caption": caption, CAPTION_INDEX: number} for number, caption in enumerate(captions)]
    return found


def _decoded(batch) -> list[dict]:
    """Texts from the tokens: lower-cased, as the tokenizer left them."""
    from alip.tokens import decode

    pairs = zip(batch.text_tokens, batch.caption_tokens, strict=True)
    return [{"key": None, "text": decode(text), "caption": decode(caption)} for text, caption in pairs]


def _as_columns(manifest: Manifest, index: np.ndarray, rows: list[dict], columns: dict[str, str]) -> dict[str, Any]:
    positions = [manifest.locate(int(i)) for i in index]
    recs = [manifest.shards[shard].rec for shard, _ in positions]
    numbers = [number for _, number in positions]
    keys = [row["key"] or f"{rec}:{number}" for row, rec, number in zip(rows, recs, numbers, strict=True)]
    content = {"index": index, "key": keys, "shard": recs, "record": np.array(numbers, dtype=np.int32)}
    content |= {name: [row[name] for row in rows] for name in ("text", "caption")}
    if CAPTION_INDEX in rows[0]:
        content[CAPTION_INDEX] = np.array([row[CAPTION_INDEX] for row in rows], dtype=np.int32)
    for label, column in columns.items():
        if "metadata" not in rows[0]:
            raise UserError(f"{manifest.name} has no sidecars: released rec files carry no field {column!r}")
        content[label] = [mismatch_label(row, column, manifest.name) for row in rows]
    return content


def _write(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    """Row groups of ROWS, whatever the sizes of the batches."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    options = {"compression": "zstd", "write_page_checksum": True}
    with refusals_named(path), pq.ParquetWriter(parquet_path(path), schema, **options) as writer:
        for batch in batches:
            waiting.append(batch)
            count += batch.num_rows
            if count >= ROWS:
                table = pa.Table.from_batches(waiting)
                whole = count // ROWS * ROWS
                writer.write_table(table.slice(0, whole), row_group_size=ROWS)
                waiting = table.slice(whole).combine_chunks().to_batches()
                count -= whole
        if count:
            writer.write_table(pa.Table.from_batches(waiting), row_group_size=ROWS)


def join(parts: list[Path], output: Path, schema: pa.Schema) -> None:
    """Parts, in order, as one table under its final name."""
    with ExitStack() as stack:
        files = [stack.enter_context(pq.ParquetFile(parquet_path(part))) for part in parts]
        batches = (batch for file in files for batch in file.iter_batches(batch_size=ROWS))
        with atomic_path(output) as temporary:
            _write(temporary, schema, (pa.RecordBatch.from_arrays(b.columns, schema=schema) for b in batches))


def write_scores(path: Path, manifest: Manifest, content: Iterator[dict[str, Any]], labels: Sequence[str]) -> None:
    """A table from scores that come from elsewhere, as {column: values} of some rows at a time, in order."""
    metadata = {"data": data_metadata(manifest), "checkpoints": []}
    schema = table_schema(labels, metadata, manifest.captions_per_image > 1)
    with atomic_path(path) as temporary:
        _write(temporary, schema, (pa.RecordBatch.from_pydict(rows, schema=schema) for rows in content))
