"""Checkpoints: written whole or not at all, and read back from all that `--checkpoint` takes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alip import weights as files
from alip.architecture import likely_models
from alip.errors import UserError
from alip.model import create_model
from alip.weights import find_checkpoint, read_weights

__all__ = ["atomic_save", "find_checkpoint", "fingerprint", "load_model", "load_weights", "read_weights"]


def atomic_save(obj: Any, path: str | Path) -> None:
    """`torch.save` to a temporary name, flushed to the disk, then renamed: a reader sees the old file or the whole new.

    Raises UserError when the disk refuses (full, read-only); no half file is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(obj, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that the new name survives a power cut as well
        finally:
            os.close(folder)
    except OSError as error:
        raise UserError(
            f"{path}: could not be written ({error.strerror}); free space or choose another place"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def load_weights(model: nn.Module, path: str | Path, weights: str = "model") -> dict[str, Any]:
    """Loads any weights that `--checkpoint` takes into the model; returns facts: source, fingerprint, step, samples.

    weights: "model", or "ema" for the running average that a run with `--ema` keeps.
    """
    found = read_weights(path)
    files.apply(model, choose(found, weights), found.path)
    return {"source": str(found.path), "fingerprint": fingerprint(found.path), "weights": weights, **found.facts}


def choose(found: files.Weights, weights: str) -> dict[str, torch.Tensor]:
    """The state dict that `weights` ("model" or "ema") asks for."""
    if weights == "model":
        return found.state
    if weights != "ema":
        raise UserError(f"weights must be 'model' or 'ema', not {weights!r}")
    if found.ema is None:
        raise UserError(f"{found.path}: holds no averaged (EMA) weights; use its plain ones, or train with --ema")
    return files.strip_prefix(found.ema)


def load_model(
    path: str | Path, model_name: str | None = None, device: str | torch.device = "cpu", weights: str = "model"
) -> nn.Module:
    """A model in evaluation mode with the weights at `path` (see `read_weights`).

    model_name: needed only for a bare state dict whose shapes fit no open_clip model, or more than one in spirit
        (shapes do not tell QuickGELU); by default the plain one.
    """
    found = read_weights(path)
    config = model_name or found.config
    if config is None:
        likely = likely_models(found.state)
        if not likely:
            raise UserError(f"{found.path}: bare weights that fit no open_clip model; name it with --model")
        config = likely[0]
    model = create_model(config)
    files.apply(model, choose(found, weights), found.path)
    return model.to(device).eval()


def fingerprint(path: str | Path) -> str:
    """First 12 hex digits of the SHA-256 of a checkpoint file (of a run folder: of its newest)."""
    digest = hashlib.sha256()
    with find_checkpoint(path).open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:12]
