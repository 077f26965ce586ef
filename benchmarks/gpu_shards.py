"""Rec shards of smooth random images for benchmarks/gpu.py, made with Pillow and NumPy alone."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from alip.data.recordio import Writer, pack

START, END, CONTEXT = 49406, 49407, 77


def make_shards(folder: Path, count: int, size: tuple[int, int]) -> None:
    """DIR/set.rec and .idx of `count` JPEGs of that size, unless they are there; texts of 8 to 20 tokens."""
    done = folder / f"made-{count}"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    pool = [_jpeg(rng, size) for _ in range(min(count, 64))]
    with Writer(folder / "set.rec", folder / "set.idx") as writer:
        for number in range(count):
            label = np.zeros(2 * CONTEXT, np.float32)
            for half in (0, CONTEXT):
                length = int(rng.integers(8, 20))
                label[half : half + length] = rng.integers(1, START, length)
                label[half], label[half + length - 1] = START, END
            writer.write(pack(label, pool[number % len(pool)], number))
    done.touch()


def _jpeg(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    """Coarse structure and fine noise: about as large as a photograph."""
    coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = rng.integers(-12, 12, (size[1], size[0], 3))
    pixels = np.clip(np.asarray(coarse, np.int64) + noise, 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()
