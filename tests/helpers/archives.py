"""Writes each evaluation dataset's true layout in miniature: the same folders, file names and annotation files.

An image's colour says its class (`colour`), so that a test can tell a wrong label by looking (`class_of`).
"""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image
from timm.data import ImageNetInfo

from alip.eval import classnames as names


def colour(number):
    """16 levels a channel, in the middle of each, so that JPEG's rounding does no harm."""
    return tuple(16 * level + 8 for level in (number % 16, number // 16 % 16, number // 256 % 16))


def class_of(image):
    """The class that the image's colour says."""
    red, green, blue = np.asarray(image.convert("RGB"), int)[4, 4] // 16
    return int(red + 16 * green + 256 * blue)


def write_image(path, number, size=(10, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour(number)).save(path, quality=95)


def cifar(root, monkeypatch, hundred):
    """Pickled batches, whose md5 torchvision checks before it unpickles them: the test's files stand in for theirs."""
    from torchvision.datasets import CIFAR10, CIFAR100

    kind, own = (CIFAR100, names.CIFAR100) if hundred else (CIFAR10, names.CIFAR10)
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    labels = [*range(len(own)), 3]
    data = np.stack([np.full((32, 32, 3), colour(label), np.uint8) for label in labels])
    batch = {
        "data": data.transpose(0, 3, 1, 2).reshape(len(labels), -1),
        "fine_labels" if hundred else "labels": labels,
    }
    meta = {kind.meta["key"]: [name.replace(" ", "_") for name in own]}

    def write(file, value):
        (folder / file).write_bytes(pickle.dumps(value))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(kind, attribute, [[file, write(file, batch)] for file, _ in getattr(kind, attribute)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": write(kind.meta["filename"], meta)})
    return len(labels)


def food101(root):
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True)
    own = [name.replace(" ", "_") for name in names.FOOD101]
    for part, count in (("train", 2), ("test", 1)):
        lists = {name: [f"{name}/{part}{i}" for i in range(count)] for name in reversed(own)}
        (folder / "meta" / f"{part}.json").write_text(json.dumps(lists))
        for number, name in enumerate(own):
            for i in range(count):
                write_image(folder / "images" / name / f"{part}{i}.jpg", number)
    return len(own)


def pets(root):
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    for part in ("trainval", "test"):
        lines = []
        for number, name in enumerate(names.PETS):
            stem = f"{name.replace(' ', '_')}_{100 if part == 'test' else 1}"
            write_image(folder / "images" / f"{stem}.jpg", number)
            lines.append(f"{stem} {number + 1} 1 1")
        (folder / "annotations" / f"{part}.txt").write_text("\n".join(lines) + "\n")
    return len(names.PETS)


def flowers(root, monkeypatch):
    from torchvision.datasets import Flowers102

    folder = root / "flowers-102"
    count = len(names.FLOWERS)
    labels = np.tile(np.arange(1, count + 1), 3)
    ids = np.arange(1, 3 * count + 1).reshape(3, count)
    for number, label in zip(ids.ravel(), labels):
        write_image(folder / "jpg" / f"image_{number:05d}.jpg", int(label) - 1)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": labels[None]})
    scipy.io.savemat(folder / "setid.mat", {"trnid": ids[0][None], "valid": ids[1][None], "tstid": ids[2][None]})
    files = dict(Flowers102._file_dict)
    for key in ("label", "setid"):
        files[key] = (files[key][0], hashlib.md5((folder / files[key][0]).read_bytes()).hexdigest())
    monkeypatch.setattr(Flowers102, "_file_dict", files)
    return count


def sun397(root):
    folder = root / "SUN397"
    folder.mkdir(parents=True)
    own, lines = [], {"Training_01.txt": [], "Testing_01.txt": []}
    for number, name in enumerate(names.SUN397):
        # "apartment building outdoor" lies under /a/apartment_building/outdoor.
        words = name.split(" ")
        two_floors = words[-1] in ("indoor", "outdoor") and len(words) > 1
        own.append(f"/{name[0]}/{'_'.join(words[:-1])}/{words[-1]}" if two_floors else f"/{name[0]}/{'_'.join(words)}")
        for part, file in enumerate(lines):
            write_image(folder / own[-1][1:] / f"sun_{part}{number:04d}.jpg", number)
            lines[file].append(f"{own[-1]}/sun_{part}{number:04d}.jpg")
    (folder / "ClassName.txt").write_text("\n".join(own) + "\n")
    for file, rows in lines.items():
        (folder / "Partitions").mkdir(exist_ok=True)
        (folder / "Partitions" / file).write_text("\n".join(rows) + "\n")
    return len(own)


def cars(root):
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    own = np.empty((1, len(names.CARS)), object)
    own[0] = names.CARS
    scipy.io.savemat(folder / "devkit" / "cars_meta.mat", {"class_names": own})
    for part, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = np.zeros((1, len(names.CARS)), [("class", object), ("fname", object)])
        for number in range(len(names.CARS)):
            write_image(folder / f"cars_{part}" / f"{number + 1:05d}.jpg", number)
            rows[0, number] = (number + 1, f"{number + 1:05d}.jpg")
        scipy.io.savemat(folder / file, {"annotations": rows})
    return len(names.CARS)


def dtd(root):
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for part in ("train", "val", "test"):
        lines = []
        for number, name in enumerate(names.DTD):
            write_image(folder / "images" / name / f"{name}_{part}.jpg", number)
            lines.append(f"{name}/{name}_{part}.jpg")
        (folder / "labels" / f"{part}1.txt").write_text("\n".join(lines) + "\n")
    return len(names.DTD)


def caltech101(root):
    folder = root / "caltech101" / "101_ObjectCategories"
    own = [names._OWN.get(name, name.replace(" ", "_")) for name in names.CALTECH101]
    (folder / "BACKGROUND_Google").mkdir(parents=True)
    (folder / "BACKGROUND_Google" / "tmp").touch()  # the archive has it
    for number, name in enumerate(["BACKGROUND_Google", *own]):
        for image in range(1, 4):
            write_image(folder / name / f"image_{image:04d}.jpg", number)
    return len(own) + 1  # of three images in a class, the background's too, two are for training


def aircraft(root):
    folder = root / "fgvc-aircraft-2013b" / "data"
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("\n".join(names.AIRCRAFT) + "\n")
    for part in ("trainval", "test"):
        lines = []
        for number, name in enumerate(names.AIRCRAFT):
            image = f"{number + 1000 * (part == 'test'):07d}"
            write_image(folder / "images" / f"{image}.jpg", number)
            lines.append(f"{image} {name}")
        (folder / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")
    return len(names.AIRCRAFT)


def imagenet(root):
    for number, synset in enumerate(ImageNetInfo().label_names()):
        write_image(root / "imagenet" / "val" / synset / f"ILSVRC2012_val_{number + 1:08d}.JPEG", number)
        write_image(root / "imagenet" / "train" / synset / f"{synset}_{number}.JPEG", number)
    return 1000


def write(name, root: Path, monkeypatch):
    """Writes the dataset `name` under root; returns how many test images it has under the protocol `standard`."""
    if name in ("cifar10", "cifar100"):
        return cifar(root, monkeypatch, hundred=name == "cifar100")
    if name == "flowers":
        return flowers(root, monkeypatch)
    return globals()[name](root)
