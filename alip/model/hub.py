"""Models on the Hugging Face hub: found in the local cache, and downloaded only when `hf-hub:` asks for it.

hf-hub:org/name, hf-hub:org/name@revision    downloads what is not in the cache
org/name                                     the cache alone
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from alip.errors import UserError
from alip.files import read_json

PREFIX = "hf-hub:"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


_cache_folder: str | None = None


def use_cache(folder: str | Path) -> None:
    """Downloads of models and tokenizers go into this folder from now on: ours, timm's, transformers', open_clip's."""
    from huggingface_hub import constants

    global _cache_folder
    _cache_folder = str(folder)
    os.environ["HF_HUB_CACHE"] = os.environ["TORCH_HOME"] = _cache_folder  # of this process and its workers
    constants.HF_HUB_CACHE = _cache_folder


def cache_folder() -> str | None:
    """The folder of `use_cache`; None: each library's own."""
    return _cache_folder


def is_hub_name(name: str) -> bool:
    """True for `hf-hub:org/name`, and for `org/name` where no such file exists."""
    return name.startswith(PREFIX) or (_NAME.fullmatch(name) is not None and not Path(name).exists())


class Repository:
    """One model repository of the hub. name: as in the module's text; may_download: whether it asks for a download."""

    def __init__(self, name: str, may_download: bool | None = None):
        self.may_download = name.startswith(PREFIX) if may_download is None else may_download
        self.name, _, revision = name.removeprefix(PREFIX).partition("@")
        self.revision = revision or None

    def first(self, names: Iterable[str]) -> Path | None:
        """The first of these files that the repository has, on this disk; None if it has none of them.

        Raises UserError: no such repository, no permission, no network, or nothing in the cache and no download.
        """
        return next((path for path in map(self.file, names) if path is not None), None)

    def all(self, names: Iterable[str]) -> list[Path]:
        """Those of these files that the repository has; raises as `first` does."""
        return [path for path in map(self.file, names) if path is not None]

    def file(self, name: str) -> Path | None:
        """One file on this disk, None if the repository has no such file; raises as `first` does."""
        from huggingface_hub import errors, hf_hub_download

        try:
            path = hf_hub_download(
                self.name, name, revision=self.revision, local_files_only=not self.may_download, cache_dir=_cache_folder
            )
            return Path(path)
        except errors.LocalEntryNotFoundError as error:  # a subclass of EntryNotFoundError
            self._check_cached(error)
            return None
        except errors.EntryNotFoundError:
            return None
        except errors.HFValidationError as error:
            raise UserError(f"{self.name!r} is no repository name of the Hugging Face hub; write org/name") from error
        except errors.GatedRepoError as error:
            raise UserError(f"{PREFIX}{self.name}: accept its terms on the hub, then run `hf auth login`") from error
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            revision = f" or revision {self.revision}" if self.revision else ""
            raise UserError(f"{PREFIX}{self.name}: no such repository{revision}; check the name") from error
        except Exception as error:  # the network or the disk: httpx, OSError, …
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{PREFIX}{self.name}: could not fetch {name} ({reason}); check the network") from error

    def _check_cached(self, error: Exception) -> None:
        """Raises UserError if the cache has nothing of the repository; one file may be missing where others are."""
        from huggingface_hub import constants

        if (Path(constants.HF_HUB_CACHE) / f"models--{self.name.replace('/', '--')}" / "snapshots").is_dir():
            return
        if self.may_download:
            fix = "is not in the local cache, and the hub could not be reached; check the network"
            raise UserError(f"{PREFIX}{self.name}: {fix}") from error
        fix = f"check the path, or write {PREFIX}{self.name} to download it"
        raise UserError(f"{self.name}: no such file, nor in the local Hugging Face cache; {fix}") from error


def text_tower_folder(name: str, source: object) -> Path:
    """The folder with the configuration of a Hugging Face text tower, given as a folder or a cached repository.

    source: the configuration that names it, for messages. Raises UserError if it is neither, or if its class would be
    code from the hub.
    """
    folder = Path(name)
    if not folder.is_dir():
        try:
            config = Repository(name, may_download=False).file("config.json")
        except UserError:
            config = None
        if config is None:
            raise UserError(
                f"{source}: the text tower is Hugging Face's {name[:80]}, whose configuration is not on this machine; "
                f"run: hf download {name[:80]}"
            )
        folder = config.parent
    if "auto_map" in read_json(folder / "config.json"):
        raise UserError(f"{source}: the text tower of {folder} is code from the hub, which is never run")
    return folder
