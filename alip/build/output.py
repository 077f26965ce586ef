"""The files of one dataset in the making: which state they are in, one build at a time, complete or not there."""

from __future__ import annotations

import os
import re
from pathlib import Path

from alip.build.journal import Journal, WorkFolder
from alip.data.shards import Manifest, load_manifest
from alip.errors import UserError
from alip.files import sync


class DatasetOutput:
    """DIR/NAME: opens the build under this name, or finds it complete.

    options: of the build; a complete or interrupted one must have the same. overwrite: remove what is there first.
    finished: the manifest, if there is nothing to do; otherwise None, and `journal` and `work` are open until `close`.
    UserError: other options, another build at work, shards without a manifest.
    """

    def __init__(self, folder: Path, name: str, options: dict, overwrite: bool = False):
        self.folder, self.name = folder, name
        self.manifest_path, partial = folder / f"{name}.json", folder / f"{name}.partial"
        self.finished: Manifest | None = None
        self.work: WorkFolder | None = None
        self.journal: Journal | None = None
        if self.manifest_path.exists() and not overwrite and not partial.exists():
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
        if self.manifest_path.exists():  # that build was killed after its end, with its work folder still there
            self.finished = self._finished(options)
            self.work.remove()
            return
        if not self.work.has_journal() and (stale := self._shard_files()):
            raise UserError(
                f"{min(stale)} exists, without a manifest: give --overwrite to remove it, or another --output"
            )
        self.journal = Journal(self.work, options)

    def _finished(self, options: dict) -> Manifest:
        manifest = load_manifest(self.manifest_path)
        before = manifest.metadata.get("options", {})
        changed = [key for key in options if before.get(key) != options[key]]
        if changed:
            raise UserError(
                f"{self.folder / self.name} was built with another {', '.join(changed)}: give --overwrite to build it "
                "again, or another --output"
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

    def _shard_files(self) -> list[Path]:
        pattern = re.compile(re.escape(self.name) + r"-\d{5}\.(rec|idx|parquet)")
        return [path for path in self.folder.iterdir() if pattern.fullmatch(path.name)]

    def publish(self, manifest: Manifest) -> Manifest:
        """The build is done: the manifest appears, the work folder is removed."""
        # Written in the work folder: a kill in the middle leaves nothing beside the shards.
        os.replace(manifest.save(self.work.path), self.manifest_path)
        sync(self.folder)
        self.journal.close()
        self.work.remove()
        return load_manifest(self.manifest_path)

    def close(self) -> None:
        """Closes the journal and releases the lock; the next run resumes from there."""
        if self.journal:
            self.journal.close()
        if self.work:
            self.work.close()
