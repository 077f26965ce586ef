"""A dataset on disk: the manifest `NAME.json`, its shards `NAME-00000.rec/.idx/.parquet`, the merged index."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alip.data.index_cache import read_offsets
from alip.data.manifest_schema import FORMAT, check_manifest, label_layout, manifest_checksum
from alip.data.recordio import IndexedReader, RecordError, payload_crc32, read_index, record_ids
from alip.errors import UserError
from alip.files import parquet_path, parse_json, read_json, write_json
from alip.remote.reading import open_url, read_url
from alip.remote.urls import UrlPath, is_url, redact
from alip.tokens import CONTEXT_LENGTH, TOKENIZER, VOCAB_SIZE

if TYPE_CHECKING:  # imported where sidecars are read: it takes half a second
    import pyarrow

_LARGEST_MANIFEST = 1 << 30  # bytes, of one at a URL: half a million shards
SIDECAR_COLUMNS = ("key", "text", "caption", "metadata", "source")
CAPTIONS_COLUMN = "captions"  # a list of all captions, in the sidecars of datasets with several captions per image


@dataclass(frozen=True, slots=True)
class Shard:
    """One rec file with its index and sidecar. Names are relative to the manifest's folder.

    bytes, sha256: of the rec file. max_token: the largest token id in it. None for released files without it.
    crc32: the `id2` of every record is the CRC-32 of its labels and image (see recordio.payload_crc32).
    """

    rec: str
    idx: str
    sidecar: str | None
    samples: int
    bytes: int
    sha256: str | None = None
    max_token: int | None = None
    sidecar_sha256: str | None = None
    crc32: bool = False


def record_fault(shard: Shard, number: int, payload: bytes | memoryview) -> str | None:
    """What in the header contradicts `payload` being record `number` of a shard, whole and in its place; None: nothing.

    Our shards number their records, and the manifest notes whether there is a CRC-32, so a zeroed one shows. In files
    without a manifest any `id2` but 0 is taken for one.
    """
    id, id2 = record_ids(payload)
    if shard.sha256 is not None and id != number:
        return f"the record there has the number {id}: the index is not of this file, or damaged"
    if (shard.crc32 or id2) and id2 != payload_crc32(payload):
        return "its CRC-32 is not that of its content: the record is damaged"
    return None


@dataclass(frozen=True)
class Manifest:
    """All that is known of a dataset. Sample i is the i-th record, counted through the shards in this order.

    captions_per_image: the most that a record may have; 1: the released layout.
    """

    name: str
    folder: Path | UrlPath
    samples: int
    shards: tuple[Shard, ...]
    context_length: int = CONTEXT_LENGTH
    tokenizer: str = TOKENIZER
    vocab_size: int = VOCAB_SIZE
    rejects: dict[str, int] = field(default_factory=dict)
    image: dict = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)  # counts, options, input shard: for people and for --merge
    captions_per_image: int = 1

    @cached_property
    def starts(self) -> np.ndarray:
        """(shards + 1,) int64: the index of each shard's first sample, then the number of samples."""
        return np.cumsum([0] + [shard.samples for shard in self.shards], dtype=np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """Short sha256 of what the samples are: another dataset, order or token layout has another one."""
        content = [self.context_length, self.tokenizer]
        content += [[shard.samples, shard.bytes, shard.sha256] for shard in self.shards]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def path(self, name: str) -> Path | UrlPath:
        """A shard's file."""
        return self.folder / name

    def locate(self, index: int) -> tuple[int, int]:
        """(number of the shard, number in the shard) of sample `index`."""
        if not 0 <= index < self.samples:
            raise IndexError(f"{self.name} has {self.samples} samples, asked for {index}")
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return shard, index - int(self.starts[shard])

    def open_shard(self, number: int) -> IndexedReader:
        """A reader of one shard; UserError naming the file if it or its index is not as the manifest has."""
        shard = self.shards[number]
        try:
            reader = IndexedReader(self.path(shard.rec), self.path(shard.idx), read_offsets)
        except (RecordError, OSError) as error:
            raise UserError(
                f"{error} (`python data2rec.py --verify {self.folder / self.name}` checks everything)"
            ) from None
        if len(reader) != shard.samples or reader.size != shard.bytes:
            reader.close()
            raise UserError(
                f"{self.path(shard.rec)} has {len(reader)} records and {reader.size} bytes, the manifest has "
                f"{shard.samples} and {shard.bytes}: copy or build it again"
            )
        return reader

    def to_json(self) -> dict:
        """The manifest's content in its file."""
        content = {
            "format": FORMAT,
            "version": 1 if self.captions_per_image == 1 else 2,
            "name": self.name,
            "samples": self.samples,
            "label": label_layout(self.context_length, self.captions_per_image),
            "context_length": self.context_length,
            "tokenizer": self.tokenizer,
            "vocab_size": self.vocab_size,
            "image": self.image,
            "rejects": dict(sorted(self.rejects.items())),
            **self.metadata,
            "shards": [asdict(shard) for shard in self.shards],
        }
        content = json.loads(json.dumps(content))  # as it will be read: tuples are lists there
        return {**content, "checksum": manifest_checksum(content)}

    def save(self, folder: Path | None = None) -> Path:
        """Writes NAME.json, whole or not at all, to `folder` (None: beside the shards); its path."""
        path = (folder or self.folder) / f"{self.name}.json"
        content = self.to_json()
        # Names of input files that are no UTF-8 hold lone surrogates, which only an escape can write.
        surrogates = any("\ud800" <= letter <= "\udfff" for letter in json.dumps(content, ensure_ascii=False))
        write_json(path, content, ensure_ascii=surrogates)
        return path


def load_manifest(data: str | os.PathLike, at_url: bool = False) -> Manifest:
    """The manifest behind `DIR/NAME`, `DIR/NAME.json`, or released files without one: `DIR/x.rec` (with `x.idx`),
    `DIR/x` where `DIR/x.rec` is, or a folder of rec files. UserError names what is missing.

    at_url: whether the caller can work with a dataset at a URL, of which only manifest and sidecars are read in place.
    """
    if is_url(data):
        if not at_url:
            raise UserError(f"{redact(str(data))}: this reads shards from a local folder: copy them there first")
        return _from_url(str(data))
    path = Path(data)
    # "." and "/" have no name
    for candidate in [path] if path.suffix == ".json" or not path.name else [Path(f"{path}.json"), path]:
        if candidate.is_file() and candidate.suffix == ".json":
            return _parse(candidate)
    if path.is_dir():
        manifests = [one for one in sorted(path.glob("*.json")) if is_manifest(one)]
        if len(manifests) == 1:
            return _parse(manifests[0])
        if manifests:
            names = ", ".join(str(one.with_suffix("")) for one in manifests)
            raise UserError(f"{path} holds several datasets, name one: {names}")
        recs = sorted(path.glob("*.rec"))
    elif path.suffix == ".rec":
        recs = [path]
    else:
        recs = [path.with_name(path.name + ".rec")]
    recs = [rec for rec in recs if rec.is_file()]
    if not recs:
        raise UserError(f"no shards at {data}: there is no {path}.json, no {path}.rec, and no folder of rec files")
    return _from_files(recs, path)


def is_manifest(path: Path) -> bool:
    """Whether a file looks like a manifest, by its first characters."""
    if not path.is_file():  # a FIFO would wait
        return False
    with open(path, encoding="utf-8", errors="replace") as file:
        return f'"{FORMAT}"' in file.read(200)


def _from_url(data: str) -> Manifest:
    path = UrlPath(data if data.endswith(".json") else f"{data}.json")
    try:
        text = read_url(path.url, _LARGEST_MANIFEST).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no shards at {redact(data)}: there is no {path} (at a URL a manifest is needed)") from None
    except ValueError as error:
        raise UserError(f"{path} is no manifest: {error}") from None
    content = parse_json(text, str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a JSON {type(content).__name__}, not an object")
    return _manifest(content, path)


def _parse(path: Path) -> Manifest:
    return _manifest(read_json(path), path)


def _manifest(content: dict, path: Path | UrlPath) -> Manifest:
    check_manifest(content, path)
    known = {"format", "version", "label", "shards", "name", "samples", "context_length", "tokenizer"}
    known |= {"vocab_size", "rejects", "image", "checksum"}
    return Manifest(
        name=path.name.removesuffix(".json"),
        folder=path.parent,
        samples=content["samples"],
        shards=tuple(Shard(**shard) for shard in content["shards"]),
        context_length=content["context_length"],
        tokenizer=content["tokenizer"],
        vocab_size=content["vocab_size"],
        rejects=content["rejects"],
        image=content["image"],
        metadata=_today({key: value for key, value in content.items() if key not in known}),
        captions_per_image=content["label"].get("captions_per_image", 1),
    )


def _today(metadata: dict) -> dict:
    """Metadata under today's names: `part` and `parts` are what manifests called input shards before."""
    names = {"part": "input_shard", "parts": "input_shards"}
    renamed = {names.get(key, key): value for key, value in metadata.items()}
    if isinstance(renamed.get("options"), dict):
        renamed["options"] = {names.get(key, key): value for key, value in renamed["options"].items()}
    return renamed


def _from_files(recs: list[Path], asked: Path) -> Manifest:
    shards = []
    for rec in recs:
        idx = rec.with_suffix(".idx")
        try:
            samples = len(read_index(idx)[0])
        except RecordError as error:
            raise UserError(f"{error}: a rec file is read through its index") from None
        shards.append(Shard(rec.name, idx.name, None, samples, rec.stat().st_size))
    name = asked.stem if asked.suffix == ".rec" else asked.name
    return Manifest(name, recs[0].parent, sum(shard.samples for shard in shards), tuple(shards))


def merged_index(manifest: Manifest, path: str | os.PathLike) -> list[str]:
    """Writes the one text index that DALI's `fn.readers.mxnet` takes for several rec files, and returns the rec files
    in its order: keys count through all samples, offsets count through the files as if they were one."""
    base = 0
    key = 0
    recs = []
    with open(path, "w", encoding="ascii", newline="\n") as file:
        for shard in manifest.shards:
            _, offsets = read_index(manifest.path(shard.idx))
            file.writelines(f"{key + i}\t{base + offset}\n" for i, offset in enumerate(offsets.tolist()))
            key += len(offsets)
            base += shard.bytes
            recs.append(str(manifest.path(shard.rec)))
    return recs


def read_texts(manifest: Manifest, start: int = 0) -> Iterator[dict]:
    """The sidecar's rows, in the order of the samples from sample `start` on: dicts of key, text, caption, metadata
    (JSON in a string), source and, with several captions per image, captions (all of them; `caption` is the first)."""
    import pyarrow
    import pyarrow.parquet

    for shard, first in zip(manifest.shards, manifest.starts.tolist()):
        skip = max(0, start - first)
        if skip >= shard.samples:
            continue
        if shard.sidecar is None:
            raise UserError(f"{manifest.path(shard.rec)} has no sidecar: released rec files carry no strings")
        path = manifest.path(shard.sidecar)
        remote = isinstance(path, UrlPath)
        if not remote and path.exists() and not path.is_file():
            raise UserError(f"{path} is not an ordinary file: copy or build it again")
        try:
            opened = open_url(path.url) if remote else nullcontext(parquet_path(path))
            with opened as file, pyarrow.parquet.ParquetFile(file) as table:
                if table.metadata.num_rows != shard.samples:
                    raise UserError(f"{path} has {table.metadata.num_rows} rows, its shard {shard.samples} samples")
                _check_columns(table.schema_arrow, path, manifest)
                for batch in table.iter_batches(batch_size=4096):
                    yield from batch.slice(min(skip, batch.num_rows)).to_pylist()
                    skip = max(0, skip - batch.num_rows)
        except FileNotFoundError:
            raise UserError(f"no sidecar {path}: it is written beside the shards when they are built") from None
        except (OSError, ValueError, pyarrow.ArrowException) as error:  # ValueError: names that are not UTF-8
            raise UserError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())}") from None


def _check_columns(schema: pyarrow.Schema, path: Path | UrlPath, manifest: Manifest) -> None:
    """UserError unless a sidecar has the columns that its readers take, of strings."""
    columns = (*SIDECAR_COLUMNS, CAPTIONS_COLUMN) if manifest.captions_per_image > 1 else SIDECAR_COLUMNS
    for name in columns:
        found = str(schema.field(name).type) if schema.names.count(name) == 1 else "missing or there twice"
        if "string" not in found or ("list" in found) != (name == CAPTIONS_COLUMN):
            wanted = "a list of strings" if name == CAPTIONS_COLUMN else "a string"
            raise UserError(f"{path}: its column {name!r} is {found}, not {wanted}: copy or build it again")


def row_metadata(row: dict, name: str) -> dict:
    """The metadata in a sidecar's row of dataset `name`; UserError where it is no JSON object."""
    where = f"{name}: the metadata of sample {row['key']}"
    found = parse_json(row.get("metadata") or "{}", where)
    if not isinstance(found, dict):
        raise UserError(f"{where}: holds a JSON {type(found).__name__}, not an object; build the dataset again")
    return found


def row_captions(row: dict) -> list[str]:
    """All captions of a sidecar's row."""
    return row.get(CAPTIONS_COLUMN) or [row["caption"]]
