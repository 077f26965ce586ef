"""Losses and gradients that are not finite: noticed without waiting for the GPU, and stopped in time."""

from __future__ import annotations

from pathlib import Path

import torch

from alip.distributed import World, gather_objects
from alip.files import write_json
from alip.train.step import StepResult


class NonFiniteWatch:
    """Keeps one flag per step on the device, and the steps' sample numbers, until they are read.

    limit: that many bad steps in a row mean that the run is lost. The weights are safe meanwhile: a step that is not
    finite is left out (alip.train.step), so reading the flags late costs time, not the model.
    only_loss: with fp16 gradients overflow now and then by design; only the loss counts then.
    """

    def __init__(self, limit: int, only_loss: bool):
        self.limit, self.only_loss = limit, only_loss
        self._flags: list[torch.Tensor] = []
        self._steps: list[tuple[int, torch.Tensor]] = []
        self._streak: list[tuple[int, torch.Tensor]] = []

    def add(self, step: int, index: torch.Tensor, result: StepResult) -> None:
        """step: the step's number; index: (B,) sample numbers of this rank's part of it."""
        self._flags.append(~result.loss_finite if self.only_loss else result.skipped)
        self._steps.append((step, index))

    def read(self) -> tuple[list[int], bool]:
        """Numbers of the bad steps since the last reading, and whether `limit` of them came in a row.

        The flags come from values that are equal on all ranks, so the answer is too.
        """
        if not self._flags:
            return [], False
        flags = torch.stack(self._flags).tolist()
        bad, lost = [], False
        for flag, entry in zip(flags, self._steps):
            self._streak = [*self._streak, entry] if flag and not lost else self._streak if lost else []
            lost = lost or len(self._streak) >= self.limit
            if flag:
                bad.append(entry[0])
        self._flags, self._steps = [], []
        return bad, lost

    def write(self, folder: Path, world: World) -> Path:
        """Saves the sample numbers of the present streak's batches as JSON, all ranks' together; all ranks call it."""
        mine = [(step, index.tolist()) for step, index in self._streak]
        parts = gather_objects(mine, world)
        merged = [
            {"step": step, "index": [i for part in parts for i in part[k][1]]} for k, (step, _) in enumerate(mine)
        ]
        path = folder / f"nonfinite-step-{self._streak[-1][0]:08d}.json"
        if world.is_main:
            write_json(path, {"steps": merged})
        return path
