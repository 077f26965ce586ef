"""What may be in a manifest file, older ones included: types, layout, names and its own checksum."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from alip.errors import UserError
from alip.remote.urls import UrlPath
from alip.schema import check

FORMAT = "alip-rec"
VERSION = 2  # the newest that this code reads; with one caption per image manifests are written as version 1
MOST_CAPTIONS = 1000  # of an image
_LONGEST_NAME = 255  # bytes, on every file system in use
_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**53}
_FILE = {"type": "string", "pattern": r"\A(?!\.{1,2}\Z)[^/\\\x00]+\Z"}  # a name beside the manifest, no path
_SHA256 = {"type": "string", "pattern": r"\A[0-9a-f]{64}\Z"}
_INPUT_SHARD = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2}
_SHARD = {
    "type": "object",
    "required": ["rec", "idx", "sidecar", "samples", "bytes", "sha256", "max_token", "sidecar_sha256"],
    "properties": {
        "rec": _FILE,
        "idx": _FILE,
        "sidecar": {"anyOf": [_FILE, {"type": "null"}]},
        "samples": {**_COUNT, "minimum": 1},
        "bytes": {**_COUNT, "minimum": 1},
        "sha256": _SHA256,
        "max_token": _COUNT,
        "sidecar_sha256": {"anyOf": [_SHA256, {"type": "null"}]},
        "crc32": {"type": "boolean"},
    },
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "required": [
        *("format", "version", "name", "samples", "label", "context_length", "tokenizer", "vocab_size", "image"),
        *("rejects", "shards"),
    ],
    "properties": {
        "format": {"const": FORMAT},
        "version": {"type": "integer", "minimum": 1},
        "name": {"type": "string"},
        "samples": {**_COUNT, "minimum": 1},
        "label": {
            "type": "object",
            "required": ["length", "text_tokens", "caption_tokens"],
            "additionalProperties": {"type": "integer"},
        },
        "context_length": {"type": "integer", "minimum": 2, "maximum": 65536},
        "tokenizer": {"type": "string", "pattern": r"\A[\x20-\x7e]{1,100}\Z"},
        "vocab_size": {"type": "integer", "minimum": 3, "maximum": 2**24},  # a float32 label holds no more
        "image": {"type": "object"},
        "rejects": {"type": "object", "additionalProperties": _COUNT},
        "untouched": _COUNT,
        "options": {"type": "object"},
        "part": _INPUT_SHARD,
        "parts": {"type": "array", "items": {"type": "string"}},
        "input_shard": _INPUT_SHARD,
        "input_shards": {"type": "array", "items": {"type": "string"}},
        "selection": {"type": "object"},
        "checksum": _SHA256,
        "shards": {"type": "array", "minItems": 1, "items": _SHARD},
    },
}


def check_manifest(content: dict[str, Any], path: Path | UrlPath) -> None:
    """UserError, one line, unless a manifest's content is sound in itself.

    Beyond the types: the layout of the label, no file named twice, counts that add up, and the checksum of the whole.
    (Manifests older than the checksum have none.)
    """
    if content.get("format") != FORMAT:
        raise UserError(f"{path} is no manifest of rec shards (no format {FORMAT!r} in it)")
    if isinstance(content.get("version"), int) and content["version"] > VERSION:
        raise UserError(f"{path} has version {content['version']}, this code reads up to {VERSION}: update it")
    shards = content.get("shards")
    plain = isinstance(shards, list) and len(shards) > 1 and all(map(_is_plain, shards))
    # The general check takes half a millisecond for each shard, and there may be 100,000 of them.
    sample = {**content, "shards": shards[:1]} if plain else content
    check(sample, SCHEMA, path, fix="restore the manifest, or build the shards again")
    captions = content["label"].get("captions_per_image", 1) if content["version"] > 1 else 1
    if not 1 <= captions <= MOST_CAPTIONS:
        raise UserError(f"{path}: label: {captions} captions per image; restore the manifest")
    expected = label_layout(content["context_length"], captions)
    if content["label"] != expected:
        raise UserError(f"{path}: label: is {content['label']}, but {expected} is what is read; restore the manifest")
    names = [shard[kind] for shard in content["shards"] for kind in ("rec", "idx", "sidecar") if shard[kind]]
    for name in names:
        if not _is_file_name(name):
            raise UserError(f"{path}: {name[:60]!r} can be no file's name; restore the manifest")
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice:
        raise UserError(f"{path} lists {twice} twice; restore the manifest, or build the shards again")
    for shard in content["shards"]:
        if (shard["sidecar"] is None) != (shard["sidecar_sha256"] is None):
            raise UserError(
                f"{path}: sidecar and sidecar_sha256 of {shard['rec']} belong together; restore the manifest"
            )
    total = sum(shard["samples"] for shard in content["shards"])
    if content["samples"] != total:
        raise UserError(f"{path} has {content['samples']} samples, its shards add up to {total}")
    if "checksum" in content and content["checksum"] != manifest_checksum(content):
        raise UserError(
            f"{path} was changed after it was written (its checksum is not that of its content): restore it or, if the "
            "change is meant, remove its line `checksum`"
        )


def label_layout(context_length: int, captions_per_image: int) -> dict[str, int]:
    """Where the texts are in a record's label: raw text, first caption and, where records may have several captions,
    the others as alip.tokens.pack_label puts them. length: of a label with one caption."""
    layout = {"length": 2 * context_length, "text_tokens": 0, "caption_tokens": context_length}
    if captions_per_image > 1:
        layout |= {"more_captions": 2 * context_length, "captions_per_image": captions_per_image}
    return layout


_KEYS = frozenset(_SHARD["properties"])
_NAME, _HEX = re.compile(_FILE["pattern"]), re.compile(_SHA256["pattern"])


def _is_plain(shard: Any) -> bool:
    """True for a shard's entry as data2rec.py writes it, which fits _SHARD. False: the schema has to decide."""
    if type(shard) is not dict or shard.keys() != _KEYS:
        return False
    counts = (shard["samples"], shard["bytes"], shard["max_token"] if shard["max_token"] != 0 else 1)
    names, sums = (shard["rec"], shard["idx"], shard["sidecar"]), (shard["sha256"], shard["sidecar_sha256"])
    return (
        all(type(count) is int and 0 < count <= _COUNT["maximum"] for count in counts)
        and all(type(name) is str and _NAME.match(name) is not None for name in names)
        and all(type(one) is str and _HEX.match(one) is not None for one in sums)
        and type(shard["crc32"]) is bool
    )


def _is_file_name(name: str) -> bool:
    try:
        return len(os.fsencode(name)) <= _LONGEST_NAME
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def manifest_checksum(content: dict[str, Any]) -> str:
    """SHA-256 of a manifest's content without the checksum itself: as JSON, keys sorted, no blanks, ASCII only."""
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
