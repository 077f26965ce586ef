"""The files of one dataset in the making: which state they are in, one build at a time, complete or not there."""

from __future__ import annotations

import os
import re
from pathlib import Path

from alip.build.journal import Journal, WorkFolder
from alip.data.shards import Manifest, Shard, load_manifest
from alip.errors import UserError
from alip.files import sync
from alip.remote.urls import UrlPath


class DatasetOutput:
    """DIR/NAME: opens the build under this name, or finds it complete.

    options: of the build; a complete or interrupted one must have the same. overwrite: remove what is there first.
    finished: the manifest, if there is nothing to do; otherwise None, and `journal` and `work` are open until `close`.
    UserError: other options, another build at work, shards without a manifest.
    """

    target: UrlPath | None = None  # where shards are uploaded to, if they do not stay in `folder`

    def __init__(self, folder: Path, name: str, options: dict, overwrite: bool = False):
        if not name.strip(" ."):  # "." and "DIR/": the files would be hidden ones
            raise UserError('--output: give the dataset a name, DIR/NAME; a path that ends in "/" or "." has none')
        if name.lower().endswith(".json"):  # every reader would take it for the manifest's file
            raise UserError(f"--output {folder / name}: give the dataset's name, without .json")
        self.folder, self.name = folder, name
        self.manifest_path, partial = folder / f"{name}.json", folder / f"{name}.partial"
        self.finished: Manifest | None = None
        self.work: WorkFolder | None = None
        self.journal: Journal | None = None
        if not overwrite and not partial.exists() and self._is_published():
            self.finished = self._finished(options)
            return
        self.work = WorkFolder(partial)
        try:
            self._open(options, overwrite)
        except BaseException:
            self.close()
            raise

    def _open(self, options: dict, overwrite: bool) -> None:
        if overwrite:
            self._remove()
        if self._is_published():  # that build was killed after its end, with its work folder still there
            self.finished = self._finished(options)
            self.work.remove()
            return
        self._prepare()
        if not self.work.has_journal() and (stale := self._stale()):
            raise UserError(f"{stale} exists, without a manifest: give --overwrite to remove it, or another --output")
        self.journal = Journal(self.work, options)

    def _finished(self, options: dict) -> Manifest:
        manifest = self._load()
        before = manifest.metadata.get("options", {})
        changed = [key for key in options if before.get(key) != options[key]]
        if changed:
            raise UserError(
                f"{manifest.folder / self.name} was built with another {', '.join(changed)}: give --overwrite to build "
                "it again, or another --output"
            )
        return manifest

    def _remove(self) -> None:
        """Removes the dataset and what an interrupted build left, in an order that is safe to be killed in: the
        manifest names the shards, and so does the journal, so these two go first."""
        self.manifest_path.unlink(missing_ok=True)
        sync(self.folder)
        self.work.empty()
        for path in [*self._shard_files(), self.folder / f"{self.name}-rejects.jsonl"]:
            path.unlink(missing_ok=True)

    def _is_published(self) -> bool:
        return self.manifest_path.exists()

    def _load(self) -> Manifest:
        return load_manifest(self.manifest_path)

    def _prepare(self) -> None:
        """Called before the journal is opened, with the work folder locked."""

    def _shard_files(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if self.is_shard_file(path.name)]

    def _stale(self) -> str | None:
        """A shard's file that no journal and no manifest accounts for."""
        found = self._shard_files()
        return str(min(found)) if found else None

    def is_shard_file(self, name: str) -> bool:
        """True for the name of a file of one of this dataset's shards."""
        return re.fullmatch(re.escape(self.name) + r"-\d{5,}\.(rec|idx|parquet|offsets)", name) is not None

    def store(self, shard: Shard) -> None:
        """Called when a shard is whole in `folder`, before the journal names it."""

    def committed(self, portable: bool) -> None:
        """Called when the journal names it. portable: journal and rejects are all that another machine needs."""

    def publish(self, manifest: Manifest) -> Manifest:
        """The build is done: the manifest appears, the work folder is removed."""
        # Written in the work folder: a kill in the middle leaves nothing beside the shards.
        os.replace(manifest.save(self.work.path), self.manifest_path)
        sync(self.folder)
        self.discard()
        return load_manifest(self.manifest_path)

    def discard(self) -> None:
        """The build is done or came to nothing: its work folder is removed, so nothing is resumed."""
        self.journal.close()
        self.work.remove()

    @property
    def last_written(self) -> float | None:
        """When what is there was written, seconds since the epoch: the dataset, or the part of it that this resumes.
        None for a new build, and at a URL."""
        if self.journal:
            return self.journal.last_written
        return self.manifest_path.stat().st_mtime if self.manifest_path.is_file() else None

    def close(self) -> None:
        """Closes the journal and releases the lock; the next run resumes from there."""
        if self.journal:
            self.journal.close()
        if self.work:
            self.work.close()
