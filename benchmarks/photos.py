"""Photographs for the data benchmarks: crops of the two that come with scikit-learn, chosen by a number."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def photo(number: int, width: int, height: int) -> Image.Image:
    """An image of the given size: a crop that depends on its number, mirrored or not."""
    rng = np.random.default_rng(number)
    image = _originals()[number % 2]
    share = rng.uniform(0.6, 1.0)
    side = (int(image.width * share), int(image.height * share))
    x, y = (int(rng.integers(0, whole - part + 1)) for whole, part in zip(image.size, side))
    image = image.crop((x, y, x + side[0], y + side[1])).resize((width, height), Image.Resampling.BICUBIC)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


_cache: list[Image.Image] = []


def _originals() -> list[Image.Image]:
    if not _cache:
        from sklearn.datasets import load_sample_images

        _cache.extend(Image.fromarray(pixels) for pixels in load_sample_images().images)
    return _cache


def texts(number: int) -> dict[str, str]:
    """A raw text and a caption of usual lengths, different for every image."""
    words = ["harbour", "sunset", "old", "town", "market", "festival", "2009", "holiday", "mountains", "IMG", "summer"]
    rng = np.random.default_rng(number)
    raw = " ".join(rng.choice(words, 9)) + f" {number}"
    return {"text": raw, "caption": f"a large building with a {rng.choice(words)} in front of a {rng.choice(words)}"}


def make_photos(folder: Path, count: int, width: int, height: int, quality: int, tars: int) -> None:
    """`count` JPEGs of mixed form (landscape, portrait, square) under `folder`/images and again in `folder`/tars."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "tars").mkdir(exist_ok=True)
    per_tar = -(-count // tars)
    for t in range(tars):
        with tarfile.open(folder / "tars" / f"{t:05d}.tar", "w") as tar:
            for number in range(t * per_tar, min(count, (t + 1) * per_tar)):
                size = ((width, height), (height, width), (height, height))[(number % 10 > 5) + (number % 10 > 8)]
                out = io.BytesIO()
                photo(number, *size).save(out, "JPEG", quality=quality)
                (folder / "images" / f"{number:06d}.jpg").write_bytes(out.getvalue())
                fields = texts(number)
                _add(tar, f"{number:06d}.jpg", out.getvalue())
                _add(tar, f"{number:06d}.txt", fields["text"].encode())
                _add(tar, f"{number:06d}.json", json.dumps(fields).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
