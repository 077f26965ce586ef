"""What the pieces of a build share: where their files are, and how a pass over them resumes. See units.py."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alip.build.division import Key
from alip.build.input_shard import InputShard
from alip.build.joined_texts import TextFiles
from alip.build.prepare import Policy
from alip.build.sources import Source
from alip.cluster.pieces import Engine, Outcomes, collect
from alip.data.shards import Shard
from alip.files import read_json, write_json
from alip.remote.urls import UrlPath
from alip.remote.writing import upload

UNITS = "units"
_GROUP = 1000


@dataclass(frozen=True)
class UnitJob:
    """What every piece of work needs to know. folder, name: of the dataset; work: its NAME.partial, on storage that all
    machines share; directory: in which relative paths start; target: to which shards are uploaded, None if they stay in
    the folder."""

    source: Source
    policy: Policy
    texts: TextFiles
    input_shard: InputShard
    folder: Path
    name: str
    work: Path
    directory: str
    target: UrlPath | None = None

    @property
    def several(self) -> bool:
        """True if an image may have several captions."""
        return self.policy.captions.per_image > 1

    @property
    def units(self) -> Path:
        """The folder of the pieces."""
        return self.work / UNITS

    def unit_path(self, key: Key, ending: str) -> Path:
        """A file of a piece of the first pass. A folder has at most a few thousand of them: listing it, as writing a
        file does, has to stay cheap."""
        unit, part = key
        name = f"unit-{unit:06d}" if part is None else f"unit-{unit:06d}-{part:05d}"
        return self.units / f"{unit // _GROUP:04d}" / (name + ending)

    def shard_path(self, number: int) -> Path:
        """The JSON file of a piece of the last pass."""
        return self.units / f"{number // _GROUP:04d}" / f"shard-{number:06d}.json"

    def publish_shard(self, number: int, entry: Shard) -> dict[str, Any]:
        """Ends a piece of the last pass, whose shard is whole: uploads it, if there is a target. Returns its manifest
        entry."""
        if self.target is not None:
            for name in (entry.rec, entry.idx, entry.sidecar):
                upload(self.folder / name, (self.target / name).url)
                (self.folder / name).unlink()
        path = self.shard_path(number)
        path.parent.mkdir(exist_ok=True)
        write_json(path, asdict(entry))
        return asdict(entry)


def do_pass(
    engine: Engine,
    function: Callable,
    job: Any,
    pieces: dict[Hashable, tuple],
    sizes: dict[Hashable, float],
    *,
    units: Path,
    what: str,
    name: Callable[[Any], str],
    path: Callable[[Any], Path],
    quiet: bool,
    last_try: dict[str, Any] | None = None,
    take: Callable[[Hashable, dict], Any] = lambda key, result: result,
) -> dict[Hashable, Any]:
    """The results of one pass by key: those that are there already, and the engine's.

    units: the folder of the pieces; path(key): of the JSON file that ends a piece. take(key, result): what is kept of
    it. The others: see pieces.collect.
    """

    def taken(outcomes: Outcomes) -> Outcomes:
        for piece, result in outcomes:
            yield piece, result if isinstance(result, Exception) else take(missing[piece], result)

    there = {found.name for found in units.glob("*/*.json")}
    done = {key: take(key, read_json(path(key))) for key in pieces if path(key).name in there}
    missing = {piece: key for key, piece in pieces.items() if key not in done}
    outcomes = taken(engine.run(function, job, list(missing), last_try)) if missing else iter(())
    return collect(outcomes, missing, done, sizes, what=what, name=name, quiet=quiet)
