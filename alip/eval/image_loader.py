"""Batches of an evaluation dataset's images: read and resized in threads or worker processes, in order.

Images leave the workers as bytes, a quarter of the traffic of normalised numbers, and are normalised where the model
is. The result is that of the whole transform, bit for bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize

from alip.eval.image_readers import Images

_MOST_ELONGATED = 200  # long side over short side: the resized image has 200 times the pixels that are used
_MOST_THREADS = 4  # beyond, the interpreter's lock costs more than processes do
_TASK = 16  # images that a thread reads at a time
_AHEAD = 3  # batches

Item = tuple[Tensor | None, int, int, str]  # pixels, label, position, and why there are no pixels
Batch = tuple[Tensor | None, Tensor, Tensor, list[tuple[str, str]]]  # pixels, labels, positions, (name, reason)


class BytesTransform:
    """The part of a transform that makes a PIL image of the right size, and the normalisation that follows it.

    resize: the transforms before the conversion to a tensor. `split` makes one.
    """

    def __init__(self, resize: Sequence[Callable], mean: Sequence[float], std: Sequence[float]):
        self.resize = list(resize)
        self.mean, self.std = (torch.as_tensor(one, dtype=torch.float32).view(-1, 1, 1) for one in (mean, std))

    @classmethod
    def split(cls, transform: Callable) -> BytesTransform | None:
        """Of a torchvision transform that ends with the conversion to a tensor and its normalisation; else None."""
        steps = transform.transforms if isinstance(transform, Compose) else []
        if len(steps) < 3 or type(steps[-1]) is not Normalize or type(steps[-2]).__name__ not in _CONVERSIONS:
            return None
        return cls(steps[:-2], steps[-1].mean, steps[-1].std)

    def __call__(self, image: Image.Image) -> Tensor:
        """(side, side, 3) uint8."""
        for step in self.resize:
            image = step(image)
        return torch.from_numpy(np.array(image))

    def normalised(self, pixels: Tensor, device: torch.device) -> Tensor:
        """(B, 3, side, side) float32 on the device, of (B, side, side, 3) uint8: `ToTensor`, then `Normalize`."""
        pixels = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2)
        mean, std = self.mean.to(device), self.std.to(device)
        # A GPU divides by a number as if it multiplied with its inverse; by a tensor it divides.
        largest = torch.full((1,), 255.0, device=device)
        found = torch.empty(pixels.shape, device=device)
        # One image after the other stays in a processor's cache.
        for source, target in zip(pixels, found) if device.type == "cpu" else [(pixels, found)]:
            target.copy_(source.contiguous())
            target.div_(largest).sub_(mean).div_(std)
        return found


_CONVERSIONS = ("MaybeToTensor", "ToTensor")


class ImageBatches:
    """An iterable of batches (pixels, labels, positions, failures), in the order of `part`.

    pixels: (n, 3, side, side) float32 on the device, without the images that cannot be read; None if none can be.
    part: positions in `images`. transform: PIL image → tensor. workers: threads (up to 4, where the transform can be
    split) or processes; 0: neither.
    """

    def __init__(
        self,
        images: Images,
        transform: Callable,
        part: Sequence[int],
        batch_size: int,
        workers: int,
        device: torch.device,
    ):
        self.bytes = BytesTransform.split(transform)
        self.reader = Reader(images, self.bytes or transform, part)
        self.batch_size, self.device = batch_size, device
        self.workers = workers if len(part) > batch_size else 0

    def __len__(self) -> int:
        return -(-len(self.reader) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        in_threads = self.bytes is not None and 0 < self.workers <= _MOST_THREADS
        for pixels, labels, positions, failures in self._threads() if in_threads else self._processes():
            if pixels is not None and self.bytes is not None:
                pixels = self.bytes.normalised(pixels, self.device)
            elif pixels is not None:
                pixels = pixels.to(self.device, non_blocking=True)
            yield pixels, labels, positions, failures

    def _processes(self) -> Iterator[Batch]:
        pin = self.device.type == "cuda"
        yield from DataLoader(
            self.reader,
            self.batch_size,
            num_workers=min(self.workers, len(self)),  # a process makes whole batches
            collate_fn=collate,
            pin_memory=pin,
        )

    def _threads(self) -> Iterator[Batch]:
        """Pillow releases the interpreter's lock while it decodes and resizes."""
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="images")
        starts = iter(range(0, len(self.reader), self.batch_size))
        waiting: deque[list[Future]] = deque()

        def submit() -> None:
            start = next(starts, None)
            if start is not None:
                end = min(start + self.batch_size, len(self.reader))
                tasks = [range(first, min(first + _TASK, end)) for first in range(start, end, _TASK)]
                waiting.append([pool.submit(lambda task: [self.reader[i] for i in task], task) for task in tasks])

        try:
            for _ in range(_AHEAD):
                submit()
            while waiting:
                batch = collate([item for future in waiting.popleft() for item in future.result()])
                submit()
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)


class Reader(Dataset):
    """This rank's images, read and prepared in the workers."""

    def __init__(self, images: Images, transform: Any, part: Sequence[int]):
        self.images, self.transform, self.part = images, transform, part

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> Item:
        position = self.part[index]
        try:
            image, label = self.images[position]
            if max(image.size) > _MOST_ELONGATED * min(image.size):
                raise ValueError(f"{image.width} × {image.height} pixels: too elongated to be resized")
            return self.transform(image), label, position, ""
        # Decoders raise whatever they like on broken files. Named in the results and counted: `unreadable`.
        except Exception as error:
            return None, 0, position, f"{self.images.name(position)}\n{type(error).__name__}: {error}"


def collate(items: list[Item]) -> Batch:
    """A batch of what `Reader` gives."""
    good = [item for item in items if item[0] is not None]
    failures = [tuple(item[3].split("\n", 1)) for item in items if item[0] is None]
    pixels = torch.stack([item[0] for item in good]) if good else None
    return pixels, torch.tensor([item[1] for item in good]), torch.tensor([item[2] for item in good]), failures
