"""Handing a model on: open_clip and Hugging Face folders with a model card, compared with the original before done."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from alip import tokens
from alip.checkpoint.huggingface_processor import write_processor
from alip.checkpoint.model_card import write_card
from alip.errors import UserError
from alip.files import atomic_path
from alip.model.config import OPEN_CLIP_CONFIG
from alip.model.huggingface import to_huggingface

TOLERANCE = 1e-4  # largest difference of a coordinate of normalised fp32 features
FORMS = ("open_clip", "hf")
# What both forms have, those of other versions of transformers too.
_FILES = frozenset(
    [
        *("README.md", OPEN_CLIP_CONFIG, "open_clip_model.safetensors", "config.json", "model.safetensors"),
        *("preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
        *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    ]
)
# Plain texts: open_clip also fixes broken encodings and HTML entities, which transformers' tokenizer does not.
_PROBE_TEXTS = ["", "A photo of a red apple.", "it's 2 o'clock & raining!", "word " * 100, "naïve café 東京 🙂"]

Encoders = tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]


def export(
    model: nn.Module,
    form: str,
    output: str | Path,
    *,
    run: Path | None = None,
    metadata: dict[str, Any] | None = None,
    license_name: str = "other",
    overwrite: bool = False,
) -> float:
    """Writes the model (evaluation mode) as a folder that others load; returns the largest feature difference found.

    form: "open_clip" or "hf". run: the run folder that the card takes data, recipe and results from.
    metadata: what `load_weights` returned, for the card. overwrite: replace an earlier export; no other folder is.
    The folder gets its name only once the exported model's features equal ours on random input; otherwise UserError,
    and nothing is left behind.
    """
    if form not in FORMS:
        raise UserError(f"cannot export to {form!r}; choose one of {', '.join(FORMS)}")
    if not model.text_format.is_clip:
        raise UserError(f"the model's tokenizer is {model.text_format.tokenizer}, and only CLIP's own is exported")
    output = Path(output) if Path(output).name else Path(output).absolute()  # "." cannot be replaced by that name
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not overwrite:
        raise UserError(f"{output}: exists and is not empty; choose another folder, or add --overwrite")
    _check_replaceable(output)
    try:
        with atomic_path(output) as draft:
            draft.mkdir()
            encoders = _write_open_clip(model, draft) if form == "open_clip" else _write_huggingface(model, draft)
            difference = compare(model, encoders)
            if not difference <= TOLERANCE:
                text = f"exported features differ from the model's by {difference:.1e}; nothing written"
                raise UserError(f"{output}: {text}")
            write_card(draft, model, form, output.name, run, metadata or {}, license_name, difference)
            if output.is_dir():
                shutil.rmtree(output)
    except OSError as error:
        raise UserError(f"{output}: could not be written ({error.strerror or error}); choose another folder") from error
    return difference


def _check_replaceable(output: Path) -> None:
    """UserError for a folder that holds anything but an export: a run's checkpoints, say, or a repository."""
    names = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    other = next((name for name in names if name not in _FILES or (output / name).is_dir()), None)
    if other is not None:
        raise UserError(
            f"{output}: holds {other[:80]}, which is no file of an export and is kept; choose another folder"
        )


def _save_tensors(state: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, path, {"format": "pt"})
    path.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner can read


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _write_open_clip(model: nn.Module, folder: Path) -> Encoders:
    """Writes open_clip's two files, and loads them as open_clip does."""
    import open_clip

    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(model.config, indent=2) + "\n")
    _save_tensors(model.state_dict(), folder / "open_clip_model.safetensors")
    loaded = open_clip.create_model(f"local-dir:{folder}").eval()
    return loaded.encode_image, loaded.encode_text


def _write_huggingface(model: nn.Module, folder: Path) -> Encoders:
    """Writes config, weights and processor for transformers, and loads them as its users do."""
    try:
        from transformers import CLIPConfig, CLIPModel, CLIPProcessor
        from transformers.utils import logging
    except ImportError as error:
        raise UserError("exporting to Hugging Face needs transformers: pip install 'alip[hf]'") from error

    config, state = to_huggingface(model)
    CLIPConfig(**config, architectures=["CLIPModel"]).save_pretrained(folder)
    _save_tensors(state, folder / "model.safetensors")
    write_processor(model, folder)

    logging.disable_progress_bar()
    loaded = CLIPModel.from_pretrained(folder).eval()
    tokenizer = CLIPProcessor.from_pretrained(folder).tokenizer
    theirs = tokenizer(_PROBE_TEXTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    ours = tokens.tokenize(_PROBE_TEXTS, model.context_length)
    for text, a, b, length in zip(_PROBE_TEXTS, theirs, ours, tokens.lengths(ours)):
        if not torch.equal(a[:length], b[:length]):
            raise UserError(f"the exported tokenizer reads {text!r} differently; please report this as a bug")

    def pooled(output):
        # transformers 5 gives an object, 4 gave the tensor.
        return getattr(output, "pooler_output", output)

    return (
        lambda image: pooled(loaded.get_image_features(pixel_values=image)),
        lambda text: pooled(loaded.get_text_features(input_ids=text)),
    )


@torch.no_grad()
def compare(model: nn.Module, encoders: Encoders, seed: int = 0) -> float:
    """Largest difference between the normalised features of the model and of other encoders, on random input.

    Images are noise; texts are random ids of several lengths, the empty and the longest text among them.
    """
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(2, 3, model.image_size, model.image_size, generator=generator)
    context, vocabulary = model.context_length, model.vocab_size
    text = torch.zeros(4, context, dtype=torch.long)
    for row, length in zip(text, (2, min(9, context), context // 2, context)):
        row[:length] = torch.randint(1, vocabulary - 2, (length,), generator=generator)
        row[0], row[length - 1] = vocabulary - 2, vocabulary - 1
    device = model.logit_scale.device
    differences = []
    for ours, theirs, value in zip((model.encode_image, model.encode_text), encoders, (image, text)):
        expected = F.normalize(ours(value.to(device)).float(), dim=-1).cpu()
        differences.append((expected - F.normalize(theirs(value).float(), dim=-1)).abs().max().item())
    return max(differences)
