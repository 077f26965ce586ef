"""Weights in files: finding them, reading them without running what is in them, and putting them into a model."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alip.errors import UserError
from alip.files import read_json
from alip.model.config import OPEN_CLIP_CONFIG, likely_models
from alip.model.huggingface import from_huggingface

FORMAT = "alip-checkpoint"
HF_CONFIG = "config.json"
# In order of preference, as open_clip and transformers write them.
FOLDER_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)


@dataclass
class Weights:
    """What a weights file holds.

    state: the model's state dict, as stored. ema: the averaged weights, if any. config: the model's description in
    open_clip's form, if the file or its folder has it. metadata: step, samples, … of one of our checkpoints.
    """

    path: Path
    state: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor] | None = None
    config: dict[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def read_file(path: str | Path) -> Any:
    """The content of a `.safetensors` or `torch.save` file, on the CPU; never unpickles more than tensors.

    Raises UserError for a missing or truncated file, and for one that holds other pickled objects.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a run folder, a checkpoint file or released weights")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; copy or download it again")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path}: truncated or not a safetensors file ({error}); copy it again") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if _looks_cut(path):
            raise UserError(f"{path}: the file is truncated or damaged; copy or download it again") from error
        raise UserError(
            f"{path}: holds Python objects besides tensors and plain values, and is not opened because they could run "
            "code; save its state dict alone, as .safetensors or with torch.save"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: truncated, or not a weights file; copy or download it again") from error


def _looks_cut(path: Path) -> bool:
    """True for a file that is neither a whole zip archive (torch.save's form) nor an old whole pickle."""
    with path.open("rb") as file:
        head = file.read(4)
    return not zipfile.is_zipfile(path) and (head[:2] == b"PK" or head[:1] != b"\x80")


def find_checkpoint(run: str | Path) -> Path:
    """The newest readable checkpoint of a run folder (or the file itself, if `run` is one).

    Raises UserError if there is none, naming the unreadable ones.
    """
    run = Path(run)
    if run.is_file():
        return run
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder or checkpoint file")
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    broken = []
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        try:
            read_file(path)
            return path
        except UserError:
            broken.append(path.name)
    if broken:
        raise UserError(f"{run}: none of its checkpoints can be read ({', '.join(broken)}); train it again")
    raise UserError(f"{run}: no checkpoints/step-*.pt in this folder; train a model into it, or name another one")


def read_weights(path: str | Path) -> Weights:
    """Weights and, where known, model config, of anything that `--checkpoint` takes.

    path: a run folder, one of its checkpoint files, a bare state dict (`.pt`, `.pth`, `.bin`, `.safetensors`, also
    nested as `state_dict`, also with `module.` prefixes), an open_clip folder or a Hugging Face CLIP folder.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    content = read_file(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return _read_checkpoint(path, content)
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise UserError(f"{path}: holds no state dict (names → tensors); give a checkpoint or released weights")
    return Weights(path, strip_prefix(content), config=_config_beside(path))


def _read_checkpoint(path: Path, content: dict[str, Any]) -> Weights:
    if content.get("version") != 1:
        raise UserError(f"{path}: checkpoint version {content.get('version')}; this code reads version 1, update it")
    metadata = {key: content[key] for key in ("step", "samples") if key in content}
    return Weights(path, strip_prefix(content["model"]), content.get("ema"), content.get("model_config"), metadata)


def _read_folder(folder: Path) -> Weights:
    if (folder / "checkpoints").is_dir() or list(folder.glob("step-*.pt")):
        return read_weights(find_checkpoint(folder))
    for name in FOLDER_FILES:
        if not (folder / name).is_file():
            continue
        weights = read_weights(folder / name)
        if weights.config is None and (folder / HF_CONFIG).is_file():
            weights.config, weights.state = from_huggingface(read_json(folder / HF_CONFIG), weights.state, folder)
        return weights
    raise UserError(
        f"{folder}: neither a run folder (checkpoints/step-*.pt) nor an open_clip or Hugging Face folder "
        f"({', '.join(FOLDER_FILES)})"
    )


def _config_beside(path: Path) -> dict[str, Any] | None:
    file = path.parent / OPEN_CLIP_CONFIG
    return read_json(file) if file.is_file() and path.name in FOLDER_FILES else None


def strip_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict without the prefixes that wrappers leave: `module.` (DDP), `_orig_mod.` (torch.compile)."""
    for prefix in ("module.", "_orig_mod.", "module."):
        if state and all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: tensor for name, tensor in state.items()}
    return state


def apply(model: nn.Module, state: dict[str, torch.Tensor], path: str | Path) -> None:
    """Copies a whole state dict into the model (fp16 becomes the model's own type).

    Raises UserError that names the first tensor that does not fit and the model that the weights look like.
    """
    state = dict(state)
    own = model.state_dict()
    _adapt(state, own)
    problem = _first_mismatch(own, state)
    if problem:
        likely = likely_models(state)
        fix = f"these weights look like {' or '.join(likely)}" if likely else "name the model they belong to"
        raise UserError(f"{path}: {problem}; {fix}")
    model.load_state_dict(state)


def _adapt(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> None:
    """Removes, in place, what differs between versions of the same model's files."""
    for name in ("input_resolution", "context_length", "vocab_size"):  # in OpenAI's archives
        state.pop(name, None)
    for name in ("attn_mask", "text.attn_mask", "text.transformer.embeddings.position_ids"):  # older files
        if name not in own:
            state.pop(name, None)
    if "text.positional_embedding" in own and "positional_embedding" in state:
        from open_clip.model import convert_to_custom_text_state_dict

        moved = convert_to_custom_text_state_dict(state)
        state.clear()
        state.update(moved)
    for name in ("logit_scale", "logit_bias"):
        if name in own and name in state and own[name].numel() == state[name].numel():
            state[name] = state[name].reshape(own[name].shape)


def _first_mismatch(own: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> str | None:
    for name, tensor in own.items():
        if name in state and state[name].shape != tensor.shape:
            return f"tensor {name} is {tuple(state[name].shape)} in the file but {tuple(tensor.shape)} in the model"
    for name in own:
        if name not in state:
            return f"tensor {name} of the model is not in the file"
    for name in state:
        if name not in own:
            return f"tensor {name} of the file is not in the model"
    return None


def weights_hash(model: nn.Module) -> str:
    """A short hash of the model's weights and configuration: equal for the same model from any file."""
    digest = hashlib.sha256(json.dumps(model.config, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
