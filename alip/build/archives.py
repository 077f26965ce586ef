"""WebDataset tars, as img2dataset writes them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from alip.build.images import EXTENSIONS, OTHER_IMAGES
from alip.build.sources import MAX_IMAGE_BYTES, MAX_TEXT_BYTES, ByteRange, Sample, Source, load_json_object, take_texts
from alip.build.tar_members import READ_ERRORS, Damage, TarMembers
from alip.remote.urls import redact


class TarSource(Source):
    """WebDataset tars: neighbouring members that share a name up to its first dot are one sample.

    Hidden files (`._a.jpg`, as macOS adds one to each file) belong to none; an image among them has the error
    `hidden-file`. A part of a tar that cannot be read is a sample of its own with the error `broken-input`; the samples
    beside it, of which a member may be lost, have the error `damaged-sample`.
    """

    source_type = "webdataset"
    divided_from = 1 << 30

    def read_unit(self, unit: int, position: tuple[int, ...] | None = None) -> Iterator[Sample]:
        path = redact(self.units[unit])
        try:
            members = TarMembers(self.units[unit], *(position or ()))
        except OSError as error:
            yield Sample("", path, error=f"broken-input: {path} cannot be read: {error}")
            return
        try:
            group: list[_Member] = []
            hidden: list[Sample] = []  # named behind the sample that they are in, so that positions hold
            damaged = False
            for found in members:
                if isinstance(found, Damage):
                    if group:
                        yield self._sample(path, group, damaged=True)
                    group, damaged = [], True
                    yield Sample("", path, error=f"broken-input: {path}: {found.message}")
                elif not found.isdir():
                    member = _member(path, found, members)
                    member.position = members.position
                    if member.is_hidden:
                        hidden += _named(path, member)
                        continue
                    if group and group[0].key != member.key:
                        yield self._sample(path, group, damaged, self.progress(unit, members.done))
                        group, damaged = [], False
                    if not group:
                        yield from hidden
                        hidden = []
                    group.append(member)
            if group:
                yield self._sample(path, group, damaged, self.progress(unit, members.done))
            yield from hidden
        finally:
            members.close()

    def _sample(
        self, path: str, members: list[_Member], damaged: bool = False, progress: float | None = None
    ) -> Sample:
        sample = Sample(members[0].key, f"{path}:{members[0].name}", progress=progress)
        for member in members:
            if member.error:
                sample.error = member.error
            elif member.extension in EXTENSIONS:
                if sample.image_data is not None:
                    sample.error = f"ambiguous: two images, {sample.image_name} and {member.name}"
                sample.image_data, sample.image_name = member.content, member.name
                sample.where = f"{path}:{member.name}"
            elif member.extension in OTHER_IMAGES and sample.image_data is None and not sample.error:
                sample.error = f"unsupported-format: {member.name}"
        if damaged:  # and a reader that begins here would not know of it: no position
            sample.error = f"damaged-sample: {path} is damaged beside it, and a part of it may be lost"
        else:
            sample.position = members[0].position
        text_file = None
        try:
            for member in _text_files(members):
                content = member.content.decode("utf-8-sig")
                if member.extension == "txt":
                    text_file = content
                else:
                    sample.metadata = load_json_object(content)
        except _TwoAlike as error:
            sample.error = sample.error or f"ambiguous: {error}"
        except ValueError as error:
            sample.error = sample.error or f"bad-text: {member.name}: {error}"
        take_texts(sample, self.fields, text_file)
        return sample


@dataclass
class _Member:
    """A file of a tar. content: its bytes, or where they are; None if nothing of ours. error: why it is of no use.
    position: see TarMembers."""

    name: str
    key: str
    extension: str
    content: ByteRange | bytes | None = None
    error: str | None = None
    position: tuple[int, ...] | None = None

    @property
    def is_hidden(self) -> bool:
        """Whether its name begins with a dot, so that nothing of it is left for a key."""
        return self.name.rpartition("/")[2].startswith(".")

    @property
    def is_plain(self) -> bool:
        """Whether nothing stands between key and extension: of a.txt and a.de.txt the first is the sample's text."""
        return len(self.name) == len(self.key) + 1 + len(self.extension)


def _named(path: str, member: _Member) -> list[Sample]:
    """A hidden file as a sample with an error, if it is called an image."""
    if member.extension not in EXTENSIONS and member.extension not in OTHER_IMAGES:
        return []
    return [Sample(member.name, f"{path}:{member.name}", error=f"hidden-file: {member.name} belongs to no sample")]


class _TwoAlike(Exception):
    """Which of two files is the sample's cannot be known."""


def _text_files(members: list[_Member]) -> list[_Member]:
    """The .json and .txt of a sample, at most one of each: that with a plain name, if there is one."""
    chosen = []
    for extension in ("json", "txt"):
        those = [member for member in members if member.extension == extension and not member.error]
        those = [member for member in those if member.is_plain] or those
        if len(those) > 1:
            raise _TwoAlike(f"two .{extension} files, {those[0].name} and {those[1].name}")
        chosen += those
    return chosen


def _member(path: str, info: tarfile.TarInfo, members: TarMembers) -> _Member:
    folder, _, file_name = info.name.rpartition("/")
    stem, _, suffixes = file_name.partition(".")
    member = _Member(info.name, f"{folder}/{stem}" if folder else stem, suffixes.rpartition(".")[2].lower())
    if not info.isreg():
        what = f"a link to {info.linkname}" if info.islnk() or info.issym() else "a special file"
        member.error = f"no-regular-file: {info.name} is {what}; store the file itself"
        return member
    is_image = member.extension in EXTENSIONS
    if not is_image and member.extension not in ("json", "txt"):
        return member
    if is_image and members.in_place and not info.issparse():
        member.content = ByteRange(path, info.offset_data, info.size)
        return member
    try:  # texts are short; the images of a compressed tar can only be had now, in order
        member.content = members.read(info, MAX_IMAGE_BYTES if is_image else MAX_TEXT_BYTES)
    except (ValueError, LookupError, ArithmeticError, tarfile.TarError, *READ_ERRORS) as error:
        member.error = f"unreadable: {info.name}: {error or 'it is cut off'}"
    return member
