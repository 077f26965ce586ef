"""A run's checkpoints on disk: which are kept, which can be read, and what happens when the disk is full."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alip.checkpoint import atomic_save
from alip.errors import UserError
from alip.files import atomic_path, remove_leftovers
from alip.model.weights import read_file, step_files
from alip.train.checkpoint_content import check_content
from alip.train.older_runs import with_new_keys


class CheckpointFolder:
    """RUN/checkpoints: step-00001234.pt (the newest `keep`), best.pt, and every `keep_epochs`-th epoch's epoch-0003.pt.

    keep: two by default, so that one is left if the newest is damaged. keep_epochs: 0 keeps none for its epoch.

    The latter two are further names (hard links) of a step file, so they cost no space while that one is kept.
    Only rank 0 writes. warn: called with one line for the log.
    """

    def __init__(self, folder: Path, keep: int = 2, warn: Callable[[str], None] = print, keep_epochs: int = 0):
        self.folder, self.keep, self.keep_epochs, self.warn = Path(folder), max(1, keep), keep_epochs, warn

    def path(self, step: int) -> Path:
        """A step's file."""
        return self.folder / f"step-{step:08d}.pt"

    def steps(self) -> list[Path]:
        """The step files, newest first."""
        return step_files(self.folder)

    def named(self) -> list[Path]:
        """The files under further names, newest epoch first, the best last."""
        epochs = sorted(self.folder.glob("epoch-*.pt"), reverse=True)
        return [*epochs, *self.folder.glob("best.pt")]

    def save(self, content: dict[str, Any], epoch_end: int | None = None, best: bool = False) -> Path | None:
        """Writes a checkpoint; None if the disk refused, in which case the older ones are all still there.

        epoch_end: number of the epoch that ends with it. best: mark it as the best so far.
        """
        path = self.path(content["step"])
        try:
            atomic_save(content, path)
            self._add_names(path, epoch_end, best)
        except (UserError, OSError, RuntimeError) as error:
            # torch's zip writer fails its own position check when the file accepted only a part.
            reason = "the disk accepted only a part of it; free space" if "unexpected pos" in str(error) else error
            self.warn(f"checkpoint of step {content['step']} was not saved, continuing without it: {reason}")
            return None
        for old in self.steps()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def _add_names(self, path: Path, epoch_end: int | None, best: bool) -> None:
        names = ["best.pt"] if best else []
        if epoch_end is not None and self.keep_epochs and epoch_end % self.keep_epochs == 0:
            names.insert(0, f"epoch-{epoch_end:04d}.pt")
        for name in names:
            _also_named(path, self.folder / name)

    def add_names(self, step: int, epoch_end: int | None, best: bool) -> None:
        """Gives a step's file the further names that `save` gives it; nothing without that file."""
        path = self.path(step)
        if path.is_file():
            try:
                self._add_names(path, epoch_end, best)
            except OSError as error:
                self.warn(f"{path.name} got no further name: {error}")

    def set_aside_after(self, step: int) -> None:
        """Renames step files beyond `step`: the run continues from there, and must never return to what they hold."""
        for path in self.steps():
            if int(path.stem.removeprefix("step-")) > step:
                path.rename(path.with_suffix(".pt.set-aside"))
                self.warn(f"set aside {path.name}: the run continues from step {step}")

    def clear_unfinished(self) -> None:
        """Removes what a killed save left behind."""
        if self.folder.is_dir():
            remove_leftovers(self.folder)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A training checkpoint's content under the present keys: whole by its check sums, and fit to be restored.

    Raises UserError naming the file. Nothing is unpickled but tensors and plain values.
    """
    if not path.is_file():
        raise UserError(f"{path}: cannot be seen here; --output must be on storage that all machines share")
    content = read_file(path)
    if isinstance(content, dict):
        content = with_new_keys(content)
    check_content(content, path)
    return content


def _also_named(path: Path, name: Path) -> None:
    """Gives a file a second name, replacing what had that name; a copy where the file system has no hard links."""
    if name.exists() and name.samefile(path):
        return
    with atomic_path(name) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
