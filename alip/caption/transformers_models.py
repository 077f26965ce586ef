"""Image-to-text models of Hugging Face transformers as captioners: BLIP, Florence-2, PaliGemma, Qwen-VL and others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from alip.caption.captioners import CHAT_PROMPT, MAX_SIDE, Decoding
from alip.caption.preprocessing import shrink
from alip.caption.sampling import SampledWords, Sampler
from alip.errors import UserError

# Models that know no other prompt than those they were trained with. Florence-2 also takes <DETAILED_CAPTION> and
# <MORE_DETAILED_CAPTION>, PaliGemma other languages.
DEFAULT_PROMPTS = {"florence2": "<CAPTION>", "paligemma": "caption en"}

# Models that continue the prompt, whose closing token would end the caption before it begins.
_CONTINUES_PROMPT = {"git"}


class TransformersCaptioner:
    """Any image-to-text model that `AutoModelForImageTextToText` loads.

    model_name: a name on the Hugging Face hub (downloaded into its cache by transformers) or a local folder.
    prompt: text before the caption; it is no part of the caption. Florence-2 takes its task tokens, models with a
    chat template take a question. None: that of DEFAULT_PROMPTS, for chat models CHAT_PROMPT, else no prompt.
    max_side: images for chat models are shrunk to it. options: arguments of the image processor, other than its own.

    There are two cases. With images of one fixed size the prompt's tokens are made once and
    `prepare` turns an image into its pixels in a worker process. With a chat template the number of image tokens
    depends on the image, so images and prompt go through the processor together, in `caption`.
    """

    takes_seeds = True

    def __init__(
        self,
        model_name: str,
        prompt: str | None,
        decoding: Decoding,
        device: torch.device,
        precision: torch.dtype,
        max_side: int = MAX_SIDE,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.image_processor, self.tokenizer, self.processor = _load(model_name, precision)
        self.model.to(device).eval()
        self.device, self.precision, self.decoding = device, precision, decoding
        self.options = options or {}
        _check_options(self.image_processor, self.options)
        self.model_type = self.model.config.model_type
        self.is_chat = bool(getattr(self.processor, "chat_template", None)) and self.model_type not in DEFAULT_PROMPTS
        self.prompt = prompt or DEFAULT_PROMPTS.get(self.model_type) or (CHAT_PROMPT if self.is_chat else None)
        if self.is_chat:
            self.tokenizer.padding_side = "left"  # a causal model continues from the last column
            self.prepare: Callable[[Image.Image], Any] = partial(shrink, max_side=max_side)
            self.short_side = max_side
            self.prompt_text = self._chat_prompt()
        else:
            self.prepare = ImagePreparer(self.image_processor, self.options)
            self.short_side = self._short_side()
            self.prompt_text = self.prompt
            self.prompt_fields = self._prompt_fields()
        self._generate_arguments = _generate_arguments(decoding, self.model.generation_config)
        self.metadata = {
            "model_class": type(self.model).__name__,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "revision": getattr(self.model.config, "_commit_hash", None),
            "prompt": self.prompt,
            "prompt_text": self.prompt_text,
        }

    @torch.inference_mode()
    def caption(self, batch: list[Any], seeds: list[int] | None = None) -> list[str]:
        """batch: n results of `prepare`; seeds: of sampling, one for each. Returns n strings."""
        inputs = self._chat_inputs(batch) if self.is_chat else self._fixed_inputs(batch)
        arguments = dict(self._generate_arguments)
        if self.decoding.sample:
            arguments["logits_processor"] = [SampledWords(Sampler(self.decoding, seeds, len(batch)))]
        tokens = self.model.generate(**inputs, **arguments)
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
        return 0 if self.options else max((value for value in size.values() if isinstance(value, int)), default=0)

    def _fixed_inputs(self, batch: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        inputs = {}
        for name in batch[0]:
            value = torch.from_numpy(np.stack([item[name] for item in batch])).to(self.device)
            inputs[name] = value.to(self.precision) if value.is_floating_point() else value
        for name, value in self.prompt_fields.items():
            inputs[name] = value.repeat(len(batch), *[1] * (value.ndim - 1))
        return inputs

    def _chat_prompt(self) -> str:
        """The question in the model's own chat format, with the mark of an image, up to where the answer begins."""
        content = [{"type": "image"}, {"type": "text", "text": self.prompt}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def _chat_inputs(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        more = dict(self.options)
        if self.tokenizer.bos_token and self.prompt_text.startswith(self.tokenizer.bos_token):
            more["add_special_tokens"] = False  # the template has written the first token; it must not come twice
        inputs = self.processor(
            images=[[image] for image in images],
            text=[self.prompt_text] * len(images),
            return_tensors="pt",
            padding=True,
            **more,
        )
        return {
            name: value.to(self.device, self.precision if value.is_floating_point() else None)
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor)
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

    def __init__(self, image_processor: Any, options: dict[str, Any] | None = None) -> None:
        self.image_processor, self.options = image_processor, options or {}

    def __call__(self, image: Image.Image) -> dict[str, np.ndarray]:
        fields = self.image_processor(images=image, return_tensors="pt", **self.options)
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


def _generate_arguments(decoding: Decoding, defaults: Any) -> dict[str, Any]:
    """Arguments of `generate`. defaults: the model's generation config.

    A model that is made to begin with one token and to end with another (BART, and so Florence-2: <s> and </s>) counts
    them as new tokens. They are no part of the caption, so they come on top of what was asked for: with six tokens a
    caption would otherwise have four words at most, and with two none at all.
    """
    forced = (getattr(defaults, name, None) for name in ("forced_bos_token_id", "forced_eos_token_id"))
    longest = decoding.max_new_tokens + sum(token is not None for token in forced)
    arguments: dict[str, Any] = {"max_new_tokens": longest, "num_beams": decoding.num_beams, "do_sample": False}
    if decoding.min_new_tokens:
        arguments["min_new_tokens"] = decoding.min_new_tokens
    if decoding.repetition_penalty != 1.0:
        arguments["repetition_penalty"] = decoding.repetition_penalty
    return arguments


def _check_options(image_processor: Any, options: dict[str, Any]) -> None:
    known = getattr(getattr(image_processor, "valid_kwargs", None), "__annotations__", None)
    for name in options:
        if known is not None and name not in known:
            raise UserError(f"--option {name}: {type(image_processor).__name__} takes {', '.join(sorted(known))}")


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
    if model_name.lower().startswith("ofa-sys/ofa"):  # before the hub is asked for it
        raise UserError(OFA_ADVICE.format(model_name))
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
        if _is_ofa(model_name, reason):
            raise UserError(OFA_ADVICE.format(model_name)) from error
        raise UserError(
            f"cannot load the captioner {model_name!r}: {reason} (give a short name such as blip, a Hugging Face model "
            "name of an image-to-text model, or a local folder)"
        ) from error
    return model, processor.image_processor, processor.tokenizer, processor


OFA_ADVICE = (
    "{!r} is an OFA checkpoint, and transformers has never had OFA: caption with OFA's own code and give its result as "
    "--captioner existing:test_predict.json (docs/captioners.md has the commands), or choose another, such as blip"
)


def _is_ofa(model_name: str, reason: str) -> bool:
    """Whether a model that does not load is OFA: its config.json or its name says so."""
    return "`ofa`" in reason or "'ofa'" in reason or model_name.rstrip("/").split("/")[-1].lower().startswith("ofa-")
