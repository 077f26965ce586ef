"""Cleaning of generated captions: white space, repeated phrases, leading "a picture of"."""

from __future__ import annotations

import re
import unicodedata

_MEDIUM = r"(?:picture|photo|photograph|image|pic|photography)"
_LEAD = re.compile(
    rf"^(?:(?:(?:this|it|there|here)(?:\s+is|'s)\s+)?(?:(?:an?|the)\s+)?(?:(?:close[- ]?up|stock|colou?r)\s+)?"
    rf"{_MEDIUM}\s+(?:of|showing)|(?:this|the)\s+{_MEDIUM}\s+(?:shows|depicts|describes|is\s+of))\s+(?=\S)",
    re.IGNORECASE,
)


def clean(text: str, strip_lead: bool = False, collapse_repeats: bool = True) -> str:
    """One line of text without control characters, doubled spaces or repeated phrases.

    strip_lead: also drops one leading "a picture of", "this is a photo of", "the image shows" and the like.
    collapse_repeats: "a dog and a dog and a dog and a dog" becomes "a dog and a dog" (see `collapse`).
    """
    text = "".join(" " if unicodedata.category(mark) in ("Cc", "Zl", "Zp") else mark for mark in text)
    text = " ".join(text.split())
    text = re.sub(r"\s+([,.;:!?])", r"\1", text)
    if collapse_repeats:
        text = collapse(text)
    if strip_lead:
        text = _LEAD.sub("", text, count=1)
    return text.strip()


def collapse(text: str, longest: int = 12) -> str:
    """Removes the immediate repetitions that decoders fall into.

    A single word is kept once where it occurs three times or more ("the the the" → "the"; "bye bye" stays), a phrase
    of two to `longest` words once where it occurs twice or more. Words are compared without case and commas.
    """
    words = text.split()
    bare = [word.strip(",.;").lower() for word in words]
    start = 0
    while start < len(words):
        for length in range(1, min(longest, (len(words) - start) // 2) + 1):
            phrase = bare[start : start + length]
            times = 1
            while bare[start + times * length : start + (times + 1) * length] == phrase:
                times += 1
            if times >= (3 if length == 1 else 2):
                # Keep the last copy: it has the punctuation before the next word.
                del words[start : start + (times - 1) * length]
                del bare[start : start + (times - 1) * length]
                break
        start += 1
    return " ".join(words)
