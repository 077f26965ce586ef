"""Mutations of what the evaluations read: caption files, class lists, prompts, results, dataset archives, images."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from alip import plot_style as style
from alip.checkpoint.model_card import _results_lines
from alip.eval import report, results
from alip.eval.classnames import CALTECH101
from alip.eval.datasets import open_classification, open_retrieval
from alip.eval.image_loader import Reader
from alip.eval.image_readers import ImageFiles
from alip.eval.plots import training
from alip.eval.release import ImageNetTransform
from alip.tokens import tokenize
from tests.fuzz import OK, Target
from tests.fuzz.mutations import damage, json_bytes
from tests.helpers import archives


def write_mutated(rng: random.Random, path: Path, value: Any, lines: bool = False) -> None:
    """The value as JSON (or JSON lines), mutated."""
    path.write_bytes(json_bytes(rng, value, lines))


def small_image(path: Path, rng: random.Random) -> None:
    Image.new("RGB", (9, 8), tuple(rng.randrange(256) for _ in range(3))).save(path)


CAPTIONS = [["a dog", "a brown dog"], ["two bikes"], ["the sea", "waves", "blue"]]


def make_captions(rng: random.Random, folder: Path) -> Callable[[], object]:
    names = [f"{number}.png" for number in range(3)]
    for name in names:
        small_image(folder / name, rng)
    sentences = [[{"raw": caption, "tokens": []} for caption in own] for own in CAPTIONS]
    forms = {
        "blip": [{"image": name, "caption": own} for name, own in zip(names, CAPTIONS)],
        "karpathy": {
            "images": [
                {"filename": name, "filepath": "", "split": rng.choice(("test", "test", "train")), "sentences": own}
                for name, own in zip(names, sentences)
            ]
        },
        "coco": {
            "images": [{"id": 7 + number, "file_name": name} for number, name in enumerate(names)],
            "annotations": [
                {"id": 10 * number + i, "image_id": 7 + number, "caption": caption}
                for number, own in enumerate(CAPTIONS)
                for i, caption in enumerate(own)
            ],
        },
    }
    form = rng.choice(["lines", *forms])
    path = folder / "captions.jsonl"
    write_mutated(rng, path, forms["blip" if form == "lines" else form], lines=form == "lines")

    def run() -> None:
        found = open_retrieval(path, folder)
        assert found.images and found.captions and len(found.captions) == len(found.caption_owner)
        assert {*found.caption_owner} == {*range(len(found.images))}
        assert all(isinstance(caption, str) and caption.strip() for caption in found.captions)
        assert len(tokenize(found.captions)) == len(found.captions)
        ImageFiles(found.images).content_hash()
        read_all(ImageFiles(found.images))

    return run


TRANSFORM = ImageNetTransform(
    SimpleNamespace(config={"preprocess_cfg": {"mean": (0.5,) * 3, "std": (0.2,) * 3}}, image_size=16)
)


def read_all(images: Any, most: int = 20) -> int:
    """Reads images as `encode_images` does; every one is an image or a named failure. Returns how many are images."""
    count = min(len(images), most)
    items = [
        item for reader in [Reader(images, TRANSFORM, range(count))] for item in map(reader.__getitem__, range(count))
    ]
    for pixels, label, position, failure in items:
        assert (pixels is None) == bool(failure) and isinstance(label, int) and 0 <= position < count
        assert pixels is None or (tuple(pixels.shape) == (3, 16, 16) and bool(pixels.isfinite().all()))
    return sum(item[0] is not None for item in items)


def make_lists(rng: random.Random, folder: Path) -> Callable[[], object]:
    """Class names and templates for a folder of images."""
    for name in ("apple", "pear", "sea"):
        (folder / "sorts" / name).mkdir(parents=True)
        small_image(folder / "sorts" / name / "0.png", rng)
    names, prompts = folder / "names.json", folder / "prompts.json"
    names.write_text(json.dumps({"sorts": ["red apple", "green pear", "blue sea"]}))
    prompts.write_text(json.dumps({"sorts": ["a {}.", "the {}."], "other": ["x"]}))
    broken = rng.choice((names, prompts))
    write_mutated(rng, broken, json.loads(broken.read_text()))

    def run() -> None:
        found = open_classification(folder / "sorts", classnames=names, prompts=prompts)
        assert len(found.classnames) == 3 and found.templates
        assert all(template.count("{}") == 1 for template in found.templates)
        texts = [template.replace("{}", name) for template in found.templates for name in found.classnames]
        assert len(tokenize(texts)) == len(texts)
        results.text_hash(texts)

    return run


def make_classes(rng: random.Random, folder: Path) -> Callable[[], object]:
    rows = []
    for number in range(4):
        small_image(folder / f"{number}.png", rng)
        rows.append({"image": f"{number}.png", "label": ("apple", "pear")[number % 2]})
    path = folder / "classes.jsonl"
    write_mutated(rng, path, rows, lines=True)

    def run() -> None:
        found = open_classification(path)
        assert len(found.images) > 0 and {*found.images.labels} == {*range(len(found.classnames))}
        found.images.content_hash()
        read_all(found.images)

    return run


def make_results(rng: random.Random, folder: Path) -> Callable[[], object]:
    numbers = {f"{way}_R@{k}": 10.0 * k for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    numbers |= {f"{way}_{name}_rank": 3.0 for way in ("image_to_text", "text_to_image") for name in ("median", "mean")}
    sizes = {"images": 10, "captions": 20, "unreadable": 0}
    accuracies = {"top1": 50.0, "top5": 90.0, "mean_per_class": 49.0, "primary": 50.0, "images": 9, "classes": 4}
    about = {"protocol": "standard", "weights": "model", "precision": "fp32", "checkpoint": "runs/x", "step": 3}
    about |= {"weights_hash": "0" * 16, "dataset_hash": "1" * 16, "prompts_hash": None, "given": {}}
    entries = [
        {"task": "retrieval", "dataset": "coco", "benchmark": "coco", "numbers": {**numbers, **sizes}, **about},
        {"task": "zeroshot", "dataset": "pets", "numbers": {**accuracies, "unreadable": 1}, **about}
        | {"benchmark": "pets", "expected_images": [3669], "given": {"prompts": "a.json"}},
        {"task": "probe", "dataset": "mine", "numbers": {**accuracies, "unreadable": 0}, **about, "benchmark": None},
    ]
    data: dict[str, Any] = {"format": "alip-results", "version": 2, "entries": entries}
    if rng.random() < 0.3:  # version 0.1
        text = json.dumps(data).replace('"task"', '"kind"').replace('"primary"', '"headline"')
        data = json.loads(text.replace("standard", "field")) | {"version": 1}
    (folder / "results").mkdir()
    write_mutated(rng, folder / "results" / "results.json", data)

    def run() -> None:
        page = report.markdown({"run": results.load(folder)})
        assert page.startswith("# Results")
        results.save(folder / "results", [results.entry("probe", "standard", {**accuracies, "unreadable": 0}, [])])

    def card() -> None:
        assert _results_lines(folder, "0" * 16)

    return rng.choice((run, run, card))


def make_metrics(rng: random.Random, folder: Path) -> Callable[[], object]:
    rows = [{"kind": "train", "step": step, "loss": 1.0, "lr": 0.1} for step in range(4)]
    rows += [{"kind": "eval", "step": 3, "task": "zeroshot", "dataset": "x", "primary": 3.0}]
    write_mutated(rng, folder / "metrics.jsonl", rows, lines=True)

    def run() -> None:
        metrics = training.read_metrics(folder, "train")
        assert all(column.shape == metrics["step"].shape for column in metrics.values())
        training.read_evaluations(folder)

    return run


# Without CIFAR, whose pickles are opened only when their MD5 is the published one.
ARCHIVES = ("food101", "pets", "flowers", "dtd", "aircraft", "caltech101", "cars")


@lru_cache(maxsize=1)
def archive_folder() -> Path:
    """All archives in miniature, made once; removed when the process ends."""
    holder = tempfile.TemporaryDirectory(prefix="alip-archives-")
    archive_folder.holder = holder  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for name in ARCHIVES:
            archives.write(name, Path(holder.name) / name, patch)
    return Path(holder.name)


def make_archive(rng: random.Random, folder: Path) -> Callable[[], object]:
    """One dataset with one mutated, missing or exchanged file; the files that are lists are mutated most often."""
    name = rng.choice(ARCHIVES)
    shutil.copytree(archive_folder() / name, folder / name, copy_function=os.link)
    files = sorted(path for path in (folder / name).rglob("*") if path.is_file())
    lists = [path for path in files if path.suffix not in (".jpg", ".png")]
    path = rng.choice(lists if lists and rng.random() < 0.8 else files)
    data = path.read_bytes()
    path.unlink()  # the other links keep the archive as it is
    action = rng.random()
    if action < 0.75:
        path.write_bytes(damage(rng, data))
    elif action < 0.85:
        others = [other for other in files[:5] + lists[:5] if other != path]
        path.write_bytes(rng.choice(others).read_bytes())
    elif action < 0.9:
        path.mkdir()
    protocol = rng.choice(("standard", "alip"))

    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            if name == "flowers":  # let the mutated file through to its parser
                _accept_flowers(patch, folder / name)
            found = open_classification(name, folder / name, protocol=protocol)
            assert len(found.images) > 0 and len(found.classnames) in (37, 47, 100, 101, 102, 196)
            read_all(found.images)
            found.images.content_hash()
            read_all(found.train())

    return run


def _accept_flowers(patch: pytest.MonkeyPatch, root: Path) -> None:
    from torchvision.datasets import Flowers102

    files = dict(Flowers102._file_dict)
    for key in ("label", "setid"):
        path = root / "flowers-102" / files[key][0]
        if path.is_file():
            files[key] = (files[key][0], hashlib.md5(path.read_bytes()).hexdigest())
    patch.setattr(Flowers102, "_file_dict", files)


def make_image(rng: random.Random, folder: Path) -> Callable[[], object]:
    form = rng.choice(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"))
    mode = rng.choice(("RGB", "L", "P", "RGBA")) if form in ("PNG", "TIFF", "WEBP") else "RGB"
    if mode in ("P", "L") and form == "WEBP":
        mode = "RGB"
    path = folder / f"x.{form.lower()}"
    size = rng.choice(((9, 8), (1, 300), (300, 1), (40, 30)))
    Image.effect_noise(size, 90).convert(mode).save(path, form)
    path.write_bytes(damage(rng, path.read_bytes()))

    def run() -> None:
        read_all(ImageFiles([path]))

    return run


def make_text(rng: random.Random, folder: Path) -> Callable[[], object]:
    """Any text is plotted."""
    ranges = (
        (32, 127),
        (0, 32),
        (0x80, 0x2FF),
        (0x2000, 0x2BFF),
        (0x4E00, 0x9FFF),
        (0xD800, 0xDFFF),
        (0x1F300, 0x1FAFF),
    )
    picked = [rng.choice((*ranges, (0, 0x10FFFF))) for _ in range(rng.randint(0, 40))]
    text = "".join(chr(rng.randrange(low, high)) for low, high in picked)
    text += rng.choice(("", "$", "_{", "$\\frac{", "\\", "{}", rng.choice(CALTECH101)))

    def run() -> None:
        wrapped = style.wrap(text, 20, 3)
        assert all(len(line) <= 20 for line in wrapped.split("\n")) and wrapped.count("\n") < 3
        with style.figure(folder / "x", 1, 1) as figure:
            axis = figure.subplots()
            axis.set_title(wrapped)
            axis.set_xticks([0], [style.shorten(text, 12)])
        assert all(path.stat().st_size > 200 for path in style.outputs(folder / "x"))

    return run


TARGETS = [
    Target("caption file", make_captions),
    Target("class names and prompts", make_lists),
    Target("classes.jsonl", make_classes),
    Target("results.json", make_results),
    Target("metrics.jsonl", make_metrics),
    Target("dataset archive", make_archive),
    Target("evaluated image", make_image, frozenset((OK,))),
    Target("plotted text", make_text, frozenset((OK,))),
]
