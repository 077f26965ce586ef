"""How a step's samples are divided over ranks and micro-batches; `--batch-size auto` finds what fits by trying.

The number of samples of a step is part of the recipe: the micro-batch is always such that micro-batch x micro-batches x
ranks is that number. What fits is found by dry steps of growing size, on empty images and texts of full length, with a
model of its own that is thrown away: the run itself is untouched, random numbers included.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from alip.data.batch import Batch, prepare_texts
from alip.distributed import World, gather_objects
from alip.errors import UserError
from alip.infonce import Collectives, bi_path_contrast
from alip.model import create_model
from alip.train.ema import EMA
from alip.train.optimizer import create_optimizer
from alip.train.presets import GLOBAL_BATCH
from alip.train.setup import create_scaler
from alip.train.step import TrainStep

MARGIN = 0.08  # of the device's memory: other processes, the decoder's buffers, NCCL, fragmentation
TYPICAL_TOKENS = 20  # of a text, start and end included: more than web texts and captions have on average
MOST_SAMPLES = 32767  # of a micro-batch on a GPU: attention starts a row of blocks for each text, 65,535 at most
_IN_FLIGHT = 3  # micro-batches of images that the decoder holds beside those of the step


class Memory(Protocol):
    """A device's memory: its size in bytes, and the peak since `forget`, which also frees what is unused."""

    total: int

    def forget(self) -> None: ...

    def peak(self) -> int: ...


@dataclass(frozen=True)
class Found:
    """The largest micro-batch that fits, and its memory in bytes: of the step, of one more sample, of the device.

    with_typical_texts: the largest one if texts have TYPICAL_TOKENS; None where all samples of a step fit.
    """

    size: int
    peak: int
    per_sample: float
    total: int
    with_typical_texts: int | None = None

    def __str__(self) -> str:
        gib = 2**30
        fixed = max(0.0, self.peak - self.size * self.per_sample)
        cost = f"{self.per_sample / 2**20:.1f} MiB a sample, {fixed / gib:.1f} GiB for the rest"
        taken = f"{self.peak / gib:.1f} of {self.total / gib:.1f} GiB ({MARGIN:.0%} stay free)"
        line = f"{cost}; {self.size} at a time take {taken}"
        if (self.with_typical_texts or 0) > self.size:
            line += (
                f". That is for texts of full length; of {TYPICAL_TOKENS} tokens each {self.with_typical_texts} at a "
                f"time fit: give --batch-size {self.with_typical_texts} if yours are no longer on average"
            )
        return line


def divide(global_batch: int, size: int, ranks: int) -> int:
    """Micro-batches of `size` samples on each of `ranks` that make a step of `global_batch`; UserError if none do."""
    count, rest = divmod(global_batch, size * ranks)
    if rest or not count:
        raise UserError(
            f"--global-batch-size {global_batch} is not a multiple of {size} samples (--batch-size) x {ranks} ranks"
        )
    return count


def planned_batch(batch_size: int | str, accum_freq: int, global_batch: int | None, world: World) -> tuple[int, int]:
    """(samples of a micro-batch, micro-batches of a step) of each rank; with "auto" as if all of a step fitted.

    batch_size: a number, or "auto". global_batch: samples of a step over all ranks; None follows from the others, and
    with "auto" is the paper's. UserError where these do not go together.
    """
    if batch_size != "auto":
        if world.device.type == "cuda" and batch_size > MOST_SAMPLES:
            raise UserError(f"--batch-size {batch_size}: a GPU takes {MOST_SAMPLES} at a time; give --accum-freq, too")
        return batch_size, accum_freq if global_batch is None else divide(global_batch, batch_size, world.world_size)
    if world.device.type != "cuda":
        raise UserError("--batch-size auto needs a CUDA device, whose memory it fills: give a number on a CPU")
    whole = global_batch or GLOBAL_BATCH
    if whole % world.world_size:
        raise UserError(f"--global-batch-size {whole} is not a multiple of {world.world_size} ranks")
    return whole // world.world_size, 1


def resolve_batch(
    batch_size: int | str,
    accum_freq: int,
    global_batch: int | None,
    world: World,
    find: Callable[[int], Found],
    say: Callable[[str], None] = lambda text: None,
) -> tuple[int, int]:
    """`planned_batch`, but with "auto" the most samples that fit on every rank. All ranks call it.

    find: the most samples that fit here, of so many. say: gets a line about memory.
    """
    samples, count = planned_batch(batch_size, accum_freq, global_batch, world)
    if batch_size != "auto":
        return samples, count
    answers = gather_objects(_attempt(find, samples), world)  # a rank that fails must not leave the others waiting
    for rank, answer in enumerate(answers):
        if isinstance(answer, str):
            raise UserError(f"--batch-size auto, rank {rank}: {answer}")
    found = min(answers, key=lambda answer: answer.size)
    say(f"memory       {found}")
    return found.size, samples // found.size


def _attempt(find: Callable[[int], Found], samples: int) -> Found | str:
    try:
        return find(samples)
    except UserError as error:
        return str(error)


def largest_that_fits(samples: int, step: Callable[[int], None], memory: Memory) -> Found:
    """The largest divisor of `samples` of which one step fits: first doubled, then bisected.

    step: one dry step of so many samples; raises torch.OutOfMemoryError, or cuBLAS's or cuDNN's error, if it does not
    fit. UserError if none does.
    """
    sizes = [n for n in range(1, min(samples, MOST_SAMPLES) + 1) if samples % n == 0]
    peaks: dict[int, int] = {}

    def fits(size: int) -> bool:
        memory.forget()
        try:
            step(size)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            return False
        peaks[size] = memory.peak()
        return True

    position = _last_that_fits(sizes, fits)
    memory.forget()
    if position < 0:
        raise UserError("not even one sample at a time fits; try --grad-checkpointing or a smaller model")
    best = sizes[position]
    # Another size, far enough below for the difference to mean something.
    other = max((size for size in peaks if size <= best // 2), default=best)
    slope = (peaks[best] - peaks[other]) / (best - other) if other != best else peaks[best] / best
    return Found(best, peaks[best], max(0.0, slope), memory.total)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """torch's own error, or that of a library that found no room for its workspace."""
    words = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _last_that_fits(sizes: list[int], fits: Callable[[int], bool]) -> int:
    """Position of the largest of ascending sizes that fits, if all below it do; -1 for none."""
    low, at = -1, 0
    while fits(sizes[at]):
        low = at
        if low == len(sizes) - 1:
            return low
        at = max(k for k in range(low + 1, len(sizes)) if k == low + 1 or sizes[k] <= 2 * sizes[low])
    high = at
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(sizes[middle]) else (low, middle)
    return low


class CudaMemory:
    """A CUDA device's memory. margin: bytes that stay free; a dry step takes them, but they are no part of its peak."""

    def __init__(self, device: torch.device):
        self.device = device
        self.total = torch.cuda.get_device_properties(device).total_memory
        self.margin = int(MARGIN * self.total)

    def forget(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int:
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - self.margin


def find_largest(samples: int, step: DryStep, memory: Memory) -> Found:
    """`largest_that_fits` at the longest texts and, where these do not all fit, at texts of TYPICAL_TOKENS."""
    found = largest_that_fits(samples, step, memory)
    if found.size == samples or step.tokens <= TYPICAL_TOKENS:
        return found
    step.tokens = TYPICAL_TOKENS
    return replace(found, with_typical_texts=largest_that_fits(samples, step, memory).size)


class _LossOfOneRank(nn.Module):
    """The loss without other ranks, which may be at another size: its products and memory, no gates."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.register_buffer("history", torch.zeros(3, device=device))

    def forward(self, image, text, caption, logit_scale):
        weight = torch.ones(len(image), device=image.device)
        alone = Collectives.alone()
        losses = bi_path_contrast(image, text, caption, logit_scale, weight, weight, alone, [len(image)])
        return _Sum(sum(losses))


@dataclass(frozen=True)
class _Sum:
    loss: torch.Tensor


class DryStep:
    """One training step of any size, beside what a run holds: `DryStep(...)(size)`.

    model, optimizer: of create_model and create_optimizer. samples: of this rank's part of a step, whose images are all
    on the device at once; ema: whether averaged weights are kept; margin: bytes that stay free. tokens: of each
    text; at first as many as there can be.
    """

    def __init__(
        self,
        name: str,
        model: dict[str, Any],
        optimizer: dict[str, Any],
        *,
        samples: int,
        precision: str,
        ema: bool,
        margin: int,
        device: torch.device,
    ):
        # Not compiled: each size would be compiled by itself, and whole blocks as graphs need less memory, not more.
        self.model = create_model(name, **{**model, "pretrained": None, "compile": False}).to(device)
        scaler = create_scaler(precision, device)
        average = EMA(self.model, 0.9) if ema else None
        self.step = TrainStep(
            self.model,
            _LossOfOneRank(device),
            create_optimizer(self.model, **optimizer),
            device,
            precision=precision,
            scaler=scaler,
            ema=average,
        )
        self.samples, self.margin, self.device = samples, margin, device
        self.tokens = self.model.context_length

    def __call__(self, size: int) -> None:
        side, context = self.model.image_size, self.model.context_length
        pixels = 3 * side * side
        # What is there beside the step's own micro-batches: the other images of the step, and those being decoded.
        others = max(0, self.samples - 2 * size) + _IN_FLIGHT * size
        ballast = torch.empty(self.margin + others * pixels, dtype=torch.uint8, device=self.device)
        self.step([self._batch(size, side, context) for _ in range(1 if size == self.samples else 2)], 0.0)
        del ballast

    def _batch(self, size: int, side: int, context: int) -> Batch:
        """Pixels, and texts of `tokens`."""
        tokens = torch.zeros((2 * size, context), dtype=torch.int64)
        tokens[:, : self.tokens] = 1
        tokens[:, 0], tokens[:, self.tokens - 1] = self.model.vocab_size - 2, self.model.vocab_size - 1
        text, caption, plan = prepare_texts(tokens, self.model.plan_texts, self.device).send(self.device)
        image = torch.zeros(size, 3, side, side, dtype=torch.uint8, device=self.device)
        return Batch(image, text, caption, torch.arange(size), plan)
