"""Checkpoints written by earlier versions: the names that settings had then, as they are called now."""

from __future__ import annotations

from typing import Any

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
    """A saved recipe or numerics under the present names."""
    return {RENAMED.get(name, name): value for name, value in settings.items()}
