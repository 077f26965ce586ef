"""More evaluation datasets' true layouts in miniature (as `archives`): those beyond the paper's eleven."""

import csv
import gzip
import json
import struct

import numpy as np
import scipy.io

from alip.eval.named_lists import classes, folders
from tests.helpers.archives import colour, write_image


def _folders(root, names, suffix=".jpg", count=1):
    for number, name in enumerate(names):
        for image in range(count):
            write_image(root / name / f"{name}_{image:03d}{suffix}", number)
    return len(names) * count


def _pixels(labels, side):
    return np.stack([np.full((side, side, 3), colour(label), np.uint8) for label in labels])


def eurosat(root):
    _folders(root / "eurosat" / "2750", folders("eurosat"), count=5)
    return 10


def resisc45(root):
    names = [name.replace(" ", "_") for name in classes("resisc45")]
    folder = root / "NWPU-RESISC45"
    _folders(folder, names, count=2)
    (folder / "resisc45-test.txt").write_text("".join(f"{name}_000.jpg\n" for name in names))
    return 45


def country211(root):
    _folders(root / "country211" / "train", folders("country211"))
    return _folders(root / "country211" / "test", folders("country211"))


def sst2(root):
    for part in ("train", "valid"):
        _folders(root / "rendered-sst2" / part, classes("sst2"), ".png")
    return _folders(root / "rendered-sst2" / "test", classes("sst2"), ".png")


def gtsrb(root):
    folder = root / "gtsrb"
    rows = [["Filename", "Width", "Height", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId"]]
    for number in range(43):
        write_image(folder / "GTSRB" / "Final_Test" / "Images" / f"{number + 100:05d}.ppm", number)
        write_image(folder / "GTSRB" / "Training" / f"{number:05d}" / "00000_00000.ppm", number)
        rows.append([f"{number + 100:05d}.ppm", 9, 9, 1, 1, 8, 8, number])
    with open(folder / "GT-final_test.csv", "w", newline="") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    return 43


def kinetics700(root):
    for part in ("train", "val"):
        _folders(root / "kinetics700_frames" / part, classes("kinetics700"))
    return 700


def cub(root):
    folder = root / "CUB_200_2011"
    own = [f"{number + 1:03d}.{name.replace(' ', '_')}" for number, name in enumerate(classes("cub"))]
    images, labels, split = [], [], []
    for number, name in enumerate(own):
        for image in (1, 2):
            index = 2 * number + image
            images.append(f"{index} {name}/{name[4:]}_{image:04d}.jpg")
            labels.append(f"{index} {number + 1}")
            split.append(f"{index} {image % 2}")
            write_image(folder / "images" / name / f"{name[4:]}_{image:04d}.jpg", number)
    (folder / "classes.txt").write_text("".join(f"{i + 1} {name}\n" for i, name in enumerate(own)))
    (folder / "images.txt").write_text("\n".join(images) + "\n")
    (folder / "image_class_labels.txt").write_text("\n".join(labels) + "\n")
    (folder / "train_test_split.txt").write_text("\n".join(split) + "\n")
    return 200


def birdsnap(root):
    folder = root / "birdsnap"
    species, images, tested = ["id\tcommon\tscientific\tdir"], ["url\tmd5\tpath\tspecies_id\tbb_x1"], ["path"]
    for number, name in enumerate(classes("birdsnap")):
        directory = name.replace(" ", "_").replace("'", "")
        species.append(f"{number + 1}\t{name}\tAvis avis\t{directory}")
        for image in range(2):
            path = f"{directory}/{image}.jpg"
            images.append(f"http://x/{image}\tabc\t{path}\t{number + 1}\t3")
            write_image(folder / "download" / "images" / path, number)
        images.append(f"http://x/gone\tabc\t{directory}/gone.jpg\t{number + 1}\t3")
        tested += [f"{directory}/0.jpg", f"{directory}/gone.jpg"]
    for file, lines in (("species.txt", species), ("images.txt", images), ("test_images.txt", tested)):
        (folder / file).write_text("\n".join(lines) + "\n")
    return 500


def ucf101(root):
    folder = root / "ucf101"
    lists = folder / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    own = [name.replace(" ", "") for name in classes("ucf101")]
    for part, group in (("train", 8), ("test", 1)):
        lines = []
        for number, name in enumerate(own):
            video = f"v_{name.replace('Handstand', 'HandStand')}_g{group:02d}_c01"
            frames = folder / "UCF-101-midframes" / classes("ucf101")[number].replace(" ", "_")
            write_image(frames / f"{video}.jpg", number)
            lines.append(f"{name}/{video}.avi" + (f" {number + 1}" if part == "train" else ""))
        (lists / f"{part}list01.txt").write_text("\n".join(lines) + "\n")
    (lists / "classInd.txt").write_text("".join(f"{i + 1} {name}\n" for i, name in enumerate(own)))
    return 101


def hateful_memes(root):
    folder = root / "hateful_memes"
    for part, first in (("train", 100), ("dev", 200)):
        lines = []
        for number in range(4):
            write_image(folder / "img" / f"{first + number:05d}.png", number % 2)
            row = {"id": first + number, "img": f"img/{first + number:05d}.png", "label": number % 2, "text": "it is"}
            lines.append(json.dumps(row))
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return 4


def voc2007(root):
    """Two objects an image, in its left and its right half."""
    from PIL import Image

    folder = root / "VOCdevkit" / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    names = classes("voc2007")
    for part, first in (("trainval", 1), ("test", 101)):
        ids = []
        for number in range(0, 20, 2):
            ids.append(f"{first + number:06d}")
            image = Image.new("RGB", (32, 16), colour(number))
            image.paste(colour(number + 1), (16, 0, 32, 16))
            image.save(folder / "JPEGImages" / f"{ids[-1]}.jpg", quality=95)
            things = "".join(
                f"<object><name>{names[number + side]}</name><pose>Left</pose><bndbox><xmin>{16 * side + 1}</xmin>"
                f"<ymin>1</ymin><xmax>{16 * side + 15}</xmax><ymax>15</ymax></bndbox></object>"
                for side in (0, 1)
            )
            xml = f"<annotation><filename>{ids[-1]}.jpg</filename>{things}</annotation>"
            (folder / "Annotations" / f"{ids[-1]}.xml").write_text(xml)
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(ids) + "\n")
    return 20


def clevr(root, task):
    folder = root / "CLEVR_v1.0"
    (folder / "scenes").mkdir(parents=True)
    distances = [7.5, 8.2, 8.7, 9.3, 9.8, 12.0]
    count = 8 if task == "counts" else 6
    for part in ("train", "val"):
        scenes = []
        for number in range(count):
            name = f"CLEVR_{part}_{number:06d}.png"
            write_image(folder / "images" / part / name, number)
            objects = number + 3 if task == "counts" else 4
            nearest = distances[number] if task == "distance" else 9.0
            things = [{"shape": "cube", "pixel_coords": [1, 2, nearest + thing]} for thing in range(objects)]
            scenes.append({"image_index": number, "image_filename": name, "objects": things})
        (folder / "scenes" / f"CLEVR_{part}_scenes.json").write_text(json.dumps({"info": {}, "scenes": scenes}))
    return count


def kitti(root):
    """Ten videos of two images; the lines of train_mapping.txt are in another order than the images."""
    folder = root / "kitti"
    (folder / "training" / "label_2").mkdir(parents=True)
    (folder / "mapping").mkdir()
    order = np.random.default_rng(0).permutation(20)
    lines = [f"2011_09_26 2011_09_26_drive_{line // 2:04d}_sync {line:010d}" for line in range(20)]
    (folder / "mapping" / "train_rand.txt").write_text(",".join(str(line + 1) for line in order))
    (folder / "mapping" / "train_mapping.txt").write_text("\n".join(lines) + "\n")
    for image in range(20):
        kind = image % 4
        write_image(folder / "training" / "image_2" / f"{image:06d}.png", kind)
        things = [f"DontCare -1 -1 -10 1 1 2 2 -1 -1 -1 -1000 -1000 {-1000 + image} -10"]
        things.append("Pedestrian 0.00 0 0.1 1 1 2 2 1.8 0.5 0.9 1.8 1.5 3.0 0.1")  # no vehicle, however near
        if kind < 3:
            things.append(f"{('Car', 'Van', 'Truck')[kind]} 0.00 0 0.1 1 1 2 2 1 1 1 1.8 1.5 {(5, 12, 30)[kind]}.0 0.1")
            things.append("Car 0.00 0 0.1 1 1 2 2 1 1 1 1.8 1.5 70.5 0.1")
        (folder / "training" / "label_2" / f"{image:06d}.txt").write_text("\n".join(things) + "\n")
    return 2  # a tenth of ten videos is one


def mnist(root):
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for stem in ("t10k", "train"):
        images = np.stack([np.full((28, 28), 16 * label + 8, np.uint8) for label in range(10)])
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 10, 28, 28) + images.tobytes())
        labels = struct.pack(">2I", 0x801, 10) + bytes(range(10))
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return 10


def stl10(root):
    folder = root / "stl10_binary"
    folder.mkdir()
    (folder / "class_names.txt").write_text("\n".join(classes("stl10")) + "\n")
    for part in ("train", "test"):
        pixels = _pixels(range(10), 96)
        pixels[:, 80:] = 255  # the last rows of the image are white: a transposed reader shows the last columns so
        (folder / f"{part}_X.bin").write_bytes(np.ascontiguousarray(pixels.transpose(0, 3, 2, 1)).tobytes())
        (folder / f"{part}_y.bin").write_bytes(bytes(range(1, 11)))
    return 10


def svhn(root):
    (root / "svhn").mkdir()
    labels = [*range(1, 10), 10]
    pixels = _pixels([label % 10 for label in labels], 32)
    for part in ("train", "test"):
        content = {"X": pixels.transpose(1, 2, 3, 0), "y": np.array(labels, np.uint8)[:, None]}
        scipy.io.savemat(root / "svhn" / f"{part}_32x32.mat", content)
    return 10


def pcam(root):
    import h5py

    (root / "pcam").mkdir()
    for part in ("train", "test"):
        stem = str(root / "pcam" / f"camelyonpatch_level_2_split_{part}")
        with h5py.File(f"{stem}_x.h5", "w") as file:
            file["x"] = _pixels([0, 1, 1], 96)
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file["y"] = np.array([0, 1, 1], np.uint8).reshape(3, 1, 1, 1)
    return 3


def fer2013(root):
    for part in ("train", "test"):
        _folders(root / "fer2013" / part, folders("fer2013"))
    return 7


def fer2013_csv(root):
    """The challenge's file: emotions in another order than the folders of its copies."""
    (root / "fer2013").mkdir()
    order = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    with open(root / "fer2013" / "fer2013.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["emotion", "pixels", "Usage"])
        for usage in ("Training", "PublicTest", "PrivateTest"):
            for number, name in enumerate(order):
                grey = 16 * folders("fer2013").index(name) + 8
                rows.writerow([number, " ".join([str(grey)] * 48 * 48), usage])
    return 14


def objectnet(root):
    from PIL import Image

    folder = root / "objectnet-1.0" / "images"
    for number, name in enumerate([*folders("objectnet"), "air_freshener"]):
        image = Image.new("RGB", (20, 16), (255, 0, 0))
        image.paste(colour(number), (2, 2, 18, 14))
        (folder / name).mkdir(parents=True)
        image.save(folder / name / "a1b2.png")
    return 113


def _subset(name):
    def write(root):
        (root / name).mkdir()
        (root / name / "README.txt").write_text("classes\n")
        return _folders(root / name, folders(name))

    return write


def _numbered(archive):
    return lambda root: _folders(root / archive, [str(number) for number in range(1000)], ".jpeg")


WRITERS = {
    "eurosat": eurosat,
    "resisc45": resisc45,
    "country211": country211,
    "sst2": sst2,
    "gtsrb": gtsrb,
    "kinetics700": kinetics700,
    "cub": cub,
    "birdsnap": birdsnap,
    "ucf101": ucf101,
    "hateful-memes": hateful_memes,
    "voc2007": voc2007,
    "clevr-counts": lambda root: clevr(root, "counts"),
    "clevr-distance": lambda root: clevr(root, "distance"),
    "kitti": kitti,
    "mnist": mnist,
    "stl10": stl10,
    "svhn": svhn,
    "pcam": pcam,
    "fer2013": fer2013,
    "imagenet-v2": _numbered("imagenetv2-matched-frequency-format-val"),
    "imagenet-v2-threshold": _numbered("imagenetv2-threshold0.7-format-val"),
    "imagenet-v2-top": _numbered("imagenetv2-top-images-format-val"),
    **{name: _subset(name) for name in ("imagenet-r", "imagenet-a", "imagenet-o")},
    "imagenet-sketch": lambda root: _folders(root / "sketch", folders("imagenet"), ".JPEG"),
    "objectnet": objectnet,
}
