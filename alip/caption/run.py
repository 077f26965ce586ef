"""One pass over a source: every image without a caption gets one, and every failure gets a line."""

from __future__ import annotations

import heapq
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from alip.build.sources import ByteRange, Sample, Source
from alip.caption.captioners import Captioner
from alip.caption.clean import clean
from alip.caption.preprocessing import PreparedImage, Preprocessing, feed, in_background, without_image
from alip.caption.store import DoneImages, NumberSet, PartWriter, number
from alip.errors import UserError

UNITS_PER_RANK = 4  # with fewer files than this per rank, the ranks split the keys instead of the files
HOPELESS = 16  # a captioner that fails on this many images in a row is broken itself


@dataclass(frozen=True)
class RankShard:
    """The samples of one rank. On several machines without a common torchrun the ranks of all machines are numbered
    consecutively (see pipeline.py)."""

    rank: int = 0
    ranks: int = 1

    def samples(self, source: Source, limit: int | None = None) -> Iterator[Sample]:
        """This rank's samples. By file where there are enough, so that each file is read once; else by key.

        limit: only the first `limit` samples of the source, over all ranks. COCO's and Karpathy's samples are
        sentences, IMAGE#0, IMAGE#1 …; here their key is IMAGE.
        """
        if limit is None and len(source.units) >= UNITS_PER_RANK * self.ranks:
            yield from _by_image(source, source.samples(list(range(self.rank, len(source.units), self.ranks))))
            return
        for sample in _by_image(source, islice(source.samples(), limit)):
            if number(sample.key) % self.ranks == self.rank:
                yield sample


def _by_image(source: Source, samples: Iterable[Sample]) -> Iterator[Sample]:
    for sample in samples:
        if source.source_type in ("coco", "karpathy") and not sample.error:
            sample.key = sample.metadata["image_id"]
        yield sample


@dataclass
class Tally:
    """Counts of one rank in one pass.

    images: all of them, = done + captioned + failed. done: had a caption before. failed: by reason.
    unread: files whose end could not be read (the number of images lost is unknown).
    sampled: random images for the figure, (number, key, image data): those with the largest numbers.
    """

    images: int = 0
    done: int = 0
    captioned: int = 0
    failed: Counter = field(default_factory=Counter)
    unread: int = 0
    sampled: list[tuple[int, str, ByteRange | bytes]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Adds another rank's tally."""
        self.images += other.images
        self.done += other.done
        self.captioned += other.captioned
        self.failed.update(other.failed)
        self.unread += other.unread
        self.sampled = heapq.nlargest(CANDIDATES, self.sampled + other.sampled, key=lambda entry: entry[:2])


CANDIDATES = 20  # twice the ten in the figure: some may have no caption


class Pass:
    """One rank's pass. Built from what it needs, run with `run()`, which returns the tally.

    captioner; preprocessing: how images are prepared for it. workers: preprocessing workers. cleaning: arguments of
    `clean`. trust_keys: an image with a caption counts as unchanged without reading it. sampling_seed: None unless
    words are sampled. figure_seed: of the figure's ten pairs. on_progress(tally, progress): called for every image.
    """

    def __init__(
        self,
        captioner: Captioner,
        preprocessing: Preprocessing,
        captions: PartWriter,
        failures: PartWriter,
        done: DoneImages,
        *,
        batch_size: int,
        workers: int,
        cleaning: dict[str, bool],
        trust_keys: bool = False,
        sampling_seed: int | None = None,
        figure_seed: int = 0,
        on_progress: Any = None,
    ) -> None:
        self.captioner, self.preprocessing = captioner, preprocessing
        self.captions, self.failures, self.done = captions, failures, done
        self.batch_size, self.workers, self.cleaning = batch_size, workers, cleaning
        self.reads_keys = getattr(captioner, "reads", "images") == "keys"
        self.trust_keys = trust_keys or self.reads_keys
        self.sampling_seed, self.figure_seed = sampling_seed, figure_seed
        self.on_progress = on_progress
        self.tally = Tally()
        self.failed_in_a_row = 0

    def run(self, samples: Iterable[Sample]) -> Tally:
        """Captions the samples. Raises whatever the captioner raises on every image; OSError when the disk is full."""
        batch: list[tuple[Sample, PreparedImage]] = []
        for sample, prepared in self._prepared(samples):
            if prepared.unchanged:
                self.tally.done += 1
            elif prepared.reason is not None:
                self._fail(sample, prepared.reason, prepared.detail)
            else:
                batch.append((sample, prepared))
            if len(batch) == self.batch_size:
                self._caption(batch)
                batch = []
            if self.on_progress is not None:
                self.on_progress(self.tally, sample.progress)
        if batch:
            self._caption(batch)
        self.captions.close()
        self.failures.close()
        return self.tally

    def _prepared(self, samples: Iterable[Sample]) -> Iterator[tuple[Sample, PreparedImage]]:
        new = self._new(samples)
        if self.reads_keys:
            return (
                (sample, without_image(sample) or PreparedImage(content=sample.key, unchanged=known is not None))
                for sample, known in new
            )
        ahead = 2 * self.batch_size + 4 * self.workers
        fed = feed(self._untrusted(new), self.preprocessing, self.workers, ahead)
        return in_background(fed, self.batch_size) if self.workers else fed

    def _new(self, samples: Iterable[Sample]) -> Iterator[tuple[Sample, str | None]]:
        """Each image once, with the digest of the image that was captioned under its key, if any."""
        keys, ranges = NumberSet(), NumberSet()
        for sample in samples:
            image_data = sample.image_data if isinstance(sample.image_data, ByteRange) else sample.where
            is_new = ranges.add(number(f"{sample.key}\n{image_data}"))
            if not keys.add(number(sample.key)) and sample.key:
                if not is_new:
                    continue  # another text of the same image, as in tables and COCO's JSON
                sample.error = "duplicate-key: another image of the source has this key and its caption"
            self.tally.images += 1
            self._sample_for_figure(sample)
            yield sample, self.done.image(sample.key)

    def _untrusted(self, new: Iterable[tuple[Sample, str | None]]) -> Iterator[tuple[Sample, str | None]]:
        """Samples that must be read; the others are counted as done here when keys are trusted."""
        for sample, known in new:
            if self.trust_keys and known is not None and not sample.error:
                self.tally.done += 1
            else:
                yield sample, known

    def _sample_for_figure(self, sample: Sample) -> None:
        if sample.image_data is None:
            return
        entry = (number(f"{self.figure_seed}\n{sample.key}"), sample.key, sample.image_data)
        sampled = self.tally.sampled  # a heap of those with the largest numbers, the smallest of them first
        if len(sampled) < CANDIDATES:
            heapq.heappush(sampled, entry)
        elif entry[:2] > sampled[0][:2]:
            heapq.heapreplace(sampled, entry)

    def _caption(self, batch: list[tuple[Sample, PreparedImage]]) -> None:
        if self.sampling_seed is not None:
            torch.manual_seed(number(f"{self.sampling_seed}\n{batch[0][0].key}") % 2**63)
        for (sample, prepared), text in zip(batch, self._texts(batch)):
            if isinstance(text, Exception):
                self._fail(sample, "captioner-failed", f"{type(text).__name__}: {text}")
                continue
            caption = clean(text, **self.cleaning) if text is not None else None
            if caption:
                self.captions.write({"key": sample.key, "caption": caption, "image": prepared.image})
                self.tally.captioned += 1
            elif text is None:
                self._fail(sample, "no-caption", "the captioner returned none")
            else:
                self._fail(sample, "empty-caption", f"the captioner wrote {text!r}")
        self.captions.flush()
        self.failures.flush()

    def _texts(self, batch: list[tuple[Sample, PreparedImage]]) -> list[str | Exception | None]:
        """One caption or error for each image. A failed batch is tried again in halves, down to the image at fault."""
        try:
            texts = list(self.captioner.caption([prepared.content for _, prepared in batch]))
        except UserError:
            raise
        except Exception as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                if isinstance(error, torch.OutOfMemoryError):
                    torch.cuda.empty_cache()
                    self.batch_size = min(self.batch_size, middle)
                    print(f"out of memory: continuing with batches of {self.batch_size}", file=sys.stderr, flush=True)
                return self._texts(batch[:middle]) + self._texts(batch[middle:])
            self.failed_in_a_row += 1
            if self.failed_in_a_row >= HOPELESS:
                raise  # a broken captioner, not a broken image
            return [error]
        if len(texts) != len(batch) or not all(isinstance(text, str | None) for text in texts):
            raise UserError(
                f"the captioner returned {len(texts)} results for {len(batch)} images; one string for each is needed"
            )
        self.failed_in_a_row = 0
        return texts

    def _fail(self, sample: Sample, reason: str, detail: str) -> None:
        self.tally.failed[reason] += 1
        self.tally.unread += reason == "broken-input"
        self.failures.write({"key": sample.key, "where": sample.where, "reason": reason, "detail": detail})
