"""Sources and captioner files for the tests."""

from __future__ import annotations

import functools
import io
import json
import tarfile
from pathlib import Path

from PIL import Image

# Writes the size and the colour of the image: the right caption of each image is known.
CAPTIONER = """
import os, time
from pathlib import Path

class Sizes:
    def __init__(self, delay, fail, log):
        self.delay, self.fail, self.log = delay, fail, log

    def caption(self, batch):
        time.sleep(self.delay)
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{len(batch)}\\n")
        texts = []
        for image in batch:
            red = image.getpixel((0, 0))[0]
            if str(red) in self.fail:
                raise RuntimeError(f"cannot see {red}")
            texts.append(f"a picture of {image.width} by {image.height} pixels in red {red}")
        return texts

def create_captioner(device, options):
    fail = options.get("fail", "").split("+")
    return Sizes(float(options.get("delay", 0)), fail, options.get("log"))
"""


def write_captioner(folder: Path, text: str = CAPTIONER) -> Path:
    path = folder / "sizes.py"
    path.write_text(text)
    return path


def png(number: int, size: tuple[int, int] | None = None) -> bytes:
    """An image whose red is `number` (below 256) and whose size depends on it."""
    out = io.BytesIO()
    Image.new("RGB", size or (20 + number % 7, 30), (number % 256, number // 256, 77)).save(out, "PNG")
    return out.getvalue()


def caption_of(number: int) -> str:
    return f"a picture of {20 + number % 7} by 30 pixels in red {number % 256}"


def write_tar(path: Path, images: dict[str, bytes]) -> Path:
    """A WebDataset tar of images by key, each with a JSON that holds a raw text."""
    with tarfile.open(path, "w") as tar:
        for key, data in images.items():
            for name, content in ((f"{key}.png", data), (f"{key}.json", json.dumps({"text": f"raw {key}"}).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def numbered(first: int, last: int) -> dict[str, bytes]:
    return {f"k{n:04d}": png(n) for n in range(first, last)}


def read_captions(path: Path) -> dict[str, str]:
    """key → caption; fails on a key that stands twice."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    captions = {line["key"]: line["caption"] for line in lines}
    assert len(captions) == len(lines), "a key stands twice"
    return captions


def read_failures(path: Path) -> dict[str, str]:
    return {line["key"]: line["reason"] for line in map(json.loads, path.read_text().splitlines())}


def made_once(module, root):
    """NAME → the folder of a tiny model, made by the module's save_NAME(folder) when it is first asked for."""

    @functools.cache
    def model(name):
        return str(getattr(module, f"save_{name}")(root / name))

    return model
