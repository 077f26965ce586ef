"""Folders of images with their texts beside them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import cached_property

from alip.build.images import EXTENSIONS, OTHER_IMAGES
from alip.build.sources import MAX_TEXT_BYTES, ByteRange, Cut, Fields, Sample, Source, load_json_object, take_texts


class FolderSource(Source):
    """A folder of images, at any depth, each with its raw text in a .txt of the same name beside it.

    A .json beside it gives further fields (`caption`, …). The key is the path without its extension. Links to folders
    are followed, save those that lead back to a folder they are in. What cannot be listed is a sample with the error
    `broken-input`; images of formats that are not read have the error `unsupported-format`.
    """

    source_type = "folder"
    divided_from = 1  # its size does not depend on what is in it

    def __init__(self, folder: str, fields: Fields):
        self.folder = folder
        super().__init__([folder], fields)

    def read_unit(self, unit: int, position: tuple[int, ...] | None = None) -> Iterator[Sample]:
        (start,) = position or (0,)
        for number, (folder, name, present, fault) in enumerate(self._entries()):
            if number < start:
                continue
            stem, _, extension = name.rpartition(".")
            if fault:
                sample = Sample(os.path.relpath(folder, self.folder), folder, error=f"broken-input: {fault}")
            elif extension.lower() in EXTENSIONS:
                sample = self._sample(folder, name, stem, present)
            else:
                key = os.path.relpath(os.path.join(folder, stem), self.folder)
                sample = Sample(key, os.path.join(folder, name), error=f"unsupported-format: {name}")
            sample.position = (number,)
            yield sample

    def divide(self, unit: int, every: int) -> list[Cut]:
        """See Source.divide; no file is read."""
        starts = list(range(0, max(1, sum(1 for _ in self._entries())), every))
        ends = [*starts[1:], None]
        return [Cut(i, first, last, (first,)) for i, (first, last) in enumerate(zip(starts, ends))]

    def _entries(self) -> Iterator[tuple[str, str, set[str], str]]:
        """What becomes a sample: (folder, name of an image, names beside it, ""), or a folder, no names, and what is
        wrong with it."""
        for folder, names, fault in self._walk():
            if fault:
                yield folder, "", set(), fault
            present = set(names)
            for name in names:
                stem, _, extension = name.rpartition(".")
                if stem and (extension.lower() in EXTENSIONS or extension.lower() in OTHER_IMAGES):
                    yield folder, name, present, ""

    def _walk(self) -> Iterator[tuple[str, list[str], str]]:
        """(folder, its files' names in order, what is wrong with it) of every folder, parents first, by name."""
        waiting: list[tuple[str, tuple]] = [(self.folder, ())]  # with the folders that it is in
        while waiting:
            folder, parents = waiting.pop()
            try:
                state = os.stat(folder)
                here = (state.st_dev, state.st_ino)
                if here in parents:
                    yield folder, [], f"{folder} is a link to a folder that it is in"
                    continue
                with os.scandir(folder) as entries:
                    names = sorted((entry.name, entry.is_dir()) for entry in entries)
            except OSError as error:
                yield folder, [], f"{folder} cannot be listed: {error.strerror}"
                continue
            yield folder, [name for name, is_folder in names if not is_folder], ""
            below = [os.path.join(folder, name) for name, is_folder in names if is_folder]
            waiting += [(one, (*parents, here)) for one in reversed(below)]

    def _sample(self, folder: str, name: str, stem: str, present: set[str]) -> Sample:
        path = os.path.join(folder, name)
        key = os.path.relpath(os.path.join(folder, stem), self.folder)
        sample = Sample(key, path, ByteRange(path), name)
        text_file = None
        try:
            if f"{stem}.json" in present:
                sample.metadata = load_json_object(_text(os.path.join(folder, f"{stem}.json")))
            if f"{stem}.txt" in present:
                text_file = _text(os.path.join(folder, f"{stem}.txt"))
        except (ValueError, OSError) as error:
            sample.error = f"bad-text: beside {path}: {error}"
        take_texts(sample, self.fields, text_file)
        return sample

    @cached_property
    def _listing(self) -> tuple[int, str]:
        """The number of images and the SHA-256 of their names: a position in a folder holds only while these do."""
        digest = hashlib.sha256()
        count = 0
        for folder, names, fault in self._walk():
            for name in names:
                extension = name.rpartition(".")[2].lower()
                if extension in EXTENSIONS or extension in OTHER_IMAGES:
                    count += 1
                    digest.update(os.fsencode(os.path.relpath(os.path.join(folder, name), self.folder)) + b"\0")
            digest.update(fault.encode("utf-8", "surrogateescape"))
        return count, digest.hexdigest()

    @property
    def count(self) -> int:
        """How many images there are."""
        return self._listing[0]

    def local_files(self) -> Iterator[str]:
        return (os.path.join(folder, name) for folder, names, _ in self._walk() for name in names)

    def describe(self) -> list[list]:
        return [[os.path.basename(os.path.abspath(self.folder)), 0, *self._listing]]


def _text(path: str) -> str:
    """The text of a file beside an image."""
    data = ByteRange(path).read(MAX_TEXT_BYTES)
    return data.decode("utf-8-sig")
