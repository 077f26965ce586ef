"""How images are resized, cropped and normalised for a model: open_clip's and Hugging Face's descriptions of it.

open_clip's `preprocess_cfg` is the one form inside: `resize_mode` is shortest (short side to the model's size, centre
crop), longest (long side, padded) or squash (both sides); beside it `interpolation`, `mean` and `std`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from alip import schema
from alip.errors import UserError
from alip.files import read_json
from alip.model.config_schema import DEVIATIONS, MEANS, SIDE, check_preprocess_cfg

# PIL's filter numbers, as Hugging Face writes them.
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_CLIP = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_SIGLIP = {
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
_COMMON = {"do_resize": True, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
# What each class of image processor takes for keys that the file leaves out.
_DEFAULTS = {
    "CLIPImageProcessor": _COMMON | _CLIP,
    "CLIPFeatureExtractor": _COMMON | _CLIP,
    "SiglipImageProcessor": _COMMON | _SIGLIP,
}
_SWITCHES = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
_SIZE = {
    "anyOf": [
        SIDE,
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["shortest_edge"],
            "properties": {"shortest_edge": SIDE},
        },
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["height", "width"],
            "properties": {"height": SIDE, "width": SIDE},
        },
    ]
}
_SCHEMA = {
    "type": "object",
    "properties": {
        **{key: {"type": ["boolean", "null"]} for key in (*_SWITCHES, "do_pad", "default_to_square")},
        "size": _SIZE,
        "crop_size": {"anyOf": [*_SIZE["anyOf"], {"type": "null"}]},
        "resample": {"type": "integer", "minimum": 0, "maximum": 1000},
        "rescale_factor": {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6},
        "image_mean": MEANS,
        "image_std": DEVIATIONS,
        "image_processor_type": {"type": ["string", "null"]},
        "feature_extractor_type": {"type": ["string", "null"]},
    },
}


def read_huggingface(folder: Path, image_size: int) -> dict[str, Any]:
    """open_clip's `preprocess_cfg` of a Hugging Face folder, for a model that takes square images of this side.

    {} (CLIP's own) if the folder describes none. Raises UserError that names what cannot be followed.
    """
    found = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        content = read_json(folder / name) if (folder / name).is_file() else None
        if name == "processor_config.json" and content is not None:
            content = content.get("image_processor")
        if content is not None:
            found[name] = from_huggingface(content, image_size, folder / name)
    for other in list(found.values())[1:]:
        differing = [key for key, value in found["preprocessor_config.json"].items() if value != other[key]]
        if differing:
            raise UserError(
                f"{folder}: preprocessor_config.json and processor_config.json differ in {', '.join(differing)}, and "
                "versions of transformers take one or the other; remove the wrong one"
            )
    return next(iter(found.values()), {})


def from_huggingface(content: Any, image_size: int, source: object) -> dict[str, Any]:
    """open_clip's `preprocess_cfg` of one image processor's settings; UserError names what cannot be followed."""
    schema.check(content, _SCHEMA, source)
    kind = content.get("image_processor_type") or content.get("feature_extractor_type") or "CLIPImageProcessor"
    # transformers has classes of several backends for one processor: ...Fast, ...Pil.
    defaults = _DEFAULTS.get(kind.removesuffix("Fast").removesuffix("Pil"))
    if defaults is None:
        raise _refusal(source, "image_processor_type", kind, ", ".join(_DEFAULTS))
    found = defaults | {key: value for key, value in content.items() if value is not None}
    _refuse_ambiguous(content, defaults, source)
    if not found["do_resize"]:
        raise _refusal(source, "do_resize", False, "true")
    if not found["do_rescale"]:
        raise _refusal(source, "do_rescale", False, "true")
    if not math.isclose(found["rescale_factor"], 1 / 255, rel_tol=1e-3):
        raise _refusal(source, "rescale_factor", found["rescale_factor"], "1/255")
    interpolation = FILTERS.get(found["resample"])
    if interpolation not in ("bilinear", "bicubic"):
        raise _refusal(source, "resample", f"{found['resample']} ({interpolation})", "2 (bilinear) or 3 (bicubic)")
    crop = found["crop_size"] if found["do_center_crop"] else None
    normalises = found["do_normalize"]
    return {
        "size": image_size,
        "mean": list(found["image_mean"]) if normalises else [0.0, 0.0, 0.0],
        "std": list(found["image_std"]) if normalises else [1.0, 1.0, 1.0],
        "interpolation": interpolation,
        "resize_mode": _resize_mode(found["size"], crop, image_size, source),
    }


def _refuse_ambiguous(content: dict[str, Any], defaults: dict[str, Any], source: object) -> None:
    """Refuses what versions and backends of transformers take differently, and padding."""
    for key in _SWITCHES:
        # To some it is the class's default, to others false.
        if key in content and content[key] is None and defaults[key]:
            raise _refusal(source, key, None, "true or false")
    if content.get("do_pad"):
        raise _refusal(source, "do_pad", True, "false")
    if content.get("default_to_square") and isinstance(content.get("size"), int):
        raise _refusal(source, "default_to_square", True, "a size of height and width")


def _resize_mode(size: Any, crop: Any, image_size: int, source: object) -> str:
    """shortest or squash. size, crop: of the image processor, crop None if it does not crop."""
    square = {"height": image_size, "width": image_size}
    short = size if isinstance(size, int) else size.get("shortest_edge")
    if short is None:  # both sides are given: the aspect is not kept
        if size != square:
            raise _refusal(source, "size", size, f"{image_size} × {image_size}, as the model")
        if crop not in (None, image_size, square):
            raise _refusal(source, "crop_size", crop, f"{image_size} × {image_size}, as the model")
        return "squash"
    if crop is None:
        raise _refusal(source, "do_center_crop", False, "true, where only the shortest edge is resized")
    if crop not in (image_size, square):
        raise _refusal(source, "crop_size", crop, f"{image_size} × {image_size}, as the model")
    if short != image_size:
        raise _refusal(source, "size", size, f"shortest edge {image_size}, as the crop")
    return "shortest"


def _refusal(source: object, key: str, value: object, takes: str) -> UserError:
    text = str(value)
    return UserError(f"{source}: {key} {text if len(text) <= 60 else text[:59] + '…'} is not supported, only {takes}")


def to_huggingface(preprocess_cfg: dict[str, Any], image_size: int) -> dict[str, Any]:
    """CLIPImageProcessor's arguments for a `preprocess_cfg`; UserError where it cannot do the same."""
    check_preprocess_cfg(preprocess_cfg, "the model's preprocess_cfg")
    if preprocess_cfg["resize_mode"] == "longest":
        raise UserError(
            "Hugging Face's image processor has no padded resize (resize_mode longest); export to open_clip"
        )
    square = {"height": image_size, "width": image_size}
    squash = preprocess_cfg["resize_mode"] == "squash"
    return {
        "size": square if squash else {"shortest_edge": image_size},
        "do_center_crop": not squash,
        "crop_size": square,
        "image_mean": list(preprocess_cfg["mean"]),
        "image_std": list(preprocess_cfg["std"]),
        "resample": 2 if preprocess_cfg["interpolation"] == "bilinear" else 3,
    }
