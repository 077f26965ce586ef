"""Images of an evaluation dataset that are not one file each: arrays of pixels, HDF5 files, and crops of files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alip.errors import UserError
from alip.eval.image_readers import ImageFiles, short_hash, stat_key

_ROWS_AT_A_TIME = 512


class ArrayImages:
    """Images of one size in an array of bytes (n, height, width) or (n, height, width, 3); a memory map will do.

    source: the file they are from.
    """

    def __init__(self, source: Path, pixels: np.ndarray, labels: Sequence[int] | np.ndarray):
        self.source, self.pixels = source, pixels
        self.labels = np.asarray(labels, dtype=np.int64)
        if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[3:] not in ((), (3,)):
            raise UserError(f"{source}: {pixels.dtype} pixels of shape {pixels.shape}; bytes (n, height, width[, 3])")
        if len(pixels) != len(self.labels):
            raise UserError(f"{source}: {len(pixels)} images, but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(np.ascontiguousarray(self.pixels[index])).convert("RGB"), int(self.labels[index])

    def name(self, index: int) -> str:
        return f"{self.source} image {index}"

    def cache_key(self) -> str:
        return stat_key([self.source], [self.labels.tolist()])

    def content_hash(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for start in range(0, len(self), _ROWS_AT_A_TIME):
            digest.update(np.ascontiguousarray(self.pixels[start : start + _ROWS_AT_A_TIME]))
        return short_hash([digest.hexdigest(), str(self.labels.tolist())])


class H5Images:
    """Images (n, height, width, 3) of an HDF5 file, read one by one. labels: (n,)."""

    def __init__(self, path: Path, dataset: str, labels: np.ndarray):
        self.path, self.dataset, self.labels = path, dataset, np.asarray(labels, dtype=np.int64)
        self._file: Any = None
        self._process = 0
        count = len(self._pixels())
        if count != len(self.labels):
            raise UserError(f"{path}: {count} images, but {len(self.labels)} labels")

    def _pixels(self) -> Any:
        # Each worker process opens the file for itself: HDF5 must not be shared across a fork.
        if self._file is None or self._process != os.getpid():
            self._file, self._process = open_h5(self.path), os.getpid()
        return self._file[self.dataset]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(np.asarray(self._pixels()[index])).convert("RGB"), int(self.labels[index])

    def name(self, index: int) -> str:
        return f"{self.path} image {index}"

    def cache_key(self) -> str:
        return stat_key([self.path], [self.labels.tolist()])

    def _blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self), _ROWS_AT_A_TIME):
            yield np.ascontiguousarray(self._pixels()[start : start + _ROWS_AT_A_TIME])

    def content_hash(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for block in self._blocks():
            digest.update(block)
        return short_hash([digest.hexdigest(), str(self.labels.tolist())])


def open_h5(path: Path) -> Any:
    """The HDF5 file, open for reading; UserError without h5py, or if it is none."""
    try:
        import h5py  # an extra: only PatchCamelyon's original files are HDF5
    except ImportError as error:
        raise UserError(f"{path} needs h5py: pip install h5py, or take the dataset as wds:FOLDER") from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())[:200]}; an unpacked HDF5 file is expected") from error


class CroppedFiles(ImageFiles):
    """Image files of which a part is shown. boxes: (n, 4) left, top, right, bottom in pixels; or border: pixels that
    are cut off on all four sides.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Sequence[int], boxes: np.ndarray | None = None, border: int = 0
    ) -> None:
        super().__init__(paths, labels)
        self.boxes, self.border = boxes, border

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = super().__getitem__(index)
        if self.boxes is not None:
            return image.crop(tuple(int(edge) for edge in self.boxes[index])), label
        return image.crop((self.border, self.border, image.width - self.border, image.height - self.border)), label

    def _crops(self) -> str:
        return str(self.border if self.boxes is None else self.boxes.tolist())

    def cache_key(self) -> str:
        return short_hash([super().cache_key(), self._crops()])

    def content_hash(self) -> str:
        return short_hash([super().content_hash(), self._crops()])


class SelectedImages:
    """Some of the images, in the order of the given positions."""

    def __init__(self, images: Any, positions: Sequence[int]):
        self.images, self.positions = images, np.asarray(positions, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[int(self.positions[index])]

    def name(self, index: int) -> str:
        return self.images.name(int(self.positions[index]))

    def cache_key(self) -> str:
        return short_hash([self.images.cache_key(), str(self.positions.tolist())])

    def content_hash(self) -> str:
        return short_hash([self.images.content_hash(), str(self.positions.tolist())])
