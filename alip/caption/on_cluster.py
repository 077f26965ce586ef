"""Captioning on a cluster: each input file, or part of a large one, is a piece of work, and workers hold the model.

In `captions-parts/` beside the output:

    pass.json                     the run that began this pass, and the input's files with their sizes
    captions-RUN-uUNIT-PART.jsonl the lines of a piece, and failures-RUN-uUNIT-PART.jsonl, each written whole
    unit-UNIT-PART.json           its counts: written last, so a piece that has it is done, and is not done again
    tmp-*                         of pieces under way

The merge is that of every pass (store.py): names are in the order of the input, so the lines are, too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from alip.build.division import Key, divide_units, key_of, pieces_of
from alip.build.sources import ByteRange, Cut, Source
from alip.caption.jobs import choice_of, job_of
from alip.caption.lines import PartWriter
from alip.caption.run import Output, Pass, Tally, images_of
from alip.caption.store import CaptionStore
from alip.cluster.pieces import Engine, Outcomes, collect
from alip.distributed import pick_device
from alip.files import read_json, write_json
from alip.remote.urls import name_of

PASS = "pass.json"


@dataclass(frozen=True)
class CaptionUnits:
    """What every worker needs to know. run: of the parts' names; directory: in which relative paths start."""

    arguments: argparse.Namespace
    source: Source
    run: int
    directory: str

    def paths(self, key: Key) -> tuple[Path, Path, Path]:
        """Of a piece: captions, failures, and the counts, which are there once it is done."""
        parts = CaptionStore(self.arguments.output).parts
        name = f"{key[0]:06d}" if key[1] is None else f"{key[0]:06d}-{key[1]:05d}"
        lines = (parts / f"{what}-{self.run:06d}-u{name}.jsonl" for what in ("captions", "failures"))
        return (*lines, parts / f"unit-{name}.json")


class CaptionWorker:
    """Holds a captioner, and what has a caption already; each call does a piece."""

    def __init__(self, units: CaptionUnits) -> None:
        os.chdir(units.directory)
        arguments = units.arguments
        device = pick_device(arguments.device)
        self.workers = arguments.workers
        if device.type == "cpu":
            torch.set_num_threads(1)  # there is a worker for each CPU
            self.workers = 0
        self.units, self.job = units, job_of(choice_of(arguments), arguments, device)
        self.known = self.job.known(CaptionStore(arguments.output))

    def __call__(self, unit: int, cut: Cut | None = None) -> tuple[dict[str, Any], Tally]:
        """Captions the images of a unit. Returns what its JSON file holds, and the tally."""
        arguments, source = self.units.arguments, self.units.source
        captions, failures, done = self.units.paths(key_of(unit, cut))
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=captions.parent) as folder:
            new = [Path(folder) / path.name for path in (captions, failures)]
            tally = Pass(
                self.job.work,
                self.job.preprocessing,
                Output(PartWriter(new[0]), PartWriter(new[1]), self.known),
                batch_size=arguments.batch_size,
                workers=self.workers,
                content=self.job.content,
                identity=self.job.identity,
                trust_keys=arguments.trust_keys,
                figure_seed=arguments.seed,
            ).run(images_of(source, source.read_part(unit, cut)))
            for path, final in zip(new, (captions, failures)):
                os.replace(path, final)
        content = to_json(tally) | {"captioner": json.loads(json.dumps(self.job.metadata, default=str))}
        write_json(done, content)
        return content, tally


def to_json(tally: Tally) -> dict[str, Any]:
    """The counts of a piece as plain values. Of the images for the figure, those that can be read again later."""
    sampled = [[number, key, asdict(at)] for number, key, at in tally.sampled if isinstance(at, ByteRange)]
    counts = {name: getattr(tally, name) for name in ("images", "done", "captioned", "unread")}
    return {**counts, "failed": dict(tally.failed), "sampled": sampled}


def from_json(content: dict[str, Any]) -> Tally:
    """The tally of a piece that was done before."""
    sampled = [(number, key, ByteRange(**at)) for number, key, at in content["sampled"]]
    counts = {name: content[name] for name in ("images", "done", "captioned", "unread")}
    return Tally(**counts, failed=Counter(content["failed"]), sampled=sampled)


@dataclass(frozen=True)
class Captioned:
    """What the pieces of a pass gave together. captioner: its metadata; failures: the pieces' files, in order."""

    tally: Tally
    captioner: dict[str, Any]
    failures: list[Path]


def caption_pieces(
    engine: Engine, source: Source, store: CaptionStore, run: int, arguments: argparse.Namespace, quiet: bool = False
) -> Captioned:
    """One pass over the source: the pieces that are not done yet. UserError names the first that failed."""
    units = CaptionUnits(arguments, source, _begin_pass(store, source, run), os.getcwd())
    numbers = list(range(len(source.units)))
    is_divided = source.source_type not in ("coco", "karpathy")  # there the sentences of an image are far apart
    cuts = divide_units(engine, source, numbers, store.parts, quiet) if is_divided else {}
    pieces, sizes = pieces_of(source, numbers, cuts)
    total, captioner, done = Tally(), {}, {}

    def take(content: dict[str, Any], tally: Tally) -> None:
        """Of a piece only the sums are kept: there may be a hundred thousand."""
        total.add(tally)
        captioner.update(content["captioner"])

    def taken(outcomes: Outcomes) -> Outcomes:
        for piece, result in outcomes:
            if not isinstance(result, Exception):
                take(*result)
                result = None
            yield piece, result

    for key in pieces:
        if (path := units.paths(key)[2]).exists():
            content = read_json(path)
            take(content, from_json(content))
            done[key] = None
    missing = {piece: key for key, piece in pieces.items() if key not in done}
    collect(
        taken(engine.run_workers(CaptionWorker, units, list(missing), arguments.device)),
        missing,
        done,
        sizes,
        what="files",
        name=lambda key: name_of(source.units[key[0]]),
        quiet=quiet,
    )
    _remove_leftovers(store)
    return Captioned(total, captioner, [units.paths(key)[1] for key in pieces])


def _begin_pass(store: CaptionStore, source: Source, run: int) -> int:
    """The run under whose number the pieces are kept: that of a pass that was interrupted and resumes, or this one.

    A pass does not resume where the input is another one, or where another kind of run came between. The lines of its
    pieces are kept all the same: they are results as any.
    """
    before = store.parts / PASS
    content = {"run": run, "units": source.describe()}
    found = read_json(before) if before.exists() else {}
    later = max((int(path.name.split("-")[1]) for path in store.parts.glob("captions-*.jsonl")), default=0)
    _remove_leftovers(store)
    if found.get("units") == content["units"] and found.get("run", 0) >= later:
        return found["run"]
    store.forget_pieces()
    write_json(before, content)
    return run


def _remove_leftovers(store: CaptionStore) -> None:
    """What killed workers have left."""
    for leftover in store.parts.glob("tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
