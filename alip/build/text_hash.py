"""Short hashes that are the same in every process, unlike Python's hash()."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def digest(data: bytes) -> str:
    """16 hex digits that tell one image's (or text's) bytes from another's."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def number(text: str) -> int:
    """A 64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def text_digest(text: str) -> str:
    """16 hex digits that tell one text from another."""
    return digest(text.encode("utf-8", "surrogatepass"))


def texts_digest(texts: Iterable[str]) -> str:
    """16 hex digits that change when one of the texts, or their order, does."""
    return text_digest("\0".join(texts))
