"""True layouts in miniature of retrieval and compositional benchmarks (as `archives`)."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from alip.eval.records_selection import SUGARCREPE_PARTS
from tests.helpers.archives import write_image


def noise(path, seed, size=(20, 18)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def flickr8k_tokens(root):
    texts = root / "flickr8k" / "Flickr8k_text"
    texts.mkdir(parents=True)
    lines = [f"{i}_ab.jpg#{n}\ta dog, number {i} {n} ." for i in range(4) for n in range(5)]
    (texts / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    (texts / "Flickr_8k.testImages.txt").write_text("1_ab.jpg\n3_ab.jpg\n")
    for i in range(4):
        write_image(root / "flickr8k" / "Flicker8k_Dataset" / f"{i}_ab.jpg", i)
    return 2, 10, "a dog, number 1 0 ."


def flickr8k_table(root):
    folder = root / "flickr8k"
    folder.mkdir()
    rows = ["image,caption", *[f'{i}_ab.jpg,"A dog , number {i} {n} ."' for i in range(2) for n in range(5)]]
    rows.append("1_ab.jpg,a plain row , with a comma")
    (folder / "flickr8k_test_karpathy.txt").write_text("\n".join(rows) + "\n")
    for i in range(2):
        write_image(folder / "Images" / f"{i}_ab.jpg", i)
    return 2, 11, "A dog , number 0 0 ."


def flickr8k_karpathy(root):
    folder = root / "flickr8k"
    folder.mkdir()
    images = [
        {"filename": f"{i}.jpg", "split": split, "sentences": [{"raw": f"a {split} {i} {n}"} for n in range(5)]}
        for i, split in enumerate(("train", "test", "test"))
    ]
    (folder / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    for i in range(3):
        write_image(folder / "Flicker8k_Dataset" / f"{i}.jpg", i)
    return 2, 10, "a test 1 0"


def nocaps(root):
    images = [{"id": i, "file_name": f"{i:04x}.jpg", "open_images_id": f"{i:04x}", "domain": "in"} for i in range(3)]
    captions = [{"id": 9 * i + n, "image_id": i, "caption": f"thing {i} {n}"} for i in range(3) for n in range(10)]
    (root / "nocaps").mkdir()
    content = {"licenses": [], "info": {}, "images": images, "annotations": captions}
    (root / "nocaps" / "nocaps_val_4500_captions.json").write_text(json.dumps(content))
    for i in range(3):
        write_image(root / "nocaps" / "images" / f"{i:04x}.jpg", i)
    return 3, 30, "thing 0 0"


def urban1k(root):
    for i in (1, 2, 10):
        write_image(root / "Urban1k" / "image" / f"{i}.jpg", i)
        path = root / "Urban1k" / "caption" / f"{i}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{'a long street with shops ' * 20}{i}")
    return 3, 3, "a long street with shops " * 20 + "1"


def dci(root):
    folder = root / "densely_captioned_images"
    (folder / "complete").mkdir(parents=True)
    for i in range(2):
        write_image(folder / "photos" / f"sa_{i}.jpg", i)
        row = {"image": f"sa_{i}.jpg", "short_caption": f"A pump {i}.", "extra_caption": "It is red.", "mask_data": {}}
        (folder / "complete" / f"{i}.json").write_text(json.dumps(row))
    return 2, 2, "A pump 0.\nIt is red."


def xtd(root):
    folder = root / "xtd10"
    names = [f"COCO_train2014_{i:012d}.jpg" for i in range(3)] + ["COCO_val2014_000000000009.jpg"]
    for part, language in (("XTD10", "es"), ("MIC", "de"), ("STAIR", "jp")):
        (folder / part).mkdir(parents=True)
        text = "\n".join(f"{language} texto {i}" for i in range(4))  # no line end after the last, as in es
        (folder / part / f"test_1kcaptions_{language}.txt").write_text(text)
    (folder / "XTD10" / "test_image_names.txt").write_text("\n".join(names) + "\n")
    for i, name in enumerate(names):
        write_image(folder / "images" / name, i)
    return 4, 4, "de texto 0"


def xm3600(root):
    folder = root / "xm3600"
    folder.mkdir()
    rows = []
    for i in range(3):
        write_image(folder / "images" / f"{i:016x}.jpg", i)
        languages = {one: {"caption": [f"{one} {i} a", f"{one} {i} b"]} for one in ("en", "de", "quz")}
        rows.append(json.dumps({"image/key": f"{i:016x}", "image/locale": "de", **languages}))
    (folder / "captions.jsonl").write_text("\n".join(rows) + "\n")
    return 3, 6, "de 0 a"


LAYOUTS = [
    ("flickr8k", flickr8k_tokens),
    ("flickr8k", flickr8k_table),
    ("flickr8k", flickr8k_karpathy),
    ("nocaps", nocaps),
    ("urban1k", urban1k),
    ("dci", dci),
    ("xtd10-de", xtd),
    ("xm3600-de", xm3600),
]


def sugarcrepe(root):
    for part in SUGARCREPE_PARTS:
        rows = {
            str(3 * i): {
                "filename": f"{i:012d}.jpg",
                "caption": f"a cat and {i} birds {part}",
                "negative_caption": f"a dog and {i} birds {part}",
            }
            for i in range(4)
        }
        path = root / "sugarcrepe" / "data" / f"{part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))
    for i in range(4):
        noise(root / "sugarcrepe" / "val2017" / f"{i:012d}.jpg", i)
    return 28


def winoground(root):
    folder = root / "winoground" / "data"
    folder.mkdir(parents=True)
    lines = []
    for i in range(6):
        for side in (0, 1):
            noise(folder / "images" / f"ex_{i}_img_{side}.png", 2 * i + side)
        row = {"id": i, "image_0": f"ex_{i}_img_0", "image_1": f"ex_{i}_img_1", "tag": "Object"}
        lines.append(json.dumps({**row, "caption_0": f"{i} old kisses young", "caption_1": f"{i} young kisses old"}))
    (folder / "examples.jsonl").write_text("\n".join(lines) + "\n")
    return 6


def winoground_parquet(root):
    """The same questions as the Hub has them now: two columns of images inside, in two files."""
    winoground(root)
    folder = root / "winoground" / "data"
    rows = [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]
    for row in rows:
        for column in ("image_0", "image_1"):
            file = folder / "images" / f"{row[column]}.png"
            row[column] = {"bytes": file.read_bytes(), "path": file.name}
            file.unlink()
    (folder / "images").rmdir()
    (folder / "examples.jsonl").unlink()
    for part in range(2):
        pq.write_table(
            pa.Table.from_pylist(rows[3 * part : 3 * part + 3]), folder / f"test-0000{part}-of-00002.parquet"
        )
    return 6


def aro(root, task):
    rows = []
    groups = ["on", "near", "under"] if task == "relation" else [("old", "red"), ("tall", "wet")]
    for i in range(60):
        noise(root / "aro" / "images" / f"{i % 5}.jpg", i % 5, (30, 40))
        row = {"image_path": f"{i % 5}.jpg", "bbox_x": i % 7, "bbox_y": 2, "bbox_w": 20, "bbox_h": 18}
        row |= {"true_caption": f"the cat {i} is on it", "false_caption": f"it is on the cat {i}"}
        own = groups[0 if i < 40 else 1 + i % (len(groups) - 1)]
        rows.append({**row, **({"relation_name": own} if task == "relation" else {"attributes": [*own, "x"]})})
    (root / "aro" / f"visual_genome_{task}.json").write_text(json.dumps(rows))
    return 60


def order(root):
    rows = [{"image": f"val2014/{i % 3}.jpg", "caption_options": [f"{i} {w}" for w in "abcde"]} for i in range(9)]
    (root / "aro").mkdir()
    (root / "aro" / "coco_order.json").write_text(json.dumps(rows))
    for i in range(3):
        noise(root / "coco" / "val2014" / f"{i}.jpg", i)
    return 9


SELECTION_WRITERS = {
    "sugarcrepe": sugarcrepe,
    "winoground": winoground,
    "aro-relation": lambda root: aro(root, "relation"),
    "aro-attribution": lambda root: aro(root, "attribution"),
    "aro-coco-order": order,
}
