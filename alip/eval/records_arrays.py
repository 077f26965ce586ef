"""Datasets whose images are arrays in one file: idx, binary, MATLAB, HDF5, CSV."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np

from alip.errors import UserError
from alip.eval.image_arrays import ArrayImages, H5Images, open_h5
from alip.eval.image_readers import Images
from alip.eval.layouts import class_folders, letters, lines_of
from alip.eval.matlab_files import check_matlab_files
from alip.eval.named_lists import classes, folders
from alip.eval.record_types import ClassificationRecord, first_of, needed, record

_LARGEST_IDX = 1 << 28  # bytes: MNIST's training images take 47 MB


def _idx(path: Path, magic: int) -> np.ndarray:
    """An idx file of bytes, as its authors describe it: magic number, a size per dimension (big-endian), values."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        data = file.read(_LARGEST_IDX)
    dimensions = magic & 0xFF
    header = np.frombuffer(data, ">u4", count=min(1 + dimensions, len(data) // 4))
    if len(header) <= dimensions or int(header[0]) != magic:
        raise UserError(f"{path} is no idx file of {'images' if dimensions == 3 else 'labels'}")
    shape = tuple(int(size) for size in header[1:])
    values = np.frombuffer(data, np.uint8, offset=4 * (1 + dimensions))
    if len(values) != int(np.prod(shape)):
        raise UserError(f"{path}: {len(values):,} values where {' × '.join(map(str, shape))} are expected; is it cut?")
    return values.reshape(shape)


def _mnist(folder: Path, part: str) -> Images:
    stem = "t10k" if part == "test" else "train"
    images, labels = (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte")
    images_path, labels_path = (
        needed(first_of(folder, (name, f"{name}.gz", name.replace("-idx", ".idx"))), f"MNIST's {part} part")
        for name in (images, labels)
    )
    return ArrayImages(images_path, _idx(images_path, 0x803), _idx(labels_path, 0x801))


_STL_SIDE = 96


def _stl10(folder: Path, part: str) -> Images:
    """Bytes (n, 3, width, height): each colour's pixels are stored column by column. Labels count from 1."""
    own = lines_of(folder / "class_names.txt", "the names of the classes")
    if [letters(name) for name in own] != [letters(name) for name in classes("stl10")]:
        raise UserError(f"{folder / 'class_names.txt'}: {', '.join(own)[:80]}; other names are expected")
    path = needed(folder / f"{part}_X.bin", "the images")
    labels = np.fromfile(needed(folder / f"{part}_y.bin", "the labels"), np.uint8)
    size = 3 * _STL_SIDE * _STL_SIDE
    if path.stat().st_size != len(labels) * size:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes, but {len(labels):,} images of {size:,} are expected")
    pixels = np.memmap(path, np.uint8, "r").reshape(-1, 3, _STL_SIDE, _STL_SIDE).transpose(0, 3, 2, 1)
    return ArrayImages(path, pixels, labels.astype(np.int64) - 1)


def _svhn(folder: Path, part: str) -> Images:
    """X (32, 32, 3, n), y (n, 1); the digit 0 has the label 10."""
    import scipy.io

    path = needed(folder / f"{part}_32x32.mat", "format 2 of SVHN, cropped digits")
    check_matlab_files([path])
    content = scipy.io.loadmat(path)
    labels = content["y"].astype(np.int64).ravel() % 10
    return ArrayImages(path, np.ascontiguousarray(content["X"].transpose(3, 0, 1, 2)), labels)


def _pcam(folder: Path, part: str) -> Images:
    stem = f"camelyonpatch_level_2_split_{part}"
    for name in (f"{stem}_x.h5", f"{stem}_y.h5"):
        if not (folder / name).is_file() and (folder / f"{name}.gz").is_file():
            raise UserError(f"{folder / name}.gz must be unpacked: gunzip {folder / name}.gz")
    path, labels_path = (needed(folder / f"{stem}_{what}.h5", "PatchCamelyon's images, labels") for what in "xy")
    with open_h5(labels_path) as file:
        labels = np.asarray(file["y"]).ravel()
    return H5Images(path, "x", labels)


# fer2013.csv numbers its emotions in another order than the prompts.
_FER_CSV = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_FER_SIDE = 48


def _fer2013(folder: Path, part: str) -> Images:
    """A folder per emotion, or the challenge's fer2013.csv. The test part is its public and its private one."""
    path = first_of(folder, ("fer2013.csv", "icml_face_data.csv"))
    if not path.is_file():
        return class_folders(needed(folder / part, f"a folder per emotion, or {path}"), folders("fer2013"))
    number = [folders("fer2013").index(name) for name in _FER_CSV]
    pixels, labels = [], []
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, skipinitialspace=True):
            if (row["Usage"].strip() == "Training") == (part == "train"):
                pixels.append(np.array(row["pixels"].split(), dtype=np.uint8))
                labels.append(number[int(row["emotion"])])
    return ArrayImages(path, np.stack(pixels).reshape(-1, _FER_SIDE, _FER_SIDE), labels)


ARRAYS: dict[str, ClassificationRecord] = {
    "mnist": record(
        "mnist", ("MNIST/raw", "mnist/MNIST/raw", "mnist"), "MNIST/raw/t10k-images-idx3-ubyte …, or .gz", _mnist, 10_000
    ),
    "stl10": record(
        "stl10", ("stl10_binary",), "stl10_binary/test_X.bin, test_y.bin, class_names.txt, train_X.bin …", _stl10, 8_000
    ),
    "svhn": record("svhn", ("svhn",), "svhn/test_32x32.mat, train_32x32.mat", _svhn, 26_032),
    "pcam": record(
        "pcam",
        ("pcam",),
        "pcam/camelyonpatch_level_2_split_test_x.h5, …_y.h5 (unpacked; needs h5py)",
        _pcam,
        32_768,
    ),
    "fer2013": record("fer2013", ("fer2013",), "fer2013/test/angry/*.jpg …, or fer2013/fer2013.csv", _fer2013, 7_178),
}
