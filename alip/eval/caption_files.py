"""Caption files: what people have for retrieval, read into images, captions and who owns which.

Four forms, told apart by what is inside, not by the name:
- Karpathy's JSON (`dataset_coco.json`, `dataset_flickr30k.json`):
  {"images": [{"filename", "split", "sentences": [{"raw"}]}]};
- COCO's own annotations: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]};
- BLIP's lists (`coco_karpathy_test.json`, `flickr30k_test.json`): [{"image": path, "caption": [..] or ".."}];
- JSON lines of the same objects as BLIP's list.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alip.errors import UserError

CaptionedImage = tuple[str, list[str]]  # an image's path as the file has it, and its captions


@dataclass(frozen=True)
class RetrievalSet:
    """Images, captions, and the image that each caption belongs to.

    images: paths that exist. captions: texts without a prefix. caption_owner: (captions,) numbers into `images`.
    """

    name: str
    images: list[Path]
    captions: list[str]
    caption_owner: list[int]


def read_caption_file(path: Path, image_folders: Sequence[Path], name: str | None = None) -> RetrievalSet:
    """Reads a caption file of any of the four forms.

    image_folders: where the images may lie, tried in order after the file's own folder.
    Raises UserError: not such a file, an image without captions, images not found.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the caption file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; a caption file is JSON or JSON lines") from error
    entries = _entries(_parse(text, path), path)
    if not entries:
        raise UserError(f"{path} holds no image with captions")
    base = _image_base(path, [file for file, _ in entries], image_folders)
    captions = [caption for _, own in entries for caption in own]
    owner = [number for number, (_, own) in enumerate(entries) for _ in own]
    return RetrievalSet(name or path.stem, [base / file for file, _ in entries], captions, owner)


def _parse(text: str, path: Path) -> Any:
    """The whole file as JSON, or a list of its lines, each JSON."""
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        whole = None
    if isinstance(whole, list) or (isinstance(whole, dict) and "images" in whole):
        return whole
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error.msg})") from error
    return rows


def _entries(data: Any, path: Path) -> list[CaptionedImage]:
    if isinstance(data, dict) and "annotations" in data:
        return _from_coco(data, path)
    if isinstance(data, dict):
        return _from_karpathy(data["images"], path)
    entries: dict[str, list[str]] = {}
    for number, row in enumerate(data, 1):
        if not isinstance(row, dict) or "image" not in row or "caption" not in row:
            raise UserError(
                f'{path}, entry {number}: expected {{"image": path, "caption": [text, …]}}, found {str(row)[:60]}'
            )
        captions = row["caption"] if isinstance(row["caption"], list) else [row["caption"]]
        # The same image in several rows (a row per caption) is one image.
        entries.setdefault(str(row["image"]), []).extend(_texts(captions, path, str(row["image"])))
    return list(entries.items())


def _from_karpathy(images: Iterable[dict[str, Any]], path: Path) -> list[CaptionedImage]:
    entries = []
    for image in images:
        if "sentences" not in image or "split" not in image:
            raise UserError(f'{path}: an image without "sentences" or "split"; Karpathy\'s JSON has both')
        if image["split"] == "test":
            file = str(Path(image.get("filepath", "")) / image["filename"])
            entries.append((file, _texts([sentence["raw"] for sentence in image["sentences"]], path, file)))
    if not entries:
        raise UserError(f'{path}: no image has "split": "test"')
    return entries


def _from_coco(data: dict[str, Any], path: Path) -> list[CaptionedImage]:
    captions: dict[Any, list[str]] = {image["id"]: [] for image in data["images"]}
    for annotation in data["annotations"]:
        if "caption" not in annotation:
            raise UserError(f"{path} has no captions (an instances file?); take captions_val2014.json or its like")
        if annotation["image_id"] not in captions:
            raise UserError(f"{path}: annotation {annotation.get('id')} is of an image that the file does not list")
        captions[annotation["image_id"]].append(annotation["caption"])
    return [
        (image["file_name"], _texts(captions[image["id"]], path, image["file_name"]))
        for image in data["images"]
        if captions[image["id"]]
    ]


def _texts(captions: Sequence[Any], path: Path, image: str) -> list[str]:
    if not captions:
        raise UserError(f"{path}: image {image} has no caption")
    for caption in captions:
        if not isinstance(caption, str) or not caption.strip():
            raise UserError(f"{path}: image {image} has a caption that is no text: {caption!r}")
    return list(captions)


def _image_base(path: Path, files: Sequence[str], folders: Sequence[Path]) -> Path:
    """The folder under which the first, the middle and the last image lie."""
    probes = {files[0], files[len(files) // 2], files[-1]}
    candidates = [path.parent, *folders]
    for folder in candidates:
        if any((folder / probe).is_file() for probe in probes):
            return folder
    tried = ", ".join(str(folder) for folder in candidates)
    raise UserError(f"{path}: its image {files[0]} is not under any of: {tried}; say where with --data-root")
