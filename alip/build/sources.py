"""What every source is: a stream of `Sample`s, read file by file.

A source is a list of units (files), read one after the other, samples in a fixed order: so a position in it is
(unit, number in the unit), and a run can resume from there. Nothing here holds more than one unit's listing in memory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ByteRange:
    """Bytes that are still in a file, to be read where they are needed, in any process. length -1: to the end."""

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
    """One image with its texts, as the source has them.

    key: the source's name for it. image_data: the image's bytes, or where they are
    (`image` reads them); None without an image.
    image_name: the file name with its extension. text: raw web text; caption: synthetic caption.
    metadata: everything else in the source (JSON values). where: file and position in it, for people.
    error: what is wrong with it, None if nothing; a reason to reject it. unit: number of its file; number: in the file.
    progress: how far into the whole source this is, 0 to 1, None where nobody knows.
    """

    key: str
    where: str
    image_data: ByteRange | bytes | None = None
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
        return self.image_data.read() if isinstance(self.image_data, ByteRange) else self.image_data


@dataclass(frozen=True)
class Fields:
    """Names of JSON fields or table columns; None: found by their usual names (see docs/data.md)."""

    key: str | None = None
    image: str | None = None
    text: str | None = None
    caption: str | None = None


class Source:
    """A stream of samples. units: the files it reads, in order; source_type: its name on the command line."""

    source_type = ""

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
