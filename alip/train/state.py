"""All that a resume needs, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from alip.data.shards import Manifest
from alip.distributed import World, gather_objects
from alip.errors import UserError
from alip.eval.gates.labels import read_mismatch_labels
from alip.train.checkpoint_content import FORMAT, VERSION
from alip.train.ema import EMA
from alip.train.gate_metrics import MismatchMetrics
from alip.train.meter import Meter
from alip.train.moments import OptimizerState
from alip.train.randomness import get_randomness, set_randomness
from alip.train.setup import create_scaler, seed_rank
from alip.train.sharding import full, full_state, load_full


@dataclass
class TrainState:
    """What a run has reached. What is made of tensors is changed in place; the counters move with `advance`.

    step: optimizer steps made, never decreasing; epoch, position: the next step takes the samples from `position` on
    of epoch `epoch` (both from 0, over all ranks); samples: samples seen; best: {dataset: best primary metric so far}.
    meter: sums since the last log line; mismatch_metrics: the epoch's gates, if mismatched texts are labelled.
    """

    model: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    meter: Meter
    scaler: torch.amp.GradScaler | None = None
    ema: EMA | None = None
    mismatch_metrics: MismatchMetrics | None = None
    step: int = 0
    epoch: int = 0
    position: int = 0
    samples: int = 0
    best: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        self._optimizer_state = OptimizerState(self.model, self.optimizer)

    def advance(self, global_batch: int, epoch_samples: int) -> None:
        """Counts one step of `global_batch` samples; an epoch ends where fewer than that are left of it."""
        self.step += 1
        self.samples += global_batch
        self.position += global_batch
        if epoch_samples - self.position < global_batch:
            self.epoch, self.position = self.epoch + 1, 0

    def capture(self, world: World, fingerprint: dict) -> dict[str, Any] | None:
        """The content of a checkpoint (tensors and plain values) on rank 0, None elsewhere. All ranks call it.

        fingerprint: what distinguishes this run from others (alip.train.resume).
        """
        ranks = gather_objects(self._of_this_rank(world), world)
        # Of a divided model every rank gives its parts.
        keep = world.is_main
        weights, moments = full_state(self.model, keep), self._optimizer_state.capture(keep)
        averaged = {name: full(value, keep) for name, value in self.ema.state_dict().items()} if self.ema else None
        if not world.is_main:
            return None
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": weights,
            "model_config": self.model.config,
            "ema": averaged,
            "ema_steps": int(self.ema.steps) if self.ema else 0,
            "loss": self.loss.state_dict(),
            "optimizer": moments,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "step": self.step,
            "epoch": self.epoch,
            "position": self.position,
            "samples": self.samples,
            "best": dict(self.best),
            "ranks": ranks,
            "fingerprint": fingerprint,
        }

    def restore(self, saved: dict[str, Any], world: World, seed: int) -> None:
        """Restores a captured state; UserError where model or optimizer are others than the checkpoint's.

        With another number of ranks, sums are kept and random numbers are seeded again.
        """
        try:
            load_full(self.model, saved["model"])
            self.loss.load_state_dict(saved["loss"])
        except RuntimeError as error:
            reason = "; ".join(line.strip() for line in str(error).splitlines()[1:3]) or str(error)
            raise UserError(
                f"the checkpoint's model is another one than --model gives ({reason[:200]}); give the run's own "
                "--model, or start from its weights with --pretrained and another --output"
            ) from error
        self._optimizer_state.restore(saved["optimizer"])
        if self.scaler and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        if self.ema:
            # A run that only now starts to average starts at the present weights.
            self.ema.load(saved["ema"] or saved["model"], saved["ema_steps"])
        self.step, self.epoch, self.position = saved["step"], saved["epoch"], saved["position"]
        self.samples, self.best = saved["samples"], dict(saved["best"])
        self._restore_ranks(saved["ranks"], world, seed)

    def _restore_ranks(self, ranks: list[dict[str, Any]], world: World, seed: int) -> None:
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
    """The state of a new run.

    precision: resolved; "fp16" brings a gradient scaler. ema: decay of the averaged weights, 0 for none.
    mismatch_column: the metadata column that is true where the raw text is mismatched.
    """
    return TrainState(
        model,
        loss,
        optimizer,
        Meter(world.device),
        scaler=create_scaler(precision, world.device),
        ema=EMA(model, ema) if ema else None,
        mismatch_metrics=MismatchMetrics(read_mismatch_labels(manifest, mismatch_column)) if mismatch_column else None,
    )
