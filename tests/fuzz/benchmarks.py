"""Mutations of benchmarks' own files: annotations, arrays, tars of WebDataset benchmarks."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from alip.eval.datasets import open_classification, open_texts
from tests.fuzz import Target
from tests.fuzz.mutations import damage
from tests.helpers import benchmark_archives, text_archives
from tests.helpers.wds import write_wds

CLASSIFICATION = {
    name: benchmark_archives.WRITERS[name]
    for name in ("mnist", "voc2007", "hateful-memes", "kitti", "clevr-counts", "clevr-distance", "ucf101", "gtsrb")
} | {"fer2013": benchmark_archives.fer2013_csv}
TEXTS = {
    **text_archives.SELECTION_WRITERS,
    **{name: write for name, write in text_archives.LAYOUTS if name != "flickr8k"},
    "flickr8k": text_archives.flickr8k_tokens,
}
_WDS = "wds:wds"


@lru_cache(maxsize=1)
def archive_folder() -> Path:
    """All of them in miniature, made once; removed when the process ends."""
    holder = tempfile.TemporaryDirectory(prefix="alip-benchmarks-")
    archive_folder.holder = holder  # type: ignore[attr-defined]
    for name, write in {**CLASSIFICATION, **TEXTS}.items():
        (Path(holder.name) / name).mkdir()
        write(Path(holder.name) / name)
    write_wds(Path(holder.name) / _WDS / "wds", [number % 7 for number in range(12)], list("abcdefg"))
    return Path(holder.name)


def make_benchmark(rng: random.Random, folder: Path) -> Callable[[], object]:
    """One benchmark with one damaged or missing file that is no image."""
    name = rng.choice([*CLASSIFICATION, *TEXTS, *[_WDS] * 6])
    shutil.copytree(archive_folder() / name, folder / name, copy_function=os.link)
    lists = [path for path in sorted((folder / name).rglob("*")) if path.is_file() and not _is_image(path)]
    path = rng.choice(lists)
    data = path.read_bytes()
    path.unlink()  # the other links keep the archive as it is
    if rng.random() < 0.9:
        path.write_bytes(damage(rng, data))

    def run() -> None:
        if name in TEXTS:
            found = open_texts(name, folder / name)
            assert len(found.images) > 0
            return
        images = open_classification(name, folder / name).images
        assert len(images) > 0 and images.cache_key() and images.content_hash() and images.name(0)

    return run


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in (".jpg", ".png", ".ppm")


TARGETS = [Target("benchmark files", make_benchmark)]
