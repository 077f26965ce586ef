"""Some samples of a dataset with their texts in one figure: to look at one's data."""

from __future__ import annotations

import math
import os
from itertools import islice

import numpy as np

from alip.build.images import decode_image
from alip.data.recordio import unpack
from alip.data.shards import Manifest, load_manifest, read_texts, row_captions
from alip.errors import UserError

_COLUMNS = 4
_CAPTIONS = 3  # of a sample that are shown


def show(data: str | os.PathLike, count: int, seed: int = 0) -> int:
    """Plots `count` random samples of a dataset (chosen by `seed`) to `DIR/NAME-samples.png`."""
    from alip import plot_style as style  # matplotlib takes a second to load

    if count < 1:
        raise UserError(f"--show takes the number of samples, not {count}")
    manifest = load_manifest(data)
    chosen = sorted(np.random.default_rng(seed).permutation(manifest.samples)[:count].tolist())
    texts = _texts(manifest, chosen)
    columns = min(_COLUMNS, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    path = manifest.folder / f"{manifest.name}-samples"
    with style.figure(path, style.PAGE, (2.7 if manifest.captions_per_image == 1 else 3.3) * rows) as figure:
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for axis, index in zip(axes.flat, chosen):
            shard, number = manifest.locate(index)
            with manifest.open_shard(shard) as reader:
                _, encoded = unpack(reader[number])
            image = decode_image(encoded)
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
        rows = read_texts(manifest)
        at = 0
        for index in chosen:
            row = next(islice(rows, index - at, None))
            at = index + 1
            texts[index] = (row["text"], row_captions(row))
        return texts
    from alip.tokens import decode, unpack_captions

    for index in chosen:
        shard, number = manifest.locate(index)
        with manifest.open_shard(shard) as reader:
            text, captions = unpack_captions(unpack(reader[number])[0], manifest.context_length)
        texts[index] = (decode(text), [decode(caption) for caption in captions])
    return texts
