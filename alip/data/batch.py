"""What a data loader gives a training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from alip.varlen import VarlenPlan

PlanTexts = Callable[[torch.Tensor], VarlenPlan | None]


@dataclass(frozen=True)
class Batch:
    """n samples, on the device except for `index`.

    image: (n, 3, side, side), float32 and normalised, or uint8 for a model to normalise on its device.
    text_tokens, caption_tokens: (n, 77) int64. index: (n,) int64 on the CPU, the samples' positions in the dataset.
    text_plan: how the model runs both texts (raw texts first) without padding; None where it has to find out itself.
    """

    image: torch.Tensor
    text_tokens: torch.Tensor
    caption_tokens: torch.Tensor
    index: torch.Tensor
    text_plan: VarlenPlan | None = None

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The arguments of a bi-path model's forward pass."""
        inputs = (self.image, self.text_tokens, self.caption_tokens)
        return inputs if self.text_plan is None else (*inputs, self.text_plan)


@dataclass(frozen=True)
class HostTexts:
    """The texts of a batch on the host, ready to be sent: made in the loader's thread.

    tokens: (2n, 77) int64, raw texts, then captions; plan: of these.
    """

    tokens: torch.Tensor
    plan: VarlenPlan | None

    def send(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, VarlenPlan | None]:
        """Raw-text tokens, caption tokens and plan on the device; the host does not wait for it."""
        raw, caption = self.tokens.to(device, non_blocking=True).chunk(2)
        return raw, caption, self.plan.to(device) if self.plan is not None else None


def prepare_texts(tokens: torch.Tensor, plan_texts: PlanTexts | None, device: torch.device) -> HostTexts:
    """tokens: (2n, 77), raw texts, then captions, on the CPU. Page-locked if `device` is a GPU."""
    plan = plan_texts(tokens) if plan_texts is not None else None
    if device.type == "cuda":
        tokens, plan = tokens.pin_memory(), plan.pin_memory() if plan is not None else None
    return HostTexts(tokens, plan)
