"""Which model: names and config files → an open_clip configuration, and weights → the model that they look like."""

from __future__ import annotations

import difflib
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch

from alip.errors import UserError
from alip.files import read_json
from alip.model import hub
from alip.model.config_schema import check_model_cfg, check_preprocess_cfg

OPEN_CLIP_CONFIG = "open_clip_config.json"  # the name in a model folder
_LOCAL_PREFIX = "local-dir:"  # open_clip's, for a model folder


def check_config(config: Any, source: object) -> None:
    """UserError unless this is a description in open_clip's form: a `model_cfg`, or one with its `preprocess_cfg`."""
    _split(str(source), config)


def resolve_config(name_or_config: str | Path | dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(name, model_cfg, preprocess_cfg) of a model name, a JSON file or folder, or a dict in open_clip's form.

    Raises UserError: unknown name (with near matches), or a config that is not in open_clip's form.
    """
    if isinstance(name_or_config, dict):
        return _split("config", name_or_config)
    name = str(name_or_config)
    if name.startswith((hub.PREFIX, _LOCAL_PREFIX)):
        weights = name.removeprefix(_LOCAL_PREFIX)
        raise UserError(
            f"{name} names weights, where an architecture is asked for: run `python -m alip.checkpoint import "
            f"--checkpoint {weights} --output RUN`, then give --model RUN/model.json --pretrained RUN"
        )
    path = Path(name)
    if path.is_dir() and (path / OPEN_CLIP_CONFIG).is_file():
        path = path / OPEN_CLIP_CONFIG
    if path.is_file() or path.suffix == ".json":
        return _split(str(path), read_json(path))
    known = {model.lower(): model for model in open_clip.list_models()}
    key = name.replace("/", "-").lower()
    if key not in known:
        near = difflib.get_close_matches(key, known, n=4, cutoff=0.5)
        hint = f"near matches: {', '.join(known[k] for k in near)}" if near else "see open_clip.list_models()"
        raise UserError(f"no model named {name!r}; {hint}; or give a JSON config file in open_clip's form")
    return known[key], open_clip.get_model_config(known[key]), {}


def _split(source: str, config: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    model_cfg, preprocess_cfg = config.get("model_cfg", config), config.get("preprocess_cfg") or {}
    if isinstance(model_cfg, dict) and "model_cfg" not in config:
        model_cfg = {key: value for key, value in model_cfg.items() if key != "preprocess_cfg"}
    check_model_cfg(model_cfg, source)
    check_preprocess_cfg(preprocess_cfg, source)
    return source, deepcopy(model_cfg), deepcopy(preprocess_cfg)


def shape_signature(model_cfg: dict[str, Any]) -> tuple | None:
    """The sizes that a config's standard CLIP towers have, comparable with `state_signature`; None for other towers."""
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    if vision.get("timm_model_name") or text.get("hf_model_name") or "multimodal_cfg" in model_cfg:
        return None
    layers, image = vision.get("layers", 12), vision.get("image_size", 224)
    if isinstance(layers, (list, tuple)):
        tower = ("resnet", tuple(layers), vision.get("width", 64), image)
    else:
        tower = ("vit", layers, vision.get("width", 768), vision.get("patch_size", 16), image)
    return (
        *tower,
        model_cfg["embed_dim"],
        *(text.get(key, default) for key, default in _TEXT_SIZES.items()),
    )


_TEXT_SIZES = {"width": 512, "layers": 12, "context_length": 77, "vocab_size": 49408}


def state_signature(state: dict[str, torch.Tensor]) -> tuple | None:
    """The sizes of a CLIP state dict, or None if it is not a standard CLIP's."""
    try:
        text = "text." if "text.positional_embedding" in state else ""
        context, width = state[f"{text}positional_embedding"].shape
        depth = _count(state, f"{text}transformer.resblocks.")
        vocabulary = state[f"{text}token_embedding.weight"].shape[0]
        embed = state[f"{text}text_projection"].shape[1]
        if "visual.attnpool.positional_embedding" in state:
            layers = tuple(_count(state, f"visual.layer{i}.") for i in (1, 2, 3, 4))
            side = round(max(0, state["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
            tower = ("resnet", layers, state["visual.layer1.0.conv1.weight"].shape[0], side * 32)
        else:
            patches = state["visual.conv1.weight"]
            side = round(max(0, state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
            layers = _count(state, "visual.transformer.resblocks.")
            tower = ("vit", layers, patches.shape[0], patches.shape[-1], side * patches.shape[-1])
    except (KeyError, ValueError, IndexError):
        return None
    return (*tower, embed, width, depth, context, vocabulary)


def _count(state: dict[str, torch.Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def likely_models(state: dict[str, torch.Tensor]) -> list[str]:
    """open_clip names whose tensors have just these shapes, plainest name first; [] if none.

    Activation and head count leave no trace in the shapes, so several names can fit: the shortest is the plain one.
    """
    signature = state_signature(state)
    if signature is None:
        return []
    names = [n for n in open_clip.list_models() if shape_signature(open_clip.get_model_config(n)) == signature]
    return sorted(names, key=lambda name: (len(name), name))[:3]
