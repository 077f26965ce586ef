"""Texts that come from files beside the input: captions, those of them that are kept, and rewritten raw texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alip.build.caption_scores import KeptCaptions, scores_path
from alip.build.caption_table import CaptionTable
from alip.build.rewrites import RewriteTable, keep_old
from alip.build.sources import Sample
from alip.errors import UserError
from alip.files import read_json, sha256_of_file
from alip.remote.reading import stat_all
from alip.remote.urls import is_url, name_of


@dataclass(frozen=True)
class TextFiles:
    """The files to join to an input by key; None: not joined.

    captions: captions files, the first comes first. keep: only their captions for which this expression over their
    scores is true. scores: for each file its table of `python -m alip.caption.score`; none: those beside them.
    rewrites: a file of `python -m alip.caption --rewrite`, whose texts replace the raw texts.
    """

    captions: tuple[str, ...] = ()
    keep: str | None = None
    scores: tuple[str, ...] = ()
    rewrites: str | None = None

    def __post_init__(self) -> None:
        if self.keep is not None and not self.captions:
            raise UserError("--keep belongs to --from DIR/NAME (samples of a dataset) or to --captions FILE (captions)")
        if self.scores and self.captions and len(self.scores) != len(self.captions):
            raise UserError(
                f"--scores names {len(self.scores)} tables for {len(self.captions)} captions files: one for each"
            )
        twice = next((file for file in self.captions if self.captions.count(file) > 1), None)
        if twice:
            raise UserError(f"--captions names {twice} twice")

    @property
    def scores_files(self) -> list[Path]:
        """The scores that `keep` is about, one for each captions file."""
        if self.keep is None:
            return []
        return [Path(one) for one in self.scores] or [scores_path(one) for one in self.captions]

    def local_files(self) -> Iterator[str]:
        """Those on this machine. (Scores are known by their content.)"""
        return (file for file in (*self.captions, self.rewrites) if file is not None and not is_url(file))

    def options(self) -> dict[str, Any]:
        """What a build that resumes must have in common with its first run."""
        for scores in self.scores_files:
            if not scores.is_file():
                raise UserError(
                    f"--keep needs {scores}: write it with `python -m alip.caption.score`, or give --scores"
                )
        return {
            "captions": _one_or_all([_describe(file, "captions") for file in self.captions]),
            "keep": self.keep,
            "scores_sha256": _one_or_all([sha256_of_file(scores) for scores in self.scores_files]),
            "rewrites": _describe(self.rewrites, "rewrites"),
        }


class JoinedTexts:
    """The files of `TextFiles`, open. folder: where their indices are kept; one that is there is taken as it is.
    several: all captions of a key, not only one."""

    def __init__(self, files: TextFiles, folder: Path, several: bool = False):
        self.captions: CaptionTable | None = None
        self.rewrites: RewriteTable | None = None
        self._input_key: str | None = None
        if files.captions:
            index = folder / "captions-table.sqlite"  # (captions.sqlite is how earlier versions called theirs)
            tables = files.scores_files if not index.exists() else []
            keeps = [KeptCaptions(scores, files.keep) for scores in tables]
            self.captions = CaptionTable(files.captions, index, keeps, several=several)
        if files.rewrites:
            self.rewrites = RewriteTable(files.rewrites, folder / "rewrites-table.sqlite")

    def apply(self, sample: Sample) -> None:
        """Gives a sample its texts, in place. They come before the source's own: the user named these files."""
        self._input_key = self._input_key or sample.key
        if self.captions:
            found = self.captions.get(sample.key, sample.image_key)
            sample.captions = sample.captions if found is None else tuple(found)
        if self.rewrites and sample.text and (rewrite := self.rewrites.get(sample.key, sample.text)):
            keep_old(sample.metadata, "original_text", sample.text)
            sample.text = rewrite

    def found(self) -> dict[str, int]:
        """How many look-ups in each file succeeded, for the journal: whether any did has to survive an interruption."""
        tables = {"captions": self.captions, "rewrites": self.rewrites}
        return {what: table.found for what, table in tables.items() if table}

    def add_found(self, found: dict[str, int]) -> None:
        """Counts the look-ups of an earlier run, of which this one reads only the rest."""
        for what, count in found.items():
            getattr(self, what).found += count

    def check_found(self, samples: int, whole: bool, input_shards: int = 1) -> None:
        """UserError for a file none of whose keys is one of the input. samples: how many are usable; whole: the counts
        are of the input from its beginning; input_shards: of how many this build reads one, which may be one without
        captions."""
        alone = whole and input_shards == 1
        suspicious = (
            (self.captions, "captions", alone or samples == 0),
            (self.rewrites, "rewrites", whole or samples == 0),
        )
        for table, what, is_suspicious in suspicious:
            if is_suspicious and table and table.found == 0:
                if table.example() is None:
                    raise UserError(f"the {what} files hold no {what}: name others, or none")
                same = " with the same raw text" if table is self.rewrites else ""
                input_key = f", the input's like {self._input_key!r}" if self._input_key else ""
                theirs = f"they are like {table.example()!r}"
                raise UserError(f"none of the {what}' keys is a key of the input{same}: {theirs}{input_key}")

    def dropped(self) -> int:
        """How many keys of the captions file have no caption that was kept."""
        return self.captions.dropped() if self.captions else 0


def provenance(files: TextFiles, dropped: int) -> dict[str, Any]:
    """Where the texts came from, for the manifest."""
    found: dict[str, Any] = {}
    if files.keep:
        found["caption_filter"] = {
            "keep": files.keep,
            "scores": _one_or_all([scores.name for scores in files.scores_files]),
            "keys_without_caption": dropped,
        }
    if files.rewrites:
        found["rewrites"] = {"file": name_of(files.rewrites), "made_by": _settings(files.rewrites)}
    return found


def _one_or_all(found: list[Any]) -> Any:
    """None, the one, or all of them: with one file as before there could be several."""
    return (found or [None])[0] if len(found) < 2 else found


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
