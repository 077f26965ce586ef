"""What users have: WebDataset tars, tables, COCO and Karpathy JSON, folders; each a stream of `Sample`s.

Every source is a list of units (files), read one after the other, samples in a fixed order: so a place in it is
(unit, number in the unit), and a run can go on from there. Nothing here holds more than one unit's listing in memory.
"""

from __future__ import annotations

import glob
import json
import os
import re
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from alip.data.images import EXTENSIONS
from alip.errors import UserError


@dataclass(frozen=True)
class Place:
    """Bytes that are still in a file: read by whoever needs them, in whatever process. length -1: to the end."""

    path: str
    offset: int = 0
    length: int = -1

    def read(self) -> bytes:
        """The bytes; OSError if they cannot be had, ValueError if the path is no ordinary file."""
        with open(self.path, "rb", buffering=0) as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise ValueError(f"{self.path} is not an ordinary file")
            if self.length < 0:
                return file.read()
            return os.pread(file.fileno(), self.length, self.offset)


@dataclass
class Sample:
    """One picture with its texts, as the source has them.

    key: the source's name for it. place: where the image's bytes are (`image` reads them), None without an image.
    image_name: the file name with its extension. text: raw web text; caption: synthetic caption.
    metadata: all else that the source says (JSON values). where: file and place in it, for people.
    error: what is wrong with it, None if nothing; a reason to reject it. unit: number of its file; number: in the file.
    progress: how far into the whole source this is, 0 to 1, None where nobody knows.
    """

    key: str
    where: str
    place: Place | bytes | None = None
    image_name: str = ""
    text: str | None = None
    caption: str | None = None
    metadata: dict = field(default_factory=dict)
    error: str | None = None
    unit: int = 0
    number: int = 0
    progress: float | None = None

    @property
    def image(self) -> bytes | None:
        """The encoded image, read now; None if there is none."""
        return self.place.read() if isinstance(self.place, Place) else self.place


@dataclass(frozen=True)
class Fields:
    """Names of JSON fields or table columns; None: found by their usual names (see docs/data.md)."""

    key: str | None = None
    image: str | None = None
    text: str | None = None
    caption: str | None = None


class Source:
    """A stream of samples. units: the files it reads, in order; kind: its name on the command line."""

    kind = ""

    def __init__(self, units: list[str], fields: Fields):
        self.units = units
        self.fields = fields
        self.sizes = [max(1, os.path.getsize(unit)) for unit in units]
        self._before = [0]
        for size in self.sizes:
            self._before.append(self._before[-1] + size)

    def samples(self, units: range | list[int] | None = None, skip: int = 0) -> Iterator[Sample]:
        """The samples of the given units (all if None), without the first `skip` of the first of them."""
        for unit in range(len(self.units)) if units is None else units:
            for number, sample in enumerate(self.read_unit(unit)):
                if number < skip:
                    continue
                sample.unit, sample.number = unit, number
                yield sample
            skip = 0

    def __iter__(self) -> Iterator[Sample]:
        return self.samples()

    def read_unit(self, unit: int) -> Iterator[Sample]:
        """The samples of one unit, in its order."""
        raise NotImplementedError

    def progress(self, unit: int, done: float) -> float:
        """The part of the whole source that lies before `done` bytes of a unit."""
        return min(1.0, (self._before[unit] + done) / self._before[-1])

    def describe(self) -> list[list]:
        """The units by name and size in bytes: two runs over the same input have the same list, wherever it lies."""
        return [[os.path.basename(unit), size] for unit, size in zip(self.units, self.sizes)]


class TarSource(Source):
    """WebDataset tars: neighbouring members that share a name up to its first dot are one sample."""

    kind = "webdataset"

    def read_unit(self, unit: int) -> Iterator[Sample]:
        path = self.units[unit]
        plain = _is_plain_tar(path)
        try:
            with tarfile.open(path, "r:" if plain else "r:*") as tar:
                for group in _grouped(tar, path, plain):
                    sample = self._sample(path, group)
                    sample.progress = self.progress(unit, group[-1].end if plain else 0)
                    yield sample
                _check_end(tar, path, plain)
        except (tarfile.TarError, EOFError, OSError) as error:
            yield Sample("", path, error=f"broken-input: the rest of {path} cannot be read: {error}")

    def _sample(self, path: str, members: list[_Member]) -> Sample:
        sample = Sample(members[0].key, f"{path}:{members[0].name}")
        text_file = None
        for member in members:
            if member.extension in EXTENSIONS:
                if sample.place is not None:
                    sample.error = f"ambiguous: two images, {sample.image_name} and {member.name}"
                sample.place, sample.image_name, sample.where = member.place, member.name, f"{path}:{member.name}"
            elif member.extension in ("json", "txt"):
                try:
                    content = member.read().decode("utf-8")
                    if member.extension == "txt":
                        text_file = content
                    else:
                        sample.metadata = json.loads(content)
                except ValueError as error:
                    sample.error = f"bad-text: {member.name}: {error}"
        if not isinstance(sample.metadata, dict):
            sample.error = f"bad-text: the JSON of {sample.key} is no object"
            sample.metadata = {}
        take_texts(sample, self.fields, text_file)
        return sample


def take_texts(sample: Sample, fields: Fields, text_file: str | None = None) -> None:
    """Moves text and caption out of a sample's metadata.

    With a `text` field the raw text is there and `caption` is the synthetic one. Without it things are as img2dataset
    leaves them: the raw text is the .txt or, failing that, the `caption` field, and there is no synthetic caption.
    """
    record = sample.metadata
    text_field = fields.text or ("text" if "text" in record else None)
    if text_field is not None:
        sample.text = record.pop(text_field, None)
        caption_field = fields.caption or "caption"
    else:
        sample.text = text_file if text_file is not None else record.pop("caption", None)
        caption_field = fields.caption
    if caption_field:
        sample.caption = record.pop(caption_field, None)
    sample.text, sample.caption = clean(sample.text), clean(sample.caption)


def clean(text: object) -> str | None:
    """A text without line breaks and outer blanks; None for an empty one."""
    if text is None or text != text:  # NaN is how some tables spell "nothing"
        return None
    return " ".join(str(text).split()) or None


@dataclass
class _Member:
    name: str
    key: str
    extension: str
    place: Place | bytes
    end: int

    def read(self) -> bytes:
        return self.place.read() if isinstance(self.place, Place) else self.place


def _check_end(tar: tarfile.TarFile, path: str, plain: bool) -> None:
    """TarError if a tar that was read to its end lacks the end mark: tarfile takes a cut or damaged header for one."""
    whole = tar.fileobj.tell() >= tar.offset + tarfile.BLOCKSIZE
    if plain:
        with open(path, "rb") as file:
            file.seek(tar.offset)
            whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    if not whole:
        raise tarfile.TarError("it ends without tar's end mark, so it was cut off or damaged there")


def _grouped(tar: tarfile.TarFile, path: str, plain: bool) -> Iterator[list[_Member]]:
    group: list[_Member] = []
    for info in tar:
        tar.members = []  # tarfile would keep every header it has seen
        if not info.isreg():
            continue
        folder, _, file_name = info.name.rpartition("/")
        stem, _, suffixes = file_name.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if plain and not info.issparse():
            place: Place | bytes = Place(path, info.offset_data, info.size)
        else:  # compressed: the bytes can only be had now, in order
            place = tar.extractfile(info).read()
        member = _Member(info.name, key, suffixes.rpartition(".")[2].lower(), place, info.offset_data + info.size)
        if group and group[0].key != key:
            yield group
            group = []
        group.append(member)
    if group:
        yield group


def _is_plain_tar(path: str) -> bool:
    with open(path, "rb") as file:
        head = file.read(4)
    return not head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX"))


class FolderSource(Source):
    """A folder of images, at any depth, each with its raw text in a .txt of the same name beside it.

    A .json beside it gives further fields (`caption`, …). The key is the path without its extension.
    """

    kind = "folder"

    def __init__(self, folder: str, fields: Fields):
        self.folder = folder
        super().__init__([folder], fields)

    def read_unit(self, unit: int) -> Iterator[Sample]:
        for folder, folders, names in os.walk(self.folder):
            folders.sort()
            present = set(names)
            for name in sorted(names):
                stem, _, extension = name.rpartition(".")
                if stem and extension.lower() in EXTENSIONS:
                    yield self._sample(folder, name, stem, present)

    def _sample(self, folder: str, name: str, stem: str, present: set[str]) -> Sample:
        path = os.path.join(folder, name)
        key = os.path.relpath(os.path.join(folder, stem), self.folder)
        sample = Sample(key, path, Place(path), name)
        text_file = None
        try:
            if f"{stem}.json" in present:
                content = json.loads(Path(folder, f"{stem}.json").read_text(encoding="utf-8"))
                if not isinstance(content, dict):
                    raise ValueError("no object")
                sample.metadata = content
            if f"{stem}.txt" in present:
                text_file = Path(folder, f"{stem}.txt").read_text(encoding="utf-8")
        except (ValueError, OSError) as error:
            sample.error = f"bad-text: beside {path}: {error}"
        take_texts(sample, self.fields, text_file)
        return sample

    def describe(self) -> list[list]:
        return [[os.path.basename(os.path.abspath(self.folder)), 0]]


def open_source(
    spec: str | list[str],
    kind: str | None = None,
    *,
    fields: Fields | None = None,
    image_root: str | None = None,
    splits: tuple[str, ...] = ("train", "restval"),
) -> Source:
    """The source that `spec` names. UserError if there is none, or it cannot be recognised.

    spec: a file, a folder, a pattern with {000..099} braces, {a,b} braces and globs, or several of these.
    kind: webdataset, table, coco, karpathy or folder; None: recognised by itself.
    fields: names of columns or JSON fields. image_root: where relative image paths of tables and JSON start
    (None: beside the file). splits: of Karpathy's JSON, the ones to read.
    """
    from alip.data import tables  # it builds on this module

    specs = [spec] if isinstance(spec, str | os.PathLike) else list(spec)
    paths = expand([str(one) for one in specs])
    fields = fields or Fields()
    kind = kind or _recognise(paths)
    if kind == "webdataset":
        if any(os.path.isdir(path) for path in paths):
            paths = [tar for path in paths for tar in (_tars_in(path) if os.path.isdir(path) else [path])]
        return TarSource(paths, fields)
    if kind == "folder":
        if len(paths) != 1 or not os.path.isdir(paths[0]):
            raise UserError(f"a folder source is one folder, not {', '.join(paths[:3])}")
        return FolderSource(paths[0], fields)
    if kind == "table":
        return tables.TableSource(paths, fields, image_root)
    if kind in ("coco", "karpathy"):
        return tables.AnnotationSource(paths, fields, image_root, kind, splits)
    raise UserError(f"unknown kind of source {kind!r}: webdataset, table, coco, karpathy or folder")


def _recognise(paths: list[str]) -> str:
    from alip.data import tables

    kinds = {_recognise_one(path, tables.TABLES) for path in paths}
    if len(kinds) != 1:
        raise UserError(f"the input mixes several kinds of source ({', '.join(sorted(kinds))}): give one at a time")
    return kinds.pop()


def _recognise_one(path: str, tables: tuple[str, ...]) -> str:
    if os.path.isdir(path):
        return "webdataset" if _tars_in(path) else "folder"
    name = path.lower()
    if name.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")):
        return "webdataset"
    if name.endswith(tables):
        return "table"
    if name.endswith(".json"):
        with open(path, encoding="utf-8") as file:
            head = file.read(1 << 20)
        if '"sentences"' in head or '"sentids"' in head:
            return "karpathy"
        if '"annotations"' in head or '"images"' in head:
            return "coco"
    raise UserError(
        f"cannot tell what kind of source {path} is: name it with --source-type webdataset|table|coco|karpathy|folder"
    )


def _tars_in(folder: str) -> list[str]:
    return sorted(glob.glob(os.path.join(glob.escape(folder), "*.tar")))


def expand(specs: list[str]) -> list[str]:
    """The files and folders behind patterns, in order, each once. UserError where a pattern finds nothing."""
    found: list[str] = []
    for spec in specs:
        for pattern in [spec] if os.path.exists(spec) else _expand_braces(spec):
            matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
            if not matches:
                raise UserError(f"no such file or folder: {pattern}")
            found += matches
    return list(dict.fromkeys(found))


def _expand_braces(pattern: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    body = match.group(1)
    span = re.fullmatch(r"(\d+)\.\.(\d+)", body)
    if span:
        first, last = span.groups()
        step = 1 if int(last) >= int(first) else -1
        choices = [str(n).zfill(len(first)) for n in range(int(first), int(last) + step, step)]
    else:
        choices = body.split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [full for choice in choices for full in _expand_braces(head + choice + tail)]
