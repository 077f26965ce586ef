"""Features kept on disk: one safetensors file per key, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from alip.files import atomic_path

_VERSION = 1  # raise it when the same inputs give other features


def weights_fingerprint(model: nn.Module) -> str:
    """A short hash of the model's weights and configuration: the same model has the same, wherever it came from."""
    digest = hashlib.sha256(json.dumps(model.config, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def key_of(model: nn.Module, *facts: Any) -> str:
    """The key for what this model makes of `facts` (JSON-able: the data's key, the precision …)."""
    text = json.dumps([_VERSION, torch.__version__, weights_fingerprint(model), *facts])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def read(folder: Path, key: str) -> dict[str, Tensor] | None:
    """The tensors kept under the key, or None; a damaged file is said and counts as none."""
    path = folder / f"{key}.safetensors"
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError) as error:
        print(f"the cached features {path} cannot be read ({error}); computing them again")
        return None


def write(folder: Path, key: str, values: Mapping[str, Tensor]) -> None:
    """Keeps tensors under the key."""
    with atomic_path(folder / f"{key}.safetensors") as path:
        save_file({name: value.cpu().contiguous() for name, value in values.items()}, str(path))
