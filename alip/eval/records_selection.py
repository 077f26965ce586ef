"""Compositional benchmarks by name, from their repositories' own annotation files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alip.errors import UserError
from alip.eval.arrow_images import ArrowImages, read_table
from alip.eval.image_arrays import CroppedFiles
from alip.eval.image_readers import ImageFiles, Images, JoinedImages
from alip.eval.layouts import lines_of
from alip.eval.named_lists import read_list
from alip.eval.record_types import first_of, needed
from alip.eval.selection import SelectionDataset, in_groups, winoground
from alip.files import parse_json, read_text
from alip.schema import check

SUGARCREPE_PARTS = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")


@dataclass(frozen=True)
class SelectionRecord:
    """folders: under the data root, the first that exists. layout: what is expected there. questions: how many."""

    folders: tuple[str, ...]
    layout: str
    read: Callable[[str, Path], SelectionDataset]
    questions: tuple[int, ...] = ()


class _Numbered:
    """Things in the order of their first appearance: `number(thing)` gives each its number."""

    def __init__(self) -> None:
        self.of: dict[Any, int] = {}

    def number(self, thing: Any) -> int:
        return self.of.setdefault(thing, len(self.of))

    def all(self) -> list[Any]:
        return list(self.of)


_SUGARCREPE = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": {
        "type": "object",
        "required": ["filename", "caption", "negative_caption"],
        "properties": {
            name: {"type": "string", "minLength": 1} for name in ("filename", "caption", "negative_caption")
        },
    },
}


def _sugarcrepe(name: str, folder: Path) -> SelectionDataset:
    """Seven files of questions about images of COCO's val2017: is the caption better than a changed one?"""
    images, texts = _Numbered(), _Numbered()
    rows, parts = [], []
    for part in SUGARCREPE_PARTS:
        path = needed(first_of(folder, (f"data/{part}.json", f"{part}.json")), "one of SugarCrepe's seven files")
        data = parse_json(read_text(path), str(path))
        check(data, _SUGARCREPE, path, 'questions are {"0": {"filename", "caption", "negative_caption"}, …}')
        for row in data.values():
            rows.append([images.number(row["filename"]), *map(texts.number, (row["caption"], row["negative_caption"]))])
            parts.append(part)
    root = _images_folder(name, folder, images.all()[0], ("val2017", "images", "../coco/val2017", "../val2017"))
    table = np.array(rows, dtype=np.int64)
    judge = in_groups(table[:, 0], table[:, 1], table[:, 2:], parts, show_groups=True)
    files = ImageFiles([root / file for file in images.all()])
    return _dataset(name, files, texts.all(), judge, "mean of the seven accuracies", table, parts)


def _images_folder(name: str, folder: Path, first: str, candidates: Sequence[str]) -> Path:
    found = next((folder / one for one in candidates if (folder / one / first).is_file()), None)
    if found is None:
        tried = ", ".join(str(folder / one) for one in candidates)
        raise UserError(f"{name}: the image {first[:200]} is not under any of: {tried}")
    return found


def _dataset(
    name: str, images: Any, texts: list[str], judge: Any, metric: str, table: np.ndarray, groups: Sequence[str] = ()
) -> SelectionDataset:
    content = [*texts, str(table.tolist()), *groups]
    return SelectionDataset(name, images, texts, judge, metric, len(table), content)


_WINOGROUND = {
    "type": "object",
    "required": ["image_0", "image_1", "caption_0", "caption_1"],
    "properties": {n: {"type": "string", "minLength": 1} for n in ("image_0", "image_1", "caption_0", "caption_1")},
}


def _winoground(name: str, folder: Path) -> SelectionDataset:
    """The Hub's Parquet files, or examples.jsonl with a folder of images, its older form."""
    parquet = sorted([*(folder / "data").glob("test-*.parquet"), *folder.glob("test-*.parquet")])
    if parquet:
        return _winoground_parquet(name, parquet)
    path = needed(first_of(folder, ("data/examples.jsonl", "examples.jsonl")), "Winoground's examples")
    images, texts = _Numbered(), _Numbered()
    rows = []
    for number, line in enumerate(lines_of(path, "examples"), 1):
        row = parse_json(line, f"{path}, line {number}")
        check(row, _WINOGROUND, f"{path}, line {number}", "each line has image_0, image_1, caption_0, caption_1")
        pair = [images.number(Path(row[key]).stem) for key in ("image_0", "image_1")]
        rows.append([*pair, texts.number(row["caption_0"]), texts.number(row["caption_1"])])
    root = path.parent / "images"
    if not root.is_dir():
        raise UserError(f"{name}: {root} is missing; unpack images.zip beside {path.name}")
    files = [first_of(root, (f"{stem}.png", f"{stem}.jpg")) for stem in images.all()]
    return _winoground_dataset(name, ImageFiles(files), texts, rows)


def _winoground_parquet(name: str, paths: list[Path]) -> SelectionDataset:
    """Two columns of images inside the files, two of captions."""
    columns = ("caption_0", "caption_1", "image_0", "image_1")
    captions = read_table(paths, columns).select(columns[:2])
    texts, count = _Numbered(), len(captions)
    rows = []
    for number, row in enumerate(captions.to_pylist()):
        own = [row[column] for column in columns[:2]]
        if not all(isinstance(text, str) and text for text in own):
            raise UserError(f"{paths[0]}: row {number} has no text in caption_0 or caption_1")
        rows.append([number, count + number, *map(texts.number, own)])
    positions = np.stack([np.arange(count), np.full(count, -1)], 1)
    sides = [ArrowImages(paths, paths[0].parent, column, positions) for column in columns[2:]]
    return _winoground_dataset(name, JoinedImages(sides), texts, rows)


def _winoground_dataset(name: str, images: Images, texts: _Numbered, rows: list[list[int]]) -> SelectionDataset:
    if not rows:
        raise UserError(f"{name}: there are no examples")
    table = np.array(rows, dtype=np.int64)
    return _dataset(name, images, texts.all(), winoground(table[:, :2], table[:, 2:]), "group score", table)


_TEXT = {"type": "string", "minLength": 1}
_EDGE = {"type": "number"}
_ARO_BOX = {f"bbox_{name}": _EDGE for name in ("x", "y", "w", "h")}


def _aro_schema(**more: Any) -> dict[str, Any]:
    properties = {"image_path": _TEXT, "true_caption": _TEXT, "false_caption": _TEXT, **_ARO_BOX, **more}
    item = {"type": "object", "required": list(properties), "properties": properties}
    return {"type": "array", "minItems": 1, "items": item}


_RELATION = _aro_schema(relation_name=_TEXT)
_ATTRIBUTION = _aro_schema(attributes={"type": "array", "minItems": 2, "items": _TEXT})
_SMALLEST_ATTRIBUTION = 25  # questions about a pair of attributes, else it is not in ARO's mean


def _aro_visual_genome(task: str) -> Callable[[str, Path], SelectionDataset]:
    """VG-Relation and VG-Attribution: a part of an image, the right caption and one with the two things swapped."""

    def read(name: str, folder: Path) -> SelectionDataset:
        path = needed(folder / f"visual_genome_{task}.json", "ARO's questions")
        data = parse_json(read_text(path), str(path))
        check(data, _RELATION if task == "relation" else _ATTRIBUTION, path, "ARO's list of questions is expected")
        crops, texts = _Numbered(), _Numbered()
        rows, groups = [], []
        for row in data:
            box = (row["bbox_x"], row["bbox_y"], row["bbox_x"] + row["bbox_w"], row["bbox_y"] + row["bbox_h"])
            crop = (row["image_path"], *map(int, box))
            rows.append([crops.number(crop), texts.number(row["true_caption"]), texts.number(row["false_caption"])])
            groups.append(row["relation_name"] if task == "relation" else "_".join(row["attributes"][:2]))
        paths = [folder / "images" / crop[0] for crop in crops.all()]
        boxes = np.array([crop[1:] for crop in crops.all()], dtype=np.int64)
        images = CroppedFiles(paths, [-1] * len(paths), boxes)
        table = np.array(rows, dtype=np.int64)
        if task == "relation":  # a relation that is true the other way round is no question
            rule = {"left_out": frozenset(read_list("relations", "aro-symmetric"))}
        else:
            rule = {"smallest": _SMALLEST_ATTRIBUTION}
        judge = in_groups(table[:, 0], table[:, 1], table[:, 2:], groups, **rule)
        metric = "mean accuracy of the relations" if task == "relation" else "mean accuracy of the attribute pairs"
        return _dataset(name, images, texts.all(), judge, metric, table, groups)

    return read


_ORDER = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["image", "caption_options"],
        "properties": {
            "image": _TEXT,
            "caption_options": {"type": "array", "minItems": 2, "items": {"type": "string"}},
        },
    },
}


def _aro_order(file: str, dataset: str) -> Callable[[str, Path], SelectionDataset]:
    """ARO shuffles words at random, with spaCy and NLTK: its class's `test_cases` are read from a JSON file."""

    def read(name: str, folder: Path) -> SelectionDataset:
        made = f'json.dump({dataset}(…).test_cases, open("{file}", "w")) with ARO\'s code'
        path = needed(folder / file, f"its shuffled captions: {made}")
        data = parse_json(read_text(path), str(path))
        check(data, _ORDER, path, 'a list of {"image", "caption_options"}, the right caption first')
        images, texts = _Numbered(), _Numbered()
        options = len(data[0]["caption_options"])
        rows = []
        for row in data:
            if len(row["caption_options"]) != options:
                raise UserError(f"{path}: {len(row['caption_options'])} options for {row['image'][:80]}, not {options}")
            rows.append([images.number(row["image"]), *map(texts.number, row["caption_options"])])
        folders = ("", "images", "../coco", "../flickr30k", "../coco/val2014", "../flickr30k/flickr30k-images")
        root = _images_folder(name, folder, images.all()[0], folders)
        table = np.array(rows, dtype=np.int64)
        judge = in_groups(table[:, 0], table[:, 1], table[:, 2:], ["all"] * len(table))
        files = ImageFiles([root / image for image in images.all()])
        return _dataset(name, files, texts.all(), judge, "accuracy", table)

    return read


SELECTION: dict[str, SelectionRecord] = {
    "sugarcrepe": SelectionRecord(
        ("sugarcrepe", "sugar-crepe"),
        "sugarcrepe/data/add_att.json and six more, images of COCO in sugarcrepe/val2017 or coco/val2017",
        _sugarcrepe,
        (7511,),
    ),
    "winoground": SelectionRecord(
        ("winoground",),
        "winoground/data/test-*.parquet, or winoground/data/examples.jsonl and winoground/data/images/*.png",
        _winoground,
        (400,),
    ),
    "aro-relation": SelectionRecord(
        ("aro",),
        "aro/visual_genome_relation.json, aro/images",
        _aro_visual_genome("relation"),
        (23_937,),
    ),
    "aro-attribution": SelectionRecord(
        ("aro",),
        "aro/visual_genome_attribution.json, aro/images",
        _aro_visual_genome("attribution"),
        (28_748,),
    ),
    "aro-coco-order": SelectionRecord(
        ("aro",), "aro/coco_order.json, images in coco/", _aro_order("coco_order.json", "COCO_Order"), (25_010,)
    ),
    "aro-flickr-order": SelectionRecord(
        ("aro",),
        "aro/flickr30k_order.json, images in flickr30k/",
        _aro_order("flickr30k_order.json", "Flickr30k_Order"),
        (5_000,),
    ),
}


def open_selection(name: str, root: Path) -> SelectionDataset:
    """A compositional benchmark by its name; UserError where its files are missing or of another form."""
    record = SELECTION[name]
    folder = next((root / one for one in record.folders if (root / one).is_dir()), None)
    if folder is None:
        raise UserError(f"{name} needs {root / record.folders[0]}; expected: {record.layout} (docs/evaluation.md)")
    return replace(record.read(name, folder), benchmark=name, expected_questions=record.questions)
