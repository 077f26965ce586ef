"""Protocols, prompt templates, and class lists given as files.

A template is a text with one `{}` where the class name goes.
"""

from __future__ import annotations

import json
from pathlib import Path

from alip.errors import UserError

PROTOCOLS = {
    "field": "the field's usual splits, names and templates; captions as they are",
    "released": 'as the ALIP release: its splits, and "a photo of " before every caption',
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
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(lists, dict):
        raise UserError(f"{path}: expected an object {{set: [text, …]}}")
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
