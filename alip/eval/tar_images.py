"""Images inside plain tars, read where they lie: an index of byte ranges is made in one pass, nothing is unpacked.

The tars are WebDataset's: neighbouring members that share a name up to its first dot are one sample.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from alip.build.sources import MAX_IMAGE_BYTES, MAX_TEXT_BYTES
from alip.build.tar_members import BLOCK, READ_ERRORS, Damage, TarMembers
from alip.errors import UserError
from alip.eval.image_readers import NO_LABEL, read_rgb, short_hash, stat_key

IMAGE_EXTENSIONS = ("webp", "png", "jpg", "jpeg")
_HASH_THREADS = 4
_HASH_BLOCK = 256  # images
_LARGEST_LABEL = 10**9
_OPEN_FILES = 64  # per thread


class TarImages:
    """Images by their byte ranges: paths[tar[i]], size[i] bytes from start[i]. labels: (n,), -1 for none."""

    def __init__(self, paths: Sequence[Path], tar: np.ndarray, start: np.ndarray, size: np.ndarray, labels: np.ndarray):
        self.paths = list(paths)
        self.tar, self.start, self.size, self.labels = tar, start, size, labels
        self._open = threading.local()  # files by thread, because the oldest ones are closed

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _open=threading.local())

    def __len__(self) -> int:
        return len(self.tar)

    def data(self, index: int) -> bytes:
        """The encoded image."""
        number, size = int(self.tar[index]), int(self.size[index])
        data = os.pread(self._file(number).fileno(), size, int(self.start[index]))
        if len(data) != size:
            raise OSError(f"{len(data):,} bytes of {size:,}")
        return data

    def _file(self, number: int) -> BinaryIO:
        files: dict[int, BinaryIO] = self._open.__dict__.setdefault("files", {})
        if number not in files:
            while len(files) >= _OPEN_FILES:
                files.pop(next(iter(files))).close()
            files[number] = open(self.paths[number], "rb", buffering=0)  # noqa: SIM115 - kept open
        return files[number]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_rgb(io.BytesIO(self.data(index))), int(self.labels[index])

    def name(self, index: int) -> str:
        """The tar and the member's name, which its header still has."""
        number, start = int(self.tar[index]), int(self.start[index])
        try:
            with open(self.paths[number], "rb") as file:
                header = os.pread(file.fileno(), 100, start - BLOCK)
            member = header.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
        except OSError:
            member = f"byte {start:,}"
        return f"{self.paths[number]}/{member}"

    def cache_key(self) -> str:
        return stat_key(self.paths, [self.labels.tolist()])

    def content_hash(self) -> str:
        blocks = [range(first, min(first + _HASH_BLOCK, len(self))) for first in range(0, len(self), _HASH_BLOCK)]
        with ThreadPoolExecutor(_HASH_THREADS) as pool:
            return short_hash([*pool.map(self._hash_of, blocks), str(self.labels.tolist())])

    def _hash_of(self, indices: range) -> str:
        """Of some images, through a file of its own: the table of open ones is not for several threads."""
        found = hashlib.blake2b(digest_size=16)
        with contextlib.ExitStack() as opened:
            current, descriptor = -1, -1
            for index in indices:
                number = int(self.tar[index])
                try:
                    if number != current:  # the images are in the order of the tars
                        opened.close()
                        current = -1
                        descriptor = opened.enter_context(open(self.paths[number], "rb")).fileno()
                        current = number
                    data = os.pread(descriptor, int(self.size[index]), int(self.start[index]))
                except OSError:
                    data = b"unreadable"
                found.update(hashlib.blake2b(data, digest_size=16).digest())
        return found.hexdigest()


@dataclass
class TarContent:
    """What the tars hold. texts: of every sample's .txt, if asked for; arrays: (n, …), of every sample's .npy."""

    images: TarImages
    texts: list[str] = field(default_factory=list)
    arrays: np.ndarray | None = None


def read_tars(paths: Sequence[Path], label: str | None, array: bool = False) -> TarContent:
    """Indexes the tars' samples in their order.

    label: "cls", "txt", or None: what every sample must have beside its image. array: read .npy members too, which
    every sample must have. UserError for damage, and for samples that have less or more.
    """
    tar, start, size, labels = [], [], [], []
    texts: list[str] = []
    arrays: list[np.ndarray] = []
    for number, path in enumerate(paths):
        for sample in _samples(path, label, array):
            tar.append(number)
            start.append(sample.start)
            size.append(sample.size)
            labels.append(NO_LABEL if sample.label is None else sample.label)
            if sample.text is not None:
                texts.append(sample.text)
            if sample.array is not None:
                arrays.append(sample.array)
    if not tar:
        raise UserError(f"{paths[0] if paths else 'no tar'}: no sample in it")
    if arrays and len({one.shape for one in arrays}) > 1:
        raise UserError(f"{paths[0]}: its .npy members have different shapes")
    columns = [np.array(one, dtype=kind) for one, kind in ((tar, "i4"), (start, "i8"), (size, "i8"), (labels, "i8"))]
    return TarContent(TarImages(paths, *columns), texts, np.stack(arrays) if arrays else None)


@dataclass
class _Sample:
    key: str
    where: str
    start: int = -1
    size: int = 0
    label: int | None = None
    text: str | None = None
    array: np.ndarray | None = None


def _samples(path: Path, label: str | None, array: bool) -> Iterator[_Sample]:
    """The samples of one tar, each checked for what it must have."""
    try:
        members = TarMembers(str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        if not members.in_place:
            raise UserError(f"{path} is compressed; unpack it to a plain tar, whose images can be read where they are")
        current: _Sample | None = None
        for found in members:
            if isinstance(found, Damage):
                raise UserError(f"{path} is damaged: {found.message}; download it again")
            if found.isdir():
                continue
            key, extension = _key(found.name)
            if current is None or key != current.key:
                if current is not None:
                    yield _checked(current, label, array)
                current = _Sample(key, f"{path}/{found.name}")
            _add(current, found, extension, members, path, label, array)
        if current is not None:
            yield _checked(current, label, array)
    finally:
        members.close()


def _key(name: str) -> tuple[str, str]:
    folder, _, file = name.rpartition("/")
    stem, _, suffixes = file.partition(".")
    return f"{folder}/{stem}", suffixes.rpartition(".")[2].lower()


def _add(
    sample: _Sample,
    info: tarfile.TarInfo,
    extension: str,
    members: TarMembers,
    path: Path,
    label: str | None,
    array: bool,
) -> None:
    """Takes over one member of the sample, if it is one of those that are wanted."""
    where = f"{path}/{info.name}"
    if not info.isreg() or info.issparse():
        raise UserError(f"{where} is no ordinary file of the tar")
    if extension in IMAGE_EXTENSIONS:
        if sample.start >= 0:
            raise UserError(f"{where}: a second image of one sample")
        if info.size > MAX_IMAGE_BYTES:
            raise UserError(f"{where}: {info.size:,} bytes, the limit is {MAX_IMAGE_BYTES:,}")
        sample.start, sample.size = info.offset_data, info.size
        return
    if not (extension == label or (array and extension == "npy")):
        return
    if {"cls": sample.label, "txt": sample.text, "npy": sample.array}[extension] is not None:
        raise UserError(f"{where}: a second .{extension} of one sample")
    try:
        data = members.read(info, MAX_TEXT_BYTES)
        if extension == "cls":
            sample.label = int(data)
            if abs(sample.label) > _LARGEST_LABEL:
                raise ValueError(f"a label of {len(data):,} digits")
        elif extension == "txt":
            sample.text = data.decode("utf-8")
        else:
            sample.array = _array(data)
    except (ValueError, OSError, EOFError, tarfile.TarError, *READ_ERRORS) as error:
        raise UserError(f"{where} cannot be read: {' '.join(str(error).split())[:120] or 'it is cut off'}") from error


def _array(data: bytes) -> np.ndarray:
    """A .npy as its array. ValueError if it is none."""
    try:  # not np.load, which would open an archive under that name
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # of the header's parser: also SyntaxError, TokenError, MemoryError, …
        raise ValueError(f"not an array in NumPy's format: {error}") from error


def _checked(sample: _Sample, label: str | None, array: bool) -> _Sample:
    has = {"cls": sample.label, "txt": sample.text}
    missing = "an image (.jpg, .png or .webp)" if sample.start < 0 else ""
    if not missing and label is not None and has[label] is None:
        missing = f"a .{label}"
    if not missing and array and sample.array is None:
        missing = "a .npy"
    if missing:
        raise UserError(f"{sample.where}: this sample lacks {missing}, which every one needs")
    return sample
