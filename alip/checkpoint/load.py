"""From a checkpoint to a model: everything that `--checkpoint` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

from alip.errors import UserError
from alip.files import sha256_of_file
from alip.model.bi_path import create_model
from alip.model.config import likely_models
from alip.model.weights import Weights, apply, find_checkpoint, read_weights, strip_prefix


def load_weights(model: nn.Module, path: str | Path, weights: str = "model") -> dict[str, Any]:
    """Loads any weights that `--checkpoint` takes into the model; returns metadata: source, fingerprint, step, samples.

    weights: "model", or "ema" for the averaged weights of a run with `--ema`.
    """
    found = read_weights(path)
    apply(model, _choose(found, weights), found.path)
    return _metadata(found, weights)


def _metadata(found: Weights, weights: str) -> dict[str, Any]:
    return {"source": str(found.path), "fingerprint": fingerprint(found.path), "weights": weights, **found.metadata}


def _choose(found: Weights, weights: str) -> dict[str, torch.Tensor]:
    if weights == "model":
        return found.state
    if weights != "ema":
        raise UserError(f"weights must be 'model' or 'ema', not {weights!r}")
    if found.ema is None:
        raise UserError(f"{found.path}: holds no EMA weights; use its plain ones, or train with --ema")
    return strip_prefix(found.ema)


def load_model(
    path: str | Path, model_name: str | None = None, device: str | torch.device = "cpu", weights: str = "model"
) -> nn.Module:
    """A model in evaluation mode with the weights at `path` (see `read_weights`), its `metadata` as an attribute.

    path: also an open_clip name with a tag, as `ViT-B-32:openai` (downloads). model_name: needed only for a bare
    state dict that fits no open_clip model, or another one than the plainest that it fits: shapes do not tell
    QuickGELU, for one.
    """
    name, _, tag = str(path).rpartition(":")
    if not Path(path).exists() and open_clip.is_pretrained_cfg(name.replace("/", "-"), tag):
        model = create_model(name, pretrained=tag)
        model.metadata = {"source": str(path), "weights": "model"}
        return model.to(device).eval()
    found = read_weights(path)
    config = model_name or found.config
    if config is None:
        likely = likely_models(found.state)
        if not likely:
            raise UserError(f"{found.path}: bare weights that fit no open_clip model; name their model with --model")
        config = likely[0]
    model = create_model(config)
    apply(model, _choose(found, weights), found.path)
    model.metadata = {
        "source": str(found.path),
        "fingerprint": fingerprint(found.path),
        "weights": weights,
        **found.metadata,
    }
    return model.to(device).eval()


def fingerprint(path: str | Path) -> str:
    """First 12 hex digits of the SHA-256 of a checkpoint file (of a run folder: of its newest)."""
    return sha256_of_file(find_checkpoint(path))[:12]


def run_folder_of(path: str | Path) -> Path | None:
    """The run folder that a checkpoint path belongs to, if it is in one."""
    path = Path(path)
    for folder in (path, path.parent.parent):
        if (folder / "run.json").is_file():
            return folder
    return None
