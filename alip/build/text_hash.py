"""Short hashes that are the same in every process, unlike Python's hash()."""

from __future__ import annotations

import hashlib


def digest(data: bytes) -> str:
    """16 hex digits that tell one image's (or text's) bytes from another's."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def number(text: str) -> int:
    """A 64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def text_digest(text: str) -> str:
    """16 hex digits that tell one text from another."""
    return digest(text.encode("utf-8", "surrogatepass"))
