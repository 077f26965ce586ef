"""The three costly steps on an image, each with the fastest library (benchmarks/notes/data.md): libjpeg-turbo decodes
strictly, torch shrinks, torchvision encodes."""

from __future__ import annotations

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torchvision.io import encode_jpeg


def decode_jpeg(data: bytes, denominator: int = 1, colorspace: str = "RGB") -> np.ndarray:
    """A whole JPEG as (height, width, 3) uint8 RGB (or 4 channels of CMYK), at 1/denominator (1, 2, 4, 8) of its size.

    ValueError if it is broken, and also where libjpeg only warns and returns grey or shifted blocks.
    """
    if denominator == 1:
        return simplejpeg.decode_jpeg(data, colorspace)
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    return simplejpeg.decode_jpeg(
        data, colorspace, min_height=-(-height // denominator), min_width=-(-width // denominator)
    )


def to_tensor(pixels: np.ndarray | Image.Image) -> torch.Tensor:
    """(height, width, 3) uint8 or an RGB image of Pillow's → (3, height, width) uint8, interleaved in memory."""
    return torch.from_numpy(np.array(pixels) if isinstance(pixels, Image.Image) else pixels).permute(2, 0, 1)


def shrink(pixels: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Bicubic, with the blur that keeps fine patterns from turning into coarse ones (as Pillow does it)."""
    batch = pixels.permute(1, 2, 0)[None].permute(0, 3, 1, 2)  # so torch detects that the channels are interleaved
    return torch.nn.functional.interpolate(batch, (height, width), mode="bicubic", antialias=True)[0]


def encode(pixels: torch.Tensor, quality: int) -> bytes:
    """A JPEG with colours at half resolution, as cameras and the web have it."""
    return encode_jpeg(pixels, quality).numpy().tobytes()
