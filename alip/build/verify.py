"""Checks every byte of a dataset: framing, index, checksums, labels, sidecar and, on request, every image."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

import numpy as np
import pyarrow
import pyarrow.parquet
from tqdm import tqdm

from alip.build.images import ImageError, decode_image
from alip.build.workers import start_worker
from alip.data.recordio import RecordError, read_index, scan, unpack
from alip.data.shards import Manifest, Shard, load_manifest
from alip.files import sha256_of_file
from alip.text_table import plain_table

_NAMED = 5  # faults of one shard that are printed in full


@dataclass
class Report:
    """What was found in one shard. faults: lines that name file, record and byte; ids: of a tokenizer's end."""

    rec: str
    records: int = 0
    bytes: int = 0
    checksum: str = "-"
    faults: list[str] = field(default_factory=list)


def verify(data: str | os.PathLike, *, decode: bool = False, workers: int = 1) -> int:
    """Checks a dataset and prints a table; 0 if it is sound, 1 if it is not."""
    manifest = load_manifest(data)
    jobs = range(len(manifest.shards))
    reports: list[Report] = []
    bar = tqdm(total=manifest.samples, unit=" samples", disable=not sys.stderr.isatty(), leave=False)
    with (
        bar,
        ProcessPoolExecutor(
            min(workers, max(1, len(jobs))),
            get_context("spawn"),
            initializer=start_worker,
            initargs=(os.getpid(),),
        ) as pool,
    ):
        for report in pool.map(verify_shard, [manifest] * len(jobs), jobs, [decode] * len(jobs)):
            reports.append(report)
            bar.update(report.records)
    print(table(reports, decode))
    shown = 0
    for report in reports:
        for fault in report.faults[:_NAMED]:
            print(fault)
            shown += 1
    faults = sum(len(report.faults) for report in reports)
    if faults:
        print(f"{faults} faults" + (f", {shown} of them shown" if shown < faults else ""))
        return 1
    print(f"sound: {manifest.samples:,} samples in {len(reports)} shards")
    return 0


def table(reports: list[Report], decoded: bool) -> str:
    """The reports as a text table."""
    images = "decoded" if decoded else "-"
    rows = [
        [
            report.rec,
            f"{report.records:,}",
            f"{report.bytes / 1e6:,.1f}",
            report.checksum,
            images,
            str(len(report.faults) or "none"),
        ]
        for report in reports
    ]
    return plain_table(["shard", "records", "MB", "checksum", "images", "faults"], rows)


def verify_shard(manifest: Manifest, number: int, decode: bool) -> Report:
    """Everything about one shard; faults are collected, not raised."""
    shard = manifest.shards[number]
    report = Report(shard.rec)
    path = manifest.path(shard.rec)
    try:
        report.bytes = path.stat().st_size
        offsets = _records(manifest, shard, report, decode)
        _compare_index(manifest, shard, offsets, report)
    except (RecordError, OSError) as error:
        report.faults.append(f"record {report.records} of {error}" if isinstance(error, RecordError) else str(error))
    for fault in _whole_file(manifest, shard, report):
        report.faults.append(fault)
    return report


def _records(manifest: Manifest, shard: Shard, report: Report, decode: bool) -> list[int]:
    """Walks through a rec file record by record; where each starts."""
    path = manifest.path(shard.rec)
    offsets: list[int] = []
    for offset, payload in scan(path):
        number = len(offsets)
        offsets.append(offset)
        report.records = len(offsets)
        where = f"record {number} of {path}, byte {offset}"
        try:
            label, image = unpack(payload)
            fault = _label_fault(label, manifest)
            if fault:
                report.faults.append(f"{where}: {fault}")
            if decode:
                decode_image(image)
        except RecordError as error:
            report.faults.append(f"{where}: {error}")
        except ImageError as error:
            report.faults.append(f"{where}: {error.reason}: {error}")
    return offsets


def _label_fault(label: np.ndarray, manifest: Manifest) -> str | None:
    length = manifest.context_length
    if len(label) != 2 * length:
        return f"a label of {len(label)} numbers, not {2 * length}"
    if not np.isfinite(label).all() or (label != np.rint(label)).any() or label.min() < 0:
        return "a label with numbers that are no token ids"
    if label.max() >= manifest.vocab_size:
        return f"the token id {int(label.max())}, the vocabulary ends at {manifest.vocab_size - 1}"
    for name, row in (("text", label[:length]), ("caption", label[length:])):
        if row[0] != manifest.vocab_size - 2 or manifest.vocab_size - 1 not in row:
            return f"a {name} without start or end token"
    return None


def _compare_index(manifest: Manifest, shard: Shard, offsets: list[int], report: Report) -> None:
    _, indexed = read_index(manifest.path(shard.idx))
    idx = manifest.path(shard.idx)
    if len(indexed) != shard.samples or len(offsets) != shard.samples:
        report.faults.append(
            f"{idx}: {len(indexed)} lines, the rec file {len(offsets)} records, the manifest {shard.samples} samples"
        )
    there = set(offsets)
    for line, offset in enumerate(indexed.tolist(), 1):
        if offset not in there:
            report.faults.append(f"{idx}, line {line}: byte {offset} of {shard.rec} is not where a record starts")


def _whole_file(manifest: Manifest, shard: Shard, report: Report):
    """Sizes, checksums, the sidecar."""
    path = manifest.path(shard.rec)
    if path.exists():
        if report.bytes != shard.bytes:
            yield f"{path}: {report.bytes} bytes, the manifest says {shard.bytes}"
        if shard.sha256:
            report.checksum = "right" if sha256_of_file(path) == shard.sha256 else "WRONG"
            if report.checksum == "WRONG":
                yield f"{path}: the checksum is not the manifest's"
    if shard.sidecar is None:
        return
    sidecar = manifest.path(shard.sidecar)
    try:
        rows = pyarrow.parquet.ParquetFile(sidecar).metadata.num_rows
        if rows != shard.samples:
            yield f"{sidecar}: {rows} rows, the manifest says {shard.samples} samples"
        if shard.sidecar_sha256 and sha256_of_file(sidecar) != shard.sidecar_sha256:
            yield f"{sidecar}: the checksum is not the manifest's"
    except (OSError, pyarrow.ArrowException) as error:
        yield f"{sidecar}: {error}"
