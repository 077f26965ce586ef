"""The lines of the files of a captions output, as `alip.caption.store` describes them: written, and read back."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alip.errors import UserError
from alip.files import bounded_lines, check_regular, refusals_named

LONGEST_LINE = 1 << 24  # bytes: a longer one was not written here


class PartWriter:
    """Appends lines to one part file; after each `flush` they survive a kill of this process."""

    def __init__(self, path: Path, sync_seconds: float = 30.0) -> None:
        self._file = path.open("x", encoding="utf-8")
        self._sync_seconds, self._synced = sync_seconds, time.monotonic()

    def write(self, line: dict[str, Any]) -> None:
        """One JSON line."""
        with refusals_named(self._file.name):
            self._file.write(to_line(line))

    def flush(self) -> None:
        """Passes the lines to the system (they survive a kill), and every sync_seconds to the disk (a power cut)."""
        with refusals_named(self._file.name):
            self._file.flush()
            if time.monotonic() - self._synced > self._sync_seconds:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def close(self) -> None:
        """Flushes to the disk and closes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def identity(line: dict[str, Any]) -> str:
    """What there is one line of: an image, or one of the raw texts of an image (rewritten texts have their digest)."""
    return f"{line['key']}\0{line['text']}" if "text" in line else line["key"]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a captions or failures file. Other lines (truncated, since the process died while writing
    it, or edited) are skipped: their images are captioned again."""
    check_regular(path)
    with open(path, "rb", buffering=1 << 20) as file:
        for text in bounded_lines(file, LONGEST_LINE):
            if len(text) >= LONGEST_LINE:
                raise UserError(
                    f"{path}: a line of more than {LONGEST_LINE:,} bytes, which this command never writes; remove that "
                    "line or the file"
                )
            if not text.endswith(b"\n"):
                return
            try:
                line = json.loads(text.decode("utf-8", "replace"))
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and _is_whole(line):
                yield line


_TEXTS = ("key", "caption", "image", "reason", "rewrite", "text", "digest")
_CONTENTS = ("caption", "captions", "rewrite", "reason", "costs")  # one of these makes a line


def _is_whole(line: dict[str, Any]) -> bool:
    texts = all(isinstance(line.get(name, ""), str) for name in _TEXTS)
    digests = texts and all(_is_digest(line.get(name, "")) for name in ("image", "text", "digest"))
    captions, scores, costs = line.get("captions", [""]), line.get("scores", []), line.get("costs", {})
    lists = isinstance(captions, list) and isinstance(scores, list) and isinstance(costs, dict)
    return (
        digests
        and "key" in line
        and any(name in line for name in _CONTENTS)
        and lists
        and bool(captions)
        and all(isinstance(caption, str) for caption in captions)
        and all(isinstance(one, dict) for one in scores)
        and ("scores" not in line or len(scores) == len(captions))
        and all(isinstance(value, int | float) and abs(value) < 1e300 for value in costs.values())
    )


def _is_digest(text: str) -> bool:
    return len(text) <= 16 and all(letter in "0123456789abcdef" for letter in text)


def to_line(line: dict[str, Any]) -> str:
    """One JSON line, readable where possible; keys that are not UTF-8 (odd file names) are escaped."""
    text = json.dumps(line, ensure_ascii=False)
    return (text if text.isascii() or _is_utf8(text) else json.dumps(line)) + "\n"


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
