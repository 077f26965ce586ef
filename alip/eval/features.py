"""Features of images and texts: batches on the device, divided among the ranks, cached on disk.

The numbers do not depend on how many ranks there are: every image is encoded once, in batches that all have the same
shape (the last is padded), and the texts' batches are fixed before they are divided.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from alip.cpu_products import onednn_linears
from alip.distributed import World, broadcast_object, gather_objects, share
from alip.errors import UserError
from alip.eval import cache
from alip.eval.image_loader import ImageBatches
from alip.eval.image_readers import Images
from alip.model.precision import autocast, resolve

PART_IMAGES = 1 << 12  # of a piece of work on a cluster; smaller datasets stay on this machine


@dataclass(frozen=True)
class ImageFeatures:
    """Features of the images that could be read.

    features: (n, D) float32, L2-normalised, on the rank's device. labels: (n,) int64, -1 without a label.
    positions: (n,) int64, each row's position in the dataset. unreadable: (name, reason) of the images left out.
    """

    features: Tensor
    labels: Tensor
    positions: Tensor
    unreadable: list[tuple[str, str]]


class FeatureMemory:
    """What was computed last, of one model and precision: image features, within `rows` rows, and classifiers.

    So images are decoded once for all tasks and lists of prompts, and ImageNet's prompts encoded once for its variants.
    """

    def __init__(self, rows: int = 250_000, classifiers: int = 16):
        self.rows, self.classifiers = rows, classifiers
        self._kept: dict[tuple[str, ...], ImageFeatures] = {}
        self._classifiers: dict[tuple[tuple[str, ...], ...], Tensor] = {}

    def classifier(self, names: Sequence[str], templates: Sequence[str], build: Callable[[], Tensor]) -> Tensor:
        """The classifier of these names and templates: kept, or else built."""
        key = (tuple(names), tuple(templates))
        if key not in self._classifiers:
            self._classifiers[key] = build()
            if len(self._classifiers) > self.classifiers:
                del self._classifiers[next(iter(self._classifiers))]
        return self._classifiers[key]

    def get(self, key: tuple[str, ...]) -> ImageFeatures | None:
        """What was kept under the key."""
        return self._kept.get(key)

    def keep(self, key: tuple[str, ...], features: ImageFeatures) -> None:
        """Keeps features; the oldest ones give way."""
        self._kept[key] = features
        while sum(len(one.labels) for one in self._kept.values()) > self.rows:
            del self._kept[next(iter(self._kept))]


class Cluster(Protocol):
    """Machines that encode images (feature_cluster.py)."""

    def encode(
        self, images: Images, transform: Callable | None, encoding: Encoding, parts: dict[Path, Part], label: str
    ) -> None:
        """Writes the features of parts of the images to files, those that are not there."""


@dataclass(frozen=True)
class Part:
    """Some positions in a dataset, and the images of a step."""

    positions: range
    batch_size: int


@dataclass(frozen=True)
class Encoding:
    """How to compute features.

    batch_size: images per step and rank; texts too. workers: threads or processes per rank that read images.
    precision: a name of alip.model.precision. cache: a folder, or None for no cache. memory: features of one model that
    several tasks, datasets or lists of prompts use. cluster: what encodes images on other machines, None: nothing.
    """

    world: World = field(default_factory=World)
    batch_size: int = 256
    workers: int = 2
    precision: str = "fp32"
    cache: Path | None = None
    progress: bool = True
    memory: FeatureMemory | None = None
    cluster: Cluster | None = None

    def resolved_precision(self) -> str:
        """`precision` with "auto" decided for this machine."""
        return resolve(self.precision, self.world.device)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """No gradients, and the chosen precision."""
        with torch.no_grad(), autocast(self.precision, self.world.device), onednn_linears(self.world.device):
            yield

    def cached(self, key: str) -> dict[str, Tensor] | None:
        """What the cache holds under the key, on every rank's device; only the main rank looks at the disk."""
        kept = cache.read(self.cache, key) if self.cache is not None and self.world.is_main else None
        kept = broadcast_object(kept, self.world)
        return None if kept is None else {name: value.to(self.world.device) for name, value in kept.items()}

    def bar(self, batches: Iterable[Any], label: str, total: int) -> Iterable[Any]:
        """A progress bar on the main rank."""
        hidden = not (self.progress and self.world.is_main)
        return tqdm(batches, desc=label, total=total, leave=False, disable=hidden, delay=0.1)


def encode_images(
    model: nn.Module,
    images: Images,
    encoding: Encoding,
    label: str = "images",
    transform: Callable | None = None,
) -> ImageFeatures:
    """Features of all images, the same on every rank. transform: PIL image → tensor, in place of the model's own.

    Raises UserError when no image at all can be read.
    """
    own = [] if transform is None else [type(transform).__name__]
    if encoding.memory is None:
        return _cached_images(model, images, encoding, label, transform, own)
    remembered = (images.cache_key(), *own)
    found = encoding.memory.get(remembered)
    if found is None:
        found = _cached_images(model, images, encoding, label, transform, own)
        encoding.memory.keep(remembered, found)
    return found


def _cached_images(
    model: nn.Module, images: Images, encoding: Encoding, label: str, transform: Callable | None, own: list[str]
) -> ImageFeatures:
    """From the cache on disk, or computed and written there."""
    key = None
    if encoding.cache is not None:
        key = cache.key_of(model, "images", images.cache_key(), encoding.resolved_precision(), *own)
        kept = encoding.cached(key)
        if kept is not None:
            return ImageFeatures(kept["features"], kept["labels"], kept["positions"], [])
    if encoding.cluster is not None and len(images) > PART_IMAGES:
        found = _encode_on_cluster(model, images, encoding, label, transform, own)
    else:
        found = _encode_images(model, images, encoding, label, transform or model.preprocess(is_train=False))
    if encoding.cache is not None and encoding.world.is_main and not found.unreadable:
        values = {"features": found.features, "labels": found.labels, "positions": found.positions}
        cache.write(encoding.cache, key, values)
    return found


def _encode_on_cluster(
    model: nn.Module, images: Images, encoding: Encoding, label: str, transform: Callable | None, own: list[str]
) -> ImageFeatures:
    """From files of PART_IMAGES images each, which are removed when all are there."""
    size = batch_size_for(len(images), encoding.batch_size)
    key = cache.key_of(model, "parts", images.cache_key(), encoding.resolved_precision(), size, *own)
    starts = range(0, len(images), PART_IMAGES)
    paths = [encoding.cache / f"{key}-{number:05d}.safetensors" for number in range(len(starts))]
    parts = {p: Part(range(at, min(at + PART_IMAGES, len(images))), size) for p, at in zip(paths, starts)}
    encoding.cluster.encode(images, transform, encoding, parts, label)
    found = [cache.read_part(path) for path in paths]
    unreadable = [failure for _, failures in found for failure in failures]
    check_readable(images, unreadable)
    columns = {name: torch.cat([values[name] for values, _ in found]) for name in ("features", "labels", "positions")}
    for path in paths:
        path.unlink()
    device = encoding.world.device
    return ImageFeatures(*(values.to(device) for values in columns.values()), unreadable)


def _encode_images(
    model: nn.Module, images: Images, encoding: Encoding, label: str, transform: Callable
) -> ImageFeatures:
    world = encoding.world
    size = batch_size_for(len(images), encoding.batch_size)
    found = encode_part(model, images, encoding, Part(share(len(images), world), size), label, transform)
    unreadable = [failure for part in gather_objects(found.unreadable, world) for failure in part]
    check_readable(images, unreadable)
    columns = (found.features, found.labels.to(world.device), found.positions.to(world.device))
    return ImageFeatures(*(gather_rows(column, world) for column in columns), unreadable)


def batch_size_for(images: int, batch_size: int) -> int:
    """One shape for every batch of every rank and machine, so that rounding does not depend on how many there are; a
    small dataset takes smaller batches, so that padding the last one stays cheap."""
    return min(batch_size, -(-images // 4))


def encode_part(
    model: nn.Module, images: Images, encoding: Encoding, part: Part, label: str, transform: Callable
) -> ImageFeatures:
    """The features of some images, by this process alone; labels and positions on the CPU."""
    world, mine, batch_size = encoding.world, part.positions, part.batch_size
    loader = ImageBatches(images, transform, mine, batch_size, encoding.workers, world.device)
    # There may be no rows: more ranks than images, or none of these can be read.
    features = [torch.empty(0, _feature_width(model), device=world.device)]
    labels, positions = ([torch.empty(0, dtype=torch.int64)] for _ in range(2))
    unreadable: list[tuple[str, str]] = []
    with encoding.computing():
        for pixels, batch_labels, batch_positions, failures in encoding.bar(loader, label, len(loader)):
            unreadable += failures
            if pixels is None:
                continue
            count = len(pixels)
            if count < batch_size:
                pixels = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, batch_size - count))
            encoded = model.encode_image(pixels)[:count]
            features.append(F.normalize(encoded.float(), dim=-1))
            labels.append(batch_labels)
            positions.append(batch_positions)
    return ImageFeatures(torch.cat(features), torch.cat(labels), torch.cat(positions), unreadable)


def check_readable(images: Images, unreadable: list[tuple[str, str]]) -> None:
    """UserError if no image at all could be read."""
    if len(unreadable) == len(images):
        name, reason = unreadable[0] if unreadable else ("no images", "the dataset is empty")
        raise UserError(f"none of the {len(images)} images can be read; the first: {name}: {reason}")


def _feature_width(model: nn.Module) -> int:
    return int(model.config["model_cfg"]["embed_dim"])


def encode_texts(model: nn.Module, texts: Sequence[str], encoding: Encoding, label: str = "texts") -> Tensor:
    """(n, D) float32, L2-normalised, on the rank's device and the same on every rank.

    Equal texts are encoded once. Texts of like length share a batch, because a batch is as long as its longest text.
    """
    world = encoding.world
    unique = list(dict.fromkeys(texts))
    if not unique:
        raise UserError("no texts to encode")
    tokens = torch.cat([model.tokenizer(unique[i : i + 4096]) for i in range(0, len(unique), 4096)])
    batches = batches_of_texts((tokens != 0).sum(1), encoding.batch_size, tokens.shape[1])
    mine = range(world.rank, len(batches), world.world_size)
    parts = []
    with encoding.computing():
        for number in encoding.bar(mine, label, len(mine)):
            encoded = model.encode_text(tokens[batches[number]].to(world.device))
            parts.append(F.normalize(encoded.float(), dim=-1))
    rows = gather_rows(torch.cat([torch.empty(0, _feature_width(model), device=world.device), *parts]), world)
    gathered = torch.cat(
        [batches[n] for rank in range(world.world_size) for n in range(rank, len(batches), world.world_size)]
    )
    features = torch.empty_like(rows)
    features[gathered.to(world.device)] = rows
    row_of = {text: number for number, text in enumerate(unique)}
    return features[torch.tensor([row_of[text] for text in texts], device=world.device)]


def batches_of_texts(lengths: Tensor, batch_size: int, longest: int) -> list[Tensor]:
    """Positions of texts, shortest first, in batches of about as many tokens as `batch_size` texts of full length.

    lengths (n,): in tokens. A batch has at most 4 × batch_size texts: short ones need fewer, larger batches.
    """
    order = torch.argsort(lengths, stable=True)
    batches, start = [], 0
    for position, length in enumerate(lengths[order].tolist()):
        count = position + 1 - start
        if count > 1 and (count * length > batch_size * longest or count > 4 * batch_size):
            batches.append(order[start:position])
            start = position
    return [*batches, order[start:]]


def gather_rows(rows: Tensor, world: World) -> Tensor:
    """All ranks' rows (n_rank, …) one after the other, on every rank."""
    if not world.is_distributed:
        return rows
    counts = gather_objects(len(rows), world)
    padded = torch.zeros(max(counts), *rows.shape[1:], dtype=rows.dtype, device=rows.device)
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts)])
