"""From a checkpoint to a model: everything that `--checkpoint` takes."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from alip.distributed import check_device, note
from alip.errors import UserError
from alip.files import sha256_of_file
from alip.model.bi_path import create_model
from alip.model.config import likely_models
from alip.model.pretrained import check_activation, read_tag, tags_of
from alip.model.weight_files import INDEX_SUFFIX, shard_names
from alip.model.weights import Weights, apply, find_checkpoint, read_weights, strip_prefix


def load_weights(model: nn.Module, path: str | Path, weights: str = "model") -> dict[str, Any]:
    """Loads any weights that `--checkpoint` takes into the model; returns metadata: source, fingerprint, step, samples.

    weights: "model", or "ema" for the averaged weights of a run with `--ema`.
    """
    found = read_weights(path)
    check_activation(found, model.config["model_cfg"])
    apply(model, _choose(found, weights), found.path)
    return _metadata(found, weights)


def _metadata(found: Weights, weights: str, with_fingerprint: bool = True) -> dict[str, Any]:
    own = {"fingerprint": fingerprint(found.path)} if with_fingerprint else {}
    return {"source": found.name or str(found.path), **own, "weights": weights, **found.metadata}


def _choose(found: Weights, weights: str) -> dict[str, torch.Tensor]:
    if weights == "model":
        return found.state
    if weights != "ema":
        raise UserError(f"weights must be 'model' or 'ema', not {weights!r}")
    if found.ema is None:
        raise UserError(f"{found.path}: holds no EMA weights; use its plain ones, or train with --ema")
    return strip_prefix(found.ema)


def load_model(
    path: str | Path,
    model_name: str | None = None,
    device: str | torch.device = "cpu",
    weights: str = "model",
    with_fingerprint: bool = True,
) -> nn.Module:
    """A model in evaluation mode with the weights at `path` (see `read_weights`), its `metadata` as an attribute.

    path: also an open_clip name with a tag, as `ViT-B-32:openai`, or `hf-hub:org/name` (both download). It is measured
    as it was trained: activation, resizing, mean and standard deviation are those of its files. model_name: needed
    only for a bare state dict that fits no open_clip model, or another one than the plainest that it fits: shapes do
    not tell QuickGELU, for one. with_fingerprint: False leaves that out of the metadata, and so the whole file is not
    read once more for its checksum.
    """
    found = _find(path)
    state = _choose(found, weights)
    if model_name is None and found.config is None and not found.openai:
        _note_guess(found)
    with _WithoutRandomWeights():
        model = create_model(model_name or found.described(), pretrained=replace(found, state=state))
    if not model.text_format.is_clip:
        model.tokenizer([""])  # what cannot be tokenised is reported before anything is encoded
    model.metadata = _metadata(found, weights, with_fingerprint)
    if torch.device(device).type == "cuda":
        check_device(str(device))
    return model.to(device).eval()


_RANDOM = (torch.Tensor.uniform_, torch.Tensor.normal_, init.uniform_, init.normal_, init.kaiming_uniform_)


class _WithoutRandomWeights(TorchFunctionMode):
    """Leaves fresh weights as the memory had them: all of them are replaced. To sample them takes half of loading."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _RANDOM:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def _note_guess(found: Weights) -> None:
    """Says so where the shapes fit several models: the activation, for one, changes every number."""
    taken, *others = likely_models(found.state) or [""]
    if others:
        rest = " and ".join(others)
        note(f"{found.path} does not name its model: read as {taken}; {rest} fit too (--model NAME)")


def _find(path: str | Path) -> Weights:
    name, _, tag = str(path).rpartition(":")
    name = name.replace("/", "-")
    if Path(path).exists():
        return read_weights(path)
    if open_clip.is_pretrained_cfg(name, tag):
        return read_tag(name, tag)
    if (model := name or tag.replace("/", "-")) in open_clip.list_models():
        raise UserError(f"{path}: neither a file nor MODEL:TAG of open_clip (tags of {model}: {tags_of(model)})")
    return read_weights(path)


def fingerprint(path: str | Path) -> str:
    """First 12 hex digits of the SHA-256 of a checkpoint file (of a run folder: of its newest; of shards: of all)."""
    file = find_checkpoint(path)
    if not file.name.endswith(INDEX_SUFFIX):
        return sha256_of_file(file)[:12]
    digests = [sha256_of_file(file.parent / name) for name in shard_names(file)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]


def run_folder_of(path: str | Path) -> Path | None:
    """The run folder that a checkpoint path belongs to, if it is in one."""
    path = Path(path)
    folder = path.parent.parent if path.parent.name == "checkpoints" else path
    return folder if (folder / "run.json").is_file() else None
