"""Sums of what the steps give, kept on the device and read once every so many steps."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from alip.distributed import World
from alip.train.step import StepResult

_SCALARS = ("loss", "text_loss", "caption_loss")
_PER_SAMPLE = (
    "sample_weight",
    "text_weight",
    "caption_weight",
    "text_caption_similarity",
    "image_text_similarity",
    "image_caption_similarity",
)
NAMES = (*_SCALARS, *_PER_SAMPLE, "grad_norm")


class Meter:
    """Means of NAMES since the last reading, over steps and ranks; steps that were skipped do not count.

    `add` never waits for the device; `read` does, once.
    """

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(len(NAMES) + 1, device=device)  # the last entry counts

    @torch.no_grad()
    def add(self, result: StepResult) -> None:
        """Adds one step."""
        outcome = result.outcome
        scalars = torch.stack([getattr(outcome, name).detach() for name in _SCALARS])
        means = torch.stack([getattr(outcome, name) for name in _PER_SAMPLE]).mean(dim=1)
        one = torch.ones_like(result.grad_norm)[None]
        values = torch.cat([scalars, means, result.grad_norm.detach()[None], one])
        # Not a product with 0: what is left out may be infinite.
        self.sums += torch.where(result.skipped, torch.zeros_like(values), values)

    def read(self, world: World) -> dict[str, float]:
        """{name: mean}, then starts from zero. All ranks call it. Without a single step that counted: NaN."""
        sums = self.sums.clone()
        self.sums.zero_()
        if world.is_distributed:
            dist.all_reduce(sums)
        *totals, count = sums.tolist()
        return {name: total / count if count else float("nan") for name, total in zip(NAMES, totals)}

    def state(self) -> torch.Tensor:
        """For a checkpoint."""
        return self.sums.to("cpu", copy=True)

    def load(self, states: list[Any]) -> None:
        """Restores saved sums; several (other ranks') are added."""
        self.sums.zero_()
        for saved in states:
            self.sums += saved.to(self.sums.device)
