"""Captioners by name: `--captioner NAME` → a captioner."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from alip.caption.captioners import Captioner, Decoding
from alip.caption.user_file import load_captioner_file
from alip.errors import UserError
from alip.model.precision import dtype_of

# Short names. The first four and florence2 are Hugging Face models, coca is open_clip's.
NAMED_MODELS = {
    "blip": "Salesforce/blip-image-captioning-base",
    "blip-large": "Salesforce/blip-image-captioning-large",
    "blip2": "Salesforce/blip2-opt-2.7b",
    "git": "microsoft/git-base-coco",
    "florence2": "florence-community/Florence-2-base",
}


@dataclass(frozen=True)
class CaptionerChoice:
    """The captioner that the user chose: everything needed to build it, here or in another process.

    name: a short name, `coca[:MODEL]`, `file:PATH`, `existing:FILE`, or a Hugging Face model name or local folder.
    precision: a name of alip.model.precision.
    options: strings for a captioner file's `create_captioner`.
    """

    name: str
    prompt: str | None = None
    decoding: Decoding = field(default_factory=Decoding)
    precision: str = "auto"
    options: dict[str, str] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Settings that must not change between the runs that write one captions file, as plain values."""
        settings: dict[str, Any] = {"captioner": self.name}
        source, value = self.source()
        if source == "file":
            path = _existing_file(value)
            settings["captioner"] = f"file:{path.name}"
            settings["file_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
            settings["options"] = dict(sorted(self.options.items()))
        if source in ("transformers", "coca"):
            settings["model"] = value
            settings["prompt"] = self.prompt
            settings["precision"] = self.precision
            settings["decoding"] = vars(self.decoding).copy()
        return settings

    def source(self) -> tuple[str, str]:
        """("file" | "existing" | "coca" | "transformers", the path or model name)."""
        for prefix in ("file", "existing"):
            if self.name.startswith(prefix + ":"):
                return prefix, self.name[len(prefix) + 1 :]
        if self.name == "coca" or self.name.startswith("coca:"):
            return "coca", self.name[5:]
        folder = Path(self.name)
        if (folder / "open_clip_config.json").is_file():
            return "coca", self.name
        return "transformers", NAMED_MODELS.get(self.name, self.name)


def open_captioner(choice: CaptionerChoice, device: torch.device) -> Captioner:
    """Builds the captioner on `device`. Errors: UserError for an unknown name, a missing package or a broken file."""
    source, value = choice.source()
    if source != "file" and choice.options:
        raise UserError("--option is only for captioner files (--captioner file:PATH)")
    if source == "file":
        return _from_file(_existing_file(value), choice, device)
    if source == "existing":
        from alip.caption.existing import ExistingCaptions

        return ExistingCaptions(_existing_file(value))
    precision = weights_type(choice.precision, device)
    if source == "coca":
        if choice.prompt:
            raise UserError("CoCa has no --prompt: it was trained to caption without one")
        from alip.caption.coca import CoCaCaptioner

        return CoCaCaptioner(value or None, choice.decoding, device, precision)
    from alip.caption.transformers_models import TransformersCaptioner

    return TransformersCaptioner(value, choice.prompt, choice.decoding, device, precision)


def weights_type(name: str, device: torch.device) -> torch.dtype:
    """The type of a captioner's weights: they are only read, so they are held in the type that they compute in."""
    dtype = dtype_of(name, device)
    if dtype == torch.float16 and device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU: choose fp32 or bf16")
    return dtype


def _from_file(path: Path, choice: CaptionerChoice, device: torch.device) -> Captioner:
    create: Callable[..., Captioner] | None = getattr(load_captioner_file(path), "create_captioner", None)
    if create is None:
        raise UserError(f"{path} has no function create_captioner(device, options): see docs/captions.md")
    captioner = create(device, dict(choice.options))
    if not callable(getattr(captioner, "caption", None)):
        raise UserError(f"{path}: create_captioner returned {type(captioner).__name__}, which has no method caption")
    return captioner


def _existing_file(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise UserError(f"no file {name!r}: --captioner file:PATH and existing:FILE take the path of a file")
    return path
