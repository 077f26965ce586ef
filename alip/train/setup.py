"""The set-up of a training process: gradient scaling, seeds, kernels, memory layout and CPU threads."""

from __future__ import annotations

import os
import random

import torch
from open_clip.transformer import VisionTransformer

from alip.command import MOST_WORKERS
from alip.cpu_memory import keep_freed_memory
from alip.distributed import launcher_number
from alip.errors import UserError
from alip.model.precision import canonical


def create_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """fp16 needs its gradients scaled; no other type does."""
    return torch.amp.GradScaler(device.type) if canonical(precision) == "amp" else None


def set_up(device: torch.device, precision: str, seed: int, deterministic: bool, cpu_threads: int) -> None:
    """Seeds, kernels and threads of this process. Call before the model is made.

    The model is made from `seed` alone, equal on every rank; `seed_rank` then gives each rank its own random numbers.
    """
    random.seed(seed)
    torch.manual_seed(seed)
    if device.type == "cpu":
        torch.set_num_threads(cpu_threads or default_threads())
        keep_freed_memory()
    elif precision != "fp32":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def set_layout(model: torch.nn.Module) -> None:
    """Puts convolutional image towers into channels-last memory: a quarter off a small ResNet's step on a CPU.

    A vision transformer has one convolution, which runs as a matrix product, and stays as it is.
    """
    if not isinstance(model.visual, VisionTransformer):
        model.visual.to(memory_format=torch.channels_last)


def seed_rank(seed: int, rank: int) -> None:
    """Gives every rank its own random numbers (dropout, patch dropout)."""
    random.seed(seed + rank)
    torch.manual_seed(seed + rank)


def default_threads() -> int:
    """Threads for one rank on a CPU: an equal part of the cores that this process may use.

    torchrun sets OMP_NUM_THREADS=1 for more than one process, whatever the machine; that 1 is ignored here. Any
    other value, or one set where torchrun does not, was set on purpose and is used.
    """
    local_ranks = launcher_number(("LOCAL_WORLD_SIZE",), 1, least=1)
    asked = os.environ.get("OMP_NUM_THREADS")
    if asked and not (asked == "1" and local_ranks > 1):
        if not asked.split(",")[0].strip().isdecimal():  # a list of numbers, one for each level of nesting
            raise UserError(f"the environment variable OMP_NUM_THREADS is {asked[:40]!r}: set a number, or unset it")
        return max(1, min(int(asked.split(",")[0][:9]), MOST_WORKERS))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // local_ranks)
