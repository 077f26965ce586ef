"""Features of datasets that are too large for memory: files of some ten thousand images each, memory-mapped.

File K of N holds the images K, K + N, K + 2N, …: a dataset that is sorted by class is spread over all files, each is
read in ascending order, and a pass that is killed starts again with the first file that is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from alip.distributed import broadcast_object
from alip.eval import cache
from alip.eval.features import Encoding, Part, batch_size_for, encode_images
from alip.eval.image_readers import Images
from alip.files import parse_json

FILE_IMAGES = 1 << 16  # 134 MB of 512-dimensional float32 features
_BLOCK = 8192


class SomeImages:
    """Some of a dataset's images, by position, in that order."""

    def __init__(self, images: Images, positions: Sequence[int]):
        self.images, self.positions = images, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[self.positions[index]]

    def name(self, index: int) -> str:
        return self.images.name(self.positions[index])

    def cache_key(self) -> str:
        return f"{self.images.cache_key()} {list(self.positions)}"

    def content_hash(self) -> str:
        return f"{self.images.content_hash()} {list(self.positions)}"


class StoredFeatures:
    """The features in some of the files' rows. labels: (n,) int64, file by file. unreadable: (name, reason).

    `blocks` reads from the memory-mapped files, or from the GPU where `keep_on_device` has put them.
    """

    exact = False  # float32 products: a consumer GPU's float64 is 64 times slower

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[Tensor],
        unreadable: list[tuple[str, str]],
        device: torch.device,
        masks: Sequence[Tensor] | None = None,
    ):
        self._paths, self._file_labels, self._device = list(paths), list(labels), device
        self._masks = list(masks) if masks is not None else [torch.ones(len(one), dtype=torch.bool) for one in labels]
        self.labels = torch.cat([one[mask] for one, mask in zip(self._file_labels, self._masks)])
        self.unreadable = unreadable
        self._kept: list[tuple[Tensor, Tensor]] | None = None

    def part(self, mask: Tensor) -> StoredFeatures:
        masks, start = [], 0
        for own in self._masks:
            count = int(own.sum())
            masks.append(own.clone())
            masks[-1][own] = mask[start : start + count]
            start += count
        return StoredFeatures(self._paths, self._file_labels, self.unreadable, self._device, masks).keep_on_device()

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._read() if self._kept is None else self._kept

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        for path, labels, mask in zip(self._paths, self._file_labels, self._masks):
            with safe_open(str(path), framework="pt") as file:
                rows = file.get_slice("features")
                for start in range(0, len(labels), _BLOCK):
                    chosen = mask[start : start + _BLOCK]
                    if chosen.any():
                        found = rows[start : start + _BLOCK][chosen]
                        yield found.to(self._device), labels[start : start + _BLOCK][chosen].to(self._device)

    def keep_on_device(self) -> StoredFeatures:
        """Keeps the features on the GPU if they take less than half of its free memory: every pass is then faster."""
        if self._device.type == "cuda" and len(self.labels):
            width = next(self._read())[0].shape[1]
            if 4 * width * len(self.labels) < torch.cuda.mem_get_info(self._device)[0] / 2:
                self._kept = list(self._read())
        return self


def encode_stored(
    model: nn.Module,
    images: Images,
    encoding: Encoding,
    label: str,
    folder: Path,
    transform: Callable | None = None,
    file_images: int = FILE_IMAGES,
) -> StoredFeatures:
    """Features of all images in files under `folder`; those that are there already are used. All ranks must call it."""
    count = -(-len(images) // file_images)
    own = [] if transform is None else [type(transform).__name__]
    key = cache.key_of(model, "stored", images.cache_key(), encoding.resolved_precision(), count, *own)
    paths = [folder / f"{key}-{number:05d}.safetensors" for number in range(count)]
    parts: list[tuple[Tensor, list[tuple[str, str]]]] = []
    if encoding.cluster is not None:  # it writes the same files, each by one machine
        ranges = [range(number, len(images), count) for number in range(count)]
        missing = {p: Part(r, batch_size_for(len(r), encoding.batch_size)) for p, r in zip(paths, ranges)}
        encoding.cluster.encode(images, transform, encoding, missing, label)
    for number, path in enumerate(paths):
        found = broadcast_object(_labels_in(path) if encoding.world.is_main else None, encoding.world)
        if found is None:
            part = SomeImages(images, range(number, len(images), count))
            title = label if count == 1 else f"{label}, file {number + 1} of {count}"
            new = encode_images(model, part, replace(encoding, cache=None, cluster=None), title, transform)
            found = new.labels.cpu(), new.unreadable
            if encoding.world.is_main:
                metadata = {"unreadable": new.unreadable}
                cache.write(folder, path.stem, {"features": new.features, "labels": new.labels}, metadata)
        parts.append(found)
    unreadable = [one for _, failures in parts for one in failures]
    return StoredFeatures(paths, [labels for labels, _ in parts], unreadable, encoding.world.device)


def _labels_in(path: Path) -> tuple[Tensor, list[tuple[str, str]]] | None:
    """Labels and unreadable images of a file, None if it is missing or damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            failures = parse_json((file.metadata() or {}).get("unreadable", "[]"), str(path))
            return file.get_tensor("labels"), [(name, reason) for name, reason in failures]
    except (SafetensorError, OSError) as error:
        print(f"the stored features {path} cannot be read ({error}); computing them again")
        return None
