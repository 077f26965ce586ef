"""Small images, tars and datasets for the tests of alip.data and alip.build."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from alip.data.recordio import MAGIC_BYTES

ROOT = Path(__file__).resolve().parents[2]


def make_image(number: int, width: int = 48, height: int = 40) -> Image.Image:
    """A smooth image that depends on its number."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    """The bytes of an image file."""
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def write_tar(path: Path, samples: list[dict[str, bytes]], keys: list[str]) -> None:
    """A WebDataset tar: samples[i] maps an extension to bytes."""
    with tarfile.open(path, "w") as tar:
        for key, sample in zip(keys, samples):
            for extension, content in sample.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def make_tars(folder: Path, count: int, per_tar: int = 50, broken: tuple[int, ...] = ()) -> Path:
    """`count` samples in tars of `per_tar`, with texts that name their number; those in `broken` are cut short."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, count, per_tar):
        numbers = range(first, min(count, first + per_tar))
        samples = []
        for i in numbers:
            image = encoded(make_image(i), quality=90)
            fields = {"text": f"raw text number {i}", "caption": f"a caption number {i}", "odd": bool(i % 2)}
            samples.append({"jpg": image[:200] if i in broken else image, "json": json.dumps(fields).encode()})
        write_tar(folder / f"{first // per_tar:05d}.tar", samples, [f"{i:07d}" for i in numbers])
    return folder


def build_shards(source: Path, output: Path, **options):
    """Builds in this process, quietly; the manifest."""
    from alip.build import writer
    from alip.build.open_source import open_source
    from alip.build.prepare import Policy

    options.setdefault("policy", Policy())
    return writer.build(open_source(str(source)), output, workers=0, quiet=True, **options).manifest


def planted(seed: int) -> bytes:
    """Random bytes with the magic at places that need a split and at places that do not."""
    rng = np.random.default_rng(seed)
    data = bytearray(rng.bytes(int(rng.integers(0, 200))))
    for _ in range(int(rng.integers(0, 6))):
        at = int(rng.integers(0, len(data) + 1))
        at = at // 4 * 4 if rng.random() < 0.7 else at
        data[at : at + 4] = MAGIC_BYTES
    return bytes(data)


PLANTED = [
    b"",
    MAGIC_BYTES,
    MAGIC_BYTES * 3,
    b"abc" + MAGIC_BYTES,
    b"abcd" + MAGIC_BYTES,
    MAGIC_BYTES + b"x",
    b"abcd" + MAGIC_BYTES + MAGIC_BYTES[:3],
    *[planted(seed) for seed in range(200)],
]


def make_captioned_tars(folder: Path, count: int, most: int) -> tuple[Path, Path]:
    """Tars of `make_tars`, and a captions file with 1 to `most` captions for each of their samples."""
    captions = folder.with_name(f"{folder.name}-captions.jsonl")
    lines = []
    for i in range(count):
        several = [f"caption {k} of number {i}" + " and more" * (k * i % 7) for k in range(1 + i % most)]
        lines.append(json.dumps({"key": f"{i:07d}", "captions": several}) + "\n")
    make_tars(folder, count)
    captions.write_text("".join(lines))
    return folder, captions
