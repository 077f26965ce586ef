"""From what a user names (files, folders, patterns) to a source."""

from __future__ import annotations

import glob
import os
import re

from alip.build.annotations import AnnotationSource
from alip.build.archives import TarSource
from alip.build.folders import FolderSource
from alip.build.sources import Fields, Source
from alip.build.tables import TABLES, TableSource
from alip.errors import UserError


def open_source(
    spec: str | list[str],
    source_type: str | None = None,
    *,
    fields: Fields | None = None,
    image_root: str | None = None,
    splits: tuple[str, ...] = ("train", "restval"),
) -> Source:
    """The source that `spec` names. UserError if there is none, or it cannot be recognised.

    spec: a file, a folder, a pattern with {000..099} braces, {a,b} braces and globs, or several of these.
    source_type: webdataset, table, coco, karpathy or folder; None: recognised from the names and contents.
    fields: names of columns or JSON fields. image_root: where relative image paths of tables and JSON start
    (None: beside the file). splits: of Karpathy's JSON, the ones to read.
    """
    specs = [spec] if isinstance(spec, str | os.PathLike) else list(spec)
    paths = expand([str(one) for one in specs])
    fields = fields or Fields()
    source_type = source_type or _recognise(paths)
    if source_type == "webdataset":
        if any(os.path.isdir(path) for path in paths):
            paths = [tar for path in paths for tar in (_tars_in(path) if os.path.isdir(path) else [path])]
        return TarSource(paths, fields)
    if source_type == "folder":
        if len(paths) != 1 or not os.path.isdir(paths[0]):
            raise UserError(f"a folder source is one folder, not {', '.join(paths[:3])}")
        return FolderSource(paths[0], fields)
    if source_type == "table":
        return TableSource(paths, fields, image_root)
    if source_type in ("coco", "karpathy"):
        return AnnotationSource(paths, fields, image_root, source_type, splits)
    raise UserError(f"unknown source type {source_type!r}: use webdataset, table, coco, karpathy or folder")


def _recognise(paths: list[str]) -> str:
    types = {_recognise_one(path) for path in paths}
    if len(types) != 1:
        raise UserError(f"the input mixes several types of source ({', '.join(sorted(types))}): give one at a time")
    return types.pop()


def _recognise_one(path: str) -> str:
    if os.path.isdir(path):
        return "webdataset" if _tars_in(path) else "folder"
    name = path.lower()
    if name.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")):
        return "webdataset"
    if name.endswith(TABLES):
        return "table"
    if name.endswith(".json"):
        with open(path, encoding="utf-8") as file:
            head = file.read(1 << 20)
        if '"sentences"' in head or '"sentids"' in head:
            return "karpathy"
        if '"annotations"' in head or '"images"' in head:
            return "coco"
    raise UserError(
        f"cannot tell the source type of {path}: name it with --source-type webdataset|table|coco|karpathy|folder"
    )


def _tars_in(folder: str) -> list[str]:
    return sorted(glob.glob(os.path.join(glob.escape(folder), "*.tar")))


def expand(specs: list[str]) -> list[str]:
    """The files and folders behind patterns, in order, each once. UserError where a pattern finds nothing."""
    found: list[str] = []
    for spec in specs:
        for pattern in [spec] if os.path.exists(spec) else _expand_braces(spec):
            matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
            if not matches:
                raise UserError(f"no such file or folder: {pattern}")
            found += matches
    return list(dict.fromkeys(found))


def _expand_braces(pattern: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    body = match.group(1)
    span = re.fullmatch(r"(\d+)\.\.(\d+)", body)
    if span:
        first, last = span.groups()
        step = 1 if int(last) >= int(first) else -1
        choices = [str(n).zfill(len(first)) for n in range(int(first), int(last) + step, step)]
    else:
        choices = body.split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [full for choice in choices for full in _expand_braces(head + choice + tail)]
