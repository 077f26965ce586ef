"""Checkpoints written by earlier versions: the names that settings had then, as they are called now."""

from __future__ import annotations

from typing import Any

from alip.model.precision import canonical

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


_SCHEDULES = {"constant": "const", "constant-cooldown": "const-cooldown"}


def with_new_names(settings: dict[str, Any]) -> dict[str, Any]:
    """A saved recipe or numerics under the present names, of settings and of their values."""
    renamed = {RENAMED.get(name, name): value for name, value in settings.items()}
    if "precision" in renamed:
        renamed["precision"] = canonical(renamed["precision"])
    if "lr_scheduler" in renamed:
        renamed["lr_scheduler"] = _SCHEDULES.get(renamed["lr_scheduler"], renamed["lr_scheduler"])
    return renamed
