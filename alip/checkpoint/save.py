"""Writing checkpoints: whole or not at all."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import open_clip
import torch

from alip import __version__
from alip.checkpoint.load import load_model
from alip.errors import UserError
from alip.files import atomic_write, write_json
from alip.model.weights import FORMAT


def atomic_save(content: Any, path: str | Path) -> None:
    """`torch.save`, atomically (see alip.files.atomic_path).

    Raises UserError when the disk refuses (full, read-only); no partial file is left behind.
    """
    try:
        with atomic_write(path) as file:
            torch.save(content, file)
    except OSError as error:
        fix = "make room, or choose another folder"
        raise UserError(f"{path}: could not be written ({error.strerror}); {fix}") from error


def import_weights(path: str | Path, output: str | Path, model_name: str | None = None) -> Path:
    """Makes a run folder of released weights, for evaluation or as a start (`--pretrained`); returns the checkpoint.

    Raises UserError if the folder already holds a run.
    """
    output = Path(output)
    checkpoint = output / "checkpoints" / "step-00000000.pt"
    others = set(checkpoint.parent.glob("*")) - {checkpoint}
    if (output / "run.json").exists() or any(not one.name.startswith(".") for one in others):
        raise UserError(f"{output}: already holds a run; choose another folder")
    model = load_model(path, model_name)
    if not model.text_format.is_clip:
        raise UserError(
            f"{path}: its tokenizer is {model.text_format.tokenizer}, and runs hold CLIP's own: evaluate it as it is, "
            f"--checkpoint {path}"
        )
    content = {
        "format": FORMAT,
        "version": 1,
        "model": model.state_dict(),
        "ema": None,
        "model_config": model.config,
        "step": 0,
        "samples": 0,
        "imported": True,
    }
    atomic_save(content, checkpoint)
    about = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "imported_from": {"name": Path(path).name, "sha256": model.metadata.get("fingerprint")},
        "arguments": {},
        "versions": {"alip": __version__, "torch": torch.__version__, "open_clip": open_clip.__version__},
        "starts": [],
    }
    write_json(output / "model.json", model.config)
    write_json(output / "run.json", about)  # last: without it a folder is no run, and is written again
    return checkpoint
