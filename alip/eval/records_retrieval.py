"""Retrieval datasets by name: captions in files of their own forms, long texts, other languages."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from alip.errors import UserError
from alip.eval.caption_files import RetrievalDataset, read_caption_file
from alip.eval.layouts import lines_of
from alip.eval.record_types import RetrievalRecord, first_of, needed
from alip.files import parse_json, read_text
from alip.schema import check

XTD_LANGUAGES = ("de", "en", "es", "fr", "it", "jp", "ko", "pl", "ru", "tr", "zh")
XM3600_LANGUAGES = (
    "ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr", "he", "hi", "hr", "hu", "id", "it", "ja",
    "ko", "mi", "nl", "no", "pl", "pt", "quz", "ro", "ru", "sv", "sw", "te", "th", "tr", "uk", "vi", "zh",
)  # fmt: skip


def _dataset(name: str, rows: Sequence[tuple[Path, list[str]]], **about: str) -> RetrievalDataset:
    """From images with their captions; UserError for an image that is not there."""
    missing = next((path for path, _ in rows if not path.is_file()), None)
    if missing is not None:
        raise UserError(f"{name}: the image {missing} is missing; {len(rows):,} images are expected beside it")
    captions = [caption for _, own in rows for caption in own]
    owner = [image for image, (_, own) in enumerate(rows) for _ in own]
    return RetrievalDataset(name, [path for path, _ in rows], captions, owner, **about)


def _flickr8k(name: str, folder: Path) -> RetrievalDataset:
    """Karpathy's JSON, the authors' token file with the list of test images, or CLIP_benchmark's table of captions.

    The test parts are the same 1,000 images.
    """
    images = first_of(folder, ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images", ""))
    for file in ("dataset_flickr8k.json", "flickr8k_test.json"):
        if (folder / file).is_file():
            return read_caption_file(folder / file, [images], name)
    captions: dict[str, list[str]] = {}
    table = folder / "flickr8k_test_karpathy.txt"
    if table.is_file():
        with open(table, newline="", encoding="utf-8") as file:
            for row in list(csv.reader(file))[1:]:
                if len(row) > 1:
                    captions.setdefault(row[0], []).append(",".join(row[1:]).strip())
    else:
        texts = first_of(folder, ("Flickr8k_text", ""))
        wanted = {line.strip() for line in lines_of(texts / "Flickr_8k.testImages.txt", "the test images")}
        for line in lines_of(texts / "Flickr8k.token.txt", "IMAGE#NUMBER, a tab and a caption in each line"):
            image, _, caption = line.partition("\t")
            image = image.partition("#")[0]
            if image in wanted:
                captions.setdefault(image, []).append(caption.strip())
    if not captions:
        raise UserError(f"{name}: no caption of a test image under {folder}")
    return _dataset(name, [(images / image, own) for image, own in captions.items()])


def _nocaps(name: str, folder: Path) -> RetrievalDataset:
    """The validation part in COCO's form, ten captions an image; the test part's captions are secret."""
    file = "nocaps_val_4500_captions.json"
    path = needed(first_of(folder, (file, f"annotations/{file}")), "nocaps' validation captions")
    return read_caption_file(path, [folder / part for part in ("images", "val", "validation", "val_imgs")], name)


def _urban1k(name: str, folder: Path) -> RetrievalDataset:
    """image/N.jpg and caption/N.txt; a caption is the first line, as Long-CLIP reads it."""
    folder = first_of(folder, ("caption", "Urban1k/caption")).parent  # the archive has a folder of its own
    files = sorted(
        needed(folder / "caption", "a .txt per image").glob("*.txt"), key=lambda file: (len(file.stem), file)
    )
    rows = []
    for file in files:
        text = read_text(file).strip()
        if not text:
            raise UserError(f"{file} is empty")
        rows.append((folder / "image" / f"{file.stem}.jpg", [text.splitlines()[0].strip()]))
    return _dataset(name, rows)


_DCI = {
    "type": "object",
    "required": ["image", "short_caption", "extra_caption"],
    "properties": {name: {"type": "string"} for name in ("image", "short_caption", "extra_caption")},
}


def _dci(name: str, folder: Path) -> RetrievalDataset:
    """complete/*.json and photos/: the description of the whole image, short and extra caption one after the other."""
    rows = []
    for file in sorted(needed(first_of(folder, ("complete", "annotations")), "a .json per image").glob("*.json")):
        data = parse_json(read_text(file), str(file))
        check(data, _DCI, file, 'each file is {"image", "short_caption", "extra_caption", …}')
        text = f"{data['short_caption']}\n{data['extra_caption']}".strip()
        if text:
            rows.append((folder / "photos" / data["image"], [text]))
    return _dataset(name, rows)


def _xtd(language: str, name: str, folder: Path) -> RetrievalDataset:
    """test_image_names.txt and a caption a line in the same order, in three folders of the repository."""
    names = lines_of(folder / "XTD10" / "test_image_names.txt", "the names of the 1,000 COCO images")
    path = first_of(folder, tuple(f"{part}/test_1kcaptions_{language}.txt" for part in ("XTD10", "MIC", "STAIR")))
    captions = [line.strip() for line in lines_of(path, f"captions in the language {language}")]
    if len(names) != len(captions):
        raise UserError(f"{path}: {len(captions):,} captions, but {len(names):,} images")
    candidates = [folder / "images", folder, *(parent / "coco" for parent in (folder, folder.parent))]
    folders = [folder / part for folder in candidates for part in ("", "train2014", "val2014")]
    found = next((folder for folder in folders if (folder / names[0]).is_file()), folders[0])
    rows = []
    for image, caption in zip(names, captions):
        split = image.split("_")[1] if image.count("_") > 1 else ""
        other = found.parent / split / image
        rows.append((other if split and other.is_file() else found / image, [caption]))
    return _dataset(name, rows, language=language)


def _xm3600(language: str, name: str, folder: Path) -> RetrievalDataset:
    """captions.jsonl: {"image/key", LANGUAGE: {"caption": [texts]}}; all captions of an image count."""
    rows = []
    for number, line in enumerate(lines_of(folder / "captions.jsonl", "Crossmodal-3600's captions"), 1):
        row = parse_json(line, f"{folder / 'captions.jsonl'}, line {number}")
        try:
            own = [caption.strip() for caption in row[language]["caption"] if caption.strip()]
            rows.append((folder / "images" / f"{row['image/key']}.jpg", own))
        except (KeyError, TypeError, AttributeError) as error:
            form = json.dumps({"image/key": "…", language: {"caption": ["…"]}}, ensure_ascii=False)
            raise UserError(f"{folder / 'captions.jsonl'}, line {number}: {form} is expected") from error
    return _dataset(name, rows, language=language)


RETRIEVAL: dict[str, RetrievalRecord] = {
    "coco": RetrievalRecord(
        ("coco/dataset_coco.json", "coco/coco_karpathy_test.json", "dataset_coco.json", "coco_karpathy_test.json"),
        ("coco", "coco/images", "", "coco/val2014", "val2014"),
        images=5000,
    ),
    "flickr30k": RetrievalRecord(
        ("flickr30k/dataset_flickr30k.json", "flickr30k/flickr30k_test.json", "dataset_flickr30k.json"),
        ("flickr30k", "flickr30k/flickr30k-images", "flickr30k/images", "", "flickr30k-images"),
        images=1000,
    ),
    "flickr8k": RetrievalRecord(
        ("flickr8k", "Flickr8k"),
        images=1000,
        read=_flickr8k,
        layout="flickr8k/Flickr8k_text/Flickr8k.token.txt, Flickr_8k.testImages.txt, or dataset_flickr8k.json, or "
        "flickr8k_test_karpathy.txt; images in Flicker8k_Dataset/ or Images/",
    ),
    "nocaps": RetrievalRecord(
        ("nocaps",), images=4500, read=_nocaps, layout="nocaps/nocaps_val_4500_captions.json, nocaps/images"
    ),
    "urban1k": RetrievalRecord(
        ("Urban1k", "urban1k"), images=1000, read=_urban1k, layout="Urban1k/image/N.jpg, Urban1k/caption/N.txt"
    ),
    "dci": RetrievalRecord(
        ("densely_captioned_images", "dci"),
        images=7805,
        read=_dci,
        layout="densely_captioned_images/complete/*.json, densely_captioned_images/photos",
    ),
    **{
        f"xtd10-{language}": RetrievalRecord(
            ("xtd10", "Cross-lingual-Test-Dataset-XTD10"),
            images=1000,
            read=partial(_xtd, language),
            layout="the repository's XTD10/, MIC/, STAIR/ and images/ (of COCO's train2014 and val2014)",
        )
        for language in XTD_LANGUAGES
    },
    **{
        f"xm3600-{language}": RetrievalRecord(
            ("xm3600", "crossmodal3600"),
            images=3600,
            read=partial(_xm3600, language),
            layout="xm3600/captions.jsonl, xm3600/images/KEY.jpg",
        )
        for language in XM3600_LANGUAGES
    },
    "demo-style": RetrievalRecord(("demo/eval/held-out-style/captions.jsonl",)),
    "demo-concept": RetrievalRecord(("demo/eval/held-out-concept/captions.jsonl",)),
}
