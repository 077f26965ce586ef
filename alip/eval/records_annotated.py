"""Datasets whose classes are in annotation files beside the images."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np

from alip.errors import UserError
from alip.eval.image_arrays import CroppedFiles
from alip.eval.image_readers import ImageFiles, Images
from alip.eval.layouts import IMAGE_SUFFIXES, letters, lines_of, table_of
from alip.eval.named_lists import classes
from alip.eval.record_types import ClassificationRecord, first_of, needed, record
from alip.files import json_lines, parse_json, read_text
from alip.schema import check


def _cub(folder: Path, part: str) -> Images:
    """images.txt, image_class_labels.txt and train_test_split.txt: lines of an image's number and its value."""
    names = table_of(folder / "classes.txt", "numbers and names of the classes", 2)
    _check_names(folder / "classes.txt", [name.split(".", 1)[-1] for _, name in names], classes("cub"))
    tables = {}
    for file in ("images.txt", "image_class_labels.txt", "train_test_split.txt"):
        tables[file] = dict(row[:2] for row in table_of(folder / file, "an image's number and its value", 2))
    path_of, label_of, split_of = tables.values()
    chosen = [number for number in path_of if split_of.get(number) == ("0" if part == "test" else "1")]
    paths = [folder / "images" / path_of[number] for number in chosen]
    return ImageFiles(paths, [int(label_of[number]) - 1 for number in chosen])


def _check_names(path: Path, found: list[str], expected: list[str]) -> None:
    """UserError unless the two lists are equal without punctuation."""
    if len(found) != len(expected):
        raise UserError(f"{path}: {len(found)} classes, but {len(expected)} are expected; is it complete?")
    for number, (own, name) in enumerate(zip(found, expected)):
        if letters(own) != letters(name):
            raise UserError(f"{path}: class {number} is {own!r}, but {name!r} is expected")


def _birdsnap(folder: Path, part: str) -> Images:
    """species.txt and images.txt are tables with tabs and a header; the images that still exist are counted."""
    species = [line.split("\t") for line in lines_of(folder / "species.txt", "the species")[1:]]
    _check_names(folder / "species.txt", [row[1] for row in species], classes("birdsnap"))
    label_of = {row[0]: number for number, row in enumerate(species)}
    header, *rows = [line.split("\t") for line in lines_of(folder / "images.txt", "the images and their species")]
    path_at, species_at = header.index("path"), header.index("species_id")
    tested = set(lines_of(folder / "test_images.txt", "the test images")[1:])
    root = first_of(folder, ("download/images", "images"))
    paths, labels = [], []
    for row in rows:
        if (row[path_at] in tested) == (part == "test") and (root / row[path_at]).is_file():
            paths.append(root / row[path_at])
            labels.append(label_of[row[species_at]])
    if not paths:
        raise UserError(f"{root}: none of the images of images.txt is there; get_birdsnap.py downloads them")
    return ImageFiles(paths, labels)


def _ucf101(folder: Path, part: str) -> Images:
    """One frame of each video, named after it; the first of the official splits."""
    lists = first_of(folder, ("ucfTrainTestlist", "../ucfTrainTestlist"))
    index = table_of(lists / "classInd.txt", "numbers and names of the classes", 2)
    _check_names(lists / "classInd.txt", [name for _, name in index], classes("ucf101"))
    number = {name: label for label, (_, name) in enumerate(index)}
    frames = first_of(folder, ("UCF-101-midframes", "UCF-101", "frames"))
    # A class is spelt HandStandPushups in file names and HandstandPushups in folder names.
    frame_of = {
        file.stem.lower(): file
        for file in sorted(needed(frames, "a folder of frames per class").rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
    }
    wanted = table_of(lists / ("testlist01.txt" if part == "test" else "trainlist01.txt"), "CLASS/VIDEO.avi", 1)
    paths, labels = [], []
    for video in (row[0] for row in wanted):
        name, _, file = video.partition("/")
        stem = Path(file).stem.lower()
        if stem not in frame_of:
            raise UserError(f"{frames}: no frame of {video}")
        paths.append(frame_of[stem])
        labels.append(number[name])
    return ImageFiles(paths, labels)


_MEME = {
    "type": "object",
    "required": ["img", "label"],
    "properties": {"img": {"type": "string", "minLength": 1}, "label": {"enum": [0, 1]}},
}


def _hateful_memes(folder: Path, part: str) -> Images:
    """CLIP measures the development part, 500 images: the test part's labels were secret."""
    names = ("dev.jsonl", "dev_seen.jsonl") if part == "test" else ("train.jsonl",)
    path = needed(first_of(folder, names), "lines of img and label")
    paths, labels = [], []
    for where, row in json_lines(read_text(path), path):
        check(row, _MEME, where, 'each line must be {"img": path, "label": 0 or 1}')
        paths.append(folder / row["img"])
        labels.append(row["label"])
    return ImageFiles(paths, labels)


def _voc2007(folder: Path, part: str) -> Images:
    """Every annotated object is an image, cut out by its bounding box: as CLIP_benchmark and DataComp count."""
    number = {name: label for label, name in enumerate(classes("voc2007"))}
    lists = folder / "ImageSets" / "Main" / ("test.txt" if part == "test" else "trainval.txt")
    paths, labels, boxes = [], [], []
    for row in table_of(lists, "names of images", 1):
        annotation = needed(folder / "Annotations" / f"{row[0]}.xml", "an image's objects")
        for thing in ElementTree.parse(annotation).getroot().findall("object"):
            box = thing.find("bndbox")
            boxes.append([int(float(box.findtext(edge))) for edge in ("xmin", "ymin", "xmax", "ymax")])
            labels.append(number[thing.findtext("name")])
            paths.append(folder / "JPEGImages" / f"{row[0]}.jpg")
    return CroppedFiles(paths, labels, np.array(boxes, dtype=np.int32).reshape(-1, 4))


_SCENES = {"type": "object", "required": ["scenes"], "properties": {"scenes": {"type": "array", "minItems": 1}}}
_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)  # of the nearest object; VTAB's


def _clevr(task: str) -> Any:
    """VTAB's two tasks on CLEVR: how many objects (3 to 10), and how near the nearest is. The test part is its val."""

    def read(folder: Path, part: str) -> Images:
        split = "val" if part == "test" else "train"
        path = needed(folder / "scenes" / f"CLEVR_{split}_scenes.json", "the scenes and their objects")
        data = parse_json(read_text(path), str(path))
        check(data, _SCENES, path, 'CLEVR\'s scenes are {"scenes": [{"image_filename", "objects"}]}')
        paths, labels = [], []
        for scene in data["scenes"]:
            paths.append(folder / "images" / split / scene["image_filename"])
            if task == "count":
                labels.append(len(scene["objects"]) - 3)
            else:
                distance = min(thing["pixel_coords"][2] for thing in scene["objects"])
                labels.append(sum(distance > limit for limit in _DISTANCES) - 1)
        classes_of_task = 8 if task == "count" else 6
        if min(labels) < 0 or max(labels) >= classes_of_task:
            raise UserError(f"{path}: classes run from {min(labels)} to {max(labels)}, not 0 to {classes_of_task - 1}")
        return ImageFiles(paths, labels)

    return read


_VEHICLES = ("Car", "Van", "Truck")
_VEHICLE_DISTANCES = (-100.0, 8.0, 20.0, 999.0)  # in metres, along the optical axis; VTAB's, the last is no vehicle
_NO_VEHICLE = 1000.0
_KITTI_SEED = 123
_COLUMNS_OF_LABELS = 15


def _kitti(folder: Path, part: str) -> Images:
    """The distance of the nearest vehicle, with the parts of TensorFlow Datasets that VTAB and CLIP measure."""
    labels_folder = needed(folder / "training" / "label_2", "the objects of the training images")
    chosen = _kitti_part(first_of(folder, ("mapping", "devkit_object/mapping", "devkit/mapping")), part)
    labels = []
    for number in chosen:
        rows = table_of(labels_folder / f"{number:06d}.txt", "an image's objects", _COLUMNS_OF_LABELS)
        distance = min([float(row[13]) for row in rows if row[0] in _VEHICLES], default=_NO_VEHICLE)
        labels.append(sum(distance > limit for limit in _VEHICLE_DISTANCES) - 1)
    return ImageFiles([folder / "training" / "image_2" / f"{number:06d}.png" for number in chosen], labels)


def _kitti_part(mapping: Path, part: str) -> list[int]:
    """The images of the test part: of a tenth of the videos, which NumPy chooses from a fixed seed."""
    order = needed(mapping / "train_rand.txt", "the order of the training images, of devkit_object.zip")
    lines = table_of(mapping / "train_mapping.txt", "date, video and frame of each image", 3)
    videos: dict[str, list[int]] = {}
    for image, line in enumerate(read_text(order).split(",")):
        videos.setdefault(lines[int(line) - 1][1], []).append(image)
    sampler, tenth = np.random.RandomState(_KITTI_SEED), max(1, len(videos) // 10)
    tested = {str(video) for video in sampler.choice(sorted(videos), tenth, replace=False)}
    return [image for video, images in videos.items() if (video in tested) == (part == "test") for image in images]


ANNOTATED: dict[str, ClassificationRecord] = {
    "cub": record(
        "cub",
        ("CUB_200_2011", "cub/CUB_200_2011"),
        "CUB_200_2011/images, images.txt, classes.txt, image_class_labels.txt, train_test_split.txt",
        _cub,
        5_794,
    ),
    "birdsnap": record(
        "birdsnap",
        ("birdsnap",),
        "birdsnap/species.txt, images.txt, test_images.txt, download/images",
        _birdsnap,
        (2_443, 1_849),  # the list's; those that CLIP's authors could still download
    ),
    "ucf101": record(
        "ucf101",
        ("ucf101",),
        "ucf101/UCF-101-midframes/CLASS/VIDEO.jpg, ucf101/ucfTrainTestlist",
        _ucf101,
        3_783,
    ),
    "hateful-memes": record(
        "hateful-memes",
        ("hateful_memes", "hateful-memes"),
        "hateful_memes/dev.jsonl, train.jsonl, img",
        _hateful_memes,
        500,
        metric="roc_auc",
    ),
    "voc2007": record(
        "voc2007",
        ("VOCdevkit/VOC2007", "voc2007/VOCdevkit/VOC2007"),
        "VOCdevkit/VOC2007/JPEGImages, Annotations, ImageSets/Main",
        _voc2007,
        14_976,
    ),
    "clevr-counts": record(
        "clevr-counts",
        ("CLEVR_v1.0", "clevr/CLEVR_v1.0"),
        "CLEVR_v1.0/images/val, CLEVR_v1.0/scenes",
        _clevr("count"),
        15_000,
    ),
    "clevr-distance": record(
        "clevr-distance",
        ("CLEVR_v1.0", "clevr/CLEVR_v1.0"),
        "CLEVR_v1.0/images/val, CLEVR_v1.0/scenes",
        _clevr("distance"),
        15_000,
    ),
    "kitti": record(
        "kitti",
        ("kitti", "Kitti/raw"),
        "kitti/training/image_2, training/label_2, and mapping/ of devkit_object.zip",
        _kitti,
        711,
    ),
}
