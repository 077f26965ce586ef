"""Texts → token ids with CLIP's byte-pair encoding, and the 77 + 77 label that a record carries."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

CONTEXT_LENGTH = 77  # of every CLIP model, and of the released record layout
VOCAB_SIZE = 49408
TOKENIZER = "clip-bpe-49408"  # the name, in manifests and of models, of CLIP's lower-cased byte-pair encoding
_LONG_WORD = 200  # bytes; shorter ones are left to open_clip, which remembers them
_KEPT_WORDS = 1 << 17  # words whose ids are remembered: some 25 MB


@dataclass(frozen=True)
class TextFormat:
    """tokenizer: TOKENIZER for CLIP's own, or else a Hugging Face name. A row of token ids, each below
    vocab_size, has context_length of them."""

    tokenizer: str
    context_length: int
    vocab_size: int

    @property
    def is_clip(self) -> bool:
        """True for CLIP's own tokenizer: what the shards hold, and so what can be trained."""
        return self.tokenizer == TOKENIZER


@lru_cache(maxsize=1)
def clip_tokenizer():
    """open_clip's own tokenizer, made once; for words of any length in nearly linear time, and the same ids."""
    # Imported late: reading the merges takes half a second, and the RecordIO tools need only the label functions.
    from open_clip import tokenizer as theirs

    class Tokenizer(theirs.SimpleTokenizer):
        def bpe(self, token: str) -> str:
            # open_clip's loop is quadratic: a "word" of 100,000 letters, as scripts without spaces have it, takes 15 s.
            return super().bpe(token) if len(token) < _LONG_WORD else merge_pairs(token, self.bpe_ranks)

        def encode(self, text: str) -> list[int]:
            # ftfy takes two thirds of the time of a short text; printable ASCII without entities it leaves as it is.
            if not (text.isascii() and text.isprintable()) or "&" in text:
                return super().encode(text)
            found: list[int] = []
            for word in self.pat.findall(" ".join(text.split()).lower()):
                ids = self.ids.get(word)
                if ids is None:  # a byte of printable ASCII is its own sign
                    ids = [self.encoder[symbol] for symbol in self.bpe(word).split(" ")]
                    if len(self.ids) < _KEPT_WORDS and len(word) < _LONG_WORD:
                        self.ids[word] = ids
                found += ids
            return found

        def __call__(self, texts: list[str], context_length: int = CONTEXT_LENGTH) -> torch.Tensor:
            rows = np.zeros((len(texts), context_length), np.int64)
            for row, text in zip(rows, texts):
                ids = [self.sot_token_id, *self.encode(text)][: context_length - 1]
                row[: len(ids)] = ids
                row[len(ids)] = self.eot_token_id
            return torch.from_numpy(rows)

    tokenizer = Tokenizer.__new__(Tokenizer)
    # open_clip has made one at its import; to read the merges again would take 0.2 s.
    tokenizer.__dict__.update(vars(getattr(theirs, "_tokenizer", None) or theirs.SimpleTokenizer()))
    tokenizer.cache, tokenizer.ids = dict(tokenizer.cache), {}
    return tokenizer


def merge_pairs(word: str, ranks: dict[tuple[str, str], int]) -> str:
    """The byte-pair encoding of a word, symbols separated by spaces: what open_clip's `bpe` gives, in n log n steps.

    Always the pair of lowest rank is merged, everywhere, from left to right.
    """
    symbols: list[str | None] = [*word[:-1], word[-1] + "</w>"]
    following = [*range(1, len(symbols)), -1]
    before = list(range(-1, len(symbols) - 1))
    starts: dict[tuple[str, str], list[int]] = {}
    heap: list[tuple[int, tuple[str, str]]] = []

    def note(at: int) -> None:
        pair = (symbols[at], symbols[following[at]])
        if pair in ranks:
            if pair not in starts:
                starts[pair] = []
                heapq.heappush(heap, (ranks[pair], pair))
            starts[pair].append(at)

    for at in range(len(symbols) - 1):
        note(at)
    while heap:
        _, pair = heapq.heappop(heap)
        changed = []
        for at in sorted(starts.pop(pair)):
            right = following[at]
            if symbols[at] != pair[0] or right < 0 or symbols[right] != pair[1]:
                continue  # an earlier merge used one of the two
            symbols[at], symbols[right] = pair[0] + pair[1], None
            following[at] = following[right]
            if following[right] >= 0:
                before[following[right]] = at
            changed.append(at)
        for at in changed:
            if before[at] >= 0:
                note(before[at])
            if following[at] >= 0:
                note(at)
    return " ".join(symbol for symbol in symbols if symbol is not None)


def tokenize(texts: list[str], context_length: int = CONTEXT_LENGTH) -> torch.Tensor:
    """Token ids (n, context_length) int64 of n texts, by open_clip's CLIP tokenizer.

    A row is the start token, the text, the end token, and zeros. A text that is too long is cut, and its last
    position is the end token. The empty text is start and end.
    """
    if isinstance(texts, str):
        raise TypeError("tokenize takes a list of texts, not one string")
    if context_length < 2:
        raise ValueError(f"context_length must be at least 2 (start and end token), not {context_length}")
    if not texts:
        return torch.zeros(0, context_length, dtype=torch.long)
    return clip_tokenizer()(list(texts), context_length=context_length)


def is_empty(row) -> bool:
    """True for a row (context_length,) of token ids that holds no text: the end token follows the start token."""
    return int(row[1]) == clip_tokenizer().eot_token_id


def decode(tokens) -> str:
    """The text of one row of token ids, lower-cased as the tokenizer makes it, without start, end and padding."""
    tokenizer = clip_tokenizer()
    row = [int(token) for token in tokens]
    if tokenizer.eot_token_id in row:
        row = row[: row.index(tokenizer.eot_token_id)]
    return tokenizer.decode([token for token in row if token != tokenizer.sot_token_id]).strip()


def lengths(tokens: torch.Tensor) -> torch.Tensor:
    """Number of real tokens (n,) int64 of each row of (n, context_length), start and end included.

    The end token has the highest id, so it is where the row is largest: the position where CLIP pools.
    """
    return tokens.argmax(dim=-1) + 1


def pack_label(text_tokens, caption_tokens, more_captions=()) -> np.ndarray:
    """One record's label, float32 (token ids are exact in it): 77 raw-text ids, then 77 caption ids: the released
    layout, (154,).

    more_captions: rows of further captions. They follow without their padding: their number m, the length of each,
    start and end token included, and their ids: (155 + m + sum of lengths,).

    Raises ValueError if one of them is not one row of 77 ids.
    """
    label = np.concatenate([_label_row(text_tokens, "text"), _label_row(caption_tokens, "caption")])
    rows = [_label_row(tokens, "caption") for tokens in more_captions]
    if not rows:
        return label
    sizes = [int(row.argmax()) + 1 for row in rows]
    return np.concatenate([label, np.float32([len(rows), *sizes]), *(row[:size] for row, size in zip(rows, sizes))])


def _label_row(tokens, name: str) -> np.ndarray:
    row = np.asarray(tokens)
    if row.shape != (CONTEXT_LENGTH,):
        raise ValueError(f"{name} tokens have shape {row.shape}, not ({CONTEXT_LENGTH},)")
    if row.min() < 0 or row.max() >= 1 << 24:
        raise ValueError(f"{name} tokens reach from {row.min()} to {row.max()}: not token ids")
    return row.astype(np.float32)


def unpack_label(label) -> tuple[np.ndarray, np.ndarray]:
    """The raw-text and caption ids, int64 (77,) each, of a label (154,). Raises ValueError on any other label."""
    label = np.asarray(label)
    if label.shape != (2 * CONTEXT_LENGTH,):
        raise ValueError(
            f"label has shape {label.shape}, not ({2 * CONTEXT_LENGTH},): {CONTEXT_LENGTH} raw-text token ids, "
            f"then {CONTEXT_LENGTH} caption token ids"
        )
    text, captions = unpack_captions(label)
    return text, captions[0]


def unpack_captions(label, context_length: int = CONTEXT_LENGTH) -> tuple[np.ndarray, np.ndarray]:
    """The ids of raw text, int64 (context_length,), and captions, (captions, context_length), padded with 0, of a label
    as `pack_label` makes it, with one caption or more. Raises ValueError on any other label."""
    label = np.asarray(label)
    released = 2 * context_length
    if label.ndim != 1 or len(label) < released:
        raise ValueError(f"a label of {len(label) if label.ndim == 1 else label.shape} numbers, not {released} or more")
    with np.errstate(invalid="ignore"):
        tokens = label.astype(np.int64)
    if not np.array_equal(tokens, label) or tokens.min() < 0:
        raise ValueError("label holds values that are not token ids (whole numbers from 0 up)")
    lengths = _more_lengths(tokens, context_length)
    captions = np.zeros((1 + len(lengths), context_length), np.int64)
    captions[0] = tokens[context_length:released]
    start = released + 1 + len(lengths)
    for row, length in zip(captions[1:], lengths.tolist()):
        row[:length] = tokens[start : start + length]
        start += length
    return tokens[:context_length], captions


def _more_lengths(tokens: np.ndarray, context_length: int) -> np.ndarray:
    """The lengths (m,) of the captions behind the first in a label."""
    released = 2 * context_length
    if len(tokens) == released:
        return tokens[:0]
    more = int(tokens[released])
    lengths = tokens[released + 1 : released + 1 + more]
    whole = 1 <= more == len(lengths) and released + 1 + more + int(lengths.sum()) == len(tokens)
    if whole and lengths.min() >= 1 and lengths.max() <= context_length:
        return lengths
    raise ValueError(
        f"a label of {len(tokens)} numbers, neither {released} (two texts of {context_length} tokens) nor with the "
        "number, the lengths and the tokens of further captions behind them"
    )
