"""Scoring a dataset on a cluster: a run of batches is a piece of work, and workers hold the models.

The pieces are tables in `gates.parquet.pieces/`, each written whole and then named; the plan beside them tells to which
dataset and checkpoints they belong. In the end they are joined in order: the batches are those of a single process.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alip.cluster.pieces import Engine, collect
from alip.data.shards import load_manifest
from alip.distributed import World, pick_device
from alip.eval.gates.run_checkpoints import check_recipes, open_scorer
from alip.eval.gates.scoring import Scoring, chosen_labels, join, schema_of
from alip.files import atomic_path, read_json, write_json

SAMPLES_PER_PIECE = 1 << 12
PLAN = "plan.json"


@dataclass(frozen=True)
class GateJob:
    """What every worker needs to know; the names are those of `score_on_cluster`. sources: of the scorers; folder: of
    the pieces; directory: in which relative paths start."""

    checkpoints: tuple[Path, ...]
    overrides: dict[str, Any]
    data: str
    sources: list[dict[str, Any]]
    columns: dict[str, str]
    batch_size: int
    workers: int
    device: str
    folder: Path
    directory: str

    def piece(self, number: int) -> Path:
        """The table of a piece."""
        return self.folder / f"piece-{number:06d}.parquet"


class GateWorker:
    """Holds the models and the data loader; each call does a piece."""

    def __init__(self, job: GateJob) -> None:
        os.chdir(job.directory)
        device = pick_device(job.device)
        workers = job.workers
        if device.type == "cpu":
            torch.set_num_threads(1)  # there is a worker for each CPU
            workers = 1
        self.job, manifest = job, load_manifest(job.data)
        self.schema = schema_of(job.sources, manifest, job.columns, job.batch_size)
        scorers = [open_scorer(path, job.overrides, device) for path in job.checkpoints]
        self.scoring = Scoring(scorers, manifest, World(device=device), job.columns, job.batch_size, workers)

    def __call__(self, number: int, first: int, last: int) -> int:
        """Scores the batches from first to before last. Returns how many they are."""
        with atomic_path(self.job.piece(number)) as path:
            self.scoring.write(path, self.schema, range(first, last), lambda: None)
        return last - first


def score_on_cluster(
    engine: Engine,
    checkpoints: list[Path],
    overrides: dict[str, Any],
    data: str,
    output: Path,
    *,
    columns: dict[str, str] | None = None,
    batch_size: int = 256,
    workers: int = 2,
    device: str = "auto",
    quiet: bool = False,
) -> None:
    """The table of `score_dataset`, of the checkpoints (see open_scorer) and the dataset `data`, by an engine.

    Resumes where an earlier call with the same arguments stopped. UserError names the samples of a piece that failed.
    """
    scorers = [open_scorer(path, overrides, torch.device("cpu")) for path in checkpoints]
    check_recipes(scorers)
    sources = [scorer.source for scorer in scorers]
    del scorers
    manifest, folder = load_manifest(data), output.with_name(f"{output.name}.pieces")
    labels = chosen_labels(columns)
    job = GateJob(
        tuple(checkpoints), overrides, data, sources, labels, batch_size, workers, device, folder, os.getcwd()
    )
    schema = schema_of(sources, manifest, labels, batch_size)
    per_piece = max(1, SAMPLES_PER_PIECE // batch_size)
    plan = {"schema": {key.decode(): value.decode() for key, value in schema.metadata.items()}, "batches": per_piece}
    plan |= {"columns": labels}
    if not (folder / PLAN).exists() or read_json(folder / PLAN) != plan:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / PLAN, plan)
    count = -(-manifest.samples // batch_size)
    ranges = {n: (at, min(at + per_piece, count)) for n, at in enumerate(range(0, count, per_piece))}
    sizes = {number: last - first for number, (first, last) in ranges.items()}
    done = {number: sizes[number] for number in ranges if job.piece(number).exists()}
    missing = {(number, *ends): number for number, ends in ranges.items() if number not in done}
    collect(
        engine.run_workers(GateWorker, job, list(missing), device),
        missing,
        done,
        sizes,
        what="scoring",
        name=lambda number: "samples {:,} to {:,}".format(*(edge * batch_size for edge in ranges[number])),
        quiet=quiet,
    )
    join([job.piece(number) for number in ranges], output, schema)
    shutil.rmtree(folder)
