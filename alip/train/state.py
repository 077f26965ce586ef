"""All that a resume needs, in one place; and the checkpoints of a run on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from alip.data.shards import Manifest
from alip.distributed import World, gather_objects
from alip.eval.gates.labels import read_mismatch_labels
from alip.train.gate_metrics import MismatchMetrics
from alip.train.meter import Meter
from alip.train.optimizer import MovingAverage
from alip.train.precision import create_scaler, seed_rank
from alip.train.randomness import get_randomness, set_randomness

FORMAT, VERSION = "alip-checkpoint", 1


@dataclass
class TrainState:
    """Where a run stands. What is made of tensors is changed in place; the counters move with `advance`.

    step: updates made, never decreasing; epoch, position: the next update takes the triplets from `position` on of
    epoch `epoch` (both from 0, over all ranks); samples: triplets seen; best: {set name: best headline number so far}.
    meter: sums since the last log line; mismatch_metrics: the epoch's gates, if mismatched texts are labelled.
    """

    model: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    meter: Meter
    scaler: torch.amp.GradScaler | None = None
    moving_average: MovingAverage | None = None
    mismatch_metrics: MismatchMetrics | None = None
    step: int = 0
    epoch: int = 0
    position: int = 0
    samples: int = 0
    best: dict[str, float] = field(default_factory=dict)

    def advance(self, global_batch: int, epoch_samples: int) -> None:
        """Counts one update of `global_batch` triplets. What is left of an epoch and no whole update is left out."""
        self.step += 1
        self.samples += global_batch
        self.position += global_batch
        if epoch_samples - self.position < global_batch:
            self.epoch, self.position = self.epoch + 1, 0

    def capture(self, world: World, reader: dict, identity: dict) -> dict[str, Any] | None:
        """The content of a checkpoint (tensors and plain values) on rank 0, None elsewhere. All ranks call it.

        reader: Loader.state(); identity: what makes this run this run (alip.train.resume).
        """
        ranks = gather_objects(self._of_this_rank(world), world)
        if not world.is_main:
            return None
        average = self.moving_average
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model.state_dict(),
            "model_config": self.model.config,
            "ema": average.state_dict() if average else None,
            "ema_updates": average.updates if average else 0,
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "step": self.step,
            "epoch": self.epoch,
            "position": self.position,
            "samples": self.samples,
            "best": dict(self.best),
            "reader": reader,
            "ranks": ranks,
            "identity": identity,
        }

    def restore(self, saved: dict[str, Any], world: World, seed: int) -> None:
        """Takes up a captured state. With another number of ranks, sums are kept and random numbers begin anew."""
        self.model.load_state_dict(saved["model"])
        self.loss.load_state_dict(saved["loss"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.scaler and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        if self.moving_average:
            # A run that begins to average now begins at the weights as they are.
            self.moving_average.load(saved["ema"] or saved["model"], saved["ema_updates"])
        self.step, self.epoch, self.position = saved["step"], saved["epoch"], saved["position"]
        self.samples, self.best = saved["samples"], dict(saved["best"])

        ranks = saved["ranks"]
        if len(ranks) == world.world_size:
            mine = ranks[world.rank : world.rank + 1]
            set_randomness(mine[0]["rng"], world.device)
        else:
            mine = ranks[world.rank :: world.world_size]
            seed_rank(seed + self.step, world.rank)
        self.meter.load([part["meter"] for part in mine])
        if self.mismatch_metrics:
            self.mismatch_metrics.load([part["gates"] for part in mine if part["gates"] is not None], world.device)

    def _of_this_rank(self, world: World) -> dict[str, Any]:
        return {
            "rng": get_randomness(world.device),
            "meter": self.meter.state(),
            "gates": self.mismatch_metrics.state() if self.mismatch_metrics else None,
        }


def create_state(
    model: nn.Module,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    manifest: Manifest,
    world: World,
    precision: str,
    ema: float = 0.0,
    mismatch_column: str | None = None,
) -> TrainState:
    """The state of a run that begins.

    precision: resolved; "fp16" brings a gradient scaler. ema: decay of the averaged weights, 0 for none.
    mismatch_column: the metadata column that is true where the raw text is mismatched.
    """
    return TrainState(
        model,
        loss,
        optimizer,
        Meter(world.device),
        scaler=create_scaler(precision, world.device),
        moving_average=MovingAverage(model, ema) if ema else None,
        mismatch_metrics=MismatchMetrics(read_mismatch_labels(manifest, mismatch_column)) if mismatch_column else None,
    )
