"""The model on several ranks, and the message when one of them is gone."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator

import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from alip.distributed import World
from alip.errors import UserError
from alip.train.sharding import is_sharded


class LostRank(RuntimeError):
    """A rank that this one was waiting for is gone."""


def synchronise_batch_norm(model: nn.Module, world: World) -> None:
    """Turns BatchNorm into SyncBatchNorm, in place: statistics of all ranks' samples. Nothing on a single rank.

    Parameters and tensor names stay. Raises UserError for a model without BatchNorm, and on a CPU, where torch has no
    such layer.
    """
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise UserError("--use-bn-sync: this model has no BatchNorm: leave it out")
    if not world.is_distributed:
        return
    if world.device.type != "cuda":
        raise UserError("--use-bn-sync: torch synchronises BatchNorm on GPUs only; leave it out on a CPU")
    nn.SyncBatchNorm.convert_sync_batchnorm(model)


def parallelise(model: nn.Module, world: World) -> nn.Module:
    """The model inside DistributedDataParallel (gradients are averaged); itself on a single rank or if divided.

    Buffers are not exchanged at every forward: only BatchNorm has any that change, training does not read them, and
    `share_buffers` copies rank 0's where somebody does.
    """
    if not world.is_distributed or is_sharded(model):
        return model
    # torch 2.14 renamed the switch.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(
        model,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **{switch: False},
    )


def share_buffers(model: nn.Module, world: World) -> None:
    """Rank 0's buffers (running statistics) on every rank; rank 0's own never depend on when this happens."""
    if world.is_distributed:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


@contextlib.contextmanager
def naming_lost_ranks(world: World) -> Iterator[None]:
    """Explains a broken connection or a timeout between ranks."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        broken = isinstance(error, dist.DistError) or ("gloo" in text or "nccl" in text or "connection" in text)
        if not (world.is_distributed and broken):
            raise
        raise LostRank(
            f"rank {world.rank} lost another rank: that one was killed, failed (see its own message) or did not answer "
            "within --dist-timeout; start again with --resume auto (torchrun --max-restarts N does so by itself)"
        ) from error
