"""The files of a captions output, and how it resumes after any interruption.

    captions.jsonl            {"key", "caption", "image"}: a line for each captioned image; "image": digest of its bytes
                              (with several captions of an image "captions", a list, instead of "caption")
    captions-failures.jsonl   {"key", "where", "reason"}: images of the last pass that got no caption
    captions-run.json         settings, versions, counts and the summary
    captions-parts/           lines of runs that are not merged yet; gone when a pass has ended

Every process of every run appends to a part file of its own, which is never written again; so a kill can at most
truncate the last line of a part, and readers skip a truncated line. A pass ends with a merge: the newest line of each
key wins, the result replaces captions.jsonl in one rename, and the parts are removed. A crash during the merge loses
nothing: the same lines are read again from captions.jsonl and the remaining parts. The merged lines are in the order in
which they were written, so that one process that was interrupted gives the same file as one that was not.

Scores of captions and rewritten texts are kept in the same way (`CaptionStore.suffix`, `identity`).
"""

from __future__ import annotations

import contextlib
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alip.build.text_hash import number
from alip.caption.lines import identity, read_lines, to_line
from alip.caption.run_record import FORMAT, VERSION, check_settings, read_record
from alip.errors import UserError
from alip.files import FileLock, LockedError, atomic_write, write_json

LOCK_WAIT = 2.0  # seconds: a run that was just killed may still be dying


class NumberSet:
    """A growing set of 64-bit numbers in 8 bytes each (120 MB for 15 million; a Python set needs 1 GB).

    A sorted array plus a small set of recent numbers. Two different texts out of 15 million collide with a probability
    of 6e-6.
    """

    def __init__(self, late_limit: int = 1_000_000) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._late: set[int] = set()
        self._late_limit = late_limit

    def add(self, value: int) -> bool:
        """True if the number is new."""
        if value in self:
            return False
        self._late.add(value)
        if len(self._late) >= self._late_limit:
            late = np.fromiter(self._late, dtype=np.uint64, count=len(self._late))
            self._sorted = np.sort(np.concatenate([self._sorted, late]))
            self._late.clear()
        return True

    def __contains__(self, value: int) -> bool:
        if value in self._late:
            return True
        position = int(np.searchsorted(self._sorted, np.uint64(value)))
        return position < len(self._sorted) and int(self._sorted[position]) == value

    def __len__(self) -> int:
        return len(self._sorted) + len(self._late)


class DoneImages:
    """Which keys have a caption, and for which image, in 16 bytes each. Append the newest first, then look up."""

    def __init__(self) -> None:
        self._keys, self._images = array("Q"), array("Q")
        self._sorted: tuple[np.ndarray, np.ndarray] | None = None

    def append(self, key: str, image: str) -> None:
        """A key with its image's digest ("" where the image was not read)."""
        self._keys.append(number(key))
        self._images.append(int(image or "0", 16))

    def image(self, key: str) -> str | None:
        """The digest of the image that was captioned under this key, None if none was."""
        if self._sorted is None:
            keys, first = np.unique(np.frombuffer(self._keys, dtype=np.uint64), return_index=True)
            self._sorted = keys, np.frombuffer(self._images, dtype=np.uint64)[first]
        keys, images = self._sorted
        position = int(np.searchsorted(keys, np.uint64(number(key))))
        if position == len(keys) or int(keys[position]) != number(key):
            return None
        return f"{int(images[position]):016x}" if images[position] else ""

    def __len__(self) -> int:
        return len(self._keys)


class CaptionStore:
    """The files of one captions output. One process creates the run (`begin_run`); then each rank opens its part."""

    suffix = ".jsonl"

    def __init__(self, output: str | Path) -> None:
        self.output = Path(output)
        stem = self.output.name.removesuffix(self.suffix)
        if stem == self.output.name:
            raise UserError(f"--output {self.output} must end in {self.suffix}")
        self.parts = self.output.with_name(stem + "-parts")
        self.failures = self.output.with_name(stem + "-failures.jsonl")
        self.run_file = self.output.with_name(stem + "-run.json")
        self.figure = self.output.with_name(stem + "-samples.png")
        self._lock: FileLock | None = None

    def begin_run(self, settings: dict[str, Any], metadata: dict[str, Any], restart: bool = False) -> int:
        """Rank 0 only: locks the output, checks that earlier runs had the same settings, returns this run's number.

        restart: discards earlier captions of this output. Raises UserError when another process is writing this
        output, when its settings differ from these, or when a file of that name was not written by this command.
        """
        self._take_lock()
        if restart:
            self.forget_pieces()
            for path in [self.output, self.run_file, self.failures, *self.parts.glob("*.jsonl")]:
                path.unlink(missing_ok=True)
        record = self.read_run()
        if record is None and self.output.exists():
            raise UserError(f"{self.output} was not written by this command: choose another --output, or --restart")
        if record is not None:
            check_settings(record["settings"], settings, self.output)
        record = record or {"format": FORMAT, "version": VERSION, "settings": settings, "runs": 0}
        record["runs"] += 1
        record.update(metadata=metadata, complete=False)
        self.write_run(record)
        return record["runs"]

    def _take_lock(self) -> None:
        try:
            while self._lock is None:
                self.parts.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # a run that has just ended removed the folder
                    self._lock = FileLock(self.parts / "lock", wait=LOCK_WAIT)
        except LockedError as error:
            raise UserError(
                f"{error.holder} is writing {self.output}: wait for it, or choose another --output"
            ) from None

    def read_run(self) -> dict[str, Any] | None:
        """The record of earlier runs, or None."""
        return read_record(self.run_file) if self.run_file.exists() else None

    def write_run(self, record: dict[str, Any]) -> None:
        """Replaces the record in one rename."""
        write_json(self.run_file, record, ensure_ascii=False)

    def part_paths(self, run: int, rank: int) -> tuple[Path, Path, Path]:
        """Paths of this rank's captions, failures and costs in this run."""
        return tuple(self.parts / f"{what}-{run:06d}-{rank:05d}.jsonl" for what in ("captions", "failures", "costs"))

    def caption_files(self) -> list[Path]:
        """Every file with captions, the oldest first."""
        return [self.output] * self.output.exists() + sorted(self.parts.glob("captions-*.jsonl"))

    def lines_of(self, path: Path) -> Iterator[dict[str, Any]]:
        """The lines of one of `caption_files`."""
        return read_lines(path)

    def done(self) -> DoneImages:
        """The images that have a caption from any run so far."""
        done = DoneImages()
        for path in reversed(self.caption_files()):
            for line in self.lines_of(path):
                done.append(identity(line), line.get("image", ""))
        return done

    def merged_lines(self) -> Iterator[dict[str, Any]]:
        """All caption lines, each image once, the newest run's line, in the order of writing. 11 bytes for each."""
        files = self.caption_files()
        numbers = [np.fromiter((number(identity(line)) for line in self.lines_of(path)), np.uint64) for path in files]
        # Of equal numbers the last one, from the newest file, stays: np.unique keeps the first of the reversed list.
        owner = np.min_scalar_type(len(files))  # a cluster leaves a file for each piece of work
        owners = np.repeat(np.arange(len(files), dtype=owner), [len(part) for part in numbers])[::-1]
        unique, first = np.unique(np.concatenate([*numbers, np.empty(0, np.uint64)])[::-1], return_index=True)
        newest, written = owners[first], np.zeros(len(unique), bool)
        del numbers, owners, first
        for index, path in enumerate(files):
            for line in self.lines_of(path):
                position = int(np.searchsorted(unique, np.uint64(number(identity(line)))))
                if newest[position] == index and not written[position]:
                    written[position] = True
                    yield line

    def merge(self, run: int, observe: Any = None, failures: list[Path] | None = None) -> None:
        """Writes captions.jsonl and captions-failures.jsonl from all parts, then removes the parts.

        observe: called with each merged line. failures: the files with this pass's failures; None: those of the run.
        """

        def lines() -> Iterator[dict[str, Any]]:
            for line in self.merged_lines():
                if observe is not None:
                    observe(line)
                yield line

        if failures is None:
            failures = sorted(self.parts.glob(f"failures-{run:06d}-*.jsonl"))
        old_parts = sorted(self.parts.glob("*.jsonl"))
        with atomic_write(self.failures, text=True) as file:
            file.writelines(to_line(line) for path in failures for line in read_lines(path))
        self.write_output(lines())
        self.forget_pieces()
        for path in old_parts:
            path.unlink()

    def forget_pieces(self) -> None:
        """Removes the records of which pieces of a pass on a cluster are done (on_cluster.py), not their lines."""
        for path in [*self.parts.glob("*.json")]:
            path.unlink()

    def write_output(self, lines: Iterator[dict[str, Any]], record: dict[str, Any] | None = None) -> None:
        """Replaces the merged file. record: of it, where it is not written yet."""
        with atomic_write(self.output, text=True) as file:
            file.writelines(to_line(line) for line in lines)

    def costs(self) -> dict[str, dict[str, float]]:
        """What each run whose parts are there has cost so far: {run's number: {name: total}}."""
        totals: dict[str, Counter] = {}
        for path in sorted(self.parts.glob("costs-*.jsonl")):
            total = totals.setdefault(str(int(path.name.split("-")[1])), Counter())
            for line in read_lines(path):
                total.update(line.get("costs", {}))
        return {run: dict(total) for run, total in totals.items()}

    def close(self) -> None:
        """Releases the lock, if it is held: the run has ended, or will be resumed."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def finish(self, record: dict[str, Any]) -> None:
        """Writes the final record and releases the lock."""
        self.write_run(record)
        (self.parts / "lock").unlink(missing_ok=True)  # while the lock is held: the next run makes a new file
        self.close()
        with contextlib.suppress(OSError):  # it has other files, or another run's lock
            self.parts.rmdir()
