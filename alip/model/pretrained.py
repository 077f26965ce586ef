"""Where a model's first weights come from, and what they bring: activation, mean, std, interpolation, resizing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alip.errors import UserError
from alip.model import hub
from alip.model.weights import Weights, read_weights


def find_pretrained(name: str, pretrained: str | Path) -> Weights:
    """Weights of a file, a folder, a hub repository, or one of open_clip's tags for the model `name` (downloaded)."""
    import open_clip

    text = str(pretrained)
    if Path(text).exists() or text.startswith(hub.PREFIX):
        return read_weights(text)
    if open_clip.is_pretrained_cfg(name, text):
        return read_tag(name, text)
    if hub.is_hub_name(text):
        return read_weights(text)
    raise UserError(f"pretrained {text!r} is neither a file nor a tag of {name} (tags: {tags_of(name)})")


def tags_of(name: str) -> str:
    """open_clip's tags of a model, for a message."""
    import open_clip

    return ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"


def read_tag(name: str, tag: str) -> Weights:
    """open_clip's weights of this name and tag, with the configuration that they were trained with; downloads them."""
    import open_clip

    about = open_clip.get_pretrained_cfg(name, tag)
    try:
        path = open_clip.download_pretrained(about, cache_dir=hub.cache_folder())
    except Exception as error:  # the network or the disk: urllib, httpx, OSError, …
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"could not fetch {name} {tag}: {reason}; check the network, or give a file") from error
    found = read_weights(path)
    model_cfg = open_clip.get_model_config(name)
    model_cfg["quick_gelu"] = bool(about.get("quick_gelu", False))
    keys = ("mean", "std", "interpolation", "resize_mode")
    preprocess = {key: list(about[key]) if key in ("mean", "std") else about[key] for key in keys if key in about}
    found.config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    found.name = f"{name}:{tag}"
    return found


def adopt(found: Weights, name: str, model_cfg: dict[str, Any], preprocess_cfg: dict[str, Any]) -> None:
    """Gives a model's description, in place, what its weights were trained with.

    Raises UserError for a model with QuickGELU and weights without.
    """
    if found.openai or found.config is not None:
        quick = found.openai or bool(_model_cfg(found).get("quick_gelu", False))
        if model_cfg.get("quick_gelu", False) and not quick:
            raise UserError(
                f"{found.path}: trained with plain GELU, and {name} has QuickGELU: choose the model without it"
            )
        if quick:
            model_cfg["quick_gelu"] = True
    if found.config is not None and "model_cfg" in found.config:
        theirs = found.config.get("preprocess_cfg") or {}
        preprocess_cfg.update({key: value for key, value in theirs.items() if key != "size"})


def check_activation(found: Weights, model_cfg: dict[str, Any]) -> None:
    """UserError for weights whose activation, where it is known, is another one than the model's."""
    if not found.openai and found.config is None:
        return
    quick = found.openai or bool(_model_cfg(found).get("quick_gelu", False))
    if quick != bool(model_cfg.get("quick_gelu", False)):
        theirs, ours = ("QuickGELU", "plain GELU") if quick else ("plain GELU", "QuickGELU")
        raise UserError(
            f"{found.path}: trained with {theirs}, and the model has {ours}: build it with quick_gelu={quick}"
        )


def _model_cfg(found: Weights) -> dict[str, Any]:
    return (found.config or {}).get("model_cfg", found.config or {})
