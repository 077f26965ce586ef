"""What each dataset's classes are called in a prompt, in the order of the dataset's own class numbers.

The names are those that CLIP published and the field uses since: the datasets' own, written as words. They are checked
against the names that the data on disk has (`check_order`), so that a list in another order is an error, not a number.
ImageNet's are open_clip's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from alip.errors import UserError
from alip.eval.named_lists import classes

CIFAR10 = classes("cifar10")
CIFAR100 = classes("cifar100")
FOOD101 = classes("food101")
PETS = classes("pets")
FLOWERS = classes("flowers")
DTD = classes("dtd")
AIRCRAFT = classes("aircraft")
CALTECH101 = classes("caltech101")
CARS = classes("cars")
SUN397 = classes("sun397")
IMAGENET = list(IMAGENET_CLASSNAMES)

# Where a prompt's name is more than the dataset's own name with its punctuation taken off.
_OWN = {
    "off-center face": "Faces",
    "centered face": "Faces_easy",
    "leopard": "Leopards",
    "motorbike": "Motorbikes",
    "airplane": "airplanes",
    "side of a car": "car_side",
    "body of a cougar cat": "cougar_body",
    "face of a cougar cat": "cougar_face",
    "head of a crocodile": "crocodile_head",
    "head of a flamingo": "flamingo_head",
    "snoopy (cartoon beagle)": "snoopy",
    "yin and yang symbol": "yin_yang",
    "pink and yellow dahlia": "pink-yellow dahlia?",
    "air plant": "ball moss",
    "background": "BACKGROUND_Google",
    "Yorkshire Terrie": "Yorkshire Terrier",  # a typo of the release
}


def check_order(dataset_name: str, names: Sequence[str], own: Sequence[str]) -> None:
    """Raises UserError unless the dataset's own class names (from disk) are these, one by one."""
    if len(names) != len(own):
        raise UserError(
            f"{dataset_name}: the data has {len(own)} classes, but {len(names)} are expected; is it complete?"
        )
    for number, (name, found) in enumerate(zip(names, own)):
        if _letters(found) not in (_letters(name), _letters(_OWN.get(name, name))):
            raise UserError(f"{dataset_name}: class {number} is {found!r} in the data, but {name!r} is expected")


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
