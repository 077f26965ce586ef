"""Images of an evaluation dataset, one by one: from files, from a torchvision dataset, from a rec file.

All have the same form (`Images`). Whatever an image that cannot be read raises is caught by the caller, named in the
results and counted.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import stat
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image

from alip.build.image_cost import check_cost
from alip.build.images import rgb_on_white
from alip.data.image_file import FORMATS, open_image

NO_LABEL = -1
_LARGEST_IMAGE = 1 << 28  # bytes of an encoded image: a larger file is not opened
_FORMATS = (*FORMATS, "PPM")  # GTSRB's
_HASH_THREADS = 4


class Images(Protocol):
    """What `encode_images` takes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """(RGB image, label)."""

    def name(self, index: int) -> str:
        """What a person finds the image by: a path, or the position in an archive."""

    def cache_key(self) -> str:
        """A short hash of names, sizes, times and labels: changes with them, and costs no reading."""

    def content_hash(self) -> str:
        """A short hash of the images' bytes, order and labels: the same on every machine and in every folder."""


def read_rgb(source: str | Path | BinaryIO) -> Image.Image:
    """The image as the field's tools see it: RGB, EXIF rotation not applied; but transparency is put on white.

    Only _FORMATS are tried; ImageError for an image that would take gigabytes or hours to decode.
    """
    data = Path(source).read_bytes() if isinstance(source, (str, Path)) else source.read()
    with open_image(data, _FORMATS) as image:
        check_cost(image, data, 0)
        return rgb_on_white(image)


class ImageFiles:
    """Image files with labels (none: -1)."""

    def __init__(self, paths: Sequence[Path], labels: Sequence[int] | None = None):
        self.paths = [Path(path) for path in paths]
        self.labels = list(labels) if labels is not None else [NO_LABEL] * len(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path = self.paths[index]
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for ever
            raise OSError("not a regular file")
        if status.st_size > _LARGEST_IMAGE:
            raise OSError(f"{status.st_size:,} bytes: no image is so large")
        return read_rgb(path), self.labels[index]

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def cache_key(self) -> str:
        return stat_key(self.paths, self.labels)

    def content_hash(self) -> str:
        return _content_of(self.paths, self.labels, _LARGEST_IMAGE)


class TorchvisionImages:
    """A torchvision dataset (or, with `indices`, a part of it in that order) that yields (PIL image, class number)."""

    def __init__(self, dataset: Any, indices: Sequence[int] | None = None):
        self.dataset = dataset
        self.indices = list(indices) if indices is not None else list(range(len(dataset)))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        file = file_of(self.dataset, self.indices[index])
        if file is not None:
            with open_image(file, _FORMATS):  # torchvision would try all that Pillow knows
                pass
        image, label = self.dataset[self.indices[index]]
        return image.convert("RGB"), int(label)

    def name(self, index: int) -> str:
        position = self.indices[index]
        return str(file_of(self.dataset, position) or f"{type(self.dataset).__name__} image {position}")

    def cache_key(self) -> str:
        if hasattr(self.dataset, "data"):
            return self.content_hash()
        labels = [_label_of(self.dataset, position) for position in self.indices]
        return stat_key([self.name(index) for index in range(len(self))], [type(self.dataset).__name__, labels])

    def content_hash(self) -> str:
        if hasattr(self.dataset, "data"):  # CIFAR: everything is in memory
            pixels = hashlib.sha256(np.ascontiguousarray(self.dataset.data)).hexdigest()
            return short_hash([pixels, str(self.dataset.targets), str(self.indices)])
        files = [file_of(self.dataset, position) for position in self.indices]
        labels = [_label_of(self.dataset, position) for position in self.indices]
        return _content_of(files, labels, _LARGEST_IMAGE)


def file_of(dataset: Any, position: int) -> Path | None:
    """The file of a torchvision dataset's image, where it keeps one file per image."""
    if hasattr(dataset, "categories"):  # Caltech-101 numbers its files by class
        name = f"image_{dataset.index[position]:04d}.jpg"
        return Path(dataset.root) / "101_ObjectCategories" / dataset.categories[dataset.y[position]] / name
    # torchvision has no public name for the list; these are the ones that its classes use.
    for attribute in ("_image_files", "_images"):
        if hasattr(dataset, attribute):
            return Path(getattr(dataset, attribute)[position])
    for attribute in ("_samples", "samples"):
        if hasattr(dataset, attribute):
            return Path(getattr(dataset, attribute)[position][0])
    return None


def _label_of(dataset: Any, position: int) -> int:
    """The class number of a torchvision dataset's image, without reading the image."""
    for attribute in ("_labels", "y"):
        if hasattr(dataset, attribute):
            return int(getattr(dataset, attribute)[position])
    for attribute in ("_samples", "samples"):
        if hasattr(dataset, attribute):
            return int(getattr(dataset, attribute)[position][1])
    raise TypeError(f"{type(dataset).__name__} keeps its labels in no known attribute")


class JoinedImages:
    """Several datasets one after the other (Flowers' train and val, say)."""

    def __init__(self, parts: Sequence[Images]):
        self.parts = list(parts)

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def _find(self, index: int) -> tuple[Images, int]:
        for part in self.parts:
            if index < len(part):
                return part, index
            index -= len(part)
        raise IndexError(index)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        part, position = self._find(index)
        return part[position]

    def name(self, index: int) -> str:
        part, position = self._find(index)
        return part.name(position)

    def cache_key(self) -> str:
        return short_hash([part.cache_key() for part in self.parts])

    def content_hash(self) -> str:
        return short_hash([part.content_hash() for part in self.parts])


class RecordImages:
    """An image rec file, as MXNet's im2rec writes it: one class number as each record's label."""

    def __init__(self, rec: str | Path):
        self.rec = Path(rec)
        self._reader: Any = None
        self._reader_process = 0
        self._count = len(self._open())

    def _open(self) -> Any:
        from alip.data.recordio import IndexedReader

        # Each worker process opens the file for itself: a handle shared after a fork would share its file position.
        if self._reader is None or self._reader_process != os.getpid():
            self._reader = IndexedReader(str(self.rec), str(self.rec.with_suffix(".idx")))
            self._reader_process = os.getpid()
        return self._reader

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        from alip.data.recordio import unpack

        label, data = unpack(self._open()[index])
        return read_rgb(io.BytesIO(data)), int(np.ravel(label)[0])

    def name(self, index: int) -> str:
        return f"{self.rec} record {index}"

    def cache_key(self) -> str:
        return stat_key([self.rec, self.rec.with_suffix(".idx")], [])

    def content_hash(self) -> str:
        return _content_of([self.rec, self.rec.with_suffix(".idx")], [])


def stat_key(paths: Sequence[str | Path], metadata: Sequence[Any]) -> str:
    """A short hash of names (links followed), sizes and times of files, and of metadata (labels); no file is read."""
    lines = []
    for path in paths:
        try:
            status = os.stat(path)
            lines.append(f"{os.path.realpath(path)} {status.st_size} {status.st_mtime_ns}")
        except (OSError, ValueError):  # ValueError: a name with a NUL, as a damaged list has it
            lines.append(f"{path} missing")
    return short_hash([*lines, str(list(metadata))])


def _content_of(paths: Sequence[Path | None], labels: Sequence[int], largest: float = math.inf) -> str:
    """Reads every file once; hashing (BLAKE2b) is many times faster than decoding, and runs in threads."""
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        return short_hash([*pool.map(lambda path: _file_hash(path, largest), paths), str(list(labels))])


def _file_hash(path: Path | None, largest: float) -> str:
    """Of a whole file, in memory-sized blocks; "unreadable" for one that cannot be read: it is named elsewhere."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        status = None if path is None else os.stat(path)
        if status is None or not stat.S_ISREG(status.st_mode) or status.st_size > largest:
            return "unreadable"
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    except (OSError, ValueError):
        return "unreadable"
    return digest.hexdigest()


def short_hash(parts: Iterable[str]) -> str:
    """16 hexadecimal digits of the texts in their order."""
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
