"""What a data loader gives a training step."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Batch:
    """image: (n, 3, side, side) float32, text_tokens and caption_tokens: (n, 77) int64, all on the device;
    index: (n,) int64 on the CPU, the samples' positions in the dataset."""

    image: torch.Tensor
    text_tokens: torch.Tensor
    caption_tokens: torch.Tensor
    index: torch.Tensor
