"""What every source is: a stream of `Sample`s, read file by file.

A source is a list of units (files), read one after the other, samples in a fixed order: so a position in it is
(unit, number in the unit), and a run can resume from there. Nothing here holds more than one unit's listing in memory.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from alip.files import unique_names
from alip.remote.reading import read_url, stat_all
from alip.remote.urls import is_url, name_of

MAX_IMAGE_BYTES = 1 << 28  # of one encoded image; a larger file is no image of the web
MAX_DEPTH = 50  # of nested lists and objects in JSON
MAX_TEXT_BYTES = 1 << 24  # of a .txt or .json of one sample


@dataclass(frozen=True)
class ByteRange:
    """Bytes that are still in a file, to be read where they are needed, in any process. length -1: to the end. At a URL
    only whole files are read so: the members of a tar there come with the stream."""

    path: str
    offset: int = 0
    length: int = -1

    def read(self, most: int = MAX_IMAGE_BYTES) -> bytes:
        """The bytes; OSError if they cannot be had, ValueError if it is no regular file or too long."""
        if is_url(self.path):
            return read_url(self.path, most)
        # Without O_NONBLOCK a named pipe would be waited for.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                raise ValueError(f"{self.path} is not a regular file")
            length = self.length if self.length >= 0 else state.st_size
            if length > most:
                raise ValueError(f"{length:,} bytes, the limit is {most:,}")
            return os.pread(descriptor, length, self.offset)
        finally:
            os.close(descriptor)


@dataclass
class Sample:
    """One image with its texts, as the source has them.

    key: the source's name for it. image_key: that of its image, where several samples may be of one; captions may be
    joined by it, too. image_data: the image's bytes, or where they are (`image` reads them); None without
    an image. image_name: the file name with its extension. text: raw web text; captions: synthetic captions; as the
    source has them, since cleaning them here would change their token ids.
    metadata: everything else in the source (JSON values). where: file and position in it, for people.
    error: what is wrong with it, None if nothing; a reason to reject it. unit: number of its file; number: in the file.
    progress: how far into the whole source this is, 0 to 1, None where it is unknown. position: where in its file
    reading may begin with it, for `read_unit`; None where it cannot.
    """

    key: str
    where: str
    image_data: ByteRange | bytes | None = None
    image_name: str = ""
    text: str | None = None
    captions: tuple[str, ...] = ()
    metadata: dict = field(default_factory=dict)
    error: str | None = None
    unit: int = 0
    number: int = 0
    progress: float | None = None
    position: tuple[int, ...] | None = None
    image_key: str | None = None

    @property
    def caption(self) -> str | None:
        """The first caption."""
        return self.captions[0] if self.captions else None

    @property
    def image(self) -> bytes | None:
        """The encoded image, read now; None if there is none."""
        return self.image_data.read() if isinstance(self.image_data, ByteRange) else self.image_data


@dataclass(frozen=True)
class Fields:
    """Names of JSON fields or table columns; None: found by their usual names (see docs/data.md)."""

    key: str | None = None
    image: str | None = None
    text: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Cut:
    """A part of a unit: its samples from number `first` to before `last` (None: to the end), which begin at `position`
    and end before that at `end`: damage may leave fewer of them than were counted. number: among the unit's parts,
    from 0."""

    number: int
    first: int = 0
    last: int | None = None
    position: tuple[int, ...] | None = None
    end: tuple[int, ...] | None = None


class Source:
    """A stream of samples. units: the files it reads, in order; source_type: its name on the command line;
    divided_from: bytes of a file from which on it is worth dividing, None for sources that cannot be divided;
    divided_at_urls: whether files at URLs can be divided, too."""

    source_type = ""
    divided_from: int | None = None
    divided_at_urls = False

    def __init__(self, units: list[str], fields: Fields):
        self.units = units
        self.fields = fields
        remote = [unit for unit in units if is_url(unit)]
        sizes = dict(zip(remote, (info.size for info in stat_all(remote))))
        self.sizes = [max(1, sizes[unit] if unit in sizes else os.path.getsize(unit)) for unit in units]
        self._before = [0]
        for size in self.sizes:
            self._before.append(self._before[-1] + size)

    def samples(self, units: range | list[int] | None = None, skip: int = 0) -> Iterator[Sample]:
        """The samples of the given units (all if None), without the first `skip` of the first of them."""
        for unit in range(len(self.units)) if units is None else units:
            for number, sample in enumerate(self.read_unit(unit)):
                if number >= skip:
                    yield _placed(sample, unit, number)
            skip = 0

    def __iter__(self) -> Iterator[Sample]:
        return self.samples()

    def read_unit(self, unit: int, position: tuple[int, ...] | None = None) -> Iterator[Sample]:
        """The samples of one unit, in its order. position: of the first one to read, as that sample has it."""
        raise NotImplementedError

    def read_part(self, unit: int, cut: Cut | None) -> Iterator[Sample]:
        """The samples of a part of a unit; None: of all of it."""
        if cut is None:
            yield from self.samples([unit])
            return
        for number, sample in enumerate(self.read_unit(unit, cut.position), cut.first):
            if number == cut.last or (cut.end is not None and sample.position == cut.end):
                return
            yield _placed(sample, unit, number)

    def positions(self, unit: int) -> Iterator[tuple[int, ...] | None]:
        """The positions of a unit's samples."""
        return (sample.position for sample in self.read_unit(unit))

    def divide(self, unit: int, every: int) -> list[Cut]:
        """The parts of a unit, of `every` samples or a few more. Reads all of it but the images."""
        starts: list[tuple[int, tuple[int, ...] | None]] = [(0, None)]
        for number, position in enumerate(self.positions(unit)):
            if position is not None and number - starts[-1][0] >= every:
                starts.append((number, position))
        ends = [*starts[1:], (None, None)]
        return [
            Cut(i, first, last, position, end) for i, ((first, position), (last, end)) in enumerate(zip(starts, ends))
        ]

    def progress(self, unit: int, done: float) -> float:
        """The fraction of the whole source before `done` bytes of a unit."""
        return min(1.0, (self._before[unit] + done) / self._before[-1])

    def local_files(self) -> Iterator[str]:
        """The files on this machine that samples are read from, without the images that a table names."""
        return (unit for unit in self.units if not is_url(unit))

    def describe(self) -> list[list]:
        """The units by name and size in bytes: two runs over the same input have the same list, in any folder."""
        return [[name_of(unit), size] for unit, size in zip(self.units, self.sizes)]


def _placed(sample: Sample, unit: int, number: int) -> Sample:
    """The sample with its place, and its key as every later file has it: captions are looked up by it."""
    sample.unit, sample.number, sample.key = unit, number, writable(sample.key)
    sample.image_key = sample.image_key and writable(sample.image_key)
    return sample


def writable(text: str) -> str:
    """The text with lone surrogates (file names that are no UTF-8, JSON escapes) as escapes: no file format takes
    them as they are."""
    return text if text.isascii() else text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def take_texts(sample: Sample, fields: Fields, text_file: str | None = None) -> None:
    """Moves text, caption and key out of a sample's metadata.

    With a `text` field the raw text is there and `caption` is the synthetic one. Without it things are as img2dataset
    leaves them: the raw text is the .txt or, failing that, the `caption` field, and there is no synthetic caption.
    """
    record = sample.metadata
    text_field = fields.text or ("text" if "text" in record else None)
    if text_field is not None:
        found = {"text": record.pop(text_field, None)}
        caption_field = fields.caption or "caption"
    else:
        found = {"text": text_file if text_file is not None else record.pop("caption", None)}
        caption_field = fields.caption
    found["caption"] = record.pop(caption_field, None) if caption_field else None
    if fields.key is not None:
        found["key"] = record.pop(fields.key, None)
    for name, value in found.items():
        try:
            if name == "caption":
                sample.captions = as_texts(value)
            else:
                setattr(sample, name, as_text(value) if name != "key" else as_text(value) or sample.key)
        except ValueError as error:
            sample.error = sample.error or f"bad-text: {sample.where}: the {name}: {error}"
    if fields.key is not None and found["key"] is None and not sample.error:
        sample.error = f"missing-key: {sample.where} has no field {fields.key!r} for --key-field"


def as_text(value: object) -> str | None:
    """A text as it is, save line ends around it; None for an empty one, or one that is only white space. ValueError
    for what is no text: lists, objects, bytes that are not UTF-8."""
    if value is None or value != value:  # NaN is how some tables spell "nothing"
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if isinstance(value, list | tuple | dict):
        raise ValueError(f"a {'list' if not isinstance(value, dict) else 'JSON object'} is no text")
    text = str(value).strip("\r\n")
    return text if text.strip() else None


def as_texts(value: object) -> tuple[str, ...]:
    """The texts of a list, or of one text, without empty ones. ValueError for a list that holds something else."""
    if not isinstance(value, list | tuple):
        text = as_text(value)
        return () if text is None else (text,)
    for one in value:
        if one is not None and not isinstance(one, str):
            raise ValueError(f"a list that holds {str(one)[:40]!r} is no list of texts")
    return tuple(text for text in map(as_text, value) if text is not None)


def load_json_object(content: bytes | str) -> dict:
    """A JSON object; ValueError with the reason otherwise, also where it is nested too deeply or repeats a name."""
    try:
        value = json.loads(content, object_pairs_hook=unique_names)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}, not an object")
    if _is_deep(value):  # what Python can still read it may fail to write, or to send to a worker process
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    return value


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return False
    return any(isinstance(child, dict | list) for child in level)
