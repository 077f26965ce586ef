"""The tokenizer and image processor of an exported Hugging Face folder, from open_clip's own vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from alip.files import write_json
from alip.model.huggingface import HF_SPECIAL_TOKENS
from alip.model.image_processor import to_huggingface
from alip.tokens import clip_tokenizer

_START, _END = HF_SPECIAL_TOKENS.values()


def write_processor(model: nn.Module, folder: Path) -> None:
    """Writes tokenizer and image processor for transformers, in the files of version 5 and in those of version 4."""
    from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizer

    ours = clip_tokenizer()
    vocabulary = {HF_SPECIAL_TOKENS.get(token, token): number for token, number in ours.encoder.items()}
    merges = sorted(ours.bpe_ranks, key=ours.bpe_ranks.get)
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=model.context_length)
    images = to_huggingface(model.config["preprocess_cfg"], model.image_size)
    CLIPProcessor(image_processor=CLIPImageProcessor(**images), tokenizer=tokenizer).save_pretrained(folder)
    # Version 4 fails on version 5's form of this file; both read preprocessor_config.json.
    (folder / "processor_config.json").unlink()

    # Version 4 looks for these four; version 5 writes most of what they hold into tokenizer.json.
    write_json(
        folder / "preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor", **_switches(), **images}
    )
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    write_json(folder / "special_tokens_map.json", special)


def _switches() -> dict[str, object]:
    """What CLIPImageProcessor does besides resizing and cropping, in full: nothing is left to a version's defaults."""
    switches = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
    return dict.fromkeys(switches, True) | {"rescale_factor": 1 / 255}
