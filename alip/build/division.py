"""Large input files cut into parts, so that several machines can read one of them."""

from __future__ import annotations

import os
from dataclasses import astuple
from pathlib import Path

from alip.build.sources import Cut, Source
from alip.cluster.pieces import Engine, collect
from alip.files import read_json, write_json
from alip.remote.urls import is_url, name_of

SAMPLES_PER_PART = 10_000  # some tens of seconds of work
Key = tuple[int, int | None]  # a unit, and the number of its part (None where it is not divided)


def divide_units(
    engine: Engine, source: Source, units: list[int], folder: Path, quiet: bool = False
) -> dict[int, list[Cut]]:
    """The parts of those units that are worth dividing: files of a source that can begin in the middle (at URLs only if
    it can do so there), from its `divided_from` bytes on. Each of these is read once for that, without its images, by
    the engine.

    folder: where the parts are kept: they are the same after a restart. UserError names a file that cannot be read.
    """
    least = source.divided_from
    large = [
        unit
        for unit in units
        if least is not None
        and source.sizes[unit] >= least
        and (source.divided_at_urls or not is_url(source.units[unit]))
    ]
    paths = {unit: folder / f"cuts-{unit:06d}.json" for unit in large}
    done = {unit: read_json(path)["cuts"] for unit, path in paths.items() if path.exists()}
    missing = {(unit, str(paths[unit]), SAMPLES_PER_PART): unit for unit in large if unit not in done}
    if missing:
        job = (source, os.getcwd())
        done = collect(
            engine.run(divide_unit, job, list(missing)),
            missing,
            done,
            {unit: source.sizes[unit] for unit in large},
            what="dividing large files",
            name=lambda unit: name_of(source.units[unit]),
            quiet=quiet,
        )
    return {unit: [_cut(entry) for entry in done[unit]] for unit in large if len(done[unit]) > 1}


def divide_unit(job: tuple[Source, str], unit: int, path: str, samples_per_part: int) -> list[list]:
    """A piece of work: the parts of one file, as lists, kept at `path`."""
    source, directory = job
    os.chdir(directory)
    cuts = [list(astuple(cut)) for cut in source.divide(unit, samples_per_part)]
    write_json(path, {"cuts": cuts})
    return cuts


def key_of(unit: int, cut: Cut | None) -> Key:
    """The key of a unit, or of a part of it."""
    return unit, None if cut is None else cut.number


def pieces_of(
    source: Source, units: list[int], cuts: dict[int, list[Cut]]
) -> tuple[dict[Key, tuple], dict[Key, float]]:
    """The pieces (unit,) and (unit, cut) by key, in the source's order, and their sizes in bytes."""
    pieces: dict[Key, tuple] = {}
    sizes: dict[Key, float] = {}
    for unit in units:
        parts: list[Cut | None] = list(cuts.get(unit, [None]))
        for cut in parts:
            key = key_of(unit, cut)
            pieces[key] = (unit,) if cut is None else (unit, cut)
            sizes[key] = source.sizes[unit] / len(parts)
    return pieces, sizes


def _cut(entry: list) -> Cut:
    number, first, last, *places = entry
    return Cut(number, first, last, *(None if place is None else tuple(place) for place in places))
