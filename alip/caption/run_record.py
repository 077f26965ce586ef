"""The record of a captions output: the settings of its runs, which must not change, versions, counts, the summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alip.errors import UserError
from alip.files import read_json
from alip.schema import check

FORMAT, VERSION = "alip-captions", 1

# Names in records that were written before version 0.2.
_OLD_PRECISIONS = {"bf16": "amp_bf16", "fp16": "amp"}
_OLD_NAMES = {"beams": "num_beams", "max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}


def _with_new_names(record: dict[str, Any]) -> dict[str, Any]:
    """A record as this version writes it, from one of any version."""
    if "facts" in record:
        record["metadata"] = record.pop("facts")
    settings = record.get("settings")
    if isinstance(settings, dict):
        if isinstance(settings.get("precision"), str):
            settings["precision"] = _OLD_PRECISIONS.get(settings["precision"], settings["precision"])
        if "part" in settings:
            settings["shard"] = settings.pop("part")
        if isinstance(settings.get("decoding"), dict):
            settings["decoding"] = {_OLD_NAMES.get(k, k): value for k, value in settings["decoding"].items()}
    return record


_COUNTS = {
    "type": "object",
    "properties": {"failed_by_reason": {"type": "object", "additionalProperties": {"type": "integer"}}},
}
_RECORD = {
    "type": "object",
    "required": ["settings", "runs"],
    "properties": {
        "settings": {
            "type": "object",
            "properties": {"shard": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}},
        },
        "runs": {"type": "integer", "minimum": 0},
        "metadata": {"type": "object"},
        "costs": {"type": "object"},
        "counts": _COUNTS,
    },
}


def read_record(path: Path) -> dict[str, Any]:
    """The record in a file, with the names of this version; UserError where it is no record, or damaged."""
    record = _with_new_names(read_json(path))
    if record.get("format") != FORMAT or record.get("version") != VERSION:
        raise UserError(f"{path} is not a record of this command (version {VERSION}): choose another --output")
    check(record, _RECORD, path, "correct it, or run with --restart")
    return record


def check_settings(earlier: dict[str, Any], now: dict[str, Any], output: Path) -> None:
    """Raises UserError that names the settings that differ from those of earlier runs of this output."""
    now = json.loads(json.dumps(now))
    changed = [name for name in sorted({*earlier, *now}) if earlier.get(name) != now.get(name)]
    if changed:
        differences = "; ".join(f"{name} was {earlier.get(name)!r}, is {now.get(name)!r}" for name in changed)
        raise UserError(
            f"{output} was written with other settings ({differences}): choose another --output, or --restart to "
            "discard it"
        )
