"""Protocols, prompt templates, and class lists given as files.

A template is a text with one `{}` for the class name.
"""

from __future__ import annotations

from pathlib import Path

from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

from alip.errors import UserError
from alip.eval.named_lists import templates
from alip.files import read_json
from alip.schema import check

PROTOCOLS = {
    "standard": "the usual splits, names and templates; captions as they are",
    "alip": "as the ALIP release: its splits, class names and ImageNet resizing; a prefix before every caption",
}
_OLD_NAMES = {"field": "standard", "released": "alip"}  # of the protocols, until version 0.1
ACCEPTED_PROTOCOLS = (*PROTOCOLS, *_OLD_NAMES)

_TEXTS = {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": r"\S"}}


def canonical_protocol(protocol: str) -> str:
    """The protocol's name, today's for an old one; raises UserError for an unknown one."""
    protocol = _OLD_NAMES.get(protocol, protocol)
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}: choose {' or '.join(PROTOCOLS)}")
    return protocol


def retrieval_prefix(protocol: str) -> str:
    """What is put before every caption."""
    return "a photo of " if canonical_protocol(protocol) == "alip" else ""


def read_lists(path: str | Path, dataset_name: str, what: str) -> list[str]:
    """One dataset's list from a JSON file in SLIP's form, {dataset: [text, …]}; `what` names it in errors.

    SLIP's own names of the datasets are accepted beside ours.
    """
    form = f"{what} are {{dataset: [text, …]}}"
    lists = read_json(path)
    for name in (dataset_name, *SLIP_NAMES.get(dataset_name, ())):
        if name in lists:
            check(lists, {"properties": {name: _TEXTS}}, path, form)
            return lists[name]
    raise UserError(
        f"{path} has no {what} for {dataset_name}; it has: {', '.join(list(lists)[:20])[:200] or 'nothing'}"
    )


def check_templates(templates: list[str], dataset_name: str) -> list[str]:
    """The templates; raises UserError for one without exactly one `{}` for the class name."""
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f'{dataset_name}: the template "{template[:80]}" needs exactly one {{}} for the class name')
    return templates


# How SLIP's files and the ALIP release name the same datasets.
SLIP_NAMES = {
    "cars": ("stanford_car", "stanford_cars"),
    "aircraft": ("fgvc_aircraft",),
    "food101": ("food",),
    "pets": ("oxford_pets",),
    "flowers": ("flowers102",),
    "imagenet": ("imagenet1k",),
    "imagenet-a": ("imagenet_a",),
    "cub": ("cub200",),
    "sst2": ("rendered_sst2",),
    "hateful-memes": ("hateful_memes",),
    "clevr-counts": ("clevr", "clevr_counts"),
    "kinetics700": ("kinetics700_frames",),
    "ucf101": ("ucf101_frames",),
    "pcam": ("patch_camelyon",),
    "kitti": ("kitti_distance",),
}

# What an image folder or a class list without templates of its own gets.
PLAIN_TEMPLATES = ["a photo of a {}."]


def templates_of(name: str) -> list[str]:
    """The templates of lists/templates/NAME.txt; ImageNet's 80 are open_clip's."""
    return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES] if name == "imagenet" else templates(name)
