"""AdamW, and what it decays."""

from __future__ import annotations

import torch
from torch import nn

# Parameters with two or more dimensions that mark places or classes rather than mix features.
_PLACES = ("positional_embedding", "class_embedding", "pos_embed", "cls_token", "position_bias", "logit_scale")


def decays(name: str, parameter: torch.Tensor) -> bool:
    """True where weight decay belongs: matrices and filters; not biases, norms, positions, logit_scale."""
    return parameter.ndim >= 2 and not any(part in name for part in _PLACES)


def create_optimizer(
    model: nn.Module,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.98,
    eps: float = 1e-6,
    weight_decay: float = 0.2,
    decay_all: bool = False,
) -> torch.optim.AdamW:
    """AdamW over the parameters that are not locked, in two groups: with and without weight decay.

    decay_all: decay every parameter, as the released runs did.
    The fused form is taken on the CPU too: one pass over memory, and it can leave out an update on the device
    (see alip.train.step), so that nothing waits for the GPU to say whether a gradient was finite.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if decay_all or decays(name, p)]
    others = [p for name, p in named if not (decay_all or decays(name, p))]
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, weight_decay), (others, 0.0))
        if parameters
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), eps=eps, fused=True)


def gradient_norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """The length of all gradients together, as one vector: a scalar on their device."""
    if gradients[0].device.type != "cpu":
        return torch.nn.utils.get_total_norm(gradients)
    # On a CPU torch reads a whole tensor on one thread, but its rows on all.
    rows = [torch.linalg.vector_norm(gradient, dim=-1).flatten() for gradient in gradients]
    return torch.linalg.vector_norm(torch.cat(rows))
