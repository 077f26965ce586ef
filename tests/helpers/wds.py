"""Writes benchmarks in CLIP_benchmark's WebDataset layout."""

import io
import tarfile

import numpy as np
from PIL import Image


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def npy(values):
    file = io.BytesIO()
    np.save(file, np.asarray(values))
    return file.getvalue()


def noise(rng, extension="png"):
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (20, 18, 3), np.uint8)).save(file, {"jpg": "JPEG"}.get(extension, extension))
    return file.getvalue()


def write_wds(
    folder, labels, names, templates=("a photo of a {c}.",), *, per_tar=7, kind=None, arrays=None, split="test", seed=0
):
    """Classes: labels are numbers; retrieval: lists of captions; multilabel: None, and arrays. Returns the folder."""
    rng = np.random.default_rng(seed)
    (folder / split).mkdir(parents=True)
    if names is not None:
        (folder / "classnames.txt").write_text("\n".join(names) + "\n")
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    if kind:
        (folder / "dataset_type.txt").write_text(kind + "\n")
    shards = -(-len(labels) // per_tar)
    for shard in range(shards):
        with tarfile.open(folder / split / f"{shard}.tar", "w") as tar:
            for number in range(shard * per_tar, min((shard + 1) * per_tar, len(labels))):
                extension = ("png", "webp", "jpg")[number % 3]
                members = {extension: noise(rng, extension)}
                if kind == "retrieval":
                    members["txt"] = "\n".join(labels[number]).encode()
                elif kind != "multilabel":
                    members["cls"] = str(labels[number]).encode()
                if arrays is not None:
                    members["npy"] = npy(arrays[number])
                for suffix, data in sorted(members.items()):
                    add(tar, f"s{number:07d}.{suffix}", data)
    (folder / split / "nshards.txt").write_text(f"{shards}\n")
    return folder
