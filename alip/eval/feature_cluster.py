"""Image features computed on a cluster: parts of a dataset are pieces of work, and workers hold the model."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from alip.checkpoint import load_model
from alip.cluster.pieces import Engine, collect
from alip.distributed import World, pick_device
from alip.eval import cache
from alip.eval.features import Encoding, Part, encode_part
from alip.eval.image_readers import Images


@dataclass(frozen=True)
class ModelSource:
    """The arguments of `load_model`, for workers on other machines."""

    checkpoint: str
    model_name: str | None = None
    weights: str = "model"


@dataclass(frozen=True)
class FeatureJob:
    """What every worker needs to know. directory: in which relative paths start."""

    model: ModelSource
    device: str
    images: Images
    transform: Callable | None
    encoding: Encoding
    directory: str


class FeatureWorker:
    """Holds the model; each call writes the features of a part of the images."""

    def __init__(self, job: FeatureJob):
        os.chdir(job.directory)
        device = pick_device(job.device)
        workers = job.encoding.workers
        if device.type == "cpu":
            torch.set_num_threads(1)  # there is a worker for each CPU
            workers = 0
        self.images = job.images
        self.model = load_model(job.model.checkpoint, job.model.model_name, device, job.model.weights)
        self.transform = job.transform or self.model.preprocess(is_train=False)
        self.encoding = replace(job.encoding, world=World(device=device), workers=workers)

    def __call__(self, path: str, positions: range, batch_size: int) -> int:
        """Returns the number of images."""
        found = encode_part(
            self.model, self.images, self.encoding, Part(positions, batch_size), "images", self.transform
        )
        values = {"features": found.features, "labels": found.labels, "positions": found.positions}
        cache.write(Path(path).parent, Path(path).stem, values, {"unreadable": found.unreadable})
        return len(positions)


class FeatureCluster:
    """See features.Cluster. model: the one whose features are asked for. device: "auto", "cpu" or "cuda"."""

    def __init__(self, engine: Engine, model: ModelSource, device: str = "auto"):
        self._engine, self._model, self._device = engine, model, device

    def encode(
        self, images: Images, transform: Callable | None, encoding: Encoding, parts: dict[Path, Part], label: str
    ) -> None:
        """See features.Cluster. UserError names the first part that failed."""
        plain = replace(
            encoding,
            world=World(),
            precision=encoding.resolved_precision(),
            cache=None,
            progress=False,
            memory=None,
            cluster=None,
        )
        job = FeatureJob(self._model, self._device, images, transform, plain, os.getcwd())
        keys = {(str(path), part.positions, part.batch_size): path for path, part in parts.items()}
        done: dict[Any, int] = {path: len(part.positions) for path, part in parts.items() if cache.is_whole(path)}
        missing = {piece: path for piece, path in keys.items() if path not in done}
        collect(
            self._engine.run_workers(FeatureWorker, job, list(missing), self._device),
            missing,
            done,
            {path: len(part.positions) for path, part in parts.items()},
            what=label,
            name=lambda path: f"{label}, {path.name}",
            quiet=not encoding.progress,
        )
