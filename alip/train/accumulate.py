"""Gradient accumulation with shared negatives: K micro-batches of b give the loss and gradients of one batch of K*b.

A contrastive loss couples all samples of a batch, so summing the micro-batches' own losses would be another
objective (fewer negatives) and would move the gates K times. Instead:

1. every micro-batch's features are computed without a graph;
2. the loss of all K*b features (of all ranks) is computed once, on leaves, which gives the gradient that each
   feature has to receive;
3. every micro-batch is run forward again, now with its graph and with the same random numbers, and those gradients
   are sent back through it. Ranks exchange their gradients once, with the last micro-batch.

The cost is one more forward pass. The memory is that of one micro-batch's graph. The same idea is known as
GradCache (Gao et al., 2021, arXiv 2101.06983).

Exact for towers whose output for a sample does not depend on its neighbours. With batch statistics (BatchNorm in
the ResNet towers) each micro-batch keeps its own statistics: the gradient is still the true one, but of K batches'
statistics, not of the big batch's. Running statistics move once per micro-batch, in the second pass only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from alip.train.randomness import get_randomness, set_randomness

# The common base class of all of torch's batch norms, SyncBatchNorm too.
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


def uses_batch_statistics(model: nn.Module) -> bool:
    """True if a sample's features depend on its micro-batch (BatchNorm in training)."""
    return any(isinstance(module, _BATCH_NORMS) for module in model.modules())


def running_statistics(model: nn.Module) -> list[torch.Tensor]:
    """The means and variances that BatchNorm layers keep for evaluation."""
    norms = [module for module in model.modules() if isinstance(module, _BATCH_NORMS)]
    found = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    return [buffer for buffer in found if buffer is not None]


def accumulated_backward(
    model: nn.Module,
    parallel_model: nn.Module,
    micro_batches: Sequence[Any],
    loss: Callable,
    autocast: Callable[[], contextlib.AbstractContextManager],
    scale: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
):
    """Leaves the big batch's gradients in the parameters' .grad; returns what `loss` returned.

    model: the plain model; parallel_model: the same one inside DistributedDataParallel, or itself.
    micro_batches: alip.data.batch.Batch; both passes share what each brings (the plan of its texts too).
    loss: (image_features, text_features, caption_features, logit_scale) -> object with a scalar .loss.
    scale: the loss → what backward() starts from (the scaled loss with fp16, else the loss itself).
    """
    randomness, features = [], []
    with torch.no_grad(), _running_statistics_frozen(model):
        for batch in micro_batches:
            randomness.append(get_randomness(device))
            with autocast():
                *triplet, logit_scale = model(*batch.inputs)
            features.append(triplet)

    leaves = [torch.cat(parts).requires_grad_() for parts in zip(*features)]
    scale_leaf = logit_scale.detach().clone().requires_grad_()
    outcome = loss(*leaves, scale_leaf)
    scale(outcome.loss).backward()

    sizes = [len(batch.image) for batch in micro_batches]
    pieces = zip(*(leaf.grad.split(sizes) for leaf in leaves))
    last = len(micro_batches) - 1
    for k, (batch, piece) in enumerate(zip(micro_batches, pieces)):
        set_randomness(randomness[k], device)
        with _without_exchange(parallel_model, k < last):
            with autocast():
                *triplet, logit_scale = parallel_model(*batch.inputs)
            # logit_scale belongs to the whole batch, so its gradient goes in once; the zeros before keep every
            # parameter in every graph, which DistributedDataParallel expects.
            scale_gradient = scale_leaf.grad if k == last else torch.zeros_like(scale_leaf)
            outputs, gradients = _differentiable((*triplet, logit_scale), (*piece, scale_gradient))
            torch.autograd.backward(outputs, gradients)
    return outcome


def _differentiable(outputs: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]):
    """Leaves out the outputs without a graph: a locked tower's."""
    pairs = [(output, gradient) for output, gradient in zip(outputs, gradients) if output.requires_grad]
    return tuple(zip(*pairs))


def _without_exchange(parallel_model: nn.Module, apply: bool) -> contextlib.AbstractContextManager:
    """DistributedDataParallel's no_sync() where there is one."""
    if apply and hasattr(parallel_model, "no_sync"):
        return parallel_model.no_sync()
    return contextlib.nullcontext()


@contextlib.contextmanager
def _running_statistics_frozen(model: nn.Module) -> Iterator[None]:
    """Batch statistics are used as in training, but the running ones do not move."""
    norms = [m for m in model.modules() if isinstance(m, _BATCH_NORMS) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
