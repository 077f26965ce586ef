"""A dataset in the making in object storage: built shard by shard in a local scratch folder, published at the end.

Each shard is uploaded when it is whole, and only then is it named in the journal. The journal is copied to
`NAME.partial/` beside the shards, so that a build also resumes on another machine. The manifest comes last.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from alip.build.journal import JOURNAL
from alip.build.output import DatasetOutput
from alip.data.shards import Manifest, Shard, load_manifest
from alip.errors import UserError
from alip.remote.reading import download, exists, glob
from alip.remote.urls import UrlPath, is_url, local_path, redact
from alip.remote.writing import check_writable, remove_url, upload, write_url

REJECTS, STARTED = "rejects.jsonl", "started.txt"


def open_output(
    output: str | Path, name: str, options: dict, overwrite: bool = False, scratch: str | None = None
) -> DatasetOutput:
    """The dataset `name` beside `output` (DIR/NAME), on the disk or at a URL. scratch: for a URL, the local folder in
    which shards are built (None: one for this URL in the system's temporary folder). UserError for a name that no
    manifest may hold."""
    output = local_path(str(output))
    if "\\" in name:
        raise UserError(f"--output {redact(output)}: the name of a dataset has no backslash: choose another")
    if not is_url(output):
        if scratch is not None:
            raise UserError("--scratch belongs to an --output at a URL: leave it out")
        return DatasetOutput(Path(output).parent, name, options, overwrite)
    check_writable(output)
    target = UrlPath(output).parent
    return RemoteOutput(target, name, scratch_folder(target / name, scratch), options, overwrite)


def disk_of(output: str | Path, scratch: str | None) -> Path:
    """The local folder in which a build to `output` writes, for messages about its disk."""
    output = local_path(str(output))
    return Path(scratch or tempfile.gettempdir()) if is_url(output) else Path(output).parent


def scratch_folder(target: UrlPath, scratch: str | None) -> Path:
    """The local folder of a build: always the same one for the same target, so that it is found again."""
    folder = Path(scratch) if scratch else Path(tempfile.gettempdir()) / "alip-scratch"
    return folder / hashlib.sha256(target.url.encode()).hexdigest()[:16]


class RemoteOutput(DatasetOutput):
    """DIR/NAME at a URL; the parts of DatasetOutput that differ from a local folder. One build at a time: machines do
    not see each other's locks, so it is for the user not to start two."""

    def __init__(self, target: UrlPath, name: str, scratch: Path, options: dict, overwrite: bool = False):
        self.target = target
        scratch.mkdir(parents=True, exist_ok=True)
        super().__init__(scratch, name, options, overwrite)
        if self.journal:  # not hours later, with the first shard
            write_url(
                self._url(f"{self._partial}/{STARTED}"), b"a build of data2rec.py is at work or was interrupted\n"
            )

    def _url(self, name: str) -> str:
        return (self.target / name).url

    @property
    def _partial(self) -> str:
        return f"{self.name}.partial"

    def _is_published(self) -> bool:
        return exists(self._url(f"{self.name}.json"))

    def _load(self) -> Manifest:
        return load_manifest(self._url(f"{self.name}.json"), at_url=True)

    def _prepare(self) -> None:
        """Takes over the journal from the store, where this machine has none."""
        if self.work.has_journal() or not exists(self._url(f"{self._partial}/{JOURNAL}")):
            return
        for name in (REJECTS, JOURNAL):  # the journal last: it is what makes this a build
            if exists(self._url(f"{self._partial}/{name}")):  # a selection has no rejects
                download(self._url(f"{self._partial}/{name}"), self.work.path / name)

    def _remove(self) -> None:
        remove_url(self._url(f"{self.name}.json"))
        self._remove_partial()
        for url in self._remote_shards():
            remove_url(url)
        remove_url(self._url(f"{self.name}-rejects.jsonl"))
        super()._remove()

    def _remove_partial(self) -> None:
        for name in (JOURNAL, REJECTS, STARTED):
            remove_url(self._url(f"{self._partial}/{name}"))

    def _remote_shards(self) -> list[str]:
        found = glob(self._url(f"{self.name}-*"))
        return [url for url in found if self.is_shard_file(url.rpartition("/")[2])]

    def _stale(self) -> str | None:
        found = self._remote_shards()
        return redact(min(found)) if found else None

    def store(self, shard: Shard) -> None:
        for name in (shard.rec, shard.idx, shard.sidecar):
            upload(self.folder / name, self._url(name))
            (self.folder / name).unlink()

    def committed(self, portable: bool) -> None:
        if portable:
            for name in (REJECTS, JOURNAL):
                if (self.work.path / name).exists():
                    upload(self.work.path / name, self._url(f"{self._partial}/{name}"))

    def publish(self, manifest: Manifest) -> Manifest:
        rejects = self.folder / f"{self.name}-rejects.jsonl"
        if rejects.exists():
            upload(rejects, self._url(rejects.name))
        path = manifest.save(self.work.path)
        write_url(self._url(path.name), path.read_bytes())
        rejects.unlink(missing_ok=True)
        self.discard()
        return self._load()

    def discard(self) -> None:
        self._remove_partial()
        super().discard()
