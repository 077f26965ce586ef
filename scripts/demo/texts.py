"""The two texts of every demo image, and how often each of them is wrong.

`raw_text` is what a web page would say, `caption` what a captioner would. Both are then corrupted at stated rates, and
whether a text was corrupted is kept as a label. Everything random comes from SHA-256 of the sample's key, so two
runs give the same texts, and what is corrupted at one rate is corrupted at every higher rate too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from classes import TEMPLATES

MISMATCHED_FRACTION = 0.4  # raw texts that belong to another concept's image
WRONG_CAPTION_FRACTION = 0.1  # captions that say something else than the image shows, or nothing
GENERIC_CAPTION_FRACTION = 0.15  # of the other captions: right, but only the class
CLASS_ADDED_FRACTION = 0.4  # of the captions with a name: "pizza, a meal"
CAPTIONS_PER_IMAGE = 4  # in the tars; the studies take the first, or wordings of their own
CLASS_ONLY_FRACTION = 0.5  # of an image's further captions: right, but only the class

# A captioner's ways to begin; {} is a name or a class. Without words before it is the most frequent.
_CAPTION_FORMS = ["{}", "{}", "{}", *TEMPLATES[1:]]
_EMPTY_CAPTIONS = ["a small picture", "an icon on a white background", "a colourful drawing", "an image of something"]


def sample(*parts: str) -> float:
    """A number in [0, 1) that depends on nothing but the words given."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def choose(items: Sequence, *parts: str):
    """One of the items, by hash."""
    return items[int(sample(*parts) * len(items))]


def order(items: list[str], *parts: str) -> list[str]:
    """The items in a random order given by their hash."""
    return sorted(items, key=lambda item: sample(item, *parts))


def raw_text(name: str, keywords: list[str], key: str) -> str:
    """What a web page would say: the name and up to three keywords."""
    return ", ".join([name, *order(keywords, key, "keyword")[:3]])


def corrupt_texts(records: Sequence[dict], mismatched: float, wrong_captions: float) -> list[dict]:
    """The records with text, is_mismatched, caption and caption_is_wrong; rates are fractions of the samples.

    records: dictionaries with key, name, class and own_text (the raw text that belongs to the image).
    """
    texts = _swap_texts(records, mismatched)
    by_class = names_by_class(records)
    done = []
    for record, (text, is_mismatched) in zip(records, texts, strict=True):
        is_wrong = sample(record["key"], "caption is wrong") < wrong_captions
        caption = _wrong_caption(record, by_class) if is_wrong else _right_caption(record)
        labels = {"text": text, "is_mismatched": is_mismatched, "caption": caption, "caption_is_wrong": is_wrong}
        done.append({**record, **labels})
    return done


def sampled_captions(record: dict, by_class: dict[str, list[str]], count: int) -> list[str]:
    """`count` (at most 4) captions as one captioner samples them, all different; the first is the record's `caption`.

    If that is wrong (`caption_is_wrong`), all are, in the same way: the captioner has mistaken what the image shows.
    record: one of corrupt_texts; by_class: the names of every class.
    """
    key = record["key"]
    shown = _mistaken(record, by_class) if record["caption_is_wrong"] else (record["name"], record["class"])
    found = {record["caption"]: None}
    if shown is None:
        return [*found, *order([text for text in _EMPTY_CAPTIONS if text not in found], key, "sampled")][:count]
    name, class_name = shown
    article = _with_article(class_name)
    bodies = [name, f"{name}, {article}", f"{article} called {name}"]
    specific = order([form.format(body) for form in TEMPLATES for body in bodies], key, "sampled")
    generic = order([form.format(class_name) for form in TEMPLATES], key, "sampled")
    while len(found) < count:
        is_generic = generic and sample(key, str(len(found)), "only the class") < CLASS_ONLY_FRACTION
        found[(generic if is_generic else specific).pop()] = None
    return list(found)


def names_by_class(records: Sequence[dict]) -> dict[str, list[str]]:
    """The names that each class has in the records."""
    by_class: dict[str, list[str]] = {}
    for record in records:
        by_class.setdefault(record["class"], []).append(record["name"])
    return by_class


def wordings(record: dict, count: int) -> list[str]:
    """`count` (at most 12) right captions of an image, all different; the first is its right caption in the demo.

    The others have the name alone, with the class or with a keyword, in another of the captioner's forms; as many of
    them as of the first have the class alone.
    """
    key, name, class_name = record["key"], record["name"], record["class"]
    article = _with_article(class_name)
    keywords = [word for word in record["own_text"].removeprefix(name).split(", ") if word]
    bodies = [name, f"{name}, {article}", f"{article} called {name}", *(f"{name}, {keyword}" for keyword in keywords)]
    specific = order([form.format(body) for form in TEMPLATES for body in bodies], key, "wording")
    generic = order([form.format(class_name) for form in TEMPLATES], key, "wording")
    found = {_right_caption(record): None}
    while len(found) < count:
        is_generic = generic and sample(key, str(len(found)), "caption is generic") < GENERIC_CAPTION_FRACTION
        found[(generic if is_generic else specific).pop()] = None
    return list(found)


def spoiled_caption(record: dict, by_class: dict[str, list[str]], number: int) -> str:
    """What a failing captioner writes about an image, caption `number` of it. by_class: the names of every class."""
    return _wrong_caption({**record, "key": f"{record['key']}#{number}"}, by_class)


def _swap_texts(records: Sequence[dict], fraction: float) -> list[tuple[str, bool]]:
    """[(raw text, is it mismatched)]: the chosen samples pass their texts round in a circle."""
    chosen = [n for n, record in enumerate(records) if sample(record["key"], "mismatched") < fraction]
    texts = [(record["own_text"], False) for record in records]
    for rank, number in enumerate(chosen):
        step = 1
        # Another style of the same concept would be no mismatch.
        while records[chosen[(rank + step) % len(chosen)]]["name"] == records[number]["name"]:
            step += 1
        texts[number] = (records[chosen[(rank + step) % len(chosen)]]["own_text"], True)
    return texts


def _right_caption(record: dict) -> str:
    """The full name in plain words, for some with the class; for others only the class."""
    key = record["key"]
    if sample(key, "caption is generic") < GENERIC_CAPTION_FRACTION:
        return choose(_CAPTION_FORMS, key, "form").format(record["class"])
    return _in_words(record["name"], record["class"], key)


def _wrong_caption(record: dict, by_class: dict[str, list[str]]) -> str:
    shown = _mistaken(record, by_class)
    if shown is None:
        return choose(_EMPTY_CAPTIONS, record["key"], "empty")
    return _in_words(*shown, record["key"])


def _mistaken(record: dict, by_class: dict[str, list[str]]) -> tuple[str, str] | None:
    """(name, class) that a failing captioner sees; None: nothing. A captioner's three ways to fail: a look-alike
    (another name of the class), another class, no content."""
    key, shown = record["key"], record["class"]
    failure = choose(("look-alike", "other class", "empty"), key, "failure")
    if failure == "other class":
        shown = choose(sorted(set(by_class) - {shown}), key, "other class")
    names = sorted({name for name in by_class[shown] if name != record["name"]})
    return None if failure == "empty" or not names else (choose(names, key, "wrong name"), shown)


def _in_words(name: str, class_name: str, key: str) -> str:
    words = choose(_CAPTION_FORMS, key, "form").format(name)
    if sample(key, "class is added") < CLASS_ADDED_FRACTION:
        words += f", {_with_article(class_name)}"
    return words


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
