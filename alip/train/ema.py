"""The exponential moving average (EMA) of a model's weights."""

from __future__ import annotations

import torch
from torch import nn

from alip.train.sharding import divided


class EMA:
    """An exponential moving average of a model's weights, kept beside it.

    decay: fraction of the old average that each step keeps; after n steps min(decay, (1 + n) / (10 + n)), so that the
    random start is forgotten. Buffers (running statistics) are copied. `steps`: the steps averaged so far, a scalar
    on the weights' device.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = {key: value.detach().clone() for key, value in model.state_dict().items()}
        device = next(iter(self.weights.values())).device
        self.steps = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, model: nn.Module, skipped: torch.Tensor | None = None) -> None:
        """Averages the model's present weights in; nothing waits for the device.

        skipped: a scalar, true if the step was left out (its loss or gradient was not finite): then nothing changes.
        """
        weight = 1.0 - torch.clamp((1 + self.steps) / (10 + self.steps), max=self.decay)
        counted = torch.ones_like(self.steps)
        if skipped is not None:
            weight, counted = (torch.where(skipped, torch.zeros_like(v), v) for v in (weight, counted))
        self.steps += counted
        parameters = dict(model.named_parameters())
        for key, value in model.state_dict().items():
            if key in parameters and value.is_floating_point():
                # By a weight that is a tensor: torch's version for whole lists would read it on the host.
                self.weights[key].lerp_(value, weight.to(value.dtype))
            else:
                self.weights[key].copy_(value)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averaged weights, under the model's own names."""
        return self.weights

    def load(self, weights: dict[str, torch.Tensor], steps: int) -> None:
        """Restores a saved average of `steps` steps."""
        for key, value in self.weights.items():
            value.copy_(divided(weights[key], value))
        self.steps.fill_(steps)
