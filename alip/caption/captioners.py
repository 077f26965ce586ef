"""What a captioner is: a batch of images in, a list of strings out; and how a model's probabilities become words.

A captioner is any object with a method `caption(batch) -> list[str]`, one string for each item. It may also have

- `prepare(image) -> anything picklable`: runs in the worker processes on one RGB PIL image; `caption` then gets a list
  of what `prepare` returned. Without it `caption` gets the PIL images, shrunk to at most 1024 pixels a side.
- `short_side`: JPEGs may be decoded at a smaller scale, as long as their short side stays at least this (pixels).
- `reads`: "images" (the default), or "keys": then nothing is decoded, and `caption` gets the samples' keys.
- `facts`: a dict that is written beside the captions (the model's name, its revision).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from alip.errors import UserError


@dataclass(frozen=True)
class Decoding:
    """How a model's probabilities become words.

    beams: width of the beam search; 1 is greedy. With sample=True words are drawn instead, after temperature, top_k
    (0: all words) and top_p (1: all words). max_tokens, min_tokens: length of the new text in the model's tokens.
    seed: of the draws; each batch's draws depend on it and on the batch's keys.
    """

    beams: int = 3
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int = 30
    min_tokens: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.beams < 1 or self.max_tokens < 1 or not 0 <= self.min_tokens <= self.max_tokens:
            raise UserError("--beams and --max-tokens start at 1, and --min-tokens may not exceed --max-tokens")
        if self.temperature <= 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or self.repetition_penalty <= 0:
            raise UserError("--temperature and --repetition-penalty are above 0, --top-p in (0, 1], --top-k at least 0")
        if self.sample and self.beams > 1:
            raise UserError("--sample draws words one by one and has no beams: add --beams 1")


class Captioner(Protocol):
    """What every captioner has; see the module's text for the optional `prepare`, `reads` and `facts`."""

    def caption(self, batch: list[Any]) -> list[str]:
        """One caption for each item of the batch, in its order."""
