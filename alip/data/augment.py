"""Augmentation of training images, its parameters sampled from (seed, epoch, index): the same for both decoders."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alip.data.order import sample_states, uniform_of
from alip.errors import UserError

_ATTEMPTS = 10  # at a crop that fits, before the centre is taken


@dataclass(frozen=True)
class Augmentation:
    """How far images may change. The defaults are the paper's recipe: crop and flip.

    area: of the crop, as a fraction of the image; aspect: width/height of the crop; flip: probability of a mirror.
    rotation: up to so many degrees either way; shift: up to so much of the side; zoom: scale on the canvas (below 1
    leaves a margin); all three fill with white. brightness, contrast: factors 1 ± this.
    """

    area: tuple[float, float] = (0.7, 1.0)
    aspect: tuple[float, float] = (0.8, 1.25)
    flip: float = 0.5
    rotation: float = 0.0
    shift: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    brightness: float = 0.0
    contrast: float = 0.0

    def __post_init__(self) -> None:
        for name, low, high in (("area", *self.area), ("aspect", *self.aspect), ("zoom", *self.zoom)):
            if not 0 < low <= high:
                raise UserError(f"{name} should be two positive numbers, the smaller first, not {low} {high}")
        if self.area[1] > 1:
            raise UserError(f"a crop's area is at most 1, the whole image, not {self.area[1]}")
        if not 0 <= self.flip <= 1:
            raise UserError(f"flip is a probability, not {self.flip}")

    @property
    def warps(self) -> bool:
        """True if images are rotated, shifted or scaled on the canvas."""
        return bool(self.rotation or self.shift or self.zoom != (1.0, 1.0))

    @property
    def colours(self) -> bool:
        """True if brightness or contrast change."""
        return bool(self.brightness or self.contrast)


@dataclass(frozen=True)
class AugmentationParams:
    """What to do to each of n images.

    start, shape: (n, 2) int32, the crop's corner and size as x, y and width, height. mirror: (n,) int32, 0 or 1.
    matrix: (n, 2, 3) float32 or None: output pixel → input pixel on the square, pixel centres at .5.
    brightness, contrast: (n,) float32 or None; contrast is relative to CENTRE.
    """

    start: np.ndarray
    shape: np.ndarray
    mirror: np.ndarray
    matrix: np.ndarray | None = None
    brightness: np.ndarray | None = None
    contrast: np.ndarray | None = None


CENTRE = 127.5


def sample_params(
    augmentation: Augmentation | None, sizes: np.ndarray, image_size: int, seed: int, epoch: int, index: np.ndarray
) -> AugmentationParams:
    """Parameters for images of `sizes` (n, 2), width and height. No augmentation: the centre square, nothing else."""
    if augmentation is None:
        side = sizes.min(axis=1, keepdims=True)
        shape = np.repeat(side, 2, axis=1)
        return AugmentationParams(
            ((sizes - shape) // 2).astype(np.int32), shape.astype(np.int32), np.zeros(len(index), np.int32)
        )

    states = sample_states(seed, epoch, index)

    def sample(number: int, low: float = 0.0, high: float = 1.0, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        return low + (high - low) * uniform_of(states[rows], number)

    start, shape = _crops(augmentation, sizes, sample)
    mirror = (sample(0) < augmentation.flip).astype(np.int32)
    matrix = brightness = contrast = None
    if augmentation.warps:
        angle = np.deg2rad(sample(1, -augmentation.rotation, augmentation.rotation))
        zoom = np.exp(sample(2, *np.log(augmentation.zoom)))
        shift = np.stack([sample(3, -1, 1), sample(4, -1, 1)], axis=1) * augmentation.shift * image_size
        matrix = _matrices(angle, zoom, shift, image_size / 2)
    if augmentation.colours:
        brightness = sample(5, 1 - augmentation.brightness, 1 + augmentation.brightness).astype(np.float32)
        contrast = sample(6, 1 - augmentation.contrast, 1 + augmentation.contrast).astype(np.float32)
    return AugmentationParams(start, shape, mirror, matrix, brightness, contrast)


def _crops(augmentation: Augmentation, sizes: np.ndarray, sample) -> tuple[np.ndarray, np.ndarray]:
    """Crops of random area and aspect; the first of some attempts that fits, else the largest allowed in the centre."""
    sides = sizes.astype(np.float64)
    pixels = sides.prod(axis=1)
    low, high = np.log(augmentation.aspect)
    shape = np.zeros_like(sides)
    found = np.zeros(len(sizes), dtype=bool)
    rows = np.arange(len(sizes))  # those without a crop so far
    for attempt in range(_ATTEMPTS):
        area = pixels[rows] * sample(10 + 2 * attempt, *augmentation.area, rows)
        aspect = np.exp(sample(11 + 2 * attempt, low, high, rows))
        width, height = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        limit = sides[rows]
        fits = (width >= 1) & (height >= 1) & (width <= limit[:, 0]) & (height <= limit[:, 1])
        chosen = rows[fits]
        shape[chosen, 0], shape[chosen, 1], found[chosen] = width[fits], height[fits], True
        rows = rows[~fits]
        if not len(rows):
            break
    aspect = np.clip(sides[:, 0] / sides[:, 1], *augmentation.aspect)
    largest = np.stack([np.minimum(sides[:, 0], sides[:, 1] * aspect), np.minimum(sides[:, 1], sides[:, 0] / aspect)])
    shape[~found] = np.maximum(1, np.rint(largest.T[~found]))
    shape = np.minimum(shape, sides)
    corners = np.stack([sample(7), sample(8)], axis=1)
    corners[~found] = 0.5
    start = np.floor(corners * (sides - shape + 1)).clip(0, sides - shape)
    return start.astype(np.int32), shape.astype(np.int32)


def _matrices(angle: np.ndarray, zoom: np.ndarray, shift: np.ndarray, centre: float) -> np.ndarray:
    cosine, sine = np.cos(angle) / zoom, np.sin(angle) / zoom
    matrix = np.empty((len(angle), 2, 3))
    matrix[:, 0, 0], matrix[:, 0, 1] = cosine, sine
    matrix[:, 1, 0], matrix[:, 1, 1] = -sine, cosine
    moved = centre + shift  # where the image's centre ends up
    matrix[:, :, 2] = centre - np.einsum("nij,nj->ni", matrix[:, :, :2], moved)
    return matrix.astype(np.float32)
