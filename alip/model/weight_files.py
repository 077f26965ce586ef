"""One file of weights → its tensors, without running what is in it: safetensors, torch.save, TorchScript, shards."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from alip import schema
from alip.errors import UserError
from alip.files import read_json
from alip.model.torchscript import is_torchscript, read_torchscript

INDEX_SUFFIX = ".index.json"  # of sharded weights: which tensor is in which file
_INDEX = {
    "type": "object",
    "required": ["weight_map"],
    "properties": {
        "weight_map": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {
                "type": "string",
                "pattern": r"^[^/\\]+\.(safetensors|bin|pt|pth)$",
                "maxLength": 200,
            },
        }
    },
}


def read_file(path: str | Path) -> Any:
    """The content of a weights file, on the CPU; never unpickles more than tensors and plain values.

    path: `.safetensors`, a file of torch.save, a TorchScript archive, or `….index.json` of sharded weights.
    Raises UserError for a missing or truncated file, and for one that holds other pickled objects.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a run folder, a checkpoint file or released weights")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; copy or download it again")
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path)
    if path.suffix == ".json":
        raise UserError(f"{path}: a description, not weights; give its folder {path.parent}, or a weights file in it")
    if path.suffix in (".npz", ".npy"):
        raise UserError(f"{path}: a NumPy archive (big_vision's form) is not read; give open_clip's conversion of it")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if is_torchscript(path):
        return read_torchscript(path)
    return _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, and KeyError, ValueError, … for odd headers
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: truncated or not a safetensors file ({reason}); copy it again") from error


def _read_torch(path: Path) -> Any:
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_entries(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if _looks_cut(path):
            raise UserError(f"{path}: the file is truncated or damaged; copy or download it again") from error
        raise UserError(
            f"{path}: holds Python objects besides tensors and plain values, and is not opened because they could run "
            "code; save its state dict alone, as .safetensors or with torch.save"
        ) from error
    except UserError:
        raise
    except Exception as error:  # what a damaged zip or pickle raises has no end: zlib.error, struct.error, TypeError, …
        raise UserError(f"{path}: truncated, or not a weights file; copy or download it again") from error


def _check_entries(path: Path) -> None:
    """UserError for a damaged entry, and for compressed ones: torch.save has none, and they could fill the memory."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise UserError(f"{path}: a compressed zip archive, not a file of torch.save; give the weights file itself")
        damaged = archive.testzip()
    if damaged is not None:
        raise UserError(f"{path}: {damaged} in it is damaged; copy it again or use another checkpoint")


def _looks_cut(path: Path) -> bool:
    """True for a file that is neither a whole zip archive (torch.save's form) nor an old whole pickle."""
    with path.open("rb") as file:
        head = file.read(4)
    return not zipfile.is_zipfile(path) and (head[:2] == b"PK" or head[:1] != b"\x80")


def _read_shards(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of sharded weights; the shards are files beside their index."""
    state: dict[str, torch.Tensor] = {}
    for name in shard_names(path):
        shard = read_file(path.parent / name)
        check_tensors(shard, path.parent / name)
        state |= shard
    weight_map = read_json(path)["weight_map"]
    missing = sorted(weight_map.keys() - state.keys())
    if missing:
        name = weight_map[missing[0]]
        raise UserError(f"{path}: tensor {missing[0][:80]} is not in its shard {name}; download the shard again")
    return state


def shard_names(index: Path) -> list[str]:
    """The files that an index names, all in its own folder; UserError for a malformed index."""
    content = read_json(index)
    schema.check(content, _INDEX, index, "download the model again")
    return sorted(set(content["weight_map"].values()))


def check_tensors(state: Any, path: object) -> None:
    """UserError unless this is a state dict: names → dense tensors with their own numbers."""
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path}: holds no state dict (names → tensors); give a checkpoint or released weights")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"{path}: holds no state dict (names → tensors); give a checkpoint or released weights")
        problem = _problem(value)
        if problem:
            raise UserError(f"{path}: tensor {name[:80]} {problem}; save the state dict as plain tensors")


def _problem(value: torch.Tensor) -> str | None:
    if value.is_meta:
        return "holds no numbers (a meta tensor)"
    if value.layout != torch.strided or value.is_nested:
        return f"is not dense ({str(value.layout).removeprefix('torch.')})"
    if value.is_quantized or value.is_complex():
        return f"is of type {str(value.dtype).removeprefix('torch.')}, not float"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "repeats its numbers (an expanded view)"
    return None
