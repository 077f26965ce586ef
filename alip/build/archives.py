"""WebDataset tars, as img2dataset writes them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from alip.build.images import EXTENSIONS
from alip.build.sources import ByteRange, Sample, Source, take_texts


class TarSource(Source):
    """WebDataset tars: neighbouring members that share a name up to its first dot are one sample."""

    source_type = "webdataset"

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
                if sample.image_data is not None:
                    sample.error = f"ambiguous: two images, {sample.image_name} and {member.name}"
                sample.image_data, sample.image_name, sample.where = (
                    member.image_data,
                    member.name,
                    f"{path}:{member.name}",
                )
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


@dataclass
class _Member:
    name: str
    key: str
    extension: str
    image_data: ByteRange | bytes
    end: int

    def read(self) -> bytes:
        return self.image_data.read() if isinstance(self.image_data, ByteRange) else self.image_data


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
            image_data: ByteRange | bytes = ByteRange(path, info.offset_data, info.size)
        else:  # compressed: the bytes can only be had now, in order
            image_data = tar.extractfile(info).read()
        member = _Member(info.name, key, suffixes.rpartition(".")[2].lower(), image_data, info.offset_data + info.size)
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
