"""How many texts are longer than the model can read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from alip.tokens import clip_tokenizer

_AT_A_TIME = 4096


def count_cut(model: nn.Module, texts: Sequence[str]) -> int:
    """The number of texts whose end the tokenizer cuts off.

    Exact for CLIP's tokenizer; of another one a text that fills the context to the last token counts too.
    """
    context = model.text_format.context_length
    # A token is at least one byte, and start and end take two.
    long = [text for text in texts if len(text.encode("utf-8", "replace")) > context - 2]
    if model.text_format.is_clip:
        encode = clip_tokenizer().encode
        return sum(len(encode(text)) + 2 > context for text in long)
    full = 0
    for start in range(0, len(long), _AT_A_TIME):
        full += int((model.tokenizer(long[start : start + _AT_A_TIME])[:, -1] != 0).sum())
    return full
