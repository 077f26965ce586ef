"""Image-to-text models of Hugging Face transformers as captioners: BLIP, BLIP-2, GIT, Florence-2 and their kin."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from alip.caption.captioners import Decoding
from alip.errors import UserError

FLORENCE_PROMPT = "<CAPTION>"  # also <DETAILED_CAPTION> and <MORE_DETAILED_CAPTION>
CHAT_PROMPT = "Describe the image in one short sentence."

# Models that continue the prompt, whose closing token would end the caption before it begins.
_CONTINUES_PROMPT = {"git"}


class TransformersCaptioner:
    """Any image-to-text model that `AutoModelForImageTextToText` loads.

    model_name: a name on the Hugging Face hub (downloaded into its cache by transformers) or a local folder.
    prompt: text before the caption; it is no part of the caption. Florence-2 takes its task tokens, models with a
    chat template take a question. None: Florence-2's <CAPTION>, for chat models CHAT_PROMPT, else no prompt.

    There are two cases. With images of one fixed size the prompt's tokens are made once and
    `prepare` turns an image into its pixels in a worker process. With a chat template the number of image tokens
    depends on the image, so images and prompt go through the processor together, in `caption`.
    """

    def __init__(
        self, model_name: str, prompt: str | None, decoding: Decoding, device: torch.device, precision: torch.dtype
    ) -> None:
        self.model, self.image_processor, self.tokenizer, self.processor = _load(model_name, precision)
        self.model.to(device).eval()
        self.device, self.precision, self.decoding = device, precision, decoding
        self.model_type = self.model.config.model_type
        self.is_chat = bool(getattr(self.processor, "chat_template", None))
        if prompt is None and self.model_type == "florence2":
            prompt = FLORENCE_PROMPT
        if prompt is None and self.is_chat:
            prompt = CHAT_PROMPT
        self.prompt = prompt
        self.metadata = {
            "model_class": type(self.model).__name__,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "revision": getattr(self.model.config, "_commit_hash", None),
            "prompt": prompt,
        }
        if self.is_chat:
            self.tokenizer.padding_side = "left"  # a causal model continues from the last column
        else:
            self.prepare = ImagePreparer(self.image_processor)
            self.short_side = self._short_side()
            self.prompt_fields = self._prompt_fields()

    @torch.inference_mode()
    def caption(self, batch: list[Any]) -> list[str]:
        """batch: n dicts of arrays from `prepare`, or n PIL images for a chat model. Returns n strings."""
        inputs = self._chat_inputs(batch) if self.is_chat else self._fixed_inputs(batch)
        tokens = self.model.generate(**inputs, **_generate_arguments(self.decoding))
        prompt_tokens = inputs.get("input_ids")
        if prompt_tokens is not None:
            length = prompt_tokens.shape[1]
            if tokens.shape[1] >= length and torch.equal(tokens[:, :length], prompt_tokens):
                tokens = tokens[:, length:]
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [strip_prompt(text, self.prompt) for text in texts]

    def _short_side(self) -> int:
        """The side in pixels that images are resized to, 0 if unknown: JPEGs may be decoded down to it."""
        size = dict(getattr(self.image_processor, "size", None) or {})
        return max((value for value in size.values() if isinstance(value, int)), default=0)

    def _fixed_inputs(self, batch: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        inputs = {}
        for name in batch[0]:
            value = torch.from_numpy(np.stack([item[name] for item in batch])).to(self.device)
            inputs[name] = value.to(self.precision) if value.is_floating_point() else value
        for name, value in self.prompt_fields.items():
            inputs[name] = value.repeat(len(batch), *[1] * (value.ndim - 1))
        return inputs

    def _chat_inputs(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        content = [{"type": "image"}, {"type": "text", "text": self.prompt}]
        question = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = self.processor(
            images=[[image] for image in images], text=[question] * len(images), return_tensors="pt", padding=True
        )
        return {
            name: value.to(self.device, self.precision if value.is_floating_point() else None)
            for name, value in inputs.items()
        }

    def _prompt_fields(self) -> dict[str, torch.Tensor]:
        """The prompt's tokens and masks, (1, length) each; none without a prompt."""
        if not self.prompt:
            return {}
        blank = Image.new("RGB", (64, 64))
        if self.processor is not None:
            fields = dict(self.processor(images=blank, text=self.prompt, return_tensors="pt"))
        else:
            tokens = self.tokenizer(self.prompt, add_special_tokens=False, return_tensors="pt")
            fields = {"decoder_input_ids": tokens.input_ids}
        pixels = self.prepare(blank)
        fields = {name: value.to(self.device) for name, value in fields.items() if name not in pixels}
        if self.model_type in _CONTINUES_PROMPT:
            fields = {name: value[:, :-1] for name, value in fields.items()}
        return fields


class ImagePreparer:
    """PIL image → {"pixel_values": (3, H, W) float32, …}. Runs in worker processes, so it holds only the processor."""

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor

    def __call__(self, image: Image.Image) -> dict[str, np.ndarray]:
        fields = self.image_processor(images=image, return_tensors="pt")
        return {name: np.asarray(value[0]) for name, value in fields.items() if isinstance(value, torch.Tensor)}


def strip_prompt(text: str, prompt: str | None) -> str:
    """The text without the prompt at its start (tokenizers may have changed the prompt's case and spaces)."""
    text = text.strip()
    if not prompt:
        return text
    words, prompt_words = text.split(), prompt.lower().split()
    if [word.lower() for word in words[: len(prompt_words)]] == prompt_words:
        return " ".join(words[len(prompt_words) :])
    return text


def _generate_arguments(decoding: Decoding) -> dict[str, Any]:
    arguments: dict[str, Any] = {"max_new_tokens": decoding.max_new_tokens, "num_beams": decoding.num_beams}
    if decoding.min_new_tokens:
        arguments["min_new_tokens"] = decoding.min_new_tokens
    if decoding.repetition_penalty != 1.0:
        arguments["repetition_penalty"] = decoding.repetition_penalty
    arguments["do_sample"] = decoding.sample
    if decoding.sample:
        arguments.update(temperature=decoding.temperature, top_k=decoding.top_k, top_p=decoding.top_p)
    return arguments


def _load(model_name: str, precision: torch.dtype) -> tuple[Any, Any, Any, Any]:
    """(model, image processor, tokenizer, their common processor or None). Code from a hub is never run."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"--captioner {model_name} needs the package transformers: pip install 'transformers>=5' (or alip[hf])"
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForImageTextToText.from_pretrained(model_name, dtype=precision)
        if model.config.model_type == "vision-encoder-decoder":  # these folders have two halves and no processor
            return (
                model,
                transformers.AutoImageProcessor.from_pretrained(model_name),
                transformers.AutoTokenizer.from_pretrained(model_name),
                None,
            )
        processor = transformers.AutoProcessor.from_pretrained(model_name)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"cannot load the captioner {model_name!r}: {reason} (give a short name such as blip, a Hugging Face model "
            "name of an image-to-text model, or a local folder)"
        ) from error
    return model, processor.image_processor, processor.tokenizer, processor
