"""Checks every byte of a dataset: framing, index, checksums, labels, sidecar and, on request, every image."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from tqdm import tqdm

from alip.build.remote_shards import shard_at_hand
from alip.build.worker_pool import WorkerDied, WorkerPool
from alip.data.decoders import check_decodes
from alip.data.recordio import RecordError, read_index, scan, unpack
from alip.data.shards import Manifest, Shard, load_manifest, record_fault
from alip.errors import UserError
from alip.files import parquet_path, sha256_of_file
from alip.remote.access import RemoteError
from alip.remote.reading import glob
from alip.remote.urls import UrlPath, local_path, name_of, scheme_of
from alip.text_table import counted, plain_table
from alip.tokens import unpack_captions

_NAMED = 5  # faults of one shard that are printed in full
_DECODED = 64  # images decoded at a time


@dataclass
class Report:
    """What was found in one shard. faults: lines that name file, record and byte."""

    rec: str
    records: int = 0
    bytes: int = 0
    checksum: str = "-"
    faults: list[str] = field(default_factory=list)


def verify(
    data: str | os.PathLike,
    *,
    decode: bool = False,
    workers: int = 1,
    scratch: str | None = None,
    quiet: bool = False,
) -> int:
    """Checks a dataset and prints a table; 0 if it is sound, 1 if it is not.

    scratch: for one at a URL, the folder into which each worker copies a shard while it checks that. quiet: no progress
    bar.
    """
    manifest = load_manifest(local_path(str(data)), at_url=True)
    if scratch is not None:
        if not isinstance(manifest.folder, UrlPath):
            raise UserError("--scratch belongs to a dataset at a URL: leave it out")
        Path(scratch).mkdir(parents=True, exist_ok=True)
    folder = None if scratch is None else Path(scratch)
    reports: list[Report] = []
    bar = tqdm(total=manifest.samples, unit=" samples", disable=quiet or not sys.stderr.isatty(), leave=False)
    with bar, contextlib.closing(_reports(manifest, decode, workers, folder)) as found:
        for report in found:
            reports.append(report)
            bar.update(report.records)
    print(table(reports, decode))
    of_all = dataset_faults(manifest)
    shown = [fault for faults in (of_all, *(report.faults for report in reports)) for fault in faults[:_NAMED]]
    print(*shown, sep="\n", end="\n" if shown else "")
    faults = len(of_all) + sum(len(report.faults) for report in reports)
    if faults:
        print(f"{faults} faults" + (f", {len(shown)} of them shown" if len(shown) < faults else ""))
        return 1
    print(f"sound: {manifest.samples:,} samples in {counted(len(reports), 'shard')}")
    return 0


def _reports(manifest: Manifest, decode: bool, workers: int, scratch: Path | None) -> Iterator[Report]:
    """The shards' reports, in order, by `workers` processes (0: this one)."""
    jobs = [(verify_one, manifest, number, decode, scratch) for number in range(len(manifest.shards))]
    if workers == 0:
        yield from (job(*given) for job, *given in jobs)
        return
    with contextlib.closing(WorkerPool(workers, get_context("spawn"))) as pool:
        try:
            for future in [pool.submit(*job) for job in jobs]:
                yield future.result()
        except WorkerDied:
            raise UserError(
                "a worker process was killed (out of memory?): give fewer --workers, which need less memory"
            ) from None


def dataset_faults(manifest: Manifest) -> list[str]:
    """What no single shard shows: shards that the manifest leaves out, and content that it lists twice."""
    if all(shard.sha256 is None for shard in manifest.shards):  # released files: the folder is the list
        return []
    faults = []
    names = [manifest.name, *manifest.metadata.get("input_shards", [])]
    pattern = re.compile("(" + "|".join(map(re.escape, names)) + r")-\d{5}\.(rec|idx|parquet)")
    listed = {name for shard in manifest.shards for name in (shard.rec, shard.idx, shard.sidecar)}
    for name in sorted(_names_beside(manifest)):
        if pattern.fullmatch(name) and name not in listed:
            faults.append(f"{manifest.folder / name}: the manifest does not list it")
    seen: dict[tuple, str] = {}
    for shard in manifest.shards:
        before = seen.setdefault((shard.sha256, shard.sidecar_sha256), shard.rec)
        if before != shard.rec:
            faults.append(f"{manifest.path(shard.rec)}: the same content as {before}")
    return faults


def _names_beside(manifest: Manifest) -> list[str]:
    """The files in the manifest's folder; at a URL those that begin with its name, on a web server none."""
    if not isinstance(manifest.folder, UrlPath):
        return [path.name for path in manifest.folder.iterdir()]
    if scheme_of(manifest.folder.url) in ("http", "https"):
        return []
    return [name_of(url) for url in glob((manifest.folder / f"{manifest.name}-*").url)]


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


def verify_one(manifest: Manifest, number: int, decode: bool, scratch: Path | None = None) -> Report:
    """`verify_shard` for a dataset anywhere. Faults name the files where the dataset is."""
    try:
        with shard_at_hand(manifest, number, scratch, as_it_is=True) as local:
            report = verify_shard(local, number, decode)
            here, there = str(local.folder), str(manifest.folder)
            report.faults = [fault.replace(here, there) for fault in report.faults]
            return report
    except RemoteError as error:
        return Report(manifest.shards[number].rec, faults=[str(error)])


def verify_shard(manifest: Manifest, number: int, decode: bool) -> Report:
    """Everything about one shard; faults are collected, not raised."""
    shard = manifest.shards[number]
    report = Report(shard.rec)
    path = manifest.path(shard.rec)
    offsets: list[int] = []
    try:
        report.bytes = path.stat().st_size
        for fault in _record_faults(manifest, shard, offsets, decode):
            report.faults.append(fault)
    except (RecordError, OSError) as error:
        report.faults.append(f"record {len(offsets)} of {error}" if isinstance(error, RecordError) else str(error))
    else:
        report.faults += _index_faults(manifest, shard, offsets)
    report.records = len(offsets)
    report.faults += _file_faults(manifest, shard, report)
    return report


def _record_faults(manifest: Manifest, shard: Shard, offsets: list[int], decode: bool) -> Iterator[str]:
    """Walks through a rec file record by record. offsets: where each starts is appended."""
    path = manifest.path(shard.rec)
    largest = 0
    images: list[tuple[str, bytes]] = []  # waiting to be decoded, and where they are
    for number, (offset, payload) in enumerate(scan(path)):
        offsets.append(offset)
        where = f"record {number} of {path}, byte {offset}"
        try:
            label, image = unpack(payload)
            for fault in (record_fault(shard, number, payload), _label_fault(label, manifest)):
                if fault:
                    yield f"{where}: {fault}"
            if decode:
                images.append((where, bytes(image)))
        except RecordError as error:
            yield f"{where}: {error}"
        else:
            largest = max(largest, label.max())
        if len(images) == _DECODED:
            yield from _decoding_faults(images)
            images = []
    yield from _decoding_faults(images)
    if shard.max_token is not None and largest != shard.max_token:
        yield f"{path}: the largest token id is {largest:.0f}, the manifest has {shard.max_token}"


def _decoding_faults(images: list[tuple[str, bytes]]) -> Iterator[str]:
    """Images that the decoder that trains refuses."""
    for (where, _), error in zip(images, check_decodes([image for _, image in images])):
        if error:
            yield f"{where}: cannot be decoded: {error}"


def _label_fault(label: np.ndarray, manifest: Manifest) -> str | None:
    length, several = manifest.context_length, manifest.captions_per_image
    if len(label) != 2 * length and several == 1:
        return f"a label of {len(label)} numbers, not {2 * length}"
    if not np.isfinite(label).all() or (label != np.rint(label)).any() or label.min() < 0:
        return "a label with numbers that are no token ids"
    if label.max() >= manifest.vocab_size:
        return f"the token id {int(label.max())}, the vocabulary ends at {manifest.vocab_size - 1}"
    try:
        text, captions = unpack_captions(label, length)
    except ValueError as error:
        return str(error)
    if len(captions) > several:
        return f"{len(captions)} captions, the manifest has at most {several}"
    for name, row in (("text", text), *(("caption", caption) for caption in captions)):
        if row[0] != manifest.vocab_size - 2 or manifest.vocab_size - 1 not in row:
            return f"a {name} without start or end token"
    return None


def _index_faults(manifest: Manifest, shard: Shard, offsets: list[int]) -> Iterator[str]:
    """Compares the index with the records, which start at `offsets`.

    In a dataset of ours line i is `i, offset of record i`. A released index may have another order: there every record
    must be named once, by a key of its own.
    """
    idx = manifest.path(shard.idx)
    try:
        keys, indexed = read_index(idx)
    except (RecordError, OSError) as error:
        yield str(error)
        return
    if len(indexed) != shard.samples or len(offsets) != shard.samples:
        yield f"{idx}: {len(indexed)} lines, the rec file {len(offsets)} records, the manifest {shard.samples} samples"
    starts = set(offsets)
    for line, offset in enumerate(indexed.tolist(), 1):
        if offset not in starts:
            yield f"{idx}, line {line}: byte {offset} of {shard.rec} is not where a record starts"
    for what, values in (("byte", indexed), ("key", keys)):
        values, counts = np.unique(values, return_counts=True)
        for value in values[counts > 1].tolist():
            yield f"{idx}: {what} {value} is in more than one line"
    if shard.sha256 is not None and len(indexed) == len(offsets):
        wrong = np.flatnonzero((indexed != np.array(offsets)) | (keys != np.arange(len(keys))))
        if len(wrong):
            yield f"{idx}, line {wrong[0] + 1}: not number and byte of record {wrong[0]} ({len(wrong)} such lines)"


def _file_faults(manifest: Manifest, shard: Shard, report: Report) -> Iterator[str]:
    """Sizes, checksums, the sidecar."""
    path = manifest.path(shard.rec)
    if path.is_file():
        if report.bytes != shard.bytes:
            yield f"{path}: {report.bytes} bytes, the manifest has {shard.bytes}"
        if shard.sha256:
            report.checksum = "right" if sha256_of_file(path) == shard.sha256 else "WRONG"
            if report.checksum == "WRONG":
                yield f"{path}: the checksum is not the manifest's"
    if shard.sidecar is None:
        beside = manifest.path(shard.rec).with_suffix(".parquet")
        if shard.sha256 is not None and beside.exists():
            yield f"{beside}: the manifest does not list it"
        return
    sidecar = manifest.path(shard.sidecar)
    if sidecar.exists() and not sidecar.is_file():
        yield f"{sidecar}: not an ordinary file"
        return
    try:
        rows = pyarrow.parquet.ParquetFile(parquet_path(sidecar)).metadata.num_rows
        if rows != shard.samples:
            yield f"{sidecar}: {rows} rows, the manifest has {shard.samples} samples"
        if shard.sidecar_sha256 and sha256_of_file(sidecar) != shard.sidecar_sha256:
            yield f"{sidecar}: the checksum is not the manifest's"
    except (OSError, ValueError, pyarrow.ArrowException) as error:  # ValueError: names that are not UTF-8
        yield f"{sidecar}: {' '.join(str(error).split())}"
