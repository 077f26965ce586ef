"""Images of an evaluation set, one by one: from files, from a torchvision dataset, from a rec file.

All three have the same form: `len(images)`, `images[i]` → (PIL image in RGB, label), `images.name(i)`, `images.key()`.
What they raise on an image that cannot be read is in `READ_ERRORS`.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image

READ_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
NO_LABEL = -1


class Images(Protocol):
    """What `encode_images` takes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...

    def name(self, index: int) -> str:
        """What a person finds the image by: a path, or the place in an archive."""

    def key(self) -> str:
        """A short hash that changes when the images, their order or their labels do."""


def read_rgb(source: str | Path | BinaryIO) -> Image.Image:
    """The picture as the field's tools see it: RGB, no EXIF turn; but transparency is put on white."""
    with Image.open(source) as image:
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, image).convert("RGB")
        return image.convert("RGB")


class ImageFiles:
    """Image files with labels (none: -1)."""

    def __init__(self, paths: Sequence[Path], labels: Sequence[int] | None = None):
        self.paths = [Path(path) for path in paths]
        self.labels = list(labels) if labels is not None else [NO_LABEL] * len(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_rgb(self.paths[index]), self.labels[index]

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def key(self) -> str:
        return _files_key(self.paths, self.labels)


class TorchvisionImages:
    """A torchvision dataset (or, with `indices`, a part of it in that order) that yields (PIL image, class number)."""

    def __init__(self, dataset: Any, indices: Sequence[int] | None = None):
        self.dataset = dataset
        self.indices = list(indices) if indices is not None else list(range(len(dataset)))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.dataset[self.indices[index]]
        return image.convert("RGB"), int(label)

    def name(self, index: int) -> str:
        place = self.indices[index]
        return str(file_of(self.dataset, place) or f"{type(self.dataset).__name__} image {place}")

    def key(self) -> str:
        if hasattr(self.dataset, "data"):  # CIFAR: everything is in memory
            pixels = hashlib.sha256(np.ascontiguousarray(self.dataset.data).tobytes()).hexdigest()
            return _hash([pixels, str(self.dataset.targets), str(self.indices)])
        return _files_key([self.name(index) for index in range(len(self))], [type(self.dataset).__name__])


def file_of(dataset: Any, place: int) -> Path | None:
    """The file of a torchvision dataset's image, where it keeps one file per image."""
    if hasattr(dataset, "categories"):  # Caltech-101 numbers its files by class
        name = f"image_{dataset.index[place]:04d}.jpg"
        return Path(dataset.root) / "101_ObjectCategories" / dataset.categories[dataset.y[place]] / name
    # torchvision has no public name for the list; these are the ones that its classes use.
    for attribute in ("_image_files", "_images"):
        if hasattr(dataset, attribute):
            return Path(getattr(dataset, attribute)[place])
    for attribute in ("_samples", "samples"):
        if hasattr(dataset, attribute):
            return Path(getattr(dataset, attribute)[place][0])
    return None


class JoinedImages:
    """Several sets one after the other (Flowers' train and val, say)."""

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
        part, place = self._find(index)
        return part[place]

    def name(self, index: int) -> str:
        part, place = self._find(index)
        return part.name(place)

    def key(self) -> str:
        return _hash([part.key() for part in self.parts])


class RecordImages:
    """An image rec file, as MXNet's im2rec writes it: one class number as each record's label."""

    def __init__(self, rec: str | Path):
        self.rec = Path(rec)
        self._reader: Any = None
        self._reader_process = 0
        self._count = len(self._open())

    def _open(self) -> Any:
        from alip.data.recordio import IndexedReader

        # Each worker process opens the file for itself: a handle shared after a fork would share its place in the file.
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

    def key(self) -> str:
        return _files_key([self.rec, self.rec.with_suffix(".idx")], [])


def _files_key(paths: Sequence[str | Path], facts: Sequence[Any]) -> str:
    """Hashes names, sizes and times of change: reading every file would cost as much as the evaluation itself."""
    lines = []
    for path in paths:
        try:
            status = os.stat(path)
            lines.append(f"{path} {status.st_size} {status.st_mtime_ns}")
        except OSError:
            lines.append(f"{path} missing")
    return _hash([*lines, str(list(facts))])


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
