"""What is wrong with a caption, seen from its text alone: repetition, boilerplate, suspicious words, length, language.

Rules for captions that models write. They find what models do when they fail; they are no judgement of style.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable

from alip.errors import UserError

# Phrases in which a model talks about the image, the task or itself instead of saying what is to be seen.
BOILERPLATE = (
    r"(?:(?:in )?this|in the) (?:image|picture|photo|photograph)",
    r"(?:image|picture|photo|photograph) (?:shows|depicts|features|captures|displays|describes)",
    r"as an ai",
    r"i(?:'m| am) (?:sorry|unable|not able)",
    r"i (?:can(?:no|')t|do not|don't) (?:see|tell|view|provide|describe|assist|identify)",
    r"(?:sure|certainly|of course)[,!]",
    r"here(?:'s| is) (?:a|the|one) (?:short |brief |possible )?(?:caption|description|sentence)",
    r"caption:",
    r"no (?:image|picture|caption|description) (?:is |was )?(?:available|provided|visible|found)",
    r"(?:overall|additionally|furthermore), ",
)
# Words that captioners trained on the web write of images in which they are not, or of those that are no photographs.
SUSPICIOUS = (
    r"watermarks?|stock (?:photo|image|vector)s?|shutterstock|getty ?images?|alamy|dreamstime|istock|adobe stock|"
    r"royalty[- ]free|copyright|all rights reserved|©|https?://\S*|www\.\S*|\S+\.(?:jpe?g|png|com|net|org)|"
    r"camera roll|screenshot|placeholder|lorem ipsum|<[^<>\s]{1,40}>|\bunk\b"
)
_BOILERPLATE = re.compile(r"\b(?:" + "|".join(BOILERPLATE) + ")", re.IGNORECASE)
_SUSPICIOUS = re.compile(rf"(?<!\w)(?:{SUSPICIOUS})(?!\w)", re.IGNORECASE)
_WORD = re.compile(r"\w+(?:['’\-]\w+)*")
_PHRASE_ENDS = re.compile(
    r"[.,;:!?()\"]|\b(?:and|or|with|without|in|on|at|by|of|near|next to|beside|behind|under|over|above|below|between|"
    r"against|from|into|onto|through|along|around|while|that|which|who|where|is|are|was|were|has|have|being|"
    r"sitting|standing|lying|walking|holding|wearing|looking)\b",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"^(?:an?|the|some|two|three|four|several|many|its|their|his|her)\s+", re.IGNORECASE)
_EMPTY = {"it", "there", "this", "front", "top", "side", "back", "background", "foreground", "middle", "image"}


def words_of(text: str) -> list[str]:
    """The words in lower case."""
    return [word.lower() for word in _WORD.findall(text)]


def repetition(words: list[str]) -> float:
    """0 without repetition, towards 1 the more of the text is repeated: the largest fraction, over n = 2 to 4, of
    runs of n words that have been there before; or of single words, where one word is more than a third of the text."""
    worst = 0.0
    for n in (2, 3, 4):
        runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        if len(runs) > 1:
            worst = max(worst, 1 - len(set(runs)) / len(runs))
    if len(words) > 3:
        most = Counter(words).most_common(1)[0][1] / len(words)
        worst = max(worst, most if most > 1 / 3 else 0.0)
    return worst


def boilerplate(text: str) -> str:
    """The first phrase of BOILERPLATE in a caption, in lower case; "" without one."""
    found = _BOILERPLATE.search(text)
    return " ".join(found.group().lower().split()) if found else ""


def suspicious_word(text: str) -> str:
    """The first of SUSPICIOUS in a caption, in lower case; "" without one."""
    found = _SUSPICIOUS.search(text)
    return " ".join(found.group().lower().split()) if found else ""


def script(text: str) -> str:
    """The script of most letters, as Unicode names it: "latin", "cyrillic", "cjk", …; "" without letters."""
    names = Counter(unicodedata.name(mark, "").partition(" ")[0].lower() for mark in text if mark.isalpha())
    return names.most_common(1)[0][0] if names else ""


def phrases(text: str, most: int = 8) -> list[str]:
    """The things that a caption names, roughly: what stands between its prepositions, verbs and commas, without
    articles. "a red dog on the grass" → ["red dog", "grass"]."""
    found: dict[str, None] = {}
    for part in _PHRASE_ENDS.split(text):
        words = part.split()
        phrase = " ".join(words)
        while (shorter := _ARTICLE.sub("", phrase)) != phrase:
            phrase = shorter
        if phrase and phrase.lower() not in _EMPTY and any(letter.isalpha() for letter in phrase):
            found.setdefault(phrase.lower())
    return list(found)[:most]


def language_finder() -> Callable[[str], tuple[str, float]]:
    """text → (ISO 639-1 code, probability), by py3langid. UserError where it is not installed."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError("--language needs the package py3langid: pip install py3langid (or alip[language])") from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def find(text: str) -> tuple[str, float]:
        code, probability = identifier.classify(text)
        return str(code), float(probability)

    return find
