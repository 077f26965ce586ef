"""Datasets whose images are files in folders of their classes."""

from __future__ import annotations

from pathlib import Path

from torchvision import datasets as torchvision_datasets

from alip.eval.image_readers import Images, TorchvisionImages
from alip.eval.layouts import class_folders, fifths
from alip.eval.named_lists import classes, folders
from alip.eval.record_types import ClassificationRecord, first_of, needed, record


def _eurosat(folder: Path, part: str) -> Images:
    root = folder if folder.name in ("2750", "EuroSAT_RGB") else first_of(folder, ("2750", "EuroSAT_RGB", ""))
    lists = [parent / "eurosat-test.txt" for parent in (root, root.parent)]
    return fifths(class_folders(root, folders("eurosat")), part, lists)


def _resisc45(folder: Path, part: str) -> Images:
    root = first_of(folder, ("NWPU-RESISC45", ""))
    lists = [parent / "resisc45-test.txt" for parent in (root, root.parent)]
    return fifths(class_folders(root, classes("resisc45")), part, lists)


def _country211(folder: Path, part: str) -> Images:
    return class_folders(folder / part, folders("country211"))


def _sst2(folder: Path, part: str) -> Images:
    return class_folders(folder / part, classes("sst2"))


def _kinetics(folder: Path, part: str) -> Images:
    return class_folders(first_of(folder, ("val", "test")) if part == "test" else folder / part, classes("kinetics700"))


def _gtsrb(folder: Path, part: str) -> Images:
    if part == "test":
        needed(folder / "GT-final_test.csv", "the classes of the test images, of GTSRB_Final_Test_GT.zip")
    return TorchvisionImages(torchvision_datasets.GTSRB(folder.parent, split=part))


FOLDERS: dict[str, ClassificationRecord] = {
    "eurosat": record(
        "eurosat",
        ("eurosat", "2750", "EuroSAT_RGB"),
        "eurosat/2750/AnnualCrop/*.jpg …; eurosat-test.txt beside it if you have it",
        _eurosat,
        5_400,
    ),
    "resisc45": record(
        "resisc45",
        ("NWPU-RESISC45", "resisc45"),
        "NWPU-RESISC45/airplane/*.jpg …; resisc45-test.txt beside it if you have it",
        _resisc45,
        6_300,
    ),
    "country211": record(
        "country211", ("country211",), "country211/test/AD/*.jpg …, country211/train", _country211, 21_100
    ),
    "sst2": record(
        "sst2",
        ("rendered-sst2",),
        "rendered-sst2/test/negative/*.png …, rendered-sst2/train",
        _sst2,
        1_821,
    ),
    "gtsrb": record(
        "gtsrb",
        ("gtsrb",),
        "gtsrb/GTSRB/Final_Test/Images/*.ppm, gtsrb/GT-final_test.csv, gtsrb/GTSRB/Training/00000/*.ppm …",
        _gtsrb,
        12_630,
    ),
    "kinetics700": record(
        "kinetics700",
        ("kinetics700_frames", "kinetics700"),
        "kinetics700_frames/val/CLASS/*.jpg, one frame of each video; …/train",
        _kinetics,
        (),
        metric="mean_top1_top5",
    ),
}
