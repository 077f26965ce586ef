"""Captioners by name: `--captioner NAME` → a captioner."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from alip.caption.captioners import MAX_SIDE, Captioner, Decoding
from alip.caption.endpoint.settings import EndpointSettings
from alip.caption.user_file import load_captioner_file
from alip.errors import UserError
from alip.model.precision import dtype_of

# Short names. coca is open_clip's; the others are Hugging Face models.
NAMED_MODELS = {
    "blip": "Salesforce/blip-image-captioning-base",
    "blip-large": "Salesforce/blip-image-captioning-large",
    "blip2": "Salesforce/blip2-opt-2.7b",
    "git": "microsoft/git-base-coco",
    "florence2": "florence-community/Florence-2-base",
    "paligemma": "google/paligemma2-3b-mix-224",
    "qwen2.5-vl": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen3-vl": "Qwen/Qwen3-VL-2B-Instruct",
    "smolvlm": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
    "llava": "llava-hf/llava-1.5-7b-hf",
}
ENGINES = ("transformers", "vllm")
_PREFIXES = ("file", "existing", "openai")


@dataclass(frozen=True)
class CaptionerChoice:
    """The captioner that the user chose: everything needed to build it, here or in another process.

    name: a short name, `coca[:MODEL]`, `file:PATH`, `existing:FILE`, `openai:MODEL`, or a Hugging Face model name or
    local folder. precision: a name of alip.model.precision. options: NAME=VALUE of --option; for a captioner file's
    `create_captioner`, for the image processor, the vLLM engine or the request's body. max_side: see MAX_SIDE.
    engine: of ENGINES, for Hugging Face models. endpoint: arguments of EndpointSettings, for openai:MODEL.
    per_image: how many captions of each image existing:FILE gives, see ExistingCaptions.
    """

    name: str
    prompt: str | None = None
    decoding: Decoding = field(default_factory=Decoding)
    precision: str = "auto"
    options: dict[str, str] = field(default_factory=dict)
    max_side: int = MAX_SIDE
    engine: str = "transformers"
    endpoint: dict[str, Any] = field(default_factory=dict)
    per_image: int | None = None

    def settings(self) -> dict[str, Any]:
        """Settings that must not change between the runs that write one captions file, as plain values."""
        settings: dict[str, Any] = {"captioner": self.name}
        source, value = self.source()
        if source == "file":
            path = _existing_file(value)
            settings["captioner"] = f"file:{path.name}"
            settings["file_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
            settings["options"] = dict(sorted(self.options.items()))
            if self.decoding.sample:
                settings["seed"] = self.decoding.seed
        if source in ("transformers", "coca", "openai"):
            settings["model"] = value
            settings["prompt"] = self.prompt
            settings["decoding"] = vars(self.decoding).copy()
            if source != "openai":
                settings["precision"] = self.precision
            if self.options:
                settings["options"] = dict(sorted(self.options.items()))
        if self.max_side != MAX_SIDE:
            settings["max_side"] = self.max_side
        if self.engine != ENGINES[0]:
            settings["engine"] = self.engine
        return settings

    def source(self) -> tuple[str, str]:
        """("file" | "existing" | "openai" | "coca" | "transformers", the path or model name)."""
        for prefix in _PREFIXES:
            if self.name.startswith(prefix + ":"):
                return prefix, self.name[len(prefix) + 1 :]
        if self.name == "coca" or self.name.startswith("coca:"):
            return "coca", self.name[5:]
        folder = Path(self.name)
        if (folder / "open_clip_config.json").is_file():
            return "coca", self.name
        return "transformers", NAMED_MODELS.get(self.name, self.name)

    def json_options(self) -> dict[str, Any]:
        """The options' values as JSON where they are JSON (numbers, true, {…}), else as text."""
        return {name: _json_or_text(value) for name, value in self.options.items()}

    def endpoint_settings(self) -> EndpointSettings:
        """The server of openai:MODEL."""
        return EndpointSettings(model=self.source()[1], fields=self.json_options(), **self.endpoint)


def open_captioner(choice: CaptionerChoice, device: torch.device) -> Captioner:
    """Builds the captioner on `device`. Errors: UserError for an unknown name, a missing package or a broken file."""
    source, value = choice.source()
    if source in ("existing", "coca") and choice.options:
        raise UserError("--option is only for captioner files, Hugging Face models and servers")
    if choice.engine != ENGINES[0] and source != "transformers":
        raise UserError(f"--engine {choice.engine} is for Hugging Face models, not for {choice.name}")
    if choice.endpoint.get("base_url") and source != "openai":
        raise UserError(f"--base-url belongs to --captioner openai:MODEL, not to {choice.name}")
    if source == "file":
        return _from_file(_existing_file(value), choice, device)
    if source == "existing":
        from alip.caption.existing import ExistingCaptions

        return ExistingCaptions(_existing_file(value), choice.per_image)
    if source == "openai":
        from alip.caption.endpoint.captioner import EndpointCaptioner

        return EndpointCaptioner(choice.endpoint_settings(), choice.prompt, choice.decoding, choice.max_side)
    if choice.engine == "vllm":
        from alip.caption.vllm_engine import VllmCaptioner

        options = choice.json_options()
        return VllmCaptioner(value, choice.prompt, choice.decoding, choice.precision, choice.max_side, options)
    precision = weights_type(choice.precision, device)
    if source == "coca":
        if choice.prompt:
            raise UserError("CoCa has no --prompt: it was trained to caption without one")
        from alip.caption.coca import CoCaCaptioner

        return CoCaCaptioner(value or None, choice.decoding, device, precision)
    from alip.caption.transformers_models import TransformersCaptioner

    options = choice.json_options()
    return TransformersCaptioner(value, choice.prompt, choice.decoding, device, precision, choice.max_side, options)


def decoding_for(name: str, engine: str, decoding: Decoding, num_beams: int | None) -> Decoding:
    """The decoding with the number of beams that was asked for, or the default: one where words are sampled, and where
    there is no beam search (servers, vLLM)."""
    if num_beams is None:
        plain = decoding.sample or engine == "vllm" or name.startswith("openai:")
        num_beams = 1 if plain else Decoding.num_beams
    return replace(decoding, num_beams=num_beams)


def weights_type(name: str, device: torch.device) -> torch.dtype:
    """The type of a captioner's weights: they are only read, so they are held in the type that they compute in."""
    dtype = dtype_of(name, device)
    if dtype == torch.float16 and device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU: choose fp32 or bf16")
    return dtype


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _from_file(path: Path, choice: CaptionerChoice, device: torch.device) -> Captioner:
    create: Callable[..., Captioner] | None = getattr(load_captioner_file(path), "create_captioner", None)
    if create is None:
        raise UserError(f"{path} has no function create_captioner(device, options): see docs/captions.md")
    try:
        captioner = create(device, dict(choice.options))
    except ValueError as error:  # `int` of an option, most of all
        raise UserError(f"{path}: create_captioner refused --option: {error}") from error
    if not callable(getattr(captioner, "caption", None)):
        raise UserError(f"{path}: create_captioner returned {type(captioner).__name__}, which has no method caption")
    return captioner


def _existing_file(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise UserError(f"no file {name!r}: --captioner file:PATH and existing:FILE take the path of a file")
    return path
