"""The protocol of captioners (a batch of images in, a list of strings out), and the settings of text decoding.

A captioner is any object with a method `caption(batch) -> list[str]`, one string for each item. It may also have

- `prepare(image) -> anything picklable`: runs in the worker processes on one RGB PIL image; `caption` then gets a list
  of what `prepare` returned. Without it `caption` gets the PIL images, shrunk to at most --max-side pixels a side.
- `short_side`: JPEGs may be decoded at a smaller scale, as long as their short side stays at least this (pixels).
- `reads`: "images" (the default), or "keys": then nothing is decoded, and `caption` gets the samples' keys.
- `metadata`: a dict that is written beside the captions (the model's name, its revision).
- `takes_seeds`: True: while words are sampled, `caption(batch, seeds)` gets a number below 2**63 for each item, and an
  item's caption should depend on its own number only. Otherwise torch's generator is seeded for each batch.
- `submit(content, seed) -> Future` and `ahead`: instead of batches, single images, `ahead` of them under way at a time;
  the future's result has the attribute `text`. `patience`: seconds for which those under way are waited for when an
  error ends the run (none without it).
- `usage() -> dict of numbers`: totals of what it has cost so far, for the record. `close()`: called at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from alip.errors import UserError

CHAT_PROMPT = "Describe the image in one short sentence."
MAX_SIDE = 1024  # longest side of images that are sent as they are, to another process or to a server


@dataclass(frozen=True)
class Decoding:
    """How text is generated from a model's probabilities; the names are those of transformers' `generate`.

    num_beams: width of the beam search; 1 is greedy. With sample=True words are sampled instead, after temperature,
    top_k (0: all words) and top_p (1: all words). max_new_tokens, min_new_tokens: length of the generated text in the
    model's tokens. seed: of the sampling; each batch's samples depend on it and on the batch's keys.
    """

    num_beams: int = 3
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 30
    min_new_tokens: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_beams < 1 or self.max_new_tokens < 1 or not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise UserError(
                "--num-beams and --max-new-tokens must be at least 1, and --min-new-tokens at most --max-new-tokens"
            )
        if self.temperature <= 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or self.repetition_penalty <= 0:
            raise UserError(
                "--temperature and --repetition-penalty must be above 0, --top-p in (0, 1], --top-k at least 0"
            )
        if self.sample and self.num_beams > 1:
            raise UserError("--sample and --captions-per-image sample words, without beam search: use --num-beams 1")


class Captioner(Protocol):
    """What every captioner has; see the module's docstring for the optional `prepare`, `reads` and `metadata`."""

    def caption(self, batch: list[Any]) -> list[str]:
        """One caption for each item of the batch, in its order."""
