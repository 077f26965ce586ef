"""Some samples of a dataset with their texts in one figure: to look at one's data."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from alip.build.image_errors import ImageError
from alip.build.images import decode_image
from alip.build.remote_shards import read_record
from alip.data.recordio import RecordError, unpack
from alip.data.shards import Manifest, load_manifest, read_texts, record_fault, row_captions
from alip.errors import UserError
from alip.remote.urls import UrlPath, local_path

_COLUMNS = 4
_CAPTIONS = 3  # of a sample that are shown


def show(data: str | os.PathLike, count: int, seed: int = 0) -> int:
    """Plots `count` random samples of a dataset (chosen by `seed`) to `DIR/NAME-samples.png`; of one at a URL to
    `NAME-samples.png` here."""
    from alip import plot_style as style  # matplotlib takes a second to load

    if count < 1:
        raise UserError(f"--show takes the number of samples, not {count}")
    manifest = load_manifest(local_path(str(data)), at_url=True)
    chosen = sorted(np.random.default_rng(seed).permutation(manifest.samples)[:count].tolist())
    texts = _texts(manifest, chosen)
    columns = min(_COLUMNS, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    folder = Path() if isinstance(manifest.folder, UrlPath) else manifest.folder
    path = folder / f"{manifest.name}-samples"
    with style.figure(path, style.PAGE, (2.7 if manifest.captions_per_image == 1 else 3.3) * rows) as figure:
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for axis, index in zip(axes.flat, chosen):
            image = _image(manifest, index)
            axis.imshow(image)
            text, captions = texts[index]
            lines = [f"{index}: {image.width} × {image.height}", f"text: {text}"]
            lines += [f"caption: {caption}" for caption in captions[:_CAPTIONS]]
            lines += [f"and {len(captions) - _CAPTIONS} more captions"] if len(captions) > _CAPTIONS else []
            height = 4 if len(captions) == 1 else 2
            axis.set_title("\n".join(style.wrap(line, 31, height) for line in lines), fontsize=7, loc="left")
    print(style.outputs(path)[0])
    return 0


def _texts(manifest: Manifest, chosen: list[int]) -> dict[int, tuple[str, list[str]]]:
    """Text and captions of some samples: from the sidecar or, for released files, from the tokens."""
    texts = {}
    if all(shard.sidecar for shard in manifest.shards):
        for index in chosen:
            row = next(read_texts(manifest, index))
            texts[index] = (row["text"], row_captions(row))
        return texts
    from alip.tokens import decode, unpack_captions

    for index in chosen:
        with _named_damage(manifest, index):
            text, captions = unpack_captions(_record(manifest, index)[0], manifest.context_length)
        texts[index] = (decode(text), [decode(caption) for caption in captions])
    return texts


def _image(manifest: Manifest, index: int) -> Image.Image:
    with _named_damage(manifest, index):
        return decode_image(_record(manifest, index)[1])


def _record(manifest: Manifest, index: int) -> tuple[np.ndarray, bytes]:
    """Label and encoded image of a sample; RecordError if the record is not sound."""
    payload = read_record(manifest, index)
    shard, number = manifest.locate(index)
    fault = record_fault(manifest.shards[shard], number, payload)
    if fault:
        raise RecordError(fault)
    return unpack(payload)


@contextlib.contextmanager
def _named_damage(manifest: Manifest, index: int) -> Iterator[None]:
    """Damage of a record as a UserError."""
    try:
        yield
    except (ValueError, ImageError) as error:  # RecordError is a ValueError
        shard, number = manifest.locate(index)
        raise UserError(
            f"record {number} of {manifest.path(manifest.shards[shard].rec)}: {error} "
            f"(`python data2rec.py --verify {manifest.folder / manifest.name}` looks closer)"
        ) from None
