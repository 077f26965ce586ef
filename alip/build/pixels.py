"""The three costly steps on a picture, by the fastest means at hand: on 500 × 375 pixels, torchvision decodes and torch
shrinks in about half of Pillow's time (benchmarks/notes/data.md)."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg


def decode_rgb(data: bytes) -> torch.Tensor:
    """A whole JPEG, (3, height, width) uint8 that lies row by row, colours together. RuntimeError if it is broken."""
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


def from_pillow(image: Image.Image) -> torch.Tensor:
    """The same form from an RGB picture of Pillow's."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def shrink(pixels: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Bicubic, with the blur that keeps fine patterns from turning into coarse ones (as Pillow does it)."""
    batch = pixels.permute(1, 2, 0)[None].permute(0, 3, 1, 2)  # so torch sees that the colours lie together
    return torch.nn.functional.interpolate(batch, (height, width), mode="bicubic", antialias=True)[0]


def encode(pixels: torch.Tensor, quality: int) -> bytes:
    """A JPEG with colours at half resolution, as cameras and the web have it."""
    return encode_jpeg(pixels, quality).numpy().tobytes()
