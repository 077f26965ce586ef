"""One pass over a source: every image without a result gets one, and every failure gets a line."""

from __future__ import annotations

import heapq
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from alip.build.sources import ByteRange, Sample, Source
from alip.build.text_hash import number
from alip.caption.lines import PartWriter
from alip.caption.preprocessing import PreparedImage, Preprocessing, feed, in_background
from alip.caption.store import NumberSet
from alip.caption.work import Failed, Item, Pending, Result, Work
from alip.errors import UserError

UNITS_PER_RANK = 4  # with fewer files than this per rank, the ranks split the keys instead of the files
ANNOUNCED_AFTER_S = 1.0  # a wait at the end of a run
HOPELESS = 16  # a captioner that fails on this many images in a row is broken itself


@dataclass(frozen=True)
class RankShard:
    """The samples of one rank. On several machines without a common torchrun the ranks of all machines are numbered
    consecutively (see pipeline.py)."""

    rank: int = 0
    ranks: int = 1

    def samples(self, source: Source, limit: int | None = None, by_image: bool = True) -> Iterator[Sample]:
        """This rank's samples. By file where there are enough, so that each file is read once; else by key.

        limit: only the first `limit` samples of the source, over all ranks. by_image: COCO's and Karpathy's samples are
        sentences, IMAGE#0, IMAGE#1 …; then their key is IMAGE.
        """
        by_key = images_of if by_image else lambda source, samples: samples
        if limit is None and len(source.units) >= UNITS_PER_RANK * self.ranks:
            yield from by_key(source, source.samples(list(range(self.rank, len(source.units), self.ranks))))
            return
        for sample in by_key(source, islice(source.samples(), limit)):
            if number(sample.key) % self.ranks == self.rank:
                yield sample


def images_of(source: Source, samples: Iterable[Sample]) -> Iterator[Sample]:
    """The samples with the keys of their images: those of COCO's and Karpathy's samples are of sentences."""
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


def image_identity(sample: Sample) -> tuple[str, str]:
    """What there is one result of, and where its data are: two with one name and different data are a mistake."""
    return sample.key, str(sample.image_data if isinstance(sample.image_data, ByteRange) else sample.where)


@dataclass(frozen=True)
class Output:
    """Where the lines of a pass go, and what is there already.

    results, failures: lines of this rank. known(sample): the digest of the image that has a result already, None if
    it has none. usage(): totals of what the work has cost so far, and costs: where their growth is written.
    """

    results: PartWriter
    failures: PartWriter
    known: Callable[[Sample], str | None]
    usage: Callable[[], dict[str, float]] | None = None
    costs: PartWriter | None = None


class Pass:
    """One rank's pass. Built from what it needs, run with `run()`, which returns the tally.

    work: what is done with each image; preprocessing: how images are prepared for it; None: no image is read, and the
    content is content(sample). workers: preprocessing workers. identity: see `image_identity`. trust_keys: an image
    with a result counts as unchanged without reading it. figure_seed: of the figure's ten pairs. on_progress(tally,
    progress): called for every image.
    """

    def __init__(
        self,
        work: Work,
        preprocessing: Preprocessing | None,
        output: Output,
        *,
        batch_size: int,
        workers: int,
        content: Callable[[Sample], PreparedImage] | None = None,
        identity: Callable[[Sample], tuple[str, str]] = image_identity,
        trust_keys: bool = False,
        figure_seed: int = 0,
        on_progress: Any = None,
    ) -> None:
        self.work, self.preprocessing, self.output = work, preprocessing, output
        self.batch_size, self.workers, self.content, self.identity = batch_size, workers, content, identity
        self.trust_keys = trust_keys and preprocessing is not None
        self.figure_seed, self.on_progress = figure_seed, on_progress
        self.tally = Tally()
        self.failed_in_a_row = 0
        self._spent: dict[str, float] = {}
        self._pending: deque[tuple[Item, Pending]] = deque()

    def run(self, samples: Iterable[Sample]) -> Tally:
        """Works on the samples. Raises whatever the work raises on every image; OSError when the disk is full."""
        batch: list[Item] = []
        try:
            for sample, prepared in self._prepared(samples):
                if prepared.unchanged:
                    self.tally.done += 1
                elif prepared.reason is not None:
                    self._fail(sample, prepared.reason, prepared.detail)
                elif self.work.ahead is not None:
                    self._start(Item(sample, prepared.content, prepared.image))
                else:
                    batch.append(Item(sample, prepared.content, prepared.image))
                if len(batch) >= self.batch_size:
                    self._write(batch, self._results(batch))
                    batch = []
                if self.on_progress is not None:
                    self.on_progress(self.tally, sample.progress)
            if batch:
                self._write(batch, self._results(batch))
            while self._pending:
                self._collect()
        except BaseException as error:
            self._salvage(self.work.patience if isinstance(error, UserError) else 0.0)
            raise
        for writer in (self.output.results, self.output.failures, self.output.costs):
            if writer is not None:
                writer.close()
        return self.tally

    def _start(self, item: Item) -> None:
        """Begins with one more image; the results are written in the images' order."""
        self._pending.append((item, self.work.start(item)))
        while self._pending and (len(self._pending) >= self.work.ahead or self._pending[0][1].done()):
            self._collect()

    def _collect(self) -> None:
        """Writes the oldest result, and those behind it that have come."""
        items, results = [], []
        while self._pending and (not items or self._pending[0][1].done()):
            result = self._pending[0][1].result()  # first, since it may end the run: `_salvage` then sees the rest
            items.append(self._pending.popleft()[0])
            results.append(result)
            if len(items) == self.batch_size:
                break
        self._write(items, results)

    def _salvage(self, patience: float) -> None:
        """The run ends early: results that have come already are kept, and those that come within `patience` seconds;
        they have been paid for."""
        pending, self._pending = self._pending, deque()
        begun = time.monotonic()
        is_announced = patience == 0
        for item, one in pending:
            while not (has_come := one.done()) and (rest := begun + patience - time.monotonic()) > 0:
                if not one.wait(min(rest, ANNOUNCED_AFTER_S)) and not is_announced:
                    is_announced = True
                    line = f"the run ends: the requests under way are waited for, at most {patience:g} s"
                    print(line, file=sys.stderr, flush=True)
            try:
                result = one.result() if has_come else None
            except UserError:
                continue
            if result is not None and not isinstance(result, Failed):
                self._write([item], [result])
        if pending and patience:
            self._write([], [])  # what the others have cost

    def _prepared(self, samples: Iterable[Sample]) -> Iterator[tuple[Sample, PreparedImage]]:
        new = self._new(samples)
        if self.preprocessing is None:
            return ((sample, self._without_reading(sample, known)) for sample, known in new)
        ahead = 2 * self.batch_size + 4 * self.workers
        fed = feed(self._untrusted(new), self.preprocessing, self.workers, ahead)
        return in_background(fed, self.batch_size) if self.workers else fed

    def _without_reading(self, sample: Sample, known: str | None) -> PreparedImage:
        prepared = self.content(sample)
        prepared.unchanged = prepared.reason is None and known is not None and known == prepared.image
        return prepared

    def _new(self, samples: Iterable[Sample]) -> Iterator[tuple[Sample, str | None]]:
        """Each image once, with the digest of the image that has a result under its key, if any."""
        keys, ranges = NumberSet(), NumberSet()
        for sample in samples:
            name, place = self.identity(sample)
            is_new = ranges.add(number(f"{name}\n{place}"))
            if not keys.add(number(name)) and sample.key:
                if not is_new:
                    continue  # another text of the same image, as in tables and COCO's JSON
                sample.error = "duplicate-key: another image of the source has this key and its result"
            self.tally.images += 1
            self._sample_for_figure(sample)
            yield sample, self.output.known(sample)

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

    def _write(self, items: list[Item], results: list[Result]) -> None:
        """The lines of some images; when this returns they survive a kill."""
        for item, result in zip(items, results, strict=True):
            if isinstance(result, Failed):
                self._fail(item.sample, result.reason, result.detail)
            else:
                self.output.results.write(result)
                self.tally.captioned += 1
        if self.output.usage is not None:
            spent = self.output.usage()
            growth = {name: total - self._spent.get(name, 0) for name, total in spent.items()}
            if any(growth.values()):
                self.output.costs.write({"key": "", "costs": growth})
            self._spent = spent
            self.output.costs.flush()
        self.output.results.flush()
        self.output.failures.flush()

    def _results(self, batch: list[Item]) -> list[Result]:
        """The result of each image. A failed batch is tried again in halves, down to the image at fault."""
        try:
            results = self.work.run(batch)
        except UserError:
            raise
        except Exception as error:
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
            if len(batch) == 1:
                self.failed_in_a_row += 1
                if self.failed_in_a_row >= HOPELESS:
                    raise  # a broken captioner, not a broken image
                return [Failed("captioner-failed", f"{type(error).__name__}: {error}")]
        else:
            self.failed_in_a_row = 0
            return results
        # Only here is the error gone, and with its traceback what the failed batch holds on the device.
        middle = len(batch) // 2
        if out_of_memory:
            torch.cuda.empty_cache()
            self.batch_size = min(self.batch_size, middle)
            print(f"out of memory: continuing with batches of {self.batch_size}", file=sys.stderr, flush=True)
        return self._results(batch[:middle]) + self._results(batch[middle:])

    def _fail(self, sample: Sample, reason: str, detail: str) -> None:
        self.tally.failed[reason] += 1
        self.tally.unread += reason == "broken-input"
        self.output.failures.write({"key": sample.key, "where": sample.where, "reason": reason, "detail": detail})
