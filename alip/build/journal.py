"""What a build remembers on disk, so that after a crash it resumes and ends with the very same bytes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from alip.errors import UserError


class Journal:
    """The work folder `NAME.partial` beside the shards: a journal of JSON lines, the rejects, temporary files.

    A line is written only when all that it names is safely on the disk. The first line holds the build's options; a
    second run must have the same. The folder is locked while a build runs and removed when it is done.
    """

    def __init__(self, folder: Path, options: dict):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(folder / "lock", "w")  # noqa: SIM115 (held until close)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UserError(f"another data2rec.py is building {folder.with_suffix('')}: wait for it") from None
        self.path = folder / "journal.jsonl"
        self.lines = self._read()
        if not self.lines:
            self._file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115
            self.add({"options": options})
        else:
            self._check(options)
            os.truncate(self.path, self._whole)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def _read(self) -> list[dict]:
        """All whole lines; the last one may have been cut by a crash."""
        lines = []
        self._whole = 0
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else ():
            try:
                content = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            lines.append(content)
            self._whole += len(line)
        return lines

    def _check(self, options: dict) -> None:
        before = self.lines[0]["options"]
        changed = [name for name in options if before.get(name) != options[name]]
        if changed:
            self.close()
            raise UserError(
                f"{self.folder} holds a build that was started with another {', '.join(changed)}: "
                "repeat its command to resume it, or give --overwrite to start again"
            )

    def last(self, kind: str) -> dict | None:
        """The newest line that has an entry of this name, or None."""
        return next((line for line in reversed(self.lines) if kind in line), None)

    def add(self, line: dict) -> None:
        """Writes a line; it is on the disk when this returns."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.lines.append(line)

    def close(self) -> None:
        """Closes the journal and releases the lock."""
        if hasattr(self, "_file"):
            self._file.close()
        self._lock.close()

    def remove(self) -> None:
        """The build is done: the work folder is removed."""
        self.close()
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """A full disk is something that the user can fix."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk of {folder} is full: free some space and run the same command again, it resumes where it stopped"
        ) from None


class RejectsFile:
    """The samples left out, one JSON line each, and how many for which reason. state: of the last commit, or None."""

    def __init__(self, path: Path, state: dict | None):
        self.path = path
        self.counts: Counter = Counter((state or {}).get("counts", {}))
        self._file = open(path, "ab")  # noqa: SIM115 (held until close)
        self._file.truncate((state or {}).get("bytes", 0))

    @property
    def count(self) -> int:
        """All rejects so far."""
        return sum(self.counts.values())

    def add(self, key: str, where: str, reason: str, message: str) -> None:
        """Names one sample."""
        self.counts[reason] += 1
        line = {"key": key, "where": where, "reason": reason, "message": message}
        self._file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())

    def sync(self) -> None:
        """All lines are on the disk when this returns."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def state(self) -> dict:
        """What a journal line has to remember."""
        return {"bytes": self._file.tell(), "counts": dict(self.counts)}

    def first(self) -> str | None:
        """The first reject, for a message."""
        with contextlib.suppress(OSError):
            self._file.flush()
        lines = self.path.read_text(encoding="utf-8").splitlines()
        if not lines:
            return None
        line = json.loads(lines[0])
        return f"{line['where']}: {line['message'] or line['reason']}"

    def close(self) -> None:
        """Closes the file; what it could not write on a full disk is written again by the next run."""
        with contextlib.suppress(OSError):
            self._file.close()
