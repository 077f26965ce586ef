"""Weights: found in whatever `--checkpoint` takes, with the description of their model, and copied into a model."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alip import schema
from alip.errors import UserError
from alip.files import read_json
from alip.model import hub
from alip.model.config import OPEN_CLIP_CONFIG, check_config, likely_models
from alip.model.huggingface import from_huggingface, is_huggingface
from alip.model.text_format import TOKENIZER_FILES
from alip.model.weight_files import INDEX_SUFFIX, check_tensors, read_file, shard_names

__all__ = ["FORMAT", "Weights", "apply", "find_checkpoint", "read_file", "read_weights", "strip_prefix", "weights_hash"]

FORMAT = "alip-checkpoint"
HF_CONFIG = "config.json"
_STEP_FILE = re.compile(r"step-[0-9]+\.pt")
# In order of preference, as open_clip and transformers write them; each also in shards, named by an index.
_SINGLE_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
FOLDER_FILES = tuple(name for single in _SINGLE_FILES for name in (single, single + INDEX_SUFFIX))
# What else a model folder needs: how images are prepared, and the tokenizer.
_EXTRA_FILES = ("preprocessor_config.json", "processor_config.json", *TOKENIZER_FILES)
_CHECKPOINT = {
    "type": "object",
    "required": ["model"],
    "properties": {
        "version": {"type": "integer"},
        "model": {"type": "object"},
        "ema": {"type": ["object", "null"]},
        "model_config": {"type": ["object", "null"]},
        "step": {"type": "integer", "minimum": 0},
        "samples": {"type": "integer", "minimum": 0},
    },
}
# Buffers in OpenAI's archives, which distinguish these.
_OPENAI_BUFFERS = ("input_resolution", "context_length", "vocab_size")


@dataclass
class Weights:
    """What a weights file holds.

    state: the model's state dict, as stored. ema: the averaged weights, if any. config: the model's description in
    open_clip's form, if the file or its folder has it. folder: the model folder, with its tokenizer, if it is one.
    name: of what was asked for by name and not by path: `hf-hub:org/name`, `ViT-B-32:openai`.
    metadata: step, samples, … of one of our checkpoints. openai: weights of an archive of OpenAI's.
    """

    path: Path
    state: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor] | None = None
    config: dict[str, Any] | None = None
    folder: Path | None = None
    name: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    openai: bool = False

    def described(self) -> dict[str, Any]:
        """config, or else that of the plainest open_clip model with these shapes; UserError if there is none."""
        if self.config is not None:
            return self.config
        likely = likely_models(self.state)
        if not likely:
            raise UserError(f"{self.path}: bare weights that fit no open_clip model; name their model with --model")
        import open_clip

        config = open_clip.get_model_config(likely[0])
        # Shapes do not tell the activation, but all of OpenAI's models have QuickGELU.
        return {"model_cfg": config | {"quick_gelu": True} if self.openai else config, "preprocess_cfg": {}}


def step_files(folder: Path) -> list[Path]:
    """A run's checkpoints by their steps, newest first; a user's copy of one under another name is none of them."""
    return sorted((path for path in folder.glob("step-*.pt") if _STEP_FILE.fullmatch(path.name)), reverse=True)


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
    for path in step_files(folder):
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
    sharded, nested as `state_dict`, with `module.` prefixes), a TorchScript archive of OpenAI's, an open_clip folder,
    a Hugging Face CLIP folder, or a repository of the hub (see `alip.model.hub`). A file of such a folder, given by
    its path, has the folder's description and tokenizer.
    """
    if hub.is_hub_name(str(path)):
        found = _read_folder(_hub_folder(str(path)))
        found.name = str(path)
        return found
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    content = read_file(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return _read_checkpoint(path, content)
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    check_tensors(content, path)
    state = strip_prefix(content)
    found = Weights(path, state, openai=all(name in state for name in _OPENAI_BUFFERS))
    if path.name in FOLDER_FILES:
        _describe(found, path.parent)
    return found


def _describe(found: Weights, folder: Path) -> None:
    """Adds the description that a model folder has of its weights file, if it has one."""
    with_open_clip, with_huggingface = ((folder / name).is_file() for name in (OPEN_CLIP_CONFIG, HF_CONFIG))
    if is_huggingface(found.state) and with_huggingface:
        config = read_json(folder / HF_CONFIG)
        found.config, found.state = from_huggingface(config, found.state, folder)
        check_config(found.config, folder / HF_CONFIG)
    elif with_open_clip:
        found.config = read_json(folder / OPEN_CLIP_CONFIG)
        check_config(found.config, folder / OPEN_CLIP_CONFIG)
    else:
        return
    found.folder = folder


def _read_checkpoint(path: Path, content: dict[str, Any]) -> Weights:
    fix = "use another checkpoint"
    schema.check({key: content[key] for key in _CHECKPOINT["properties"] if key in content}, _CHECKPOINT, path, fix)
    if content.get("version") != 1:
        raise UserError(f"{path}: checkpoint version {content.get('version')}; this code reads version 1, update it")
    config, ema = content.get("model_config"), content.get("ema")
    for state in (content["model"], ema):
        if state is not None:
            check_tensors(state, path)
    if config is not None:
        check_config(config, path)
    metadata = {key: content[key] for key in ("step", "samples") if key in content}
    return Weights(path, strip_prefix(content["model"]), ema, config, metadata=metadata)


def _read_folder(folder: Path) -> Weights:
    if (folder / "checkpoints").is_dir() or step_files(folder):
        return read_weights(find_checkpoint(folder))
    for name in FOLDER_FILES:
        if not (folder / name).is_file():
            continue
        weights = read_weights(folder / name)
        weights.folder = folder
        if weights.config is None and (is_huggingface(weights.state) or (folder / HF_CONFIG).is_file()):
            from_huggingface(read_json(folder / HF_CONFIG), weights.state, folder)  # says what is missing or unknown
        return weights
    raise UserError(
        f"{folder}: neither a run folder (checkpoints/step-*.pt) nor an open_clip or Hugging Face folder "
        f"({', '.join(_SINGLE_FILES)})"
    )


def _hub_folder(name: str) -> Path:
    """The folder of a hub repository on this disk, with its configuration, weights and tokenizer."""
    repository = hub.Repository(name)
    config = repository.all((OPEN_CLIP_CONFIG, HF_CONFIG))
    if not config:
        raise UserError(
            f"{name}: neither {OPEN_CLIP_CONFIG} nor {HF_CONFIG} is in it; it is no model that is read here"
        )
    weights = repository.first(FOLDER_FILES)
    if weights is None:
        raise UserError(f"{name}: none of {', '.join(_SINGLE_FILES)} is in it (or in the local cache of it)")
    if weights.name.endswith(INDEX_SUFFIX):
        repository.all(shard_names(weights))
    repository.all(_EXTRA_FILES)
    return weights.parent


def strip_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict without the prefixes that wrappers leave: `module.` (DDP), `_orig_mod.` (torch.compile)."""
    for prefix in ("module.", "_orig_mod.", "module."):
        if state and all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: tensor for name, tensor in state.items()}
    return state


def apply(model: nn.Module, state: dict[str, torch.Tensor], path: str | Path) -> None:
    """Copies a whole state dict into the model (fp16 becomes the model's own type).

    Raises UserError that names the first tensor that does not fit and the model that the weights look like, or the
    first with numbers that are not finite.
    """
    state = dict(state)
    own = model.state_dict()
    _adapt(state, own)
    problem = _first_mismatch(own, state)
    if problem:
        likely = likely_models(state)
        fix = f"these weights look like {' or '.join(likely)}" if likely else "name the model they belong to"
        raise UserError(f"{path}: {problem}; {fix}")
    for name, tensor in state.items():
        if tensor.sum().isfinite():  # three times faster; a sum may overflow where no number is infinite
            continue
        bad = tensor.numel() - int(tensor.isfinite().sum())
        if bad:
            raise UserError(
                f"{path}: tensor {name} has {bad} of {tensor.numel()} values that are NaN or infinite: the training "
                "diverged, or the file is damaged; use an earlier checkpoint"
            )
    model.load_state_dict(state)


def _adapt(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> None:
    """Removes, in place, what differs between versions of the same model's files."""
    for name in _OPENAI_BUFFERS:
        state.pop(name, None)
    # Causal masks (of older files and TorchScript archives) and position numbers, which are no weights.
    for name in [name for name in state if name.endswith(("attn_mask", "embeddings.position_ids"))]:
        if name not in own:
            state.pop(name)
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
            return f"tensor {name[:80]} of the file is not in the model"
    for name, tensor in own.items():
        if state[name].is_floating_point() != tensor.is_floating_point():
            return f"tensor {name} is {state[name].dtype} in the file but {tensor.dtype} in the model"
    return None


def weights_hash(model: nn.Module) -> str:
    """A short hash of the model's weights and configuration: equal for the same model from any file."""
    digest = hashlib.sha256(json.dumps(model.config, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
