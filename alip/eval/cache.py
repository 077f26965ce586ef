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

from alip.files import atomic_path, parse_json
from alip.model.weights import weights_hash

_VERSION = 1  # raise it when the same inputs give other features


def key_of(model: nn.Module, *inputs: Any) -> str:
    """The key for this model's features of `inputs` (JSON-able: the data's key, the precision …)."""
    text = json.dumps([_VERSION, torch.__version__, weights_hash(model), *inputs])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def read(folder: Path, key: str) -> dict[str, Tensor] | None:
    """The tensors kept under the key, or None; a damaged file is reported and counts as none."""
    path = folder / f"{key}.safetensors"
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError) as error:
        print(f"the cached features {path} cannot be read ({error}); computing them again")
        return None


def write(folder: Path, key: str, values: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Keeps tensors under the key, and beside them plain values."""
    texts = {name: json.dumps(value) for name, value in (metadata or {}).items()}
    with atomic_path(folder / f"{key}.safetensors") as path:
        save_file({name: value.cpu().contiguous() for name, value in values.items()}, str(path), texts)


def is_whole(path: Path) -> bool:
    """True if there is a file whose length is the one that its header states."""
    try:
        with safe_open(str(path), framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False


def read_part(path: Path) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """The tensors of a file with its `unreadable` images (name, reason)."""
    with safe_open(str(path), framework="pt") as file:
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        failures = parse_json((file.metadata() or {}).get("unreadable", "[]"), str(path))
    return values, [(name, reason) for name, reason in failures]
