"""Texts that come from files beside the input: captions, those of them that are kept, and rewritten raw texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alip.build.caption_scores import KeptCaptions, scores_path
from alip.build.caption_table import CaptionTable
from alip.build.sources import Sample
from alip.errors import UserError
from alip.files import read_json, sha256_of_file
from alip.remote.reading import stat_all
from alip.remote.urls import is_url, name_of


@dataclass(frozen=True)
class TextFiles:
    """The files to join to an input by key; None: not joined.

    captions: a captions file. keep: only its captions for which this expression over their scores is true. scores: the
    table of `python -m alip.caption.score`; None: the one beside the captions. rewrites: a file of `python -m
    alip.caption --rewrite`, whose texts replace the raw texts.
    """

    captions: str | None = None
    keep: str | None = None
    scores: str | None = None
    rewrites: str | None = None

    def __post_init__(self) -> None:
        if self.keep is not None and self.captions is None:
            raise UserError("--keep belongs to --from DIR/NAME (samples of a dataset) or to --captions FILE (captions)")

    @property
    def scores_file(self) -> Path | None:
        """The scores that `keep` is about."""
        if self.keep is None:
            return None
        return Path(self.scores) if self.scores else scores_path(self.captions)

    def options(self) -> dict[str, Any]:
        """What a build that resumes must have in common with its first run."""
        scores = self.scores_file
        if scores is not None and not scores.is_file():
            raise UserError(f"--keep needs {scores}: write it with `python -m alip.caption.score`, or give --scores")
        return {
            "captions": _describe(self.captions, "captions"),
            "keep": self.keep,
            "scores_sha256": sha256_of_file(scores) if scores else None,
            "rewrites": _describe(self.rewrites, "rewrites"),
        }


class JoinedTexts:
    """The files of `TextFiles`, open. folder: where their indices are kept; one that is there is taken as it is."""

    def __init__(self, files: TextFiles, folder: Path):
        self.captions: CaptionTable | None = None
        self.rewrites: CaptionTable | None = None
        if files.captions:
            index = folder / "captions.sqlite"
            keep = KeptCaptions(files.scores_file, files.keep) if files.keep and not index.exists() else None
            self.captions = CaptionTable(files.captions, index, keep)
        if files.rewrites:
            self.rewrites = CaptionTable(files.rewrites, folder / "rewrites.sqlite", column="rewrite")

    def apply(self, sample: Sample) -> None:
        """Gives a sample its texts, in place. They come before the source's own: the user named these files."""
        if self.captions:
            sample.caption = self.captions.get(sample.key, sample.caption)
        if self.rewrites and (rewrite := self.rewrites.get(sample.key)):
            sample.metadata["original_text"], sample.text = sample.text, rewrite

    def check_found(self, samples: int, whole: bool) -> None:
        """UserError for a file none of whose keys is one of the input. samples: how many are usable so far; whole: the
        input was read from its beginning with these files, not from where an earlier run stopped."""
        suspicious = ((self.captions, "captions", samples == 0), (self.rewrites, "rewrites", whole or samples == 0))
        for table, what, is_suspicious in suspicious:
            if is_suspicious and table and table.found == 0:
                raise UserError(
                    f"none of the {what}' keys is a key of the input: the {what} have keys like {table.example()!r}"
                )

    def dropped(self) -> int:
        """How many keys of the captions file have no caption that was kept."""
        return self.captions.dropped() if self.captions else 0


def provenance(files: TextFiles, dropped: int) -> dict[str, Any]:
    """Where the texts came from, for the manifest."""
    found: dict[str, Any] = {}
    if files.keep:
        found["caption_filter"] = {
            "keep": files.keep,
            "scores": files.scores_file.name,
            "keys_without_caption": dropped,
        }
    if files.rewrites:
        found["rewrites"] = {"file": name_of(files.rewrites), "made_by": _settings(files.rewrites)}
    return found


def _settings(file: str) -> dict[str, Any] | None:
    """The settings of the run that wrote a file, from the record beside it; None without one."""
    record = Path(file).with_name(Path(file).name.removesuffix(".jsonl") + "-run.json")
    return read_json(record).get("settings") if record.is_file() else None


def _describe(file: str | None, what: str) -> list | None:
    if file is None:
        return None
    if is_url(file):
        return [name_of(file), stat_all([file])[0].size]
    if not Path(file).is_file():
        raise UserError(f"no {what} file {file}")
    return [Path(file).name, Path(file).stat().st_size]
