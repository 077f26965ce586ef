"""Files: written whole or not at all, read with one line on what is wrong, hashed in blocks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from alip.errors import UserError

TEMPORARY_SUFFIX = ".tmp"  # of what an interrupted write leaves behind: `.NAME.PID.tmp` beside NAME


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`; when the block ends without an error the file there becomes `path`.

    The file is flushed to the disk, then renamed, and the new name is flushed too: after a crash at any moment
    readers see the old file or the whole new one. After an error the temporary file is removed. Raises OSError as the
    disk does.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextlib.contextmanager
def atomic_write(path: str | Path, text: bool = False) -> Iterator[IO[Any]]:
    """An open file, bytes or UTF-8 text, that becomes `path` when the block ends without an error: see atomic_path."""
    with atomic_path(path) as temporary:
        mode, encoding, newline = ("w", "utf-8", "\n") if text else ("wb", None, None)
        with open(temporary, mode, encoding=encoding, newline=newline) as file:
            yield file


def write_json(path: str | Path, content: Any, **options: Any) -> None:
    """Writes a value as indented JSON, atomically. options: of json.dumps."""
    with atomic_write(path, text=True) as file:
        file.write(json.dumps(content, indent=1, **options) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object from a file; UserError with the position of the mistake otherwise."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check the path") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a JSON {type(content).__name__}, not an object")
    return content


def sync_file(path: str | Path) -> None:
    """The file's content is on the disk when this returns."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: str | Path) -> None:
    """Renames and new files of a folder are on the disk when this returns."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: str | Path) -> str:
    """The SHA-256 of a file's content, 64 hex digits; memory stays flat."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()  # Python 3.10 has no file_digest
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
