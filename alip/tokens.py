"""Texts → token ids with CLIP's byte-pair encoding, and the 77 + 77 label that a record carries."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

CONTEXT_LENGTH = 77  # of every CLIP model, and of the released record layout


@lru_cache(maxsize=1)
def clip_tokenizer():
    """open_clip's own tokenizer, made once."""
    # Imported late: reading the merges takes half a second, and the RecordIO tools need only the label functions.
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def tokenize(texts: list[str], context_length: int = CONTEXT_LENGTH) -> torch.Tensor:
    """Token ids (n, context_length) int64 of n texts, by open_clip's CLIP tokenizer.

    A row is the start token, the text, the end token, and zeros. A text that is too long is cut, and its last
    place is the end token. The empty text is start and end.
    """
    if isinstance(texts, str):
        raise TypeError("tokenize takes a list of texts, not one string")
    if context_length < 2:
        raise ValueError(f"context_length must be at least 2 (start and end token), not {context_length}")
    if not texts:
        return torch.zeros(0, context_length, dtype=torch.long)
    return clip_tokenizer()(list(texts), context_length=context_length)


def decode(tokens) -> str:
    """The text of one row of token ids, lower-cased as the tokenizer makes it, without start, end and padding."""
    tokenizer = clip_tokenizer()
    row = [int(token) for token in tokens]
    if tokenizer.eot_token_id in row:
        row = row[: row.index(tokenizer.eot_token_id)]
    return tokenizer.decode([token for token in row if token != tokenizer.sot_token_id]).strip()


def lengths(tokens: torch.Tensor) -> torch.Tensor:
    """Number of real tokens (n,) int64 of each row of (n, context_length), start and end included.

    The end token has the highest id, so it stands where the row is largest: the place where CLIP pools.
    """
    return tokens.argmax(dim=-1) + 1


def pack_label(text_tokens, caption_tokens) -> np.ndarray:
    """One record's label: 77 raw-text ids, then 77 caption ids, as float32 (154,). Token ids are exact in float32.

    Raises ValueError if either is not one row of 77 ids.
    """
    rows = []
    for name, tokens in (("text", text_tokens), ("caption", caption_tokens)):
        row = np.asarray(tokens)
        if row.shape != (CONTEXT_LENGTH,):
            raise ValueError(f"{name} tokens have shape {row.shape}, not ({CONTEXT_LENGTH},)")
        if row.min() < 0 or row.max() >= 1 << 24:
            raise ValueError(f"{name} tokens reach from {row.min()} to {row.max()}: not token ids")
        rows.append(row)
    return np.concatenate(rows).astype(np.float32)


def unpack_label(label) -> tuple[np.ndarray, np.ndarray]:
    """The raw-text and caption ids, int64 (77,) each, of a label (154,). Raises ValueError on any other label."""
    label = np.asarray(label)
    if label.shape != (2 * CONTEXT_LENGTH,):
        raise ValueError(
            f"label has shape {label.shape}, not ({2 * CONTEXT_LENGTH},): {CONTEXT_LENGTH} raw-text token ids, "
            f"then {CONTEXT_LENGTH} caption token ids"
        )
    tokens = label.astype(np.int64)
    if not np.array_equal(tokens, label) or tokens.min() < 0:
        raise ValueError("label holds values that are not token ids (whole numbers from 0 up)")
    return tokens[:CONTEXT_LENGTH], tokens[CONTEXT_LENGTH:]
