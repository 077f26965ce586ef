"""What the ALIP release measures differently from the field: the parts of the protocol `alip` that are not lists."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from alip.eval import classnames

SEED = 3072  # of its random splits

# Two names have a typo in its label.json, which changes the prompts.
_TYPOS = {"Persian": "Persian'", "Yorkshire Terrier": "Yorkshire Terrie"}
PETS = [_TYPOS.get(name, name) for name in classnames.PETS]


class ImageNetTransform:
    """Its DALI pipeline for ImageNet's validation images, with Pillow: PIL image → (3, side, side) float32.

    The short side becomes 256/224 of the model's side by a triangular filter that is widened when shrinking
    (Pillow's BILINEAR), then the centre is cropped and normalised. All other datasets take the model's own
    preprocessing, which is bicubic and crops nothing but the longer side.
    """

    def __init__(self, model: nn.Module):
        preprocess = model.config["preprocess_cfg"]
        self.side = model.image_size
        self.short = int(256 / 224 * self.side)
        self.mean = torch.tensor(preprocess["mean"]).view(3, 1, 1)
        self.std = torch.tensor(preprocess["std"]).view(3, 1, 1)

    def __call__(self, image: Image.Image) -> Tensor:
        scale = self.short / min(image.size)
        width, height = (max(self.short, math.floor(side * scale + 0.5)) for side in image.size)
        # DALI keeps the exact scale when it rounds the size: what does not fit is cut off on both sides, and what is
        # missing is the last pixel again.
        cut = [(side - new / scale) / 2 for side, new in zip(image.size, (width, height))]
        more = [max(0, math.ceil(-part)) for part in cut]
        if any(more):
            image = Image.fromarray(np.pad(image, ((more[1],) * 2, (more[0],) * 2, (0, 0)), mode="edge"))
        left, top = (extra + part for extra, part in zip(more, cut))
        box = (left, top, image.width - left, image.height - top)
        image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
        left, top = (width - self.side + 1) // 2, (height - self.side + 1) // 2
        image = image.crop((left, top, left + self.side, top + self.side))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (pixels - self.mean) / self.std
