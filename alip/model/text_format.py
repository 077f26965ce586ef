"""What a model reads as text: whose tokens, how many, and the tokenizer that makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from alip import tokens
from alip.errors import UserError
from alip.model import hub
from alip.model.config import resolve_config
from alip.tokens import TextFormat

TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "config.json",  # where a tokenizer's class is named if its own files do not
)


def text_format(model_cfg: dict[str, Any]) -> TextFormat:
    """The text format of an open_clip configuration, without building the model."""
    text = model_cfg["text_cfg"]
    return TextFormat(
        text.get("hf_tokenizer_name") or tokens.TOKENIZER,
        text.get("context_length", tokens.CONTEXT_LENGTH),
        text.get("vocab_size", tokens.VOCAB_SIZE),
    )


def read_text_format(name_or_config: str | Path | dict[str, Any]) -> TextFormat:
    """The text format of what `create_model` takes; UserError as there."""
    return text_format(resolve_config(name_or_config)[1])


class Tokenizer:
    """Texts → token ids, for one model; as open_clip's tokenizers are called. Can be pickled.

    form: of the model's texts. inner: what makes the ids, called as this is; None: CLIP's own.
    """

    def __init__(self, form: TextFormat, inner: Callable[[list[str], int], torch.Tensor] | None = None):
        self.form = form
        self._inner = inner or tokens.tokenize

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> torch.Tensor:
        """Token ids (n, context_length) int64 of n texts, one for a single string. context_length: the model's, if
        None. TypeError for what is no text; UserError for ids that the model does not know."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"a tokenizer takes strings, and number {number} is of type {type(text).__name__}")
        rows = self._inner(texts, context_length or self.form.context_length)
        if rows.numel() and int(rows.max()) >= self.form.vocab_size:
            raise UserError(
                f"the tokenizer {self.form.tokenizer} gives ids up to {int(rows.max())}, but the model's vocabulary "
                f"has {self.form.vocab_size}: it belongs to another model"
            )
        return rows


def create_tokenizer(model_cfg: dict[str, Any], folder: Path | None = None, may_download: bool = False) -> Tokenizer:
    """The tokenizer with which the model of this configuration was trained.

    folder: the model's, where a tokenizer of its own may be. A Hugging Face tokenizer is taken from there, or from the
    local cache; from the network only with may_download. Raises UserError where it cannot be had.
    """
    form, text = text_format(model_cfg), model_cfg["text_cfg"]
    options = dict(text.get("tokenizer_kwargs") or {})
    if not form.is_clip:
        return Tokenizer(form, _huggingface(form, text, options, folder, may_download))
    return Tokenizer(form, _clip_with_options(form, options) if options else None)


def _clip_with_options(form: TextFormat, options: dict[str, Any]) -> Callable[[list[str], int], torch.Tensor]:
    from open_clip.tokenizer import SimpleTokenizer

    try:
        tokenizer = SimpleTokenizer(context_length=form.context_length, **options)
    except Exception as error:  # unknown options, and packages that some of them need
        raise UserError(f"tokenizer_kwargs {str(options)[:100]}: {' '.join(str(error).split())[:200]}") from error
    return tokenizer


def _huggingface(
    form: TextFormat, text: dict[str, Any], options: dict[str, Any], folder: Path | None, may_download: bool
) -> Callable[[list[str], int], torch.Tensor]:
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(f"the tokenizer {form.tokenizer} needs transformers: pip install 'alip[hf]'") from error
    from open_clip.tokenizer import HFTokenizer

    if folder is None or not any((folder / name).is_file() for name in TOKENIZER_FILES[:-1]):
        folder = _fetched(form.tokenizer, may_download)
    mode = text.get("tokenizer_mode")
    try:
        return HFTokenizer(
            str(folder),
            context_length=form.context_length,
            tokenizer_mode=mode,
            local_files_only=True,
            trust_remote_code=False,
            **options,
        )
    except Exception as error:  # whatever a tokenizer's files lead to
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: its tokenizer cannot be read ({reason}); download the model again") from error


def _fetched(name: str, may_download: bool) -> Path:
    local = Path(name)
    if local.is_dir():
        return local
    try:
        files = hub.Repository(name, may_download=may_download).all(TOKENIZER_FILES)
    except UserError as error:
        raise UserError(
            f"this model's tokenizer is Hugging Face's {name}, which is not at hand ({error}); put its files into the "
            f"model's folder, or run: hf download {name} --include '*token*' '*.model' '*.txt' '*.json'"
        ) from error
    if not files:
        raise UserError(f"{name}: no tokenizer files in this repository")
    return files[0].parent
