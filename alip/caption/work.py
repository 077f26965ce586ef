"""What a pass does with each image: a caption, or several."""

from __future__ import annotations

import sys
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from alip.build.sources import Sample
from alip.build.text_hash import number
from alip.caption.captioners import Captioner
from alip.caption.clean import clean
from alip.errors import UserError


@dataclass(frozen=True)
class Item:
    """An image whose turn has come. content: what the captioner's `prepare` made of it; digest: of its bytes."""

    sample: Sample
    content: Any
    digest: str = ""

    @property
    def key(self) -> str:
        """The sample's key."""
        return self.sample.key


@dataclass(frozen=True)
class Failed:
    """An image that got no result. reason: one word for counting."""

    reason: str
    detail: str


Result = dict[str, Any] | Failed  # the fields of the output's line, or why there is none


class Pending(Protocol):
    """A result that is on its way."""

    def done(self) -> bool:
        """Whether `result` returns at once."""

    def result(self) -> Result:
        """Waits for it. UserError ends the run."""

    def wait(self, seconds: float) -> bool:
        """Waits for it at most so long; whether it has come."""


class Work(Protocol):
    """What a pass does. `run` for models in this process; `start` (and `ahead`, the number of images under way) for
    those that work by themselves; then it is not None. patience: seconds after which each of these has ended."""

    ahead: int | None
    patience: float

    def run(self, items: list[Item]) -> list[Result]:
        """The results of a batch, in its order."""

    def start(self, item: Item) -> Pending:
        """Begins the work on one image."""


class CaptionWork:
    """Captions of images.

    cleaning: arguments of `clean`. seed: of sampling; None: no sampling. per_image: how many captions each image gets;
    caption k of an image depends on (seed, key, k), where the captioner takes seeds; else on the batch too.
    """

    def __init__(
        self, captioner: Captioner, cleaning: dict[str, bool], seed: int | None = None, per_image: int = 1
    ) -> None:
        self.captioner, self.cleaning, self.seed, self.per_image = captioner, cleaning, seed, per_image
        self.ahead = captioner.ahead if callable(getattr(captioner, "submit", None)) else None
        self.patience = float(getattr(captioner, "patience", 0.0))
        self._takes_seeds = bool(getattr(captioner, "takes_seeds", False))
        self._may_repeat = per_image > 1 and not self._takes_seeds  # looked at with the first batch

    def run(self, items: list[Item]) -> list[Result]:
        """The lines of a batch."""
        contents = [item.content for item in items]
        columns = [self._texts(contents, [self._seed(item.key, k) for item in items]) for k in range(self.per_image)]
        if self._may_repeat:
            self._may_repeat = False
            if len(items) > 1 and all(texts == columns[0] for texts in columns):
                print(
                    f"warning: the captioner gives each image the same caption {self.per_image} times: ask for "
                    "one, or have it draw random numbers from torch, which is seeded for each",
                    file=sys.stderr,
                    flush=True,
                )
        return [self._line(item, [texts[i] for texts in columns]) for i, item in enumerate(items)]

    def start(self, item: Item) -> Pending:
        """The requests for one image."""
        seeds = [self._seed(item.key, k) for k in range(self.per_image)]
        return PendingTexts(
            [self.captioner.submit(item.content, seed) for seed in seeds], lambda texts: self._line(item, texts)
        )

    def _seed(self, key: str, k: int) -> int | None:
        return None if self.seed is None else caption_seed(self.seed, key, k)

    def _texts(self, contents: list[Any], seeds: list[int | None]) -> list[str | None]:
        if seeds[0] is None:
            texts = self.captioner.caption(contents)
        elif self._takes_seeds:
            texts = self.captioner.caption(contents, seeds)
        else:
            torch.manual_seed(seeds[0])
            texts = self.captioner.caption(contents)
        texts = list(texts)
        if len(texts) != len(contents) or not all(isinstance(text, str | None) for text in texts):
            raise UserError(
                f"the captioner returned {len(texts)} results for {len(contents)} images; one string for each is needed"
            )
        return texts

    def _line(self, item: Item, texts: list[str | None]) -> Result:
        given = [text for text in texts if text is not None]
        if not given:
            return Failed("no-caption", "the captioner returned none")
        captions = [caption for caption in (clean(text, **self.cleaning) for text in given) if caption]
        if not captions:
            return Failed("empty-caption", f"the captioner wrote {given[0]!r}")
        texts = {"caption": captions[0]} if self.per_image == 1 else {"captions": captions}
        return {"key": item.key, **texts, "image": item.digest}


def caption_seed(seed: int, key: str, k: int) -> int:
    """The seed of caption k of an image: 63 bits. k = 0 is what one caption per image has always had."""
    return number(f"{seed}\n{key}" + (f"\n{k}" if k else "")) % 2**63


class PendingTexts:
    """The texts that several requests for one image will give, and the line that they make."""

    def __init__(self, futures: list[Future], to_line: Any) -> None:
        self._futures, self._to_line = futures, to_line

    def done(self) -> bool:
        """Whether all have come."""
        return all(future.done() for future in self._futures)

    def wait(self, seconds: float) -> bool:
        """Waits for all of them; whether they have come."""
        return not wait(self._futures, seconds).not_done

    def result(self) -> Result:
        """The line, or why there is none: of several requests for one image, none may fail."""
        try:
            return self._to_line([future.result().text for future in self._futures])
        except UserError:
            raise
        except Exception as error:  # Refusal, with a reason; anything else is this image's failure too
            return Failed(getattr(error, "reason", "captioner-failed"), str(error) or type(error).__name__)
