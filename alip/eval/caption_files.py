"""Caption files: what people have for retrieval, read into images, captions and who owns which.

Four forms, recognized by their content, not by the name:
- Karpathy's JSON (`dataset_coco.json`, `dataset_flickr30k.json`):
  {"images": [{"filename", "split", "sentences": [{"raw"}]}]};
- COCO's own annotations: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]};
- BLIP's lists (`coco_karpathy_test.json`, `flickr30k_test.json`): [{"image": path, "caption": [..] or ".."}];
- JSON lines of the same objects as BLIP's list.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alip.errors import UserError
from alip.eval.image_readers import ImageFiles, Images
from alip.files import json_lines, parse_json, read_text
from alip.schema import check

CaptionedImage = tuple[str, list[str]]  # an image's path as the file has it, and its captions


@dataclass(frozen=True)
class RetrievalDataset:
    """Images, captions, and the image that each caption belongs to.

    images: paths that exist. captions: texts without a prefix. caption_owner: (captions,) numbers into `images`.
    benchmark: the name in the table of datasets it was opened by, None for somebody's own file.
    expected_images: how many the benchmark has; None where that is not known.
    reader: what reads the images where they are no files of their own; `images` are their names then.
    language: of the captions, where it is another one than English may be; None: not known.
    without_captions: how many images of the file have no caption and are left out.
    """

    name: str
    images: list[Path]
    captions: list[str]
    caption_owner: list[int]
    benchmark: str | None = None
    expected_images: int | None = None
    reader: Images | None = None
    language: str | None = None
    without_captions: int = 0

    def opened(self) -> Images:
        """The images, in the order of `images`."""
        return self.reader if self.reader is not None else ImageFiles(self.images)


FILE_NAME = {"type": "string", "minLength": 1}
_CAPTION = {"type": "string", "pattern": r"\S"}
_ID = {"type": ["integer", "string"]}


def _object(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


def _list_of(item: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": item, **more}


_ROW = _object(
    ("image", "caption"),
    image=FILE_NAME,
    # One caption may come without its list.
    caption={"if": {"type": "string"}, "then": _CAPTION, "else": _list_of(_CAPTION, minItems=1)},
)
_KARPATHY_IMAGE = _object(
    ("filename", "split", "sentences"),
    filename=FILE_NAME,
    filepath={"type": "string"},
    sentences=_list_of(_object(("raw",), raw=_CAPTION), minItems=1),
)
_LISTS = {
    "karpathy": _object(("images",), images={"type": "array"}),
    "coco": _object(("images", "annotations"), images={"type": "array"}, annotations={"type": "array"}),
}
_COCO_IMAGE = _object(("id", "file_name"), id=_ID, file_name=FILE_NAME)
_COCO_CAPTION = _object(("image_id", "caption"), image_id=_ID, caption=_CAPTION)
_ROW_FORM = 'each entry must be {"image": path, "caption": text or [text, …]}'
_KARPATHY_FORM = 'Karpathy\'s JSON is {"images": [{"filename", "split", "sentences": [{"raw"}]}]}'
_COCO_FORM = 'COCO\'s captions are {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}'


def read_caption_file(path: Path, image_folders: Sequence[Path], name: str | None = None) -> RetrievalDataset:
    """Reads a caption file of any of the four forms.

    image_folders: where to look for the images, in order, after the file's own folder.
    Images without captions, as COCO's annotations may list them, are left out and counted. Raises UserError: not such
    a file, no image with captions, images not found.
    """
    if path.suffix.lower() in (".csv", ".tsv", ".parquet"):
        raise UserError(f'{path}: tables are not read here; write JSON lines, {{"image": path, "caption": text}} each')
    listed = _entries(read_text(path), path)
    entries = [(file, own) for file, own in listed if own]
    if not entries:
        raise UserError(f"{path} holds no image with captions")
    base = _image_base(path, [file for file, _ in entries], image_folders)
    captions = [caption for _, own in entries for caption in own]
    owner = [number for number, (_, own) in enumerate(entries) for _ in own]
    images = [base / file for file, _ in entries]
    return RetrievalDataset(name or path.stem, images, captions, owner, without_captions=len(listed) - len(entries))


def _entries(text: str, path: Path) -> list[CaptionedImage]:
    """The whole file as JSON if it is one of the JSON forms, else line by line."""
    try:
        whole = parse_json(text, str(path))
    except UserError:
        if text.lstrip().startswith("["):  # a list that is cut or malformed; its lines would say nothing useful
            raise
        whole = None
    if isinstance(whole, dict) and "images" in whole:
        return _from_coco(whole, path) if "annotations" in whole else _from_karpathy(whole, path)
    if isinstance(whole, list):
        check(whole, _list_of(_ROW), path, _ROW_FORM)
        return _merged(whole)
    rows = []
    for where, row in json_lines(text, path):
        check(row, _ROW, where, _ROW_FORM)
        rows.append(row)
    return _merged(rows)


def _merged(rows: Sequence[dict[str, Any]]) -> list[CaptionedImage]:
    """The same image in several rows (a row per caption) is one image."""
    entries: dict[str, list[str]] = {}
    for row in rows:
        captions = row["caption"]
        entries.setdefault(row["image"], []).extend([captions] if isinstance(captions, str) else captions)
    return list(entries.items())


def _from_karpathy(data: dict[str, Any], path: Path) -> list[CaptionedImage]:
    check(data, _LISTS["karpathy"], path, _KARPATHY_FORM)
    images = []
    for number, image in enumerate(data["images"]):
        # Training images are many and not used, and the schema's check is slow: only test images are checked in full.
        if type(image) is dict and type(image.get("split")) is str and image["split"] != "test":
            continue
        check(image, _KARPATHY_IMAGE, f"{path}, images[{number}]", _KARPATHY_FORM)
        images.append(image)
    if not images:
        raise UserError(f'{path}: no image has "split": "test"')
    return [
        (os.path.join(image.get("filepath", ""), image["filename"]), [one["raw"] for one in image["sentences"]])
        for image in images
    ]


def _from_coco(data: dict[str, Any], path: Path) -> list[CaptionedImage]:
    check(data, _LISTS["coco"], path, _COCO_FORM)
    for key, wanted, advice in (
        ("annotations", "caption", "has no captions (an instances file?); name captions_val2014.json or its like"),
        ("images", "file_name", "names no image files (made for caption metrics?); name coco_karpathy_test.json"),
    ):
        rows = data[key]
        if rows and all(isinstance(row, dict) and wanted not in row for row in rows):
            raise UserError(f"{path} {advice}")
    for key, item, names in (
        ("images", _COCO_IMAGE, ("id", "file_name")),
        ("annotations", _COCO_CAPTION, ("image_id", "caption")),
    ):
        for number, row in enumerate(data[key]):
            if not _plainly_fits(row, *names):
                check(row, item, f"{path}, {key}[{number}]", _COCO_FORM)
    captions: dict[int | str, list[str]] = {}
    for image in data["images"]:
        if image["id"] in captions:
            raise UserError(f"{path}: two images have the id {image['id']!r}; ids must differ")
        captions[image["id"]] = []
    for number, annotation in enumerate(data["annotations"]):
        if annotation["image_id"] not in captions:
            raise UserError(
                f"{path}: annotations[{number}] is of image {annotation['image_id']!r}, which is not listed; "
                "take both from the same file"
            )
        captions[annotation["image_id"]].append(annotation["caption"])
    return [(image["file_name"], captions[image["id"]]) for image in data["images"]]


def _plainly_fits(row: Any, number: str, text: str) -> bool:
    """True for what surely fits the schema: it takes 40 µs a row, too much for COCO's 200,000 annotations."""
    if type(row) is not dict or type(row.get(number)) is not int or type(row.get(text)) is not str:
        return False
    return bool(row[text].strip())


def _image_base(path: Path, files: Sequence[str], folders: Sequence[Path]) -> Path:
    """The folder that holds the first, the middle or the last image."""
    probes = {files[0], files[len(files) // 2], files[-1]}
    candidates = [path.parent, *folders]
    for folder in candidates:
        if any(os.path.isfile(folder / probe) for probe in probes):
            return folder
    tried = ", ".join(str(folder) for folder in candidates)
    raise UserError(
        f"{path}: its image {files[0][:200]} is not under any of: {tried}; name its folder with --data-root"
    )
