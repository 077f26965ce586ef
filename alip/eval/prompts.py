"""Protocols, prompt templates, and class lists given as files.

A template is a text with one `{}` where the class name goes.
"""

from __future__ import annotations

from pathlib import Path

from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

from alip.errors import UserError
from alip.files import read_json

PROTOCOLS = {
    "field": "the usual splits, names and templates; captions as they are",
    "released": "as the ALIP release: its splits; a prefix before every caption",
}


def check_protocol(protocol: str) -> None:
    """Raises UserError unless the protocol is known."""
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}: take {' or '.join(PROTOCOLS)}")


def retrieval_prefix(protocol: str) -> str:
    """What is put before every caption."""
    return "a photo of " if protocol == "released" else ""


def read_lists(path: str | Path, set_name: str, what: str) -> list[str]:
    """One set's list from a JSON file in SLIP's form, {set: [text, …]}; `what` names it in errors.

    The sets' names in SLIP's own files are accepted beside ours.
    """
    path = Path(path)
    lists = read_json(path)
    for name in (set_name, *SLIP_NAMES.get(set_name, ())):
        if name in lists:
            found = lists[name]
            if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
                raise UserError(f"{path}: {name} must be a list of texts")
            return found
    raise UserError(f"{path} has no {what} for {set_name}; it has: {', '.join(list(lists)[:20])}")


def check_templates(templates: list[str], set_name: str) -> list[str]:
    """The templates; raises UserError for one without exactly one place for the class name."""
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f'{set_name}: the template "{template}" needs exactly one {{}} for the class name')
    return templates


# How SLIP's files and the ALIP release name the same sets.
SLIP_NAMES = {
    "cars": ("stanford_car", "stanford_cars"),
    "aircraft": ("fgvc_aircraft",),
    "food101": ("food",),
    "pets": ("oxford_pets",),
    "flowers": ("flowers102",),
    "imagenet": ("imagenet1k",),
}

# What an image folder or a class list without templates of its own gets.
PLAIN_TEMPLATES = ["a photo of a {}."]


def _forms(*forms: str, articles: tuple[str, ...] = ("a", "the")) -> list[str]:
    """Each form with each article in place of `*`."""
    return [form.replace("*", article) for article in articles for form in forms]


# The templates that CLIP published and SLIP, HiCLIP and the ALIP release use too; ImageNet's are open_clip's.
TEMPLATES: dict[str, list[str]] = {
    "cifar": _forms(
        *[f"a {kind} photo of * {{}}.".replace("  ", " ") for kind in ("", "blurry", "black and white")],
        *[f"a {kind} photo of * {{}}." for kind in ("low contrast", "high contrast", "bad", "good")],
        *[f"a photo of * {size} {{}}." for size in ("small", "big")],
    ),
    "food101": ["a photo of {}, a type of food."],
    "pets": ["a photo of a {}, a type of pet."],
    "flowers": ["a photo of a {}, a type of flower."],
    "aircraft": _forms("a photo of * {}, a type of aircraft."),
    "sun397": _forms("a photo of * {}."),
    "dtd": _forms(*[f"a photo of * {{}} {what}." for what in ("texture", "pattern", "thing", "object")]),
    "cars": [
        *[f"a photo of {which} {{}}." for which in ("a", "the", "my", "my dirty", "my clean", "my new", "my old")],
        "i love my {}!",
    ],
    "caltech101": _forms(
        *[f"a {work} of * {{}}." for work in ("photo", "painting", "sculpture", "sketch", "tattoo", "rendition")],
        *[f"* {kind} {{}}." for kind in ("plastic", "toy", "embroidered", "cartoon", "plushie", "origami")],
        *[f"{work} of * {{}}." for work in ("art", "graffiti", "a drawing", "a doodle")],
        "* {} in a video game.",
    ),
    "imagenet": [template("{}") for template in OPENAI_IMAGENET_TEMPLATES],
}
