"""From what a user names (files, folders, patterns) to a source."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator

from alip.build.annotations import AnnotationSource
from alip.build.archives import TarSource
from alip.build.folders import FolderSource
from alip.build.images import EXTENSIONS
from alip.build.sources import Fields, Source
from alip.build.tables import TABLES, TableSource
from alip.errors import UserError
from alip.remote.reading import glob as glob_url
from alip.remote.reading import open_any
from alip.remote.urls import folder_of, is_url, local_path, name_of, redact, scheme_of

_MOST_NAMES = 1_000_000  # that one pattern may expand to
_MOST_BRACES = 16
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# What a folder of tars may hold beside them that is samples, too, and is not read with them.
_OTHER_SAMPLES = (*(f".{one}" for one in EXTENSIONS), ".tar.zst", ".tar.lz4", ".tbz2", ".txz")
_BRACES = re.compile(r"\{([^{}]*)\}")
_SPAN = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")


def open_source(
    spec: str | list[str],
    source_type: str | None = None,
    *,
    fields: Fields | None = None,
    image_root: str | None = None,
    splits: tuple[str, ...] | None = None,
) -> Source:
    """The source that `spec` names. UserError if there is none, or it cannot be recognised.

    spec: a file, a folder, a pattern with {000..099} braces, {a,b} braces and globs, or several of these.
    source_type: webdataset, table, coco, karpathy or folder; None: recognised from the names and contents.
    fields: names of columns or JSON fields. image_root: where relative image paths of tables and JSON start
    (None: beside the file). splits: of Karpathy's JSON, the ones to read (None: train and restval; none: all).
    """
    specs = [spec] if isinstance(spec, str | os.PathLike) else list(spec)
    paths = expand([local_path(str(one)) for one in specs])
    image_root = None if image_root is None else local_path(image_root)
    for path in paths:
        if not is_url(path) and not os.path.isfile(path) and not os.path.isdir(path):
            raise UserError(f"{path} is neither a regular file nor a folder: name those")
    fields = fields or Fields()
    source_type = source_type or _recognise(paths)
    _check_flags(source_type, fields, {"--image-root": image_root, "--splits": splits})
    if source_type == "webdataset":
        if any(os.path.isdir(path) for path in paths):
            paths = _each_once(tar for path in paths for tar in (_all_tars(path) if os.path.isdir(path) else [path]))
        return TarSource(paths, fields)
    if source_type == "folder":
        if is_url(paths[0]):
            raise UserError(f"{redact(paths[0])}: a folder of images is read from a disk only: pack it into tars")
        if len(paths) != 1 or not os.path.isdir(paths[0]):
            raise UserError(f"a folder source is one folder, not {', '.join(paths[:3])}")
        return FolderSource(paths[0], fields)
    for path in paths:
        if os.path.isdir(path):
            raise UserError(f"{path} is a folder, and a {source_type} source reads files: name them")
    if source_type == "table":
        return TableSource(paths, fields, image_root)
    if source_type in ("coco", "karpathy"):
        splits = ("train", "restval") if splits is None else splits
        return AnnotationSource(paths, fields, image_root, source_type, splits)
    raise UserError(f"unknown source type {source_type!r}: use webdataset, table, coco, karpathy or folder")


# Which of the flags about a source mean something for which type; the others would be passed over in silence.
_FLAGS = {
    "webdataset": {"--key-field", "--text-field", "--caption-field"},
    "folder": {"--key-field", "--text-field", "--caption-field"},
    "table": {"--key-field", "--image-field", "--text-field", "--caption-field", "--image-root"},
    "coco": {"--image-root"},
    "karpathy": {"--image-root", "--splits"},
}


def _check_flags(source_type: str, fields: Fields, others: dict[str, object]) -> None:
    given = {f"--{name}-field": value for name, value in vars(fields).items()} | others
    for flag in sorted(flag for flag, value in given.items() if value is not None):
        if flag not in _FLAGS.get(source_type, given):
            raise UserError(f"{flag} means nothing for a {source_type} source: leave it out")


def _recognise(paths: list[str]) -> str:
    types = {_recognise_one(path) for path in paths}
    if len(types) != 1:
        raise UserError(f"the input mixes several types of source ({', '.join(sorted(types))}): give one at a time")
    return types.pop()


def _recognise_one(path: str) -> str:
    if os.path.isdir(path):
        return "webdataset" if _tars_in(path) else "folder"
    name = name_of(path).lower()
    if name.endswith(_TARS):
        return "webdataset"
    if name.endswith(TABLES):
        return "table"
    if name.endswith(".json"):
        with open_any(path) as file:
            head = file.read(1 << 20).decode("utf-8", errors="replace")
        if '"sentences"' in head or '"sentids"' in head:
            return "karpathy"
        if '"annotations"' in head or '"images"' in head:
            return "coco"
    raise UserError(
        f"cannot tell the source type of {redact(path)}: name it with "
        "--source-type webdataset|table|coco|karpathy|folder"
    )


def _tars_in(folder: str) -> list[str]:
    names = glob.glob(os.path.join(glob.escape(folder), "*"))
    return sorted(name for name in names if name.lower().endswith(_TARS))


def _all_tars(folder: str) -> list[str]:
    """The tars of a folder. UserError where it holds samples that would be passed over."""
    beside = [path for path in glob.glob(os.path.join(glob.escape(folder), "*")) if not path.lower().endswith(_TARS)]
    below = glob.glob(os.path.join(glob.escape(folder), "*", "*"))
    others = [path for path in beside if path.lower().endswith(_OTHER_SAMPLES)]
    others += [path for path in below if path.lower().endswith(_TARS)]
    if others:
        raise UserError(
            f"{folder} holds tars, and also {min(others)}: name the tars, as in '{os.path.join(folder, '*.tar')}', and "
            "build the others by themselves"
        )
    return _tars_in(folder)


def _each_once(paths: Iterable[str]) -> list[str]:
    """The paths, in order, without those that name the same file: a tar beside its folder, ./a.tar beside a.tar."""
    found: dict[str, str] = {}
    for path in paths:
        found.setdefault(path if is_url(path) else os.path.abspath(path), path)
    return list(found.values())


def expand(specs: list[str], most: int = _MOST_NAMES) -> list[str]:
    """The files and folders behind patterns, in order, each once. UserError where a pattern finds nothing, or expands
    to more than `most` names."""
    found: list[str] = []
    for spec in specs:
        for count, pattern in enumerate([spec] if os.path.exists(spec) else _expand_braces(spec), 1):
            if count > most:
                raise UserError(f"{redact(spec)} expands to more than {most:,} names: narrow it down")
            if is_url(pattern):
                found += _at_url(pattern)
                continue
            matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
            if not matches:
                raise UserError(f"no such file or folder: {pattern}")
            found += matches
    return _each_once(found)


def _at_url(pattern: str) -> list[str]:
    """The files behind a URL: itself, what its * finds, or the tars of a folder (it ends with a slash)."""
    if pattern.endswith("/") and scheme_of(pattern) not in ("http", "https"):
        tars = [url for url in glob_url(pattern + "*") if name_of(url).lower().endswith(_TARS)]
        if not tars:
            raise UserError(f"no such file: {redact(pattern)}*.tar")
        return tars
    if "*" not in name_of(pattern) and "*" not in folder_of(pattern):
        return [pattern]
    matches = glob_url(pattern)
    if not matches:
        raise UserError(f"no such file: {redact(pattern)}")
    return matches


def _expand_braces(pattern: str) -> Iterator[str]:
    """The names that a pattern with {first..last} and {a,b} expands to, one after the other: there may be billions."""
    if pattern.count("{") > _MOST_BRACES:
        raise UserError(f"{pattern[:80]} … has more than {_MOST_BRACES} braces: write fewer")
    match = _BRACES.search(pattern)
    if not match:
        yield pattern
        return
    head, body, tail = pattern[: match.start()], match.group(1), pattern[match.end() :]
    span = _SPAN.fullmatch(body)
    choices: Iterable[str]
    if span:
        first, last = span.groups()
        step = 1 if int(last) >= int(first) else -1
        choices = (str(n).zfill(len(first)) for n in range(int(first), int(last) + step, step))
    else:
        choices = body.split(",")
    for choice in choices:
        yield from _expand_braces(head + choice + tail)
