"""Rec shards → batches on the device, the same for the same seed on any number of ranks, from any position on."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alip.data.augment import Augmentation, AugmentationParams, sample_params
from alip.data.batch import Batch, HostTexts, PlanTexts, prepare_texts
from alip.data.captions import SAMPLING, choose_captions
from alip.data.decoders import IN_FLIGHT, INTERPOLATIONS, BrokenImage, DaliDecoder, PixelFormat, PlainDecoder
from alip.data.order import ORDERS, WINDOW_SHARDS, ShardOrder, Windows, create_order
from alip.data.read_ahead import ReadAhead
from alip.data.sample_reader import Records
from alip.data.shard_cache import CACHE_SIZE, ShardCache
from alip.data.shards import Manifest, load_manifest
from alip.data.synthetic import SyntheticData, SyntheticLoader
from alip.distributed import World
from alip.errors import UserError
from alip.remote.urls import UrlPath
from alip.tokens import CONTEXT_LENGTH, TOKENIZER, VOCAB_SIZE, TextFormat

READERS = {"dali": DaliDecoder, "torch": PlainDecoder}
_READ_AHEAD = 2  # batches read from the disk before a decoder takes them


class _Slices(Sequence):
    """The parts of the order that a rank reads from a position on, batch by batch: computed, there may be millions."""

    def __init__(self, loader: Loader, start: int):
        self._loader, self._start, self._count = loader, start, loader.batches_from(start)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, key: int | slice) -> Any:
        if isinstance(key, slice):
            return [self[g] for g in range(*key.indices(self._count))]
        if not 0 <= key < self._count:
            raise IndexError(key)
        return self._loader.slice_at(self._start + key * self._loader.global_batch_size)


@dataclass(frozen=True)
class _Request:
    index: np.ndarray
    texts: HostTexts
    encoded: list[np.ndarray]
    params: AugmentationParams


def open_data(
    train_data: str | os.PathLike | None, dataset_type: str = "auto", train_num_samples: int | None = None
) -> Manifest | SyntheticData:
    """The manifest of `DIR/NAME`, or with dataset_type "synthetic" random samples, `train_num_samples` of them."""
    if dataset_type == "synthetic":
        if train_num_samples is None:
            raise UserError("synthetic data needs a number of samples: train_num_samples, --train-num-samples")
        return SyntheticData(train_num_samples)
    if train_data is None:
        raise UserError("no data is given: name the shards, DIR/NAME")
    return load_manifest(train_data, at_url=True)


def create_loader(
    data: str | os.PathLike | Manifest | SyntheticData,
    batch_size: int,
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    world: World,
    seed: int = 0,
    threads: int = 2,
    augmentation: Augmentation | None = Augmentation(),  # noqa: B008 (immutable)
    shuffle: bool = True,
    drop_last: bool = True,
    reader: str = "dali",
    interpolation: str | None = None,
    context_length: int = CONTEXT_LENGTH,
    tokenizer: str = TOKENIZER,
    vocab_size: int = VOCAB_SIZE,
    plan_texts: PlanTexts | None = None,
    caption_sampling: str = "random",
    data_order: str = "blocks",
    window_shards: int = WINDOW_SHARDS,
    cache_dir: str | None = None,
    cache_size: int = CACHE_SIZE,
) -> Loader | SyntheticLoader:
    """A loader over `DIR/NAME`, or over synthetic data (which needs sizes, world and seed only).

    batch_size: of this rank. augmentation None: the centre square. reader: `dali` or `torch` (plain, any system).
    interpolation: of the resize, `bilinear` (the default, as the paper's recipe) or `bicubic`.
    context_length, tokenizer, vocab_size: what the model takes; UserError if the data does not fit, if it is
    too small for one batch on every rank, or if the first and last records of its shards are not sound.
    plan_texts: the model's own, run in the loader's thread.
    caption_sampling: where images have several captions, which one an epoch takes (captions.choose_captions).
    data_order: one of order.ORDERS; window_shards: of order `shards`. cache_dir, cache_size (bytes): for a dataset at a
    URL, whose shards pass through there.
    """
    if isinstance(data, SyntheticData):
        sizes = {"image_size": image_size, "context_length": context_length, "vocab_size": vocab_size}
        return SyntheticLoader(data, batch_size, **sizes, world=world, seed=seed, plan_texts=plan_texts)
    manifest = data if isinstance(data, Manifest) else load_manifest(data, at_url=True)
    _check_choices(reader, caption_sampling, data_order, interpolation or "bilinear")
    numbers = {"batch_size": batch_size, "image_size": image_size, "threads": threads, "window_shards": window_shards}
    for name, value in numbers.items():
        if value != int(value) or value < 1:
            raise UserError(f"{name} must be a whole number of at least 1, not {value}")
    if len(mean) != 3 or len(std) != 3:
        raise UserError(f"mean and std are three numbers each, not {list(mean)} and {list(std)}")
    check_tokens(manifest, TextFormat(tokenizer, context_length, vocab_size))
    # A GPU is sent bytes, a quarter of the traffic; the model normalises them there.
    raw = world.device.type == "cuda"
    form = PixelFormat(image_size, tuple(mean), tuple(std), interpolation or "bilinear", raw)
    if data_order != "shards" and isinstance(manifest.folder, UrlPath):
        raise UserError(f"{manifest.folder / manifest.name}: shards at a URL need --data-order shards")

    def order(epoch: int) -> ShardOrder:
        return ShardOrder(manifest.starts, seed, epoch, shuffle, window_shards)

    # Ranks that share a cache may be as far apart as they read ahead.
    ahead = (IN_FLIGHT + _READ_AHEAD + 1) * batch_size * world.world_size if world.is_distributed else 0
    records, cache = _open_records(manifest, vocab_size, cache_dir, (cache_size, order, ahead, batch_size))
    decoder = READERS[reader](form, augmentation, batch_size, threads, world.device)
    source = {"data_order": data_order, "window_shards": window_shards, "cache": cache}
    texts = {"plan_texts": plan_texts, "caption_sampling": caption_sampling}
    return Loader(records, decoder, batch_size, form, world, seed, augmentation, shuffle, drop_last, **texts, **source)


def _check_choices(reader: str, caption_sampling: str, data_order: str, interpolation: str) -> None:
    for name, value, known in (
        ("reader", reader, READERS),
        ("caption sampling", caption_sampling, SAMPLING),
        ("data order", data_order, ORDERS),
        ("interpolation", interpolation, INTERPOLATIONS),
    ):
        if value not in known:
            raise UserError(f"unknown {name} {value!r}: choose {', '.join(known)}")


def _open_records(
    manifest: Manifest, vocab_size: int, cache_dir: str | None, cache: tuple[int, Callable[[int], ShardOrder], int, int]
) -> tuple[Records, ShardCache | None]:
    """The records, checked; those at a URL through a cache. cache: the last four arguments of ShardCache."""
    if not isinstance(manifest.folder, UrlPath):
        records = Records(manifest, vocab_size)
        records.check()
        return records, None
    where = manifest.folder / manifest.name
    if cache_dir is None:
        raise UserError(f"{where}: to train on shards at a URL give --cache-dir DIR, a folder on a local disk")
    opened = ShardCache(manifest, Path(cache_dir) / "shards" / f"{manifest.name}-{manifest.fingerprint}", *cache)
    records = Records(opened.local, vocab_size)
    records.check_tokens()
    return records, opened


def check_tokens(data: Manifest | SyntheticData, form: TextFormat) -> None:
    """UserError unless the shards hold the tokens that a model takes: cheap, so ask before the model is built."""
    if isinstance(data, SyntheticData):
        return
    if data.tokenizer != form.tokenizer or data.context_length != form.context_length:
        raise UserError(
            f"{data.folder / data.name} holds {data.context_length} tokens of {data.tokenizer}, the model takes "
            f"{form.context_length} of {form.tokenizer}: it can be evaluated, but to train on these shards choose a "
            f"model with that tokenizer and context length"
        )


class Loader:
    """Batches of one dataset; made by `create_loader`. batches_per_epoch: the same on every rank."""

    def __init__(
        self,
        records: Records,
        decoder: DaliDecoder | PlainDecoder,
        batch_size: int,
        form: PixelFormat,
        world: World,
        seed: int,
        augmentation: Augmentation | None,
        shuffle: bool,
        drop_last: bool,
        plan_texts: PlanTexts | None = None,
        caption_sampling: str = "random",
        data_order: str = "blocks",
        window_shards: int = WINDOW_SHARDS,
        cache: ShardCache | None = None,
    ):
        self.data_order, self.window_shards, self.cache = data_order, window_shards, cache
        self.records, self.manifest, self.decoder = records, records.manifest, decoder
        self.batch_size, self.form, self.world, self.seed = batch_size, form, world, seed
        self.augmentation, self.shuffle, self.drop_last = augmentation, shuffle, drop_last
        self.plan_texts = plan_texts
        self.caption_sampling = caption_sampling
        self.global_batch_size = batch_size * world.world_size
        self.batches_per_epoch = self.batches_from(0)
        if self.batches_per_epoch == 0:
            raise UserError(
                f"{self.manifest.folder / self.manifest.name} has {self.manifest.samples} samples, not enough for one "
                f"batch of {batch_size} on each of {world.world_size} ranks: lower --batch-size"
            )

    def batches_from(self, position: int) -> int:
        """Number of batches from a position in an epoch to its end: the same on every rank."""
        left = self.manifest.samples - position
        whole, rest = divmod(max(0, left), self.global_batch_size)
        return whole + (not self.drop_last and rest >= self.world.world_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from `start` on: the number of samples that all ranks together have read, which
        is at least 0 (ValueError).

        Batch g of all ranks is order[start + g·B·W : start + (g+1)·B·W], of which rank r has the r-th B. With another
        number of ranks the samples of a global batch are the same as long as B·W is.
        """
        if start < 0:
            raise ValueError(f"an epoch starts at sample 0 or later, not {start}")
        requests: queue.Queue = queue.Queue(_READ_AHEAD)
        stop = threading.Event()
        reading = threading.Thread(target=self._read, args=(epoch, start, requests, stop), daemon=True)
        reading.start()
        in_flight: deque[_Request] = deque()
        left = self.batches_from(start)
        try:
            while left or in_flight:
                while left and len(in_flight) < IN_FLIGHT:
                    request = requests.get()
                    if isinstance(request, BaseException):
                        raise request
                    self.decoder.submit(request.encoded, request.params)
                    in_flight.append(request)
                    left -= 1
                yield self._batch(in_flight)
        finally:
            stop.set()
            self.decoder.drain()
            while reading.is_alive():  # it may wait for room in the queue
                try:
                    requests.get(timeout=0.05)
                except queue.Empty:
                    reading.join(timeout=0.05)

    def _batch(self, in_flight: deque[_Request]) -> Batch:
        try:
            image = self.decoder.result()
        except BrokenImage as error:
            number = error.number
            for request in in_flight:
                if number < self.batch_size:
                    where = self.records.where(int(request.index[number]))
                    raise UserError(
                        f"{where}: the image cannot be decoded ({error.detail}); "
                        f"`python data2rec.py --verify {self.manifest.folder / self.manifest.name} --decode` finds all"
                    ) from None
                number -= self.batch_size
            raise
        request = in_flight.popleft()
        text, caption, plan = request.texts.send(self.world.device)
        return Batch(image, text, caption, torch.from_numpy(request.index), plan)

    def _read(self, epoch: int, start: int, requests: queue.Queue, stop: threading.Event) -> None:
        """Runs in a thread: disk → requests, a little ahead of the decoder."""
        try:
            if self.world.device.type == "cuda":  # each thread starts at GPU 0, where pinning memory would then begin
                torch.cuda.set_device(self.world.device)
            order = self.order(epoch)
            batches = _Slices(self, start)
            ahead = (
                ReadAhead(self.records, order, batches)
                if self.cache is None
                else self.cache.follow(epoch, start, self.records.drop)
            )
            with closing(ahead):
                for g, (first, last) in enumerate(batches):
                    if stop.is_set():
                        return
                    ahead.before(g, first, last)
                    requests.put(self._request(order.slice(first, last), epoch))
        except BaseException as error:
            requests.put(error)

    def order(self, epoch: int) -> Windows:
        """The order of an epoch's samples."""
        return create_order(self.data_order, self.manifest.starts, self.seed, epoch, self.shuffle, self.window_shards)

    def slice_at(self, position: int) -> tuple[int, int]:
        """Where this rank's part of the global batch at `position` of the epoch begins and ends."""
        count = min(self.global_batch_size, self.manifest.samples - position)
        first = position + count * self.world.rank // self.world.world_size
        last = position + count * (self.world.rank + 1) // self.world.world_size
        return first, last

    def _request(self, index: np.ndarray, epoch: int) -> _Request:
        def choose(counts: np.ndarray, samples: np.ndarray) -> np.ndarray:
            return choose_captions(self.caption_sampling, counts, self.seed, epoch, samples)

        tokens, encoded, sizes = self.records.read(index, choose)
        params = sample_params(self.augmentation, sizes, self.form.image_size, self.seed, epoch, index)
        both = np.concatenate(np.split(tokens, 2, axis=1))  # raw texts, then captions
        return _Request(
            index, prepare_texts(torch.from_numpy(both), self.plan_texts, self.world.device), encoded, params
        )
