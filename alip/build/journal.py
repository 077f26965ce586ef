"""What a build remembers on disk, so that after a crash it resumes and ends with the very same bytes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from alip.errors import UserError
from alip.files import FileLock, LockedError, remove_leftovers, sync

JOURNAL = "journal.jsonl"
VERSION = 2  # of the work folder; 1 had other names and wrote records without a CRC-32
LOCK_WAIT = 5.0  # seconds: a build that was just killed may still be dying


class WorkFolder:
    """The folder `NAME.partial` beside the shards, locked while a build runs and removed when it is done.

    It holds the journal, the rejects so far and temporary files. UserError if another build holds the lock.
    """

    def __init__(self, path: Path):
        self.path = path
        for _ in range(100):
            path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock = FileLock(path / "lock", LOCK_WAIT)
                return
            except FileNotFoundError:  # the build that held it is done and has just removed the folder
                continue
            except LockedError as error:
                raise UserError(f"{error.holder} is building {path.with_suffix('')}: wait for it") from None
        raise UserError(f"{path} disappears as soon as it is made: another process removes it")

    def has_journal(self) -> bool:
        """True if a build was started here, so that the files under its names are its own."""
        return bool(_read_lines(self.path / JOURNAL)[0])

    def empty(self) -> None:
        """Removes all but the lock: the journal first, since it names the rest."""
        (self.path / JOURNAL).unlink(missing_ok=True)
        sync(self.path)
        for entry in self.path.iterdir():
            if entry.name != "lock":
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def remove(self) -> None:
        """Removes the folder. A new build may create it again at the same moment, so it need not be gone afterwards."""
        self.empty()
        (self.path / "lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()
        self.close()

    def close(self) -> None:
        """Releases the lock."""
        self._lock.close()


class Journal:
    """What a build has done, as JSON lines. A line is written only when all that it names is safely on the disk.

    The first line holds the build's options; a run that resumes must have the same (UserError). A build that stopped
    with nothing done, such as on a mistake in its command, is not resumed: the next one starts in its place.
    """

    def __init__(self, work: WorkFolder, options: dict):
        self.folder = work.path
        self.path = work.path / JOURNAL
        self.lines, whole = _read_lines(self.path)
        self.last_written = self.path.stat().st_mtime if len(self.lines) > 1 else None  # by the build that this resumes
        header = {"version": VERSION, "options": options}
        if not self.lines or (len(self.lines) == 1 and self.lines[0] != json.loads(json.dumps(header))):
            work.empty()
            self._file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115 (held until close)
            self.lines, self.last_written = [], None
            self.add(header)
            sync(work.path)
        else:
            self._check(options)
            os.truncate(self.path, whole)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
            remove_leftovers(self.folder)

    def _check(self, options: dict) -> None:
        first = self.lines[0]
        if first.get("version") != VERSION:
            raise UserError(
                f"{self.folder} holds a build that another version of this code started: finish it with that version, "
                "or give --overwrite to start again"
            )
        changed = [name for name in options if first["options"].get(name) != options[name]]
        if changed:
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
        """Closes the journal."""
        with contextlib.suppress(OSError):  # a line that a full disk cut short is ignored by the next run
            self._file.close()


def _read_lines(path: Path) -> tuple[list[dict], int]:
    """All whole lines, and their length in bytes; the last one may have been cut by a crash."""
    lines: list[dict] = []
    whole = 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            content = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(content, dict):
            break
        lines.append(content)
        whole += len(line)
    return lines, whole


@contextlib.contextmanager
def explain_disk_errors(folder: Path) -> Iterator[None]:
    """What the disk or the system's limits refuse is for the user to fix: one line, UserError.

    Errors of the input files arrive as rejects, so an OSError here comes from writing (or from the system).
    """
    try:
        yield
    except OSError as error:
        resume = "run the same command again, it resumes where it stopped"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk of {folder} is full: free some space and {resume}") from None
        if error.errno == errno.EFBIG:
            raise UserError(
                f"a file in {folder} would exceed the size limit for files (ulimit -f, or the file system's): "
                f"raise it and {resume}, or choose a lower --samples-per-shard"
            ) from None
        named = error.filename or folder
        raise UserError(f"{named}: {error.strerror or error}; fix that and {resume}") from None


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
        self._file.write((json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))

    def extend(self, path: Path, counts: dict[str, int]) -> None:
        """Appends the lines of another rejects file."""
        self.counts.update(counts)
        with open(path, "rb") as file:
            shutil.copyfileobj(file, self._file)

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
        where, message = line["where"], line["message"] or line["reason"]
        return message if message.startswith(where) else f"{where}: {message}"

    def close(self) -> None:
        """Closes the file; what it could not write on a full disk is written again by the next run."""
        with contextlib.suppress(OSError):
            self._file.close()
