"""Writing at URLs: whole files, each checked for its length once it is there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from alip.errors import UserError
from alip.remote.access import RemoteError, ShortRead, attempt, filesystem
from alip.remote.reading import stat
from alip.remote.urls import redact, scheme_of

_READ_ONLY = ("http", "https")


def check_writable(url: str) -> None:
    """UserError for a scheme to which nothing is written."""
    if scheme_of(url) in _READ_ONLY:
        raise UserError(f"{redact(url)}: a web server takes no files; write to s3://, gs://, hf:// or a local folder")


def upload(path: Path, url: str) -> None:
    """Copies a local file to a URL (by parts where it is large): readers see nothing of it, or all of it."""
    size = os.path.getsize(path)

    def once() -> None:
        files, target = filesystem(url)
        files.put_file(str(path), target)
        _check(url, size)

    _write(url, once)


def write_url(url: str, content: bytes) -> None:
    """A small file."""

    def once() -> None:
        files, target = filesystem(url)
        files.pipe_file(target, content)
        _check(url, len(content))

    _write(url, once)


def _write(url: str, once: Callable[[], None]) -> None:
    try:
        attempt(url, "writing", once)
    except FileNotFoundError:
        raise RemoteError(f"{redact(url)}: there is no such bucket; make it, or check the URL") from None


def _check(url: str, size: int) -> None:
    there = stat(url).size
    if there != size:
        raise ShortRead(f"{there:,} bytes arrived of {size:,}")


def remove_url(url: str) -> None:
    """Removes a file; nothing happens if there is none."""

    def once() -> None:
        files, target = filesystem(url)
        files.rm_file(target)

    with contextlib.suppress(FileNotFoundError):
        attempt(url, "removing", once)
