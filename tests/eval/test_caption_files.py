"""Caption files of every form, and what is wrong with a wrong one."""

import json

import pytest
from PIL import Image

from alip.errors import UserError
from alip.eval.datasets import open_retrieval

IMAGES = ["COCO_val2014_000000000042.jpg", "COCO_val2014_000000000073.jpg"]
CAPTIONS = [["a dog", "a brown dog"], ["two motor bikes", "a bike", "parked bikes"]]
OWNER = [0, 0, 1, 1, 1]


def make_images(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in IMAGES:
        Image.new("RGB", (4, 4)).save(folder / name)


def check(found, folder):
    assert found.images == [folder / name for name in IMAGES]
    assert found.captions == [caption for own in CAPTIONS for caption in own]
    assert found.caption_owner == OWNER


def karpathy(with_path):
    def image(name, captions, split):
        path = {"filepath": "val2014"} if with_path else {}
        return {**path, "filename": name, "split": split, "sentences": [{"raw": c, "tokens": []} for c in captions]}

    rows = [image("train.jpg", ["no"], "train"), *[image(n, c, "test") for n, c in zip(IMAGES, CAPTIONS)]]
    return {"images": [*rows, image("val.jpg", ["no"], "val")], "dataset": "coco"}


def test_coco_in_karpathys_form(tmp_path):
    make_images(tmp_path / "coco" / "val2014")
    (tmp_path / "coco" / "dataset_coco.json").write_text(json.dumps(karpathy(with_path=True)))
    found = open_retrieval("coco", tmp_path)
    check(found, tmp_path / "coco" / "val2014")
    assert found.name == "coco"


def test_flickr30k_in_karpathys_form(tmp_path):
    make_images(tmp_path / "flickr30k" / "flickr30k-images")
    (tmp_path / "flickr30k" / "dataset_flickr30k.json").write_text(json.dumps(karpathy(with_path=False)))
    check(open_retrieval("flickr30k", tmp_path), tmp_path / "flickr30k" / "flickr30k-images")


def test_blips_lists(tmp_path):
    make_images(tmp_path / "coco" / "images" / "val2014")
    rows = [{"image": f"val2014/{name}", "caption": captions} for name, captions in zip(IMAGES, CAPTIONS)]
    (tmp_path / "coco" / "coco_karpathy_test.json").write_text(json.dumps(rows))
    check(open_retrieval("coco", tmp_path), tmp_path / "coco" / "images" / "val2014")


def test_cocos_own_annotations(tmp_path):
    make_images(tmp_path / "val2014")
    data = {
        "images": [
            *[{"id": 7 + i, "file_name": name} for i, name in enumerate(IMAGES)],
            {"id": 99, "file_name": "without_captions.jpg"},
        ],
        "annotations": [
            {"id": 100 * i + j, "image_id": 7 + i, "caption": caption}
            for i, own in enumerate(CAPTIONS)
            for j, caption in enumerate(own)
        ],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2014.json").write_text(json.dumps(data))
    found = open_retrieval(tmp_path / "annotations" / "captions_val2014.json", tmp_path / "val2014")
    check(found, tmp_path / "val2014")
    assert found.without_captions == 1


@pytest.mark.parametrize("row_per_caption", [False, True])
def test_json_lines(tmp_path, row_per_caption):
    make_images(tmp_path)
    if row_per_caption:
        rows = [{"image": name, "caption": c} for name, own in zip(IMAGES, CAPTIONS) for c in own]
    else:
        rows = [{"image": name, "caption": own} for name, own in zip(IMAGES, CAPTIONS)]
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    check(open_retrieval(tmp_path / "captions.jsonl"), tmp_path)
    check(open_retrieval(tmp_path), tmp_path)


def test_json_lines_end_with_a_line_feed_only(tmp_path):
    make_images(tmp_path)
    captions = ["a\u2028b", "c\x85d"]
    line = json.dumps({"image": IMAGES[0], "caption": captions}, ensure_ascii=False)
    (tmp_path / "captions.jsonl").write_text(line + "\r\n", encoding="utf-8")
    assert open_retrieval(tmp_path / "captions.jsonl").captions == captions


@pytest.mark.parametrize(
    "text, message",
    [
        ("{nonsense", "line 1: not valid JSON"),
        ('{"image": "a.jpg"}', "line 1: caption missing"),
        ('{"image": "a.jpg", "caption": []}', "line 1: caption: \\[\\] .*; each entry must be"),
        ('{"image": "a.jpg", "caption": ["", "x"]}', "line 1: caption\\[0\\]: must not be blank"),
        ('{"image": "a.jpg", "caption": "x"}', "a.jpg is not under any of"),
        ("", "holds no image"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 2, "caption": "x"}]}', "not list"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "bbox": []}]}', "no captions"),
        ('{"images": [{"filename": "a.jpg", "split": "val", "sentences": []}]}', 'no image has "split": "test"'),
    ],
)
def test_one_clear_line(tmp_path, text, message):
    (tmp_path / "captions.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        open_retrieval(tmp_path / "captions.jsonl")


def test_unknown_names_list_the_known(tmp_path):
    with pytest.raises(UserError, match=r"no such retrieval dataset or caption file: cocoo .*coco, flickr30k"):
        open_retrieval("cocoo", tmp_path)
    with pytest.raises(UserError, match=r"flickr30k needs .*dataset_flickr30k.json"):
        open_retrieval("flickr30k", tmp_path)
