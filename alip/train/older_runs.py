"""Checkpoints written by earlier versions, under the present names."""

from __future__ import annotations

from typing import Any

from alip.model.precision import canonical
from alip.train.flags import create_parser
from alip.train.schedule import canonical_name

# Old name in a saved recipe or numerics: the flag's name now.
RENAMED = {
    "weight_decay": "wd",
    "grad_clip": "grad_clip_norm",
    "schedule": "lr_scheduler",
    "momentum": "history_momentum",
    "initial_similarity": "history_init",
    "patch_dropout": "force_patch_dropout",
    "quick_gelu": "force_quick_gelu",
    "compile": "torchcompile",
    "loss_block": "loss_chunk_size",
}


def with_new_names(settings: dict[str, Any]) -> dict[str, Any]:
    """A saved recipe or numerics under the present names, of settings and of their values."""
    renamed = {RENAMED.get(name, name): value for name, value in settings.items()}
    if "precision" in renamed:
        renamed["precision"] = canonical(renamed["precision"])
    if "lr_scheduler" in renamed:
        renamed["lr_scheduler"] = canonical_name(renamed["lr_scheduler"])
    return renamed


def default_before(part: str, name: str) -> Any:
    """What a run did that was saved before this flag existed: the flag's default, which leaves things as they were."""
    if name == "torchcompile":
        return False  # its default was off
    if (part, name) == ("recipe", "data_order"):
        return "blocks"  # the flag's own default depends on where the data is
    flag = create_parser()[1].get(name) if part in ("recipe", "numerics") else None
    return flag.default if flag else None


def with_new_keys(content: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's content under the present keys."""
    old = {"identity": "fingerprint", "ema_updates": "ema_steps"}
    return {old.get(key, key): value for key, value in content.items() if key != "reader"}
