"""Random images and texts of a model's sizes in place of a dataset: to measure a training step without data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from alip.data.batch import Batch, PlanTexts, prepare_texts
from alip.data.order import EpochOrder, uniform
from alip.distributed import World, share
from alip.errors import UserError

_IMAGES = 64  # different images; they stay on the device, so that no step waits for one
_TEXT_WORDS, _CAPTION_WORDS = (3, 24), (8, 16)  # shortest and longest, as web texts and captions are


@dataclass(frozen=True)
class SyntheticData:
    """In place of a manifest: `samples` random samples."""

    samples: int
    name: str = "synthetic"
    folder: Path = Path(".")

    @property
    def fingerprint(self) -> str:
        """Equal for equal data."""
        return f"synthetic-{self.samples}"


class SyntheticLoader:
    """Batches as `alip.data.loader.Loader` gives them, of random pixels and random token ids.

    The same for the same seed, on any number of ranks. Pixels are normalised already: normal, mean 0, variance 1.
    Texts are as long as web texts and captions usually are, since the time of a step depends on it.
    """

    def __init__(
        self,
        data: SyntheticData,
        batch_size: int,
        *,
        image_size: int,
        context_length: int,
        vocab_size: int,
        world: World,
        seed: int = 0,
        plan_texts: PlanTexts | None = None,
    ):
        self.data, self.batch_size, self.world, self.seed = data, batch_size, world, seed
        self.context_length, self.vocab_size, self.plan_texts = context_length, vocab_size, plan_texts
        self.global_batch_size = batch_size * world.world_size
        self.batches_per_epoch = self.batches_from(0)
        if self.batches_per_epoch == 0:
            raise UserError(
                f"{data.samples} synthetic samples are not enough for a batch of {batch_size} on each of "
                f"{world.world_size} ranks: raise --train-num-samples"
            )
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(min(_IMAGES, data.samples), 3, image_size, image_size, generator=generator)
        self.images = images.to(world.device)

    def batches_from(self, position: int) -> int:
        """Number of batches from a position in an epoch to its end: the same on every rank."""
        return max(0, self.data.samples - position) // self.global_batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from `start` on: the number of samples that all ranks together have had."""
        order = EpochOrder(self.data.samples, self.seed, epoch)
        mine = share(self.global_batch_size, self.world)
        for number in range(self.batches_from(start)):
            first = start + number * self.global_batch_size
            index = order.slice(first + mine.start, first + mine.stop)
            rows = [self._tokens(index, _TEXT_WORDS, stream=0), self._tokens(index, _CAPTION_WORDS, stream=1000)]
            texts = prepare_texts(torch.cat(rows), self.plan_texts, self.world.device)
            text, caption, plan = texts.send(self.world.device)
            chosen = torch.from_numpy(index % len(self.images))
            if self.world.device.type == "cuda":
                chosen = chosen.pin_memory()
            image = self.images[chosen.to(self.world.device, non_blocking=True)]
            yield Batch(image, text, caption, torch.from_numpy(index), plan)

    def _tokens(self, index: np.ndarray, words: tuple[int, int], stream: int) -> torch.Tensor:
        """(n, context_length) int64: start token, words, end token, padding with 0, as CLIP's tokenizer has it."""
        shortest, longest = (min(count, self.context_length - 2) for count in words)
        lengths = shortest + (uniform(self.seed, 0, index, stream) * (longest - shortest + 1)).astype(np.int64)
        tokens = np.zeros((len(index), self.context_length), np.int64)
        tokens[:, 0] = self.vocab_size - 2
        for position in range(1, longest + 1):
            word = 1 + (uniform(self.seed, 0, index, stream + position) * (self.vocab_size - 3)).astype(np.int64)
            tokens[:, position] = np.where(position <= lengths, word, 0)
        tokens[np.arange(len(index)), lengths + 1] = self.vocab_size - 1
        return torch.from_numpy(tokens)
